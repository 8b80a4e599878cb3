"""Faults that no other test notices; `mutations.py` puts them in and looks."""

import csv
import json
import pathlib
import subprocess
import sys
from fractions import Fraction

import jax
import numpy as np

from selfens_jax import certificates, smoothing

CERTIFY = pathlib.Path(__file__).parents[1] / "experiments" / "certify.py"


def test_every_block_of_draws_and_every_example_has_noise_of_its_own():
    """Sixteen classes that the noise alone decides: no two blocks of draws have the same votes."""
    predict = jax.tree_util.Partial(lambda x: x[:, :, 0])
    size, sizes = smoothing.DRAWS_PER_BLOCK, range(4)
    totals = [np.zeros((3, 16), int)] + [
        smoothing.count_votes(
            predict,
            np.zeros((3, 16, 1)),
            sigma=1.0,
            num_draws=size * blocks + size // 2,
            key=jax.random.key(0),
            batch_size=size,
        )
        for blocks in sizes
    ]
    votes = np.diff(totals, axis=0)
    assert (votes.sum(axis=-1) == [[size // 2]] + [[size]] * 3).all()
    whole = votes[1:].reshape(-1, 16)
    assert len(np.unique(whole, axis=0)) == len(whole)


def test_radii_in_the_file_are_rounded_down(tmp_path):
    top = np.arange(900, 1001)
    counts = np.stack([top, 1000 - top], axis=-1)
    source = {"name": "own", "source": "file", "scaling": "none", "classes": ["a", "b"]}
    settings = {"data": source, "sigma": 0.7, "model": "macnn", "ensemble": "mc"}
    settings |= {"num_draws": 1000, "num_masks": 5}
    np.savez(
        tmp_path / "counts-own.npz",
        indices=np.arange(len(top)),
        counts=counts,
        labels=np.zeros(len(top), int),
        settings=json.dumps(settings),
    )
    call = [sys.executable, str(CERTIFY), "--from_counts=counts-own.npz"]
    subprocess.run(call, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    (table,) = tmp_path.glob("certificates-*.tsv")
    with table.open() as file:
        written = [Fraction(row["radius"]) for row in csv.DictReader(file, delimiter="\t")]
    exact = [Fraction(float(r)) for r in certificates.certify_counts(counts, 0.7).radius]
    for shown, radius in zip(written, exact, strict=True):
        assert shown <= radius < shown + Fraction(1, 10**6)

"""Faults that no other test notices; `mutations.py` puts them in and looks."""

import contextlib
import csv
import json
from fractions import Fraction

from common import trained

import certify
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from absl.testing import flagsaver
from flax import linen as nn

from selfens_jax import certificates, counting, data, masks, smoothing, streams


@contextlib.contextmanager
def flags_of(*arguments: str):
    """The flags of certify.py, as its command line would set them."""
    with flagsaver.flagsaver():
        flags.FLAGS(["certify.py", *arguments])
        yield
    flags.FLAGS.unparse_flags()


class Halves(nn.Module):
    """The logits of the two classes are the sums of the two halves of the series."""

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return x.reshape(len(x), 2, -1).sum(axis=-1)


def test_every_block_of_draws_and_every_example_has_noise_of_its_own():
    """Sixteen classes that the noise alone decides: no two blocks of draws have the same votes."""
    predict = jax.tree_util.Partial(lambda x: x[:, :, 0])
    size, sizes = smoothing.default_draws_per_block(128), range(4)
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


def test_votes_resumed_in_other_batches_are_the_same(tmp_path, monkeypatch):
    """On series of zeros, whose votes change with the masks and the noise."""
    file = tmp_path / "own.npz"
    y = np.arange(12) % 2
    np.savez(file, X_train=np.zeros((2, 16)), y_train=y[:2], X_test=np.zeros((12, 16)), y_test=y)
    config = {"data": data.describe(data.load(str(file))), "sigma": 0.5, "seed": 0}
    predict = smoothing.self_ensemble(Halves(), {}, masks.binomial(jax.random.key(0), 2, 16, 0.3))
    monkeypatch.setattr(trained, "load_classifier", lambda _: (predict, {"ensemble": "mc"}))

    def count(*arguments: str) -> np.ndarray:
        with flags_of(f"--dataset={file}", *arguments):
            job = certify.make_job(tmp_path, config, 1000)
            counted = counting.count_examples(job, 100, tmp_path, counting.Share(), lambda *_: "")
        return counted.counts

    first = count("--num_examples=4", "--batch_size=100")
    resumed = count("--batch_size=100")
    np.testing.assert_array_equal(resumed[[0, 3, 6, 9]], first)
    (votes,) = tmp_path.glob("votes-*.tsv")
    votes.unlink()
    np.testing.assert_array_equal(count("--batch_size=300"), resumed)
    shifted = smoothing.self_ensemble(Halves(), {}, jnp.roll(predict.masks, 1, axis=1))
    other = smoothing.count_votes(
        shifted,
        np.zeros((12, 16, 1)),
        sigma=0.5,
        num_draws=100,
        key=streams.stream(0, "certification"),
        batch_size=100,
    )
    assert (other != resumed).any(axis=1).sum() > 6  # other masks are other votes


def test_radii_in_the_file_are_rounded_down(tmp_path):
    top = np.arange(900, 1001)
    counts = np.stack([top, 1000 - top], axis=-1)
    source = {"name": "own", "source": "file", "scaling": "none", "num_test": 101}
    source["classes"] = ["a", "b"]
    settings = {"data": source, "sigma": 0.7, "model": "macnn", "ensemble": "mc"}
    settings |= {"num_draws": 1000, "num_masks": 5}
    file = tmp_path / "counts-own.npz"
    labels = np.zeros(len(top), int)
    np.savez(
        file,
        indices=np.arange(len(top)),
        counts=counts,
        labels=labels,
        forwards=np.full(len(top), 5000),
        settings=json.dumps(settings),
    )
    with flags_of(f"--from_counts={file}"):
        certify.main()
    (table,) = tmp_path.glob("certificates-*.tsv")
    with table.open() as rows:
        written = [Fraction(row["radius"]) for row in csv.DictReader(rows, delimiter="\t")]
    exact = [Fraction(float(r)) for r in certificates.certify_counts(counts, 0.7).radius]
    for shown, radius in zip(written, exact, strict=True):
        assert shown <= radius < shown + Fraction(1, 10**6)

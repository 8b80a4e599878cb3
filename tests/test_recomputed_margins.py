"""margins.py, run as a user runs it: logits drawn again one draw at a time, variances by formula.

The formulas are those of the paper that `selfens_jax.margins` states, here for the two classes A
and B alone, with covariances of all pairs of masks.
"""

import functools
import json
import pathlib

import numpy as np
import pytest
from helpers import read_record
from reproduction import tables
from scipy import stats
from test_recomputed import (
    LABELS,
    MC,
    OF_GRID,
    OF_MC,
    member_logits,
    networks,
    prepare,
    run_of,
    script,
    settings_record,
    the_masks,
    under_masks,
    x_of,
)

CHOSEN, NUM_DRAWS, NUM_RANDOM = [0, 3, 6, 9], 30, 5
FLAGS = (*MC, *OF_MC, *OF_GRID, "--num_examples=4", "--num_draws=30", "--num_random_masks=5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return prepare(tmp_path_factory, "mc")


@functools.cache
def drawn(folder: pathlib.Path) -> tuple[dict, dict]:
    """The record of margins.py and its arrays."""
    said = script(folder, "margins", *FLAGS)
    (file,) = (folder / run_of("mc")).glob("margins-n30-*.npz")
    assert said.stdout == f"{file}\n"
    assert script(folder, "margins", *FLAGS).stdout == said.stdout  # which it finds there
    with np.load(file) as arrays:
        return read_record(file.with_suffix(".json")), dict(arrays)


def test_the_logits_are_those_of_single_draws(folder):
    record, arrays = drawn(folder)
    run = folder / run_of("mc")
    settings = settings_record(
        run,
        "mc",
        num_draws=NUM_DRAWS,
        indices=CHOSEN,
        num_random_masks=NUM_RANDOM,
    )
    assert record["settings"] == json.loads(str(arrays["settings"])) == settings
    np.testing.assert_array_equal(arrays["indices"], CHOSEN)
    np.testing.assert_array_equal(arrays["labels"], LABELS[CHOSEN])
    members = under_masks(networks(run)[0], the_masks())
    logits = member_logits(members, x_of("test")[CHOSEN], CHOSEN, NUM_DRAWS).mean(axis=2)
    np.testing.assert_allclose(arrays["logits"], logits, atol=1e-4)


def check_by_hand(noisy, noisy_masked, clean, clean_masked) -> dict:
    """The check of one example, from logits (n, K), (n, P, K), (K,) and (P, K)."""
    half = NUM_DRAWS // 2
    of_ensembles = noisy_masked[:half].mean(axis=1)
    top = int(np.bincount(of_ensembles.argmax(axis=1)).argmax())
    others = [which for which in range(3) if which != top]
    second = max(others, key=lambda which: of_ensembles[:, which].mean())

    def parts(other: int) -> tuple[float, float, float, float]:
        """The mean of A's margin over `other`, V_p, zeta_p and Sigma_c."""
        z = noisy_masked[:half, :, top] - noisy_masked[:half, :, other]
        covariance = np.cov(z.T)
        pairs = covariance[~np.eye(NUM_RANDOM, dtype=bool)]
        v_p = np.diag(covariance).mean()
        sigma_c = np.var(clean_masked[:, top] - clean_masked[:, other], ddof=1)
        return z.mean(), v_p, pairs.mean() / v_p, sigma_c

    def fixed(m: int, v_p: float, zeta: float) -> float:
        return (1 + zeta * (m - 1)) / m * v_p

    mean, v_p, zeta, sigma_c = parts(second)
    ensembles = []
    for m in (1, 2, 5):  # of the paper's 1, 2, 5, 10 and 20 those that 5 masks can make
        p_a = 1.0
        for other in others:
            its_mean, its_v, its_zeta, its_sigma = parts(other)
            its_variance = fixed(m, its_v, its_zeta) + its_sigma / m
            p_a *= stats.norm.cdf(its_mean / np.sqrt(its_variance))
        groups = [
            noisy_masked[half:, first : first + m].mean(axis=1)
            for first in range(0, NUM_RANDOM - m + 1, m)
        ]
        margins = [group[:, top] - group[:, second] for group in groups]
        measured = np.mean([np.var(z, ddof=1) for z in margins])
        between = np.var([z.mean() for z in margins], ddof=1) if len(groups) > 1 else None
        ensembles.append(
            {
                "num_masks": m,
                "predicted_fixed": fixed(m, v_p, zeta),
                "measured_fixed": measured,
                "predicted_redrawn": fixed(m, v_p, zeta) + sigma_c / m,
                "measured_redrawn": None if between is None else measured + between,
                "predicted_p_a": p_a,
                "measured_p_a": np.mean([group.argmax(axis=1) == top for group in groups]),
            }
        )
    return {
        "top": top,
        "second": second,
        "mean_plain": clean[top] - clean[second],
        "mean_masked": (clean_masked[:, top] - clean_masked[:, second]).mean(),
        "mean_noisy": mean,
        "clean_variance": sigma_c,
        "perturbation_variance": v_p,
        "unmasked_variance": np.var(noisy[:half, top] - noisy[:half, second], ddof=1),
        "correlation": zeta,
        "ensembles": ensembles,
    }


def assert_alike(found, expected) -> None:
    """Records of the same keys in the same order, with the same numbers up to rounding."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_alike(found[key], value)
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    else:
        assert found == (None if expected is None else pytest.approx(expected, rel=1e-3))


def test_the_check_is_that_of_the_formulas(folder):
    record, _ = drawn(folder)
    (network,) = networks(folder / run_of("mc"))
    random_masks = the_masks(NUM_RANDOM)
    members = [network, *under_masks(network, random_masks)]
    x = x_of("test")[CHOSEN]
    noisy = member_logits(members, x, CHOSEN, NUM_DRAWS).astype(float)
    clean = np.stack([one(x) for one in members], axis=1).astype(float)
    assert {found["second"] > found["top"] for found in record["examples"]} == {True, False}
    of_series, of_ensembles = record["examples"][0], record["examples"][0]["ensembles"][0]
    computed = {"shrinkage", "keep_squared"}  # by the table
    assert tables.PARTS.keys() - computed == of_series.keys() - {
        "index",
        "top",
        "second",
        "ensembles",
    }
    assert tables.PREDICTIONS.keys() == of_ensembles.keys() - {"num_masks"}
    for index, found, with_noise, without in zip(
        CHOSEN, record["examples"], noisy, clean, strict=True
    ):
        parts = with_noise[:, 0], with_noise[:, 1:], without[0], without[1:]
        assert_alike(found, {"index": index, **check_by_hand(*parts)})

"""certify.py --target_radius (decisions.py), run as a user runs it: every number worked out again.

The evidence is integrated numerically over the priors that `sequential` names, in a loop of its own
over the batches of draws; the votes are those of `test_recomputed`.
"""

import functools
import pathlib
import subprocess

import numpy as np
import pytest
from helpers import read_record
from scipy import integrate, stats
from test_recomputed import (
    CASES,
    CHANNELS,
    CLASSES,
    GRID,
    LABELS,
    LENGTH,
    SIGMA,
    assert_summary,
    prepare,
    printed,
    read_log,
    read_table,
    run_all,
    run_of,
    seconds_of,
    short,
    vote,
)

RADIUS, ALPHA_FUTILITY = 0.3, 0.2
ROUNDING = GRID * np.sqrt(LENGTH * CHANNELS)  # which the votes must certify beside the radius
EDGES = [20, 40, 60, 80, 100, 120, 160, 200]  # a quarter more draws each time, in blocks of 20
OF_TEST = (f"--target_radius={RADIUS}", f"--alpha_futility={ALPHA_FUTILITY}", "--max_draws=200")
TESTS = {  # whose votes, and alpha
    "all masks": ("masks", 0.03),
    "all masks, another level": ("masks", 0.0004),
    "consensus": ("consensus", 0.03),
}
HEADER = ("idx", "label", "predict", "decision", "draws", "forwards", "correct")
NAMES = {1: "certified", -1: "rejected", 0: "undecided"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return prepare(tmp_path_factory, "mc")


@functools.cache
def decided(folder: pathlib.Path) -> dict[str, subprocess.CompletedProcess]:
    """What certify.py said; the other level comes last, when a log of the first is there."""
    commands = {
        name: ("certify", *CASES[case].flags, *OF_TEST, f"--alpha={alpha}")
        for name, (case, alpha) in TESTS.items()
    }
    last = {"all masks, another level": commands.pop("all masks, another level")}
    return run_all(folder, commands) | run_all(folder, last)


def evidence(successes: int, failures: int, p0: float, greater: bool) -> float:
    """The mean likelihood ratio to p0 over Beta(1, 0.2) above p0, or Beta(4, 1) below.

    Their densities are those of 1 - u^5 and v^(1/4) for uniform u and v.
    """

    def ratio(p: float) -> float:
        return (p / p0) ** successes * ((1 - p) / (1 - p0)) ** failures

    share, top = (lambda u: 1 - u**5, (1 - p0) ** 0.2) if greater else (lambda v: v**0.25, p0**4)
    return integrate.quad(lambda place: ratio(share(place)) / top, 0, top, limit=500)[0]


def decide(votes: np.ndarray, forwards: np.ndarray, alpha: float) -> tuple[int, ...]:
    """Forward passes, candidate, successes, draws tested and decision of one example's votes."""
    candidate = int(np.bincount(votes[:20]).argmax())
    p0 = stats.norm.cdf((RADIUS + ROUNDING) / SIGMA)
    for stop in EDGES[1:]:
        successes = int((votes[20:stop] == candidate).sum())
        failures = stop - 20 - successes
        certified = evidence(successes, failures, p0, greater=True) >= 1 / alpha
        rejected = evidence(successes, failures, p0, greater=False) >= 1 / ALPHA_FUTILITY
        if certified or rejected:
            break
    decision = int(certified) - int(rejected)
    return int(forwards[:stop].sum()), candidate, successes, stop - 20, decision


@pytest.mark.parametrize("name", TESTS)
def test_decisions_are_those_of_single_draws(folder, name):
    said = decided(folder)[name]
    case, alpha = CASES[TESTS[name][0]], TESTS[name][1]
    votes, forwards = vote(case.logits(folder, EDGES[-1]), case.first)
    expected = [decide(*row, alpha) for row in zip(votes, forwards, strict=True)]
    cost, candidate, _, tested, decision = np.transpose(expected)

    settings = case.settings(
        folder,
        target_radius=RADIUS,
        alpha=alpha,
        alpha_futility=ALPHA_FUTILITY,
        batches=EDGES,
    )
    run = folder / run_of(case.ensemble)
    log = read_log(run / f"decisions-{short(settings)}.tsv", settings)
    found = {index: tuple(map(int, values)) for index, (_, *values) in log.items()}
    assert found == dict(zip(case.chosen.tolist(), expected, strict=True))

    labels = LABELS[case.chosen]
    prediction = np.where(decision == 1, candidate, -1)
    draws = 20 + tested
    stem = f"target-r0.3-{len(labels)}ex-{short([settings, case.chosen.tolist()])}"
    header, *rows = read_table(run / f"{stem}.tsv")
    assert header == [*HEADER, "time"]
    names = (*CLASSES, "-1")
    for row, index, label, guess, *numbers in zip(
        rows, case.chosen, labels, prediction, decision, draws, cost, strict=True
    ):
        outcome, *numbers = numbers
        assert row[:4] == [str(index), names[label], names[guess], NAMES[outcome]]
        assert row[4:7] == [*map(str, numbers), str(int(guess == label))]
        assert seconds_of(row[7]) == pytest.approx(float(log[index][0]), abs=1e-4)

    every = 1000 * (3 if case.ensemble == "mc" else 2)
    most = max(list(labels).count(label) for label in labels)
    table = [
        ("certified accuracy at r = 0.3", sum(prediction == labels) / len(labels), ".2%"),
        ("series of the most frequent class", most / len(labels), ".2%"),
        *((NAMES[which], sum(decision == which) / len(labels), ".2%") for which in NAMES),
        ("draws an example, mean", sum(draws) / len(labels), ".1f"),
        ("draws an example, median", np.median(draws), ".0f"),
        ("forward passes an example, mean", sum(cost) / len(labels), ".1f"),
        (
            f"n = 1000 with every member ({every}), times as many",
            every * len(labels) / sum(cost),
            ".1f",
        ),
    ]
    statement = (
        f"a class marked certified holds for every change with L2 norm up to 0.3, each with "
        f"probability at least {1 - alpha:g} (anytime-valid test on fresh draws)"
    )
    record = read_record(run / f"{stem}.json")
    assert_summary(record.pop("summary"), table)
    assert record == {
        "statement": statement,
        "valid": True,
        "alpha": alpha,
        "radius_units": f"L2 norm, in the units of the series (scaling: {case.scaling})",
        "num_examples": len(labels),
        "abstain": "-1",
        "settings": settings,
        "series_sha256": case.hashes(),
    }
    written = f"{run / stem}.tsv (.json)"
    assert said.stdout == printed(case.title, statement, case.scaling, table, written)
    of_each = ", ".join(f"{NAMES[which]} {sum(decision == which)}" for which in NAMES)
    assert said.stderr.strip().endswith(f"{of_each}]")
    if name == "all masks":
        assert set(decision) == set(NAMES)  # all three occur


def test_another_level_is_another_log(folder):
    decided(folder)
    logs = list((folder / run_of("mc")).glob("decisions-*.tsv"))
    assert len(logs) == len(TESTS)

"""attack.py, run as a user runs it: every number, series and figure worked out again.

The attack is climbed one example and one step at a time, with the keys that `attacks` names; what
the series found are taken for is counted as in `test_recomputed`.
"""

import dataclasses
import functools
import json
import pathlib
import re
import subprocess
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import read_record
from test_recomputed import (
    BENIGN,
    CLASSES,
    LABELS,
    MC,
    NOISE_SEED,
    OF_GRID,
    OF_MC,
    QUICKLY,
    SIGMA,
    assert_figure,
    member_logits,
    networks,
    prepare,
    run_all,
    run_of,
    settings_record,
    tally,
    the_masks,
    under_masks,
    vote,
    x_of,
)

from selfens_jax import plots
from selfens_jax.streams import stream

STARTS, STEPS, COMPARISON = 0, 1, 2  # the numbers that `attacks` gives to the uses of noise


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """An attack: its flags, and what they mean."""

    flags: tuple[str, ...]
    ensemble: str
    chosen: tuple[int, ...]
    target: str
    epsilons: tuple[float, ...]
    steps: int
    restarts: int
    judged: str
    attack_draws: int = 1
    num_draws: int = 0

    @property
    def smoothed(self) -> bool:
        return self.target == "smoothed"

    @property
    def sigma(self) -> float:
        """Of the run."""
        return 0.0 if self.ensemble == "single" else SIGMA

    def members(self, folder: pathlib.Path) -> list[Callable]:
        (network,) = networks(folder / run_of(self.ensemble, self.sigma))
        return [network] if self.ensemble == "single" else under_masks(network, the_masks())


WITHOUT_NOISE = "class of the highest (mean) logit, without noise"
CASES = {
    "smoothed": Case(
        (*MC, *OF_MC, *OF_GRID, "--attack_draws=3", "--num_draws=2", "--epsilons=0.9,0.4"),
        "mc",
        (0, 1, 2, 4, 5, 7, 8, 10, 11),
        "smoothed",
        (0.4, 0.9),
        steps=2,
        restarts=2,
        judged="most voted class of n = 2 draws that no attack saw",
        attack_draws=3,
        num_draws=2,  # so few that other noise is another class
    ),
    "masks without noise": Case(
        (*MC, *OF_MC, *OF_GRID, "--target=mean_logits", "--epsilons=0.5"),
        "mc",
        (0, 4, 8),
        "mean_logits",
        (0.5,),
        steps=1,
        restarts=1,
        judged=WITHOUT_NOISE,
    ),
    "benign": Case(
        (*BENIGN, *OF_MC, "--epsilons=0,1.5"),
        "single",
        (0, 2, 4, 6, 8, 10),
        "mean_logits",
        (0.0, 1.5),
        steps=3,
        restarts=2,
        judged=WITHOUT_NOISE,
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return prepare(tmp_path_factory, "mc", "single")


@functools.cache
def attacked(folder: pathlib.Path) -> dict[str, subprocess.CompletedProcess]:
    """What attack.py said of each case."""
    commands = {}
    for name, case in CASES.items():
        of_climb = f"--num_examples={len(case.chosen)}", f"--steps={case.steps}"
        commands[name] = ("attack", *case.flags, *of_climb, f"--restarts={case.restarts}")
    return run_all(folder, commands)


def read_arrays(folder: pathlib.Path, case: Case) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
    run = folder / run_of(case.ensemble, case.sigma)
    (file,) = run.glob(f"attack-{case.target}-{len(case.chosen)}ex-*.npz")
    with np.load(file) as arrays:
        return file, dict(arrays)


def classes_of(case: Case, folder: pathlib.Path, x: np.ndarray, indices=None) -> np.ndarray:
    """What series of the chosen examples, or under the noise of others, are taken for."""
    if case.smoothed:
        indices = case.chosen if indices is None else indices
        votes, _ = vote(member_logits(case.members(folder), x, indices, case.num_draws))
        return tally(votes).argmax(axis=1)
    logits = np.mean([one(x) for one in case.members(folder)], axis=0)
    return logits.argmax(axis=1)


def make_loss(case: Case, members: list[Callable]) -> Callable:
    """The loss of a series (T, C) and a label on the draws of a key, and its gradient."""

    def loss(series: jax.Array, label: int, key: jax.Array) -> jax.Array:
        noise = jax.random.normal(key, (case.attack_draws, *series.shape))
        shown = series + (case.sigma * noise if case.smoothed else 0 * noise)
        logits = jnp.mean(jnp.stack([one(shown) for one in members]), axis=0)
        return -jnp.log(jax.nn.softmax(logits)[:, label].mean())

    return jax.jit(jax.value_and_grad(loss), compiler_options=QUICKLY)


def climb(case: Case, loss: Callable, x: np.ndarray, index: int, epsilon: float) -> np.ndarray:
    """The series of highest loss on the draws that compare, of x and those that steps reach."""
    fold_in, label = jax.random.fold_in, LABELS[index]
    of_example = fold_in(stream(NOISE_SEED, "attack"), index)
    found = [x]
    for restart in range(case.restarts):
        direction_key, radius_key = jax.random.split(fold_in(fold_in(of_example, STARTS), restart))
        direction = np.asarray(jax.random.normal(direction_key, x.shape))
        share = float(jax.random.uniform(radius_key)) ** (1 / x.size)
        series = x + epsilon * share * direction / np.linalg.norm(direction)
        for step in range(case.steps):
            key = fold_in(fold_in(fold_in(of_example, STEPS), restart), step)
            uphill = np.asarray(loss(series, label, key)[1])
            change = series + 2.5 * epsilon / case.steps * uphill / np.linalg.norm(uphill) - x
            series = x + change * min(1, epsilon / np.linalg.norm(change))
            found.append(series)
    compare = fold_in(of_example, COMPARISON)
    return max(found, key=lambda series: float(loss(series, label, compare)[0]))


@pytest.mark.parametrize("name", CASES)
def test_the_series_are_those_of_single_steps(folder, name):
    attacked(folder)
    case = CASES[name]
    _, arrays = read_arrays(folder, case)
    chosen, loss = np.array(case.chosen), make_loss(case, case.members(folder))
    np.testing.assert_array_equal(arrays["indices"], chosen)
    np.testing.assert_array_equal(arrays["labels"], LABELS[chosen])
    np.testing.assert_array_equal(arrays["epsilons"], case.epsilons)
    original = x_of("test")[chosen]
    np.testing.assert_array_equal(arrays["original"], original)
    for epsilon, moved in zip(case.epsilons, arrays["adversarial"], strict=True):
        for index, x, series in zip(case.chosen, original, moved, strict=True):
            expected = climb(case, loss, x, index, epsilon) if epsilon else x
            np.testing.assert_allclose(series, expected, atol=1e-3)
            assert np.abs(series - x).max() > 0.01 or not epsilon
    np.testing.assert_array_equal(arrays["before"], classes_of(case, folder, original))
    for moved, after in zip(arrays["adversarial"], arrays["after"], strict=True):
        np.testing.assert_array_equal(after, classes_of(case, folder, moved))
    if case.smoothed:
        others = classes_of(case, folder, original, indices=range(len(chosen)))
        assert (others != arrays["before"]).any()


@pytest.mark.parametrize("name", CASES)
def test_the_record_and_the_figure_are_of_the_series(folder, name):
    said, case = attacked(folder)[name], CASES[name]
    file, arrays = read_arrays(folder, case)
    before, labels = arrays["before"], LABELS[list(case.chosen)]
    right = before == labels
    rows = []
    for epsilon, moved, after in zip(
        case.epsilons, arrays["adversarial"], arrays["after"], strict=True
    ):
        norms = [
            np.linalg.norm(a.astype(float) - b)
            for a, b in zip(moved, arrays["original"], strict=True)
        ]
        wrong = after != labels
        rows.append((epsilon, sum(wrong) / len(labels), sum(wrong & right) / sum(right), norms))
    assert rows[-1][1] > 1 - sum(right) / len(labels)  # it fools some
    draws = {"attack_draws": case.attack_draws, "num_draws": case.num_draws}
    settings = settings_record(
        file.parent,
        case.ensemble,
        target=case.target,
        epsilons=list(case.epsilons),
        steps=case.steps,
        restarts=case.restarts,
        **(draws if case.smoothed else {}),
    )
    assert json.loads(str(arrays["settings"])) == settings

    fooled = [row for row in range(len(labels)) if right[row] and wrong[row]]
    shown = fooled[0]  # of the largest epsilon
    record = read_record(file.with_suffix(".json"))
    attacks = record.pop("attacks")
    assert record == {
        "prediction": case.judged,
        "epsilon_units": "L2 norm, in the units of the series (scaling: none)",
        "num_examples": len(labels),
        "clean_accuracy": sum(right) / len(labels),
        "example_shown": case.chosen[shown],
        "series": file.name,
        "settings": settings,
    }
    for found, (epsilon, of_all, of_correct, norms) in zip(attacks, rows, strict=True):
        assert found == {
            "epsilon": epsilon,
            "wrong_of_all": pytest.approx(of_all),
            "wrong_of_initially_correct": pytest.approx(of_correct),
            "mean_norm": pytest.approx(sum(norms) / len(norms), rel=1e-9),
        }
        assert max(norms) <= epsilon * (1 + 1e-5)

    title = f"own, lstm_fcn, {case.ensemble}, sigma {case.sigma:g}, PGD-L2 on {case.target}"
    lines = said.stdout.splitlines()
    assert lines[:4] == [
        f"{title}, {len(labels)} examples",
        f"  prediction: {case.judged}",
        "  series: own (file), scaling none; epsilon and norms are L2, in their units",
        f"  accuracy before the attack     {sum(right) / len(labels):.2%}",
    ]
    assert lines[4].split("  ")[-1] == "mean L2 norm"
    for line, (epsilon, of_all, of_correct, norms) in zip(lines[5:-1], rows, strict=True):
        mean = sum(norms) / len(norms)
        assert line.split() == [
            f"{epsilon:g}",
            f"{of_all:.2%}",
            f"{of_correct:.2%}",
            f"{mean:.4f}",
        ]
    assert lines[-1] == f"  written to {file} (.json, .png)"
    number = len(labels) * len({0.0, *case.epsilons})
    bar = re.findall(r" (\d+)/(\d+) .*epsilon (\S+): (\S+) wrong", said.stderr)[-1]
    assert bar == (str(number), str(number), f"{case.epsilons[-1]:g}", f"{rows[-1][1]:.1%}")

    headings = {
        f"epsilon {epsilon}: L2 norm {norms[shown]:.4g}, taken for {CLASSES[after[shown]]}": moved
        for (epsilon, *_, norms), after, moved in zip(
            rows, arrays["after"], arrays["adversarial"][:, shown], strict=True
        )
    }
    label = CLASSES[labels[shown]]
    title = f"{title}\ntest series {case.chosen[shown]}, of class {label}"
    note = f"prediction: {case.judged}; series: own (file), scaling none"
    drawn = plots.perturbations(arrays["original"][shown], headings, title, note)
    assert_figure(file.with_suffix(".png"), drawn, title, note)

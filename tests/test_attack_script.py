"""attack.py, run as a user runs it, on a tiny data set of the user's own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from test_scripts import ROOT, TINY, assert_refused, call, command, kill_when, make_npz

from selfens_jax.attacks import success_rates

OWN = ("--dataset=own.npz", "--model=lstm_fcn")
MC = (*OWN, "--sigma=0.5", "--num_masks=2", "--attack_draws=2", "--num_draws=100", "--steps=8")
BENIGN = (*OWN, "--sigma=0", "--ensemble=single")
DEEP = ("--dataset=pair.npz", "--model=lstm_fcn", "--sigma=0.5", "--ensemble=de")
RUN = "runs/{}/lstm_fcn/{}/sigma={}/seed=0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run under noise and masks, a benign one and two networks of two channels."""
    folder = tmp_path_factory.mktemp("trained")
    make_npz(folder / "own.npz")
    call(folder, "train", "--dataset=own.npz", *TINY)
    call(folder, "train", *BENIGN, "--epochs=2")
    make_npz(folder / "pair.npz", channels=2)
    call(folder, "train", *DEEP, "--epochs=3", "--num_members=2")
    return folder


@pytest.fixture(autouse=True)
def quick_to_compile(monkeypatch):
    """Compiling an attack takes most of its time here, running it next to none."""
    unoptimized = "--xla_backend_optimization_level=0"
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {unoptimized}")


def attacked(run):
    """The record and the arrays of the one attack in a run, after a look at both."""
    (npz,) = run.glob("attack-*.npz")
    assert {path.name for path in run.glob("attack-*")} == {
        npz.with_suffix(ending).name for ending in (".npz", ".json", ".png")
    }
    assert npz.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    record = json.loads(npz.with_suffix(".json").read_text())
    with np.load(npz, allow_pickle=False) as file:
        arrays = dict(file)
    assert json.loads(str(arrays["settings"])) == record["settings"]
    assert record["settings"]["versions"]["jax"]
    assert len(record["settings"]["weights_sha256"]) == 64

    labels, before = arrays["labels"], arrays["before"]
    assert record["clean_accuracy"] == (before == labels).mean()
    for row, epsilon, series, after in zip(
        record["attacks"], arrays["epsilons"], arrays["adversarial"], arrays["after"], strict=True
    ):
        of_all, of_correct = success_rates(before, after, labels)
        assert (row["epsilon"], row["wrong_of_all"]) == (epsilon, of_all)
        assert row["wrong_of_initially_correct"] == of_correct
        norms = np.sqrt(((series.astype(float) - arrays["original"]) ** 2).sum(axis=(1, 2)))
        assert (norms <= epsilon * (1 + 1e-5) + 1e-5).all()
        assert row["mean_norm"] == pytest.approx(norms.mean())
    return record, arrays


@pytest.mark.slow
def test_a_killed_attack_goes_on_to_the_same_files(trained):
    """And what the files say: the classes lie 12 apart, so 0.1 fools few and 20 everyone."""
    run = trained / RUN.format("own", "mc", 0.5)
    done = call(trained, "attack", *MC, "--epsilons=20,0.1,0")
    assert "own, lstm_fcn, mc, sigma 0.5, PGD-L2 on smoothed, 12 examples" in done.stdout
    record, arrays = attacked(run)
    assert record["settings"]["masks_sha256"]
    assert record["settings"]["data"]["source"] == "file"
    assert arrays["indices"].tolist() == list(range(12))
    assert arrays["epsilons"].tolist() == [0, 0.1, 20]
    with np.load(trained / "own.npz") as own:
        np.testing.assert_array_equal(arrays["original"][..., 0], own["X_test"].astype(np.float32))
    np.testing.assert_array_equal(arrays["adversarial"][0], arrays["original"])
    np.testing.assert_array_equal(arrays["after"][0], arrays["before"])
    nothing, little, much = (row["wrong_of_all"] for row in record["attacks"])
    assert nothing == 1 - record["clean_accuracy"]
    assert little < 0.5
    assert much == 1.0
    assert arrays["after"][-1][record["example_shown"]] != arrays["labels"][record["example_shown"]]

    before = {path: path.read_bytes() for path in run.glob("attack-*")}
    for path in before:
        path.unlink()
    process = subprocess.Popen(
        command("attack", *MC, "--epsilons=20,0.1,0"), cwd=trained, stderr=subprocess.DEVNULL
    )
    assert kill_when(process, lambda: len(list(run.glob("attack-*/epsilon=*.npz"))) >= 4)
    assert not list(run.glob("attack-*.npz"))
    resumed = call(trained, "attack", *MC, "--epsilons=20,0.1,0")
    assert " 0/36 " not in resumed.stderr
    assert before == {path: path.read_bytes() for path in run.glob("attack-*")}


def test_a_benign_network(trained):
    done = call(trained, "attack", *BENIGN, "--epsilons=20", "--steps=3", "--num_examples=5")
    assert "class of the highest (mean) logit, without noise" in done.stdout
    record, arrays = attacked(trained / RUN.format("own", "single", 0))
    assert record["settings"]["target"] == "mean_logits"
    assert "num_draws" not in record["settings"]
    assert arrays["indices"].tolist() == [0, 2, 4, 7, 9]
    assert record["attacks"][0]["wrong_of_all"] > 1 - record["clean_accuracy"]


def test_a_deep_ensemble_of_multivariate_series(trained):
    more = ("--epsilons=30", "--steps=2", "--attack_draws=2", "--num_draws=100", "--num_examples=3")
    call(trained, "attack", *DEEP, *more)
    record, arrays = attacked(trained / RUN.format("pair", "de", 0.5))
    assert record["settings"]["num_members"] == 2
    assert arrays["adversarial"].shape == (1, 3, 16, 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*MC, "--epsilons=0.5,-1"], "--epsilons must be numbers >= 0"),
        ([*MC, "--epsilons=much"], "not 'much'"),
        ([*MC, "--steps=0"], "--steps must be at least 1, not 0"),
        ([*BENIGN, "--target=smoothed"], "there is no smoothed classifier"),
        ([*OWN, "--sigma=0.7"], "python experiments/train.py --dataset=own.npz --sigma=0.7"),
    ],
)
def test_attack_refuses(trained, arguments, says):
    assert_refused(trained, says, "attack", *arguments)


JUDGED = """
import runpy, sys
sys.path.insert(0, "{scripts}")
from common import cli
from selfens_jax import smoothing
counting = smoothing.count_votes
def told(*args, **how):
    print("votes in", how["precision"])
    return counting(*args, **how)
smoothing.count_votes, cli.check_precision = told, lambda: None
sys.argv = ["attack.py", *{flags}]
runpy.run_path("{scripts}/attack.py", run_name="__main__")
"""


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_attack_is_judged_at_the_precision_of_the_certificates(trained, precision):
    """No accelerator is here: its refusal of the flag is taken away, and the votes told of."""
    place = f"--output_dir={trained / precision}"
    flags = [*MC, "--epsilons=0.1", "--num_examples=2", place, f"--precision={precision}"]
    code = JUDGED.format(scripts=ROOT / "experiments", flags=flags)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=trained, capture_output=True, text=True, check=True
    )
    assert done.stdout.count(f"votes in {precision}\n") == 2  # before and after
    record, _ = attacked(trained / precision)
    expected = {} if precision == "float32" else {"precision": precision}
    assert {k: v for k, v in record["settings"].items() if k == "precision"} == expected


def test_a_precision_that_judges_nothing_is_refused(trained):
    assert_refused(trained, "a CPU computes in float32", "attack", *MC, "--precision=bfloat16")

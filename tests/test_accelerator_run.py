"""The measurements for a machine with an accelerator, rehearsed, and how they fail."""

import csv
import math
import time
import types
from pathlib import Path

import accelerator_run
import data_files
import forked
import numpy as np
import pytest
from accelerator_run import Step

from selfens_jax.errors import UserError
from selfens_jax.runs import records

ROOT = Path(__file__).parents[1]
DATA = {
    "name": "toy",
    "source": "file",
    "scaling": "none",
    "num_test": 9,
    "classes": ["a", "b", "c"],
}
OTHERS = {"sigma": 0.8, "model": "lstm_fcn", "data": DATA}


def call(*arguments):
    return forked.run(ROOT / "experiments" / "accelerator_run.py", arguments, ROOT)


def write_counts(folder: Path, counts: np.ndarray, first: int = 0) -> None:
    number = len(counts)
    records.write_counts(
        folder,
        records.Counts(
            indices=first + np.arange(number),
            counts=counts,
            labels=np.zeros(number, int),
            forwards=counts.sum(axis=1),
            settings={"ensemble": "single", "num_draws": int(counts[0].sum()), **OTHERS},
            seconds=np.zeros(number),
        ),
    )


def test_votes_that_differ_are_counted_once(tmp_path):
    ours = np.array([[90, 10, 0], [50, 50, 0], [100, 0, 0]])
    theirs = np.array([[90, 10, 0], [47, 52, 1], [99, 1, 0]])
    write_counts(tmp_path / "cpu", ours)
    write_counts(tmp_path / "there", theirs)
    said = accelerator_run.compared(tmp_path / "there", tmp_path / "cpu", "the CPU's")
    assert said == "4 of 300 votes differ from the CPU's, at most 3 of a series"


def test_votes_of_other_series_are_not_compared(tmp_path):
    counts = np.array([[9, 1, 0], [5, 5, 0], [10, 0, 0]])
    write_counts(tmp_path / "cpu", counts)
    write_counts(tmp_path / "there", counts, first=1)
    with pytest.raises(accelerator_run.UserError, match="the votes of other series"):
        accelerator_run.compared(tmp_path / "there", tmp_path / "cpu", "the CPU's")


def test_on_a_gpu_fixed_kernels_are_compared_with_the_fastest(monkeypatch):
    monkeypatch.setattr(accelerator_run, "FLAGS", types.SimpleNamespace(smoke=False))
    places = Path("carried"), Path("carried/results")
    steps = {step.name: step for step in accelerator_run.steps(*places, "gpu", math.inf)}
    names = list(steps)
    assert names[:4] == ["votes-float32", "votes-again", "votes-tensorfloat32", "votes-bfloat16"]
    for name in names[:4]:
        precision = name.removeprefix("votes-").replace("again", "float32")
        assert f"--precision={precision}" in steps[name].command
        assert f"--output_dir=carried/results/{name}" in steps[name].command
    assert names[4:6] == ["certify-lstm_fcn", "certify-lstm_fcn-fastest"]
    fixed, fastest = (steps[name] for name in names[4:6])
    assert fixed.command[:-1] == fastest.command[:-1]
    assert fixed.environment == ()
    assert fastest.environment == (("XLA_FLAGS", "--xla_gpu_deterministic_ops=false"),)
    assert "compiled" in names
    assert not {"certify-lstm_fcn-fastest", "compiled"} & {
        step.name for step in accelerator_run.steps(*places, "tpu", math.inf)
    }
    assert "table3" not in names  # no data sets were carried


def test_cells_of_table_3_take_what_time_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator_run, "FLAGS", types.SimpleNamespace(smoke=False))
    with pytest.raises(UserError, match="has the folder of none of the data sets CBF, "):
        accelerator_run.carry(tmp_path, tmp_path / "ucr")
    for name in ("CricketX", "Coffee"):
        (tmp_path / "archive" / name).mkdir(parents=True)
        for file in (f"{name}_TRAIN.tsv", f"{name}_TEST.tsv", "README.md"):
            (tmp_path / "archive" / name / file).write_text(file)
    accelerator_run.carry(tmp_path / "archive", tmp_path / "ucr")
    carried = {path.name for path in (tmp_path / "ucr").rglob("*") if path.is_file()}
    assert carried == {"CricketX_TRAIN.tsv", "CricketX_TEST.tsv"}

    def last(platform: str, seconds: float) -> Step:
        deadline = time.monotonic() + seconds
        return list(accelerator_run.steps(tmp_path, tmp_path / "results", platform, deadline))[-1]

    words = last("gpu", 400.0).command
    assert {"--what=table3", "--datasets=CricketX", "--models=inception_time"} <= set(words)
    assert {f"--data_dir={tmp_path / 'ucr'}", "--time_limit=6.00"} <= set(words)
    assert last("gpu", 40.0).name == "compiled"
    assert last("cpu", 400.0).name == "train-macnn"


def test_a_step_says_how_it_ended(tmp_path):
    def outcome(code: str, seconds: float = 60.0) -> accelerator_run.Outcome:
        step = Step("step", ("-c", code), (("TOLD", "one"),))
        return accelerator_run.run(step, tmp_path, time.monotonic() + seconds)

    done = outcome("print('written')")
    assert (done.outcome, done.says) == ("done", "")
    assert (tmp_path / "step.log").read_text() == "written\n"
    failed = outcome("import os, sys; print(os.environ['TOLD']); sys.exit('no such network')")
    assert (failed.outcome, failed.says) == ("failed", "no such network")
    # A child of the command would go on holding the device.
    stopped = outcome("import os, time; os.fork(); print('begun', flush=True); time.sleep(99)", 3.0)
    assert stopped.outcome == "stopped"
    assert stopped.seconds < 20


def test_votes_of_a_cpu_are_needed(tmp_path):
    done = call(f"--folder={tmp_path}")
    assert done.returncode == 1
    assert "has no votes of a CPU: run this with --prepare" in done.stderr
    done = call(f"--folder={tmp_path}", "--steps=table4")
    assert "--steps=table4: no such step; choose from votes, certify, " in done.stderr
    done = call("--minutes=0")
    assert "--minutes must be from 0.1 to 1000, not 0" in done.stderr
    done = call("--data_dir=UCR")
    assert "--data_dir is for --prepare" in done.stderr


VOTES = np.array([[9, 1, 0], [5, 5, 0], [10, 0, 0]])


def test_the_votes_of_a_cpu_are_looked_at_before_anything_is_measured(tmp_path):
    write_counts(tmp_path / "cpu", VOTES)
    (file,) = (tmp_path / "cpu").iterdir()
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match=r"cannot be read.*; --prepare --folder=ANOTHER counts"):
        accelerator_run.check_votes(tmp_path / "cpu")
    write_counts(tmp_path / "cpu", 10 * VOTES)
    with pytest.raises(UserError, match="has 2 counts; only that of --prepare belongs there"):
        accelerator_run.check_votes(tmp_path / "cpu")


def test_a_step_whose_votes_cannot_be_compared_has_failed(tmp_path):
    write_counts(tmp_path / "cpu", VOTES)
    write_counts(tmp_path / "results" / "votes-bfloat16", VOTES, first=1)
    done = accelerator_run.Outcome("votes-bfloat16", "done", 1.5, "")
    found = accelerator_run.looked_at(done, tmp_path, tmp_path / "results")
    assert (found.outcome, found.seconds) == ("failed", 1.5)
    assert "has the votes of other series than" in found.says


def test_what_cannot_be_measured_here_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator_run, "FLAGS", types.SimpleNamespace(smoke=False))
    says = accelerator_run.impossible
    assert says("votes", tmp_path, "cpu") == ""
    assert "of a GPU" in says("compiled", tmp_path, "tpu")
    assert says("compiled", tmp_path, "gpu") == ""
    assert f"{tmp_path / 'ucr'} has no data set: --prepare" in says("table3", tmp_path, "gpu")
    (tmp_path / "ucr" / "CBF").mkdir(parents=True)
    assert says("table3", tmp_path, "gpu") == ""
    assert "on a CPU, reproduce.py" in says("table3", tmp_path, "cpu")


def test_a_second_call_counts_again_and_keeps_the_lines_of_other_steps(tmp_path):
    """Votes that an earlier call counted would be compared as if they were of this one."""
    write_counts(tmp_path / "cpu", VOTES)
    results = tmp_path / "results-smoke"
    write_counts(results / "votes-float32", VOTES)
    kept = {"step": "table3", "outcome": "done", "seconds": "500.0", "says": "12 jobs are done"}
    with (results / "steps.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, list(kept))
        rows.writeheader()
        rows.writerows([kept, kept | {"step": "votes-float32"}])
    done = call(f"--folder={tmp_path}", "--smoke", "--steps=votes")
    assert done.returncode == 1  # there is no network that could count
    assert "error: failed: votes-float32, votes-again; " in done.stderr
    assert [row["step"] for row in lines(results)] == [
        *("device", "table3", "votes-float32", "votes-again"),
    ]
    assert lines(results)[1] == kept
    assert lines(results)[2]["outcome"] == "failed"
    assert not accelerator_run.counted(results / "votes-float32")

    log = results / "device.log"
    other = log.read_text().replace('"cpu"', '"gpu"', 1)
    log.write_text(other)
    done = call(f"--folder={tmp_path}", "--smoke")
    assert "was measured on another device, or with another JAX, than {'platform'" in done.stderr
    assert log.read_text() == other
    (results / "steps.csv").write_text("junk\n1\n")
    assert "steps.csv is damaged: move it away" in call(f"--folder={tmp_path}", "--smoke").stderr


@pytest.mark.slow
def test_a_rehearsal(tmp_path):
    """On a CPU the votes are the same, and each step leaves its results."""
    folder = f"--folder={tmp_path / 'carried'}"
    data_files.write_archive(tmp_path / "archive")
    prepared = call("--prepare", "--smoke", f"--data_dir={tmp_path / 'archive'}", folder)
    assert prepared.returncode == 0, prepared.stderr
    size = sum(path.stat().st_size for path in tmp_path.rglob("*"))
    assert size < 60 * 2**20
    measured = call("--smoke", folder, "--minutes=10")
    assert measured.returncode == 0, measured.stderr
    results = tmp_path / "carried" / "results-smoke"
    rows = lines(results)
    names = ["votes-float32", "votes-again", "certify-lstm_fcn", "train-lstm_fcn", "table3"]
    assert [row["step"] for row in rows] == ["device", *names]
    assert {row["outcome"] for row in rows} == {"done"}
    assert rows[-1]["says"] == "2 jobs are done"
    assert (results / "table3" / "tables" / "table3.csv").exists()
    assert rows[1]["says"].startswith("0 of 300 votes differ from the CPU's")
    assert rows[2]["says"].startswith("0 of 300 votes differ from another process's")
    again = call("--smoke", folder, "--minutes=10", "--steps=table3")
    assert again.returncode == 0, again.stderr
    after = lines(results)
    assert [row["step"] for row in after] == ["device", *names]
    assert after[1:-1] == rows[1:-1]
    assert float(after[-1]["seconds"]) < float(rows[-1]["seconds"])  # it had been done


def lines(results: Path) -> list[dict[str, str]]:
    with (results / "steps.csv").open(newline="") as file:
        return list(csv.DictReader(file))

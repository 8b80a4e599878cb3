"""The two commands, run as a user runs them, on a tiny data set of the user's own."""

import csv
import hashlib
import json
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import forked
import numpy as np
import pytest

from selfens_jax import masks, runs
from selfens_jax.streams import stream

ROOT = pathlib.Path(__file__).parents[1]
TINY = ("--model=lstm_fcn", "--sigma=0.5", "--epochs=4")
CERTIFY = ("--model=lstm_fcn", "--sigma=0.5", "--num_draws=120", "--num_masks=3")


def command(script, *arguments):
    return [sys.executable, str(ROOT / "experiments" / f"{script}.py"), *arguments]


def call(folder, script, *arguments, status=0, **environment):
    """The finished script, run in the folder with these variables set as well."""
    path = ROOT / "experiments" / f"{script}.py"
    done = forked.run(path, arguments, folder, **environment)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


def error_of(folder, script, *arguments):
    """The one line that a refused command says."""
    done = call(folder, script, *arguments, status=1)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert done.stdout == ""
    return lines[0]


def assert_refused(folder, says, script, *arguments):
    """The command, on own.npz unless told otherwise, says so in one line and writes no run."""
    before = sorted(str(p) for p in (folder / "runs").rglob("*"))
    named = any(a.startswith(("--dataset", "--from_counts")) for a in arguments)
    own = [] if named else ["--dataset=own.npz"]
    assert says in error_of(folder, script, *own, *arguments)
    assert sorted(str(p) for p in (folder / "runs").rglob("*")) == before


def make_npz(path, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    y = np.array(["rest", "walk"])[np.arange(24) % 2]
    X = rng.normal(size=(24, 16, channels)) + 3 * (y == "walk")[:, None, None]
    X = X[:, :, 0] if channels == 1 else X
    np.savez(path, X_train=X[:12], y_train=y[:12], X_test=X[12:], y_test=y[12:])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    make_npz(folder / "own.npz")
    call(folder, "train", "--dataset=own.npz", *TINY)
    return folder


RUN = pathlib.Path("runs/own/lstm_fcn/mc/sigma=0.5/seed=0")


def results(folder, pattern):
    return sorted((folder / RUN).glob(pattern))


def digests(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def without_time(path):
    with path.open() as file:
        return [row[:-1] for row in csv.reader(file, delimiter="\t")]


def test_certify_after_train(trained):
    done = call(trained, "certify", "--dataset=own.npz", *CERTIFY)
    assert re.search(r"ACR \(wrong or abstained = 0\) +\d\.\d{4}", done.stdout)
    assert "each holds with probability" in done.stdout
    (tsv,) = results(trained, "certificates-*12ex*-alpha0.001.tsv")
    with tsv.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert list(rows[0]) == ["idx", "label", "predict", "radius", "correct", "time"]
    assert [row["idx"] for row in rows] == [str(i) for i in range(12)]
    assert {row["label"] for row in rows} == {"rest", "walk"}
    assert {row["predict"] for row in rows} <= {"rest", "walk", "-1"}
    record = json.loads(tsv.with_suffix(".json").read_text())
    assert record["valid"] is True
    assert record["settings"]["num_draws"] == 120
    assert record["settings"]["data"]["source"] == "file"
    assert len(record["settings"]["masks_sha256"]) == 64
    assert tsv.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    config = json.loads((trained / RUN / "config.json").read_text())
    assert config["data"]["classes"] == ["rest", "walk"]
    assert config["versions"]["jax"]


def test_certify_again_from_saved_counts(trained):
    call(trained, "certify", "--dataset=own.npz", *CERTIFY)
    (counts,) = results(trained, "counts-*12ex*.npz")
    before = [without_time(p) for p in results(trained, "certificates-*12ex*-alpha0.001.tsv")]
    (trained / "elsewhere").mkdir(exist_ok=True)
    moved = trained / "elsewhere" / counts.name
    moved.write_bytes(counts.read_bytes())
    call(trained, "certify", f"--from_counts={moved}")
    (again,) = (trained / "elsewhere").glob("*-alpha0.001.tsv")
    assert without_time(again) == before[0]
    paper = call(trained, "certify", f"--from_counts={moved}", "--paper")
    assert "NOT valid certificates" in paper.stdout
    (tsv,) = (trained / "elsewhere").glob("*-paper.json")
    assert json.loads(tsv.read_text())["valid"] is False
    renyi = call(
        trained, "certify", f"--from_counts={moved}", "--interval=goodman", "--bound=renyi"
    )
    assert "goodman" in renyi.stdout
    assert "--alpha" in error_of(trained, "certify", "--paper", "--alpha=0.1")


def test_fewer_examples_have_the_same_counts_at_any_batch_size(trained):
    call(trained, "certify", "--dataset=own.npz", *CERTIFY)
    (full,) = results(trained, "counts-*12ex*.npz")
    for votes in results(trained, "votes-*.tsv"):
        votes.unlink()
    call(trained, "certify", "--dataset=own.npz", *CERTIFY, "--num_examples=4", "--batch_size=7")
    (some,) = results(trained, "counts-*-4ex*.npz")
    with np.load(full) as f, np.load(some) as s:
        assert s["indices"].tolist() == [0, 3, 6, 9]
        np.testing.assert_array_equal(s["counts"], f["counts"][[0, 3, 6, 9]])


def test_other_masks_and_noise_are_other_results(trained):
    call(trained, "certify", "--dataset=own.npz", *CERTIFY)
    before = set(results(trained, "counts-*12ex*.npz"))
    hashes = set()
    for flag in ("--mask_seed=1", "--noise_seed=1", "--mask_design=balanced"):
        done = call(trained, "certify", "--dataset=own.npz", *CERTIFY, flag)
        balanced = "mc under balanced masks, sigma" in done.stdout
        assert balanced == (flag == "--mask_design=balanced")
    line = error_of(trained, "margins", "--dataset=own.npz", *CERTIFY, "--mask_design=balanced")
    assert "a theory of independent masks" in line
    after = set(results(trained, "counts-*12ex*.npz"))
    assert len(after - before) == 3
    designs = set()
    for path in after:
        with np.load(path) as file:
            settings = json.loads(str(file["settings"]))
        hashes.add(settings["masks_sha256"])
        designs.add(settings.get("mask_design"))
    assert len(hashes) == 3
    assert designs == {None, "balanced"}
    with np.load(trained / RUN / "masks-m3-seed0-balanced.npz") as file:
        balanced = masks.continuous_balanced(stream(0, "masks"), 3, 16, 0.9)
        np.testing.assert_array_equal(file["masks"], balanced)
    for path in after - before:
        path.unlink()


def test_foreign_masks_are_refused(trained):
    file = trained / RUN / "masks-m2-seed0.npz"
    np.savez(file, masks=np.ones((2, 16), np.uint8))
    line = error_of(trained, "certify", "--dataset=own.npz", *CERTIFY[:3], "--num_masks=2")
    assert "masks-m2-seed0.npz" in line
    assert "other masks" in line


def kill_when(process, ready, seconds=120):
    """Kills the process, as the operating system would, once `ready()`; True if it was alive."""
    limit = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < limit:
        if ready():
            process.send_signal(signal.SIGKILL)
            process.wait()
            return process.returncode == -signal.SIGKILL
        time.sleep(0.02)
    process.kill()
    return False


def test_killed_training_goes_on_to_the_same_parameters(tmp_path):
    make_npz(tmp_path / "own.npz")
    arguments = ("--dataset=own.npz", "--model=lstm_fcn", "--sigma=0.5", "--epochs=300")
    call(tmp_path, "train", *arguments, "--runs_dir=whole")
    for _ in range(2):
        process = subprocess.Popen(
            command("train", *arguments, "--checkpoint_every=0.1"),
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
        )
        seen = {p.name for p in (tmp_path / RUN / "progress").glob("*")}
        assert kill_when(
            process,
            lambda seen=seen: any(
                p.name.isdigit() and p.name not in seen
                for p in (tmp_path / RUN / "progress").glob("*")
            ),
        )
    runs.write_training_time(tmp_path / RUN, 1000.0)
    done = call(tmp_path, "train", *arguments)
    assert "going on after epoch" in done.stderr
    assert 1000 < runs.read_training_time(tmp_path / RUN) < 2000  # a sum over all parts
    whole = tmp_path / "whole" / RUN.relative_to("runs")
    assert (whole / "history.csv").read_text() == (tmp_path / RUN / "history.csv").read_text()
    digests = [weights_digest(tmp_path, run) for run in (whole, tmp_path / RUN)]
    assert digests[0] == digests[1]
    # As if it had been killed just before its progress was deleted.
    (tmp_path / RUN / "progress").mkdir()
    again = call(tmp_path, "train", *arguments)
    assert "already been trained" in again.stderr
    assert "own (file): 12 training and 12 test series, 16 time steps, 1 channel," in again.stderr
    assert not (tmp_path / RUN / "progress").exists()


def test_a_batch_systems_end_is_an_interruption(tmp_path):
    """Also where SIGINT is ignored, as it is in what a shell script starts in the background."""
    make_npz(tmp_path / "own.npz")
    arguments = ("--dataset=own.npz", "--model=lstm_fcn", "--sigma=0.5", "--epochs=100000")
    process = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command("train", *arguments)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "epoch/s" not in process.stderr.read(1000):  # until it trains
        assert process.poll() is None
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("interrupted; the same command goes on from here\n")


def weights_digest(folder, run):
    call(
        folder,
        "certify",
        "--dataset=own.npz",
        f"--run_dir={run}",
        "--num_draws=100",
        "--num_examples=1",
    )
    (record,) = run.glob("certificates-*.json")
    return json.loads(record.read_text())["settings"]["weights_sha256"]


@pytest.mark.slow
def test_killed_certification_goes_on_to_the_same_files(trained):
    arguments = ("--dataset=own.npz", *CERTIFY[:2], "--num_draws=3000")
    call(trained, "certify", *arguments)
    files = results(trained, "*n3000*")
    before = {p: p.read_bytes() for p in files if p.suffix != ".tsv"}
    tables = {p: without_time(p) for p in files if p.suffix == ".tsv"}
    assert before
    assert tables
    for path in [*files, *results(trained, "votes-*.tsv")]:
        path.unlink()

    process = subprocess.Popen(
        command("certify", *arguments), cwd=trained, stderr=subprocess.DEVNULL
    )
    assert kill_when(
        process,
        lambda: any(len(p.read_text().splitlines()) > 3 for p in results(trained, "votes*")),
    )
    assert not results(trained, "*n3000*")
    (votes,) = results(trained, "votes-*.tsv")
    with votes.open("a") as file:
        file.write("11\t0.1\t30")  # torn
    call(trained, "certify", *arguments)
    for path, content in before.items():
        assert path.read_bytes() == content, path
    for path, table in tables.items():
        assert without_time(path) == table


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sigma=0.7"], "python experiments/train.py --dataset=own.npz --sigma=0.7"),
        (["--ensemble=de"], "--ensemble=de"),
        (["--model=macnn"], "does not exist"),
        (["--keep=0.5"], "keep is 0.9, not 0.5"),
        ([f"--run_dir={RUN}", "--sigma=0.7"], "sigma is 0.5, not 0.7"),
        ([f"--run_dir={RUN}", "--model=macnn"], "model is 'lstm_fcn', not 'macnn'"),
        (["--dataset=other.npz", f"--run_dir={RUN}"], "other data"),
        (["--num_examples=13"], "error: --num_examples must be between 1 and 12, not 13"),
        (["--num_draws=0"], "--num_draws must be at least 1"),
        (["--num_masks=0"], "num_masks must be at least 1"),
        (
            ["--num_draws=5"],
            "5 draws can certify nothing at alpha 0.001, even if all votes agree: at",
        ),
        (["--num_draws=10"], "at least 11 are needed"),
        (["--num_draws=11", "--alpha=0.0001"], "at least 15 are needed"),
        (["--num_draws=11", "--interval=goodman"], "draws can certify nothing at alpha 0.001"),
        (["--sigma=-1"], "--sigma=-1: without noise there is no radius"),
        (["--sigma=nan"], "--sigma=nan: without noise there is no radius"),
        (["--alpha=1"], "--alpha must be between 0 and 1"),
        (["--alpha=often"], "alpha"),
        (["--interval=wald"], "interval"),
        (["--from_counts=missing.npz"], "missing.npz"),
        (["--from_counts=own.npz"], "own.npz lacks the array"),
        (["--from_counts=odd.npz"], "odd.npz is damaged"),
        (["--from_counts=odd.npz", "--num_draws=40"], "leave out --num_draws"),
        (["--from_counts=odd.npz", "--sigma=0.5"], "leave out --sigma"),
        (["--from_counts=odd.npz", "--seeds=0,1"], "leave out --seeds"),
        (["--from_counts=odd.npz", "--num_processes=2"], "leave out --num_processes"),
        (["--from_counts=odd.npz", "--target_radius=0.2"], "leave out --"),
        (["--output_dir=own.npz"], "--output_dir=own.npz is not a folder"),
        (["--no_such_flag=1"], "no_such_flag"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_certify_refuses(trained, arguments, says):
    make_npz(trained / "other.npz", seed=1)
    one = np.ones(1, int)
    arrays = dict.fromkeys(("indices", "counts", "labels", "forwards"), one)
    np.savez(trained / "odd.npz", **arrays, settings=np.array("{}"))
    alone = any(a.startswith(("--run_dir", "--from_counts")) for a in arguments)
    assert_refused(trained, says, "certify", *(() if alone else CERTIFY), *arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dataset=missing.npz"], "missing.npz"),
        (["--dataset=nan.npz"], "series 2 of the training split"),
        (["--data_dir=nowhere", "--dataset=CBF"], "nowhere"),
        (["--sigma=-1"], "error: --sigma must be a finite number >= 0, not -1"),
        (["--keep=0"], "keep must be in (0, 1]"),
        (["--epochs=0"], "error: --epochs must be at least 1"),
        (["--seed=-1"], "seed must be"),
        (["--ensemble=mx"], "ensemble"),
        (["--epochs=5"], "epochs is 4, not 5"),
        (["--checkpoint_every=nan"], "--checkpoint_every must be seconds, at least 0, not nan"),
        (["--seeds=4294967296"], "--seeds must be numbers of at least 0 and below 4294967296"),
        (["--num_members=2"], "--num_members is of --ensemble=de; leave it out"),
        (["--member_of_de"], "--member_of_de makes a run of --ensemble=single; give that too"),
    ],
)
def test_train_refuses(trained, arguments, says):
    with np.load(trained / "own.npz") as own:
        arrays = dict(own)
    arrays["X_train"][2, 5] = np.nan
    np.savez(trained / "nan.npz", **arrays)
    assert_refused(trained, says, "train", *TINY, *arguments)


@pytest.mark.parametrize("script", ["train", "certify"])
def test_runs_that_would_share_a_folder_are_refused(trained, script):
    words = ("--model=lstm_fcn", "--sigmas=0.25,0.12345678,0.12345679")
    assert_refused(trained, "would share the folder sigma=0.123457", script, *words)


@pytest.mark.slow
def test_a_deep_ensemble_of_multivariate_series(tmp_path):
    make_npz(tmp_path / "own.npz", channels=2)
    arguments = ("--dataset=own.npz", "--ensemble=de", "--model=lstm_fcn", "--sigma=0.5")
    call(tmp_path, "train", *arguments, "--epochs=3", "--num_members=2")
    done = call(tmp_path, "certify", *arguments, "--num_draws=100", "--num_examples=3")
    assert "own, lstm_fcn, de, sigma 0.5, 3 examples" in done.stdout


def test_benign_networks_are_trained_but_not_certified(tmp_path):
    make_npz(tmp_path / "own.npz")
    arguments = ("--dataset=own.npz", "--ensemble=single", "--model=lstm_fcn", "--sigma=0")
    call(tmp_path, "train", *arguments, "--epochs=2")
    assert "without noise there is no radius" in error_of(tmp_path, "certify", *arguments)


def test_generated_data_are_never_mistaken_for_the_archives(tmp_path):
    # An empty cache and a dead proxy: neither the archive nor its copy can be had.
    environment = {
        "XDG_DATA_HOME": str(tmp_path / "empty"),
        "https_proxy": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    arguments = ("--dataset=CBF", "--model=lstm_fcn", "--sigma=0.5")
    for script, more in (
        ("train", ["--epochs=2"]),
        ("certify", ["--num_draws=100", "--num_examples=2"]),
    ):
        done = call(tmp_path, script, *arguments, *more, **environment)
        assert done.stderr.count("NOT the archive's data") == 1
    assert "GENERATED" in done.stdout
    run = tmp_path / "runs/CBF/lstm_fcn/mc/sigma=0.5/seed=0"
    assert json.loads((run / "config.json").read_text())["data"]["source"] == "generated"
    (record,) = run.glob("certificates-*.json")
    assert json.loads(record.read_text())["settings"]["data"]["source"] == "generated"


@pytest.mark.parametrize(
    ("script", "some"),
    [
        ("train", {"sigma", "ensemble", "runs_dir", "member_of_de"}),
        ("certify", {"sigma", "ensemble", "run_dir", "num_draws", "burst", "process_id"}),
        ("attack", {"sigma", "ensemble", "run_dir", "epsilons"}),
        ("margins", {"sigma", "ensemble", "run_dir"}),
        ("reproduce", {"what", "data_dir", "results_dir", "time_limit", "merge"}),
        ("benchmark", {"what", "data_dir", "run_dir", "output_dir", "time_limit"}),
        ("compile_report", {"target", "output", "baseline"}),
        ("accelerator_run", {"folder", "minutes"}),
    ],
)
def test_help_names_the_flags(tmp_path, script, some):
    shown = call(tmp_path, script, "--help").stdout
    named = set(re.findall(r"^  -\S*?-(?:\[no\])?(\w+):", shown, re.MULTILINE))
    assert some <= named
    assert not [name for name in named if name.startswith(("experimental_", "logto"))]  # of others
    everything = ElementTree.fromstring(call(tmp_path, script, "--helpxml").stdout)
    own = {
        flag.findtext("name")
        for flag in everything.iter("flag")
        if not str(flag.findtext("file")).startswith(("absl.", "orbax."))
    }
    assert named == own | {"help"} & named


@pytest.mark.parametrize("script", ["train", "certify", "reproduce", "benchmark"])
def test_a_checkout_that_is_not_installed_says_how_it_is(script, tmp_path):
    as_if = "import runpy, sys; sys.path.insert(0, sys.argv[1]); "
    as_if += "sys.modules |= dict.fromkeys(['selfens_jax', 'jax', 'numpy', 'absl']); "
    as_if += f"runpy.run_path(sys.argv[1] + '/{script}.py', run_name='__main__')"
    folder = ROOT / "experiments"
    words = [sys.executable, "-c", as_if, str(folder)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    said = f"error: selfens_jax is not installed: python -m pip install {shlex.quote(str(ROOT))}\n"
    assert (done.stderr, done.stdout) == (said, "")


@pytest.mark.parametrize("change", ["a vote more", "a class less"])
def test_a_damaged_log_of_votes_is_refused_by_its_line(trained, change):
    words = ("--dataset=own.npz", *CERTIFY[:2], "--num_draws=40", "--noise_seed=8")
    call(trained, "certify", *words, "--num_examples=3")
    (log,) = [p for p in results(trained, "votes-*.tsv") if '"noise_seed": 8' in p.read_text()]
    lines = log.read_text().splitlines()
    index, seconds, forwards, *votes, _ = lines[2].split("\t")  # as without the checksum
    if change == "a vote more":
        votes[0] = str(int(votes[0]) + 1)
    else:
        votes = [str(sum(map(int, votes)))]
    lines[2] = "\t".join([index, seconds, forwards, *votes])
    log.write_text("\n".join(lines) + "\n")
    assert f"{log.name} is damaged in line 3" in error_of(trained, "certify", *words)
    log.unlink()


def test_too_few_draws_are_refused_from_saved_counts_too(trained):
    call(trained, "certify", "--dataset=own.npz", *CERTIFY[:2], "--num_draws=11", "--num_masks=1")
    (counts,) = results(trained, "counts-n11-*.npz")
    line = error_of(trained, "certify", f"--from_counts={counts}", "--alpha=0.0005")
    assert line.startswith(f"error: {counts}: 11 draws can certify nothing at alpha 0.0005")
    (trained / "counts-other.npz").write_bytes(b"no archive of arrays")
    line = error_of(trained, "certify", "--from_counts=counts-other.npz")
    said = "counts-other.npz cannot be read: it is no .npz file; move it away if it is damaged"
    assert line == f"error: {said}"
    call(trained, "certify", f"--from_counts={counts}", "--paper")  # which abstains from nothing


def test_series_too_far_from_zero_are_named(tmp_path):
    make_npz(tmp_path / "own.npz")
    with np.load(tmp_path / "own.npz") as arrays:
        given = dict(arrays)
    given["X_test"] = given["X_test"] + 1e9
    np.savez(tmp_path / "apart.npz", **given)
    given["X_train"] = given["X_train"] + 1e9
    np.savez(tmp_path / "far.npz", **given)
    words = ("--model=lstm_fcn", "--sigma=0.5")
    line = error_of(tmp_path, "train", "--dataset=far.npz", *words)
    assert line.startswith("error: far.npz: the series reach 1e+09, where the step of float32, 64,")
    assert "subtract a constant from all series, such as 1e+09" in line
    line = error_of(tmp_path, "train", "--dataset=apart.npz", *words)
    assert line.startswith("error: apart.npz: the series reach 1e+09")
    assert "a sigma of at least 4.1e+03 is needed, or series that reach less far" in line
    assert not (tmp_path / "runs").exists()


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    make_npz(tmp_path / "own.npz")
    (tmp_path / "file").touch()
    line = error_of(tmp_path, "train", "--dataset=own.npz", *TINY, "--runs_dir=file")
    assert line.endswith(f"{tmp_path / 'file'} is not a folder")


def test_new_series_need_a_run(trained):
    np.savez(trained / "new.npz", X=np.zeros((2, 16)))
    line = error_of(trained, "certify", "--series=new.npz", "--num_draws=40")
    assert line.endswith("--run_dir=RUN says by which run --series is to be certified")


def test_noise_of_float32_is_said_to_be_less_sure(trained):
    words = ("--dataset=own.npz", *CERTIFY, "--num_examples=2")
    done = call(trained, "certify", *words, "--noise=float32")
    assert "\n  noise: in float32, for which this is not proven whatever the" in done.stdout
    assert "  noise: " not in call(trained, "certify", *words).stdout


def test_the_command_that_trains_a_missing_run_can_be_pasted(trained):
    make_npz(trained / "two words $x.npz")
    words = ("--dataset=two words $x.npz", *TINY[:2], "--runs_dir=other runs")
    line = error_of(trained, "certify", *words)
    shown = line.partition("this trains it: ")[2]
    assert shlex.split(shown)[2:] == [words[0], words[2], words[1], words[3]]


def test_consensus_costs_fewer_forward_passes_and_is_another_result(trained):
    whole = call(trained, "certify", "--dataset=own.npz", *CERTIFY)
    done = call(trained, "certify", "--dataset=own.npz", *CERTIFY, "--consensus=2")
    assert "mc (consensus of 2)" in done.stdout
    cost = [re.search(r"forward passes a draw +(\d\.\d\d)", d.stdout) for d in (whole, done)]
    assert float(cost[0][1]) == 3
    assert 2 <= float(cost[1][1]) < 3
    records = [json.loads(p.read_text()) for p in results(trained, "certificates-*12ex*.json")]
    assert 2 in [record["settings"].get("consensus") for record in records]
    for path in (trained / RUN).glob("*"):
        if path.suffix != ".csv" and json.dumps({"consensus": 2})[1:-1] in read_text(path):
            path.unlink()
    assert "not 3" in error_of(trained, "certify", "--dataset=own.npz", *CERTIFY, "--consensus=3")


def read_text(path):
    return path.read_bytes().decode(errors="replace") if path.is_file() else ""


TARGET = ("--model=lstm_fcn", "--sigma=0.5", "--num_masks=3", "--target_radius=0.2")


def test_decisions_at_a_target_radius(trained):
    done = call(trained, "certify", "--dataset=own.npz", *TARGET)
    assert re.search(r"certified accuracy at r = 0.2 +\d+\.\d\d%", done.stdout)
    (tsv,) = results(trained, "target-r0.2-12ex-*.tsv")
    with tsv.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert {row["decision"] for row in rows} <= {"certified", "rejected", "undecided"}
    for row in rows:
        assert (row["predict"] == "-1") == (row["decision"] != "certified")
        assert int(row["draws"]) % 20 == 0
        assert int(row["forwards"]) == 3 * int(row["draws"])
    record = json.loads(tsv.with_suffix(".json").read_text())
    assert record["settings"]["target_radius"] == 0.2
    assert record["settings"]["batches"][:3] == [20, 40, 60]

    # Part of the examples first, then the rest, are the same decisions.
    (log,) = results(trained, "decisions-*.tsv")
    before = without_time(tsv)
    log.unlink()
    call(trained, "certify", "--dataset=own.npz", *TARGET, "--num_examples=4")
    tsv.unlink()
    resumed = call(trained, "certify", "--dataset=own.npz", *TARGET)
    assert "4/12" in resumed.stderr
    assert without_time(tsv) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--num_draws=100"], "leave out --num_draws"),
        (["--max_draws=40", "--target_radius=0.6"], "cannot certify this radius at alpha 0.001"),
        (["--max_draws=50"], "max_draws must be a positive multiple of 20"),
        (["--target_radius=-1"], "--target_radius=-1 --max_draws=2000: the radius must not be neg"),
        (["--target_radius=nan"], "--target_radius=nan"),
        (["--target_radius=1e9"], "no votes certify it"),
        (["--paper"], "leave out --target_radius"),
        (["--alpha_futility=0"], "--alpha_futility"),
        (["--alpha_futility=1"], "--alpha_futility"),
    ],
)
def test_bad_targets_are_refused(trained, arguments, says):
    assert_refused(trained, says, "certify", *TARGET, *arguments)


def test_a_cpu_has_one_precision(trained):
    assert_refused(
        trained, "a CPU computes in float32", "certify", *CERTIFY, "--precision=bfloat16"
    )


@pytest.mark.slow
def test_killed_margins_go_on_to_the_same_files(trained):
    arguments = ("--dataset=own.npz", "--model=lstm_fcn", "--sigma=0.5", "--num_draws=40")
    call(trained, "margins", *arguments)
    before = {path: path.read_bytes() for path in results(trained, "margins-n40-*")}
    assert len(before) == 2
    for path in before:
        path.unlink()
    process = subprocess.Popen(
        command("margins", *arguments), cwd=trained, stderr=subprocess.DEVNULL
    )
    assert kill_when(process, lambda: len(results(trained, "margins-n40-*/*.npz")) > 5)
    assert not [path for path in results(trained, "margins-n40-*") if path.is_file()]
    call(trained, "margins", *arguments)
    assert {p: p.read_bytes() for p in results(trained, "margins-n40-*")} == before


def test_several_sigmas_and_seeds_are_trained_side_by_side(tmp_path, trained):
    """Each run is what it is alone, also where some are finished or the command was killed."""
    make_npz(tmp_path / "own.npz")
    several = ("--dataset=own.npz", *TINY[:1], TINY[2], "--sigmas=0.5,0.25", "--seeds=0,1")
    done = call(tmp_path, "train", *several)
    folders = [pathlib.Path(line) for line in done.stdout.splitlines()]
    names = [f"sigma={sigma}/seed={seed}" for sigma in ("0.5", "0.25") for seed in (0, 1)]
    assert folders == [tmp_path / RUN.parents[1] / name for name in names]
    alone = (trained / RUN / "history.csv").read_text()
    histories = [(folder / "history.csv").read_text() for folder in folders]
    assert histories[0] == alone
    assert len(set(histories)) == 4

    third = call(tmp_path, "train", *several[:-1], "--seeds=1,2")
    assert third.stderr.count("has already been trained") == 2
    assert third.stdout.count("seed=2") == len(third.stdout.splitlines()) == 2
    call(tmp_path, "certify", "--dataset=own.npz", *CERTIFY, "--seed=2")


def test_a_single_network_is_the_first_of_a_deep_ensemble(tmp_path):
    make_npz(tmp_path / "own.npz")
    several = ("--dataset=own.npz", "--model=lstm_fcn", "--epochs=2", "--sigmas=0.5,0.25")
    taken = (*several, "--ensemble=single", "--member_of_de")
    says = "--ensemble=de in place of --ensemble=single --member_of_de trains it; without"
    assert_refused(tmp_path, says, "train", *taken)
    deep = call(tmp_path, "train", *several, "--ensemble=de", "--num_members=2").stdout.split()
    says = "de/sigma=0.5/seed=0 was trained otherwise: epochs is 2, not 3; without"
    assert_refused(tmp_path, says, "train", *taken, "--epochs=3")
    before = digests(tmp_path / "runs")
    for flag, says in (
        ("--objective=two_views", "objective is 'cross_entropy', not 'two_views'; without"),
        ("--average=0.5", "average is None, not 0.5; without"),
    ):
        assert_refused(tmp_path, says, "train", *taken, flag)
    folders = call(tmp_path, "train", *taken).stdout.split()
    assert folders == [folder.replace("/de/", "/single/") for folder in deep]
    assert before.items() <= digests(tmp_path / "runs").items()  # the ensembles are as they were
    of_single = ("--ensemble=single", "--runs_dir=alone")
    alone = call(tmp_path, "train", *several, *of_single).stdout.split()
    for one, other, source in zip(folders, alone, deep, strict=True):
        one, other = pathlib.Path(one), pathlib.Path(other)
        assert (one / "history.csv").read_bytes() == (other / "history.csv").read_bytes()
        weights = [runs.read_json(run / "checkpoint.json")["sha256"] for run in (one, other)]
        assert weights[0] == weights[1]
        config, own = (runs.read_json(run / "config.json") for run in (one, other))
        of_ensemble = runs.read_json(pathlib.Path(source) / "checkpoint.json")["sha256"]
        assert config.pop("member_of") == {"run": source, "weights_sha256": of_ensemble}
        assert config == own
        assert not (one / "training_time.json").exists()  # it has none of its own
    assert call(tmp_path, "train", *taken).stderr.count("has already been trained") == 2
    certify = ("--dataset=own.npz", "--model=lstm_fcn", "--ensemble=single", "--num_draws=120")
    done = [call(tmp_path, "certify", *certify, f"--run_dir={f[0]}") for f in (folders, alone)]
    assert done[0].stdout.replace(folders[0], "") == done[1].stdout.replace(alone[0], "")


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--objective=two_views", "objective is 'two_views', not 'cross_entropy'; without"),
        ("--average=0.5", "average is 0.5, not None; without"),
    ],
)
def test_a_deep_ensemble_of_another_objective_is_not_taken(tmp_path, flag, says):
    """A record leaves out the settings that have their defaults; they are compared all the same."""
    make_npz(tmp_path / "own.npz")
    words = ("--dataset=own.npz", "--model=lstm_fcn", "--epochs=1", "--sigma=0.5")
    call(tmp_path, "train", *words, "--ensemble=de", "--num_members=1", flag)
    taken = (*words, "--ensemble=single", "--member_of_de")
    assert_refused(tmp_path, says, "train", *taken)
    assert not [*(tmp_path / "runs").rglob("single/**/config.json")]
    call(tmp_path, "train", *taken, flag)
    (config,) = (tmp_path / "runs").rglob("single/**/config.json")
    assert runs.read_json(config)["member_of"]


@pytest.mark.parametrize("lost", ["history.csv", "checkpoint/**/_METADATA"])
def test_a_deep_ensemble_that_lost_a_file_is_not_taken(tmp_path, lost):
    make_npz(tmp_path / "own.npz")
    words = ("--dataset=own.npz", "--model=lstm_fcn", "--epochs=1", "--sigma=0.5")
    deep = call(tmp_path, "train", *words, "--ensemble=de", "--num_members=1").stdout.strip()
    (file,) = (tmp_path / deep).glob(lost)
    file.unlink()
    says = "without --member_of_de the network is trained by itself"
    assert_refused(tmp_path, says, "train", *words, "--ensemble=single", "--member_of_de")
    assert [path.name for path in (tmp_path / "runs/own/lstm_fcn").iterdir()] == ["de"]


def test_several_runs_certified_at_once_are_each_what_they_are_alone(tmp_path):
    make_npz(tmp_path / "own.npz")
    several = ("--dataset=own.npz", "--model=lstm_fcn", "--sigmas=8,4", "--seeds=1,0")
    call(tmp_path, "train", *several, "--epochs=1")
    draws = ("--num_draws=120", "--num_masks=3")
    done = call(tmp_path, "certify", *several, *draws)
    printed = re.findall(r"^\S.*\n(?:  .*\n)*", done.stdout, re.MULTILINE)
    summaries = printed[1::2]
    folders = [tmp_path / RUN.parents[1] / f"sigma={s}/seed={z}" for s in (8, 4) for z in (1, 0)]
    named = re.findall(r"\[(\d)/4\] (.*)", done.stderr)
    assert named == [(str(place), str(folder)) for place, folder in enumerate(folders, start=1)]
    assert printed[::2] == [f"{folder}\n" for folder in folders]
    votes = set()
    for folder, summary in zip(folders, summaries, strict=True):
        own = (f"--run_dir={folder}", f"--output_dir={folder / 'alone'}")
        alone = call(tmp_path, "certify", several[0], *own, *draws)
        assert alone.stdout == summary.replace(str(folder), str(folder / "alone"))
        (counts,) = folder.glob("counts-*.npz")
        with np.load(counts) as one, np.load(folder / "alone" / counts.name) as other:
            np.testing.assert_array_equal(one["counts"], other["counts"])
            votes.add(one["counts"].tobytes())
    assert len(votes) == 4


def test_several_runs_go_on_with_the_noise_that_was_drawn(trained, tmp_path):
    """Killed after the first of two: it is not certified again, with other noise."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    make_npz(tmp_path / "new.npz", seed=7)
    call(tmp_path, "train", "--dataset=own.npz", *TINY, "--seed=1")
    first, second = ((tmp_path / RUN).with_name(f"seed={seed}") for seed in (0, 1))
    words = ("--dataset=own.npz", *CERTIFY, "--series=new.npz", "--seeds=0,1", "--num_draws=2000")
    process = subprocess.Popen(
        command("certify", *words),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert kill_when(process, lambda: any(first.glob("certificates-n2000*.json")))
    assert not list(second.glob("certificates-n2000*"))
    call(tmp_path, "certify", *words)
    for run in (first, second):
        assert len(list(run.glob("counts-n2000*.npz"))) == 1
        assert not list(run.glob(".noise_seed-*"))
    said = error_of(tmp_path, "certify", *words[:-1], "--num_draws=3")
    assert said.startswith(f"error: {first}: --num_draws")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--sigmas=0.5,0.75",), "sigma=0.75/seed=0 does not exist"),
        (("--sigmas=0.5,0.75",), "--sigma=0.75"),  # in the command that trains it
        (
            ("--seeds=0,3", "--sigma=0.5"),
            "train.py --dataset=own.npz --sigma=0.5 --model=lstm_fcn --seed=3",
        ),
        (
            ("--sigmas=0.5,0.75", "--seeds=1,0"),  # of four runs one is trained
            "seed=1 does not exist, and so it is with 2 more; this trains them: python "
            "experiments/train.py --dataset=own.npz --sigmas=0.5,0.75 --model=lstm_fcn --seeds=1,0",
        ),
        (("--sigmas=0.5,0",), "--sigma=0: without noise there is no radius"),
        (("--sigmas=0.5,0.25", "--sigma=0.5"), "--sigma and --sigmas: give one of them"),
        (("--seeds=0,1", f"--run_dir={RUN}"), "--run_dir is one run; leave out --seeds"),
        (("--seeds=0,1", "--sigma=0.5", "--alpha_total=0.1"), "give one --sigma and one --seed"),
    ],
)
def test_several_runs_are_all_there_before_one_is_certified(trained, flags, says):
    assert_refused(trained, says, "certify", CERTIFY[0], *CERTIFY[2:], *flags)


def test_one_run_that_diverges_stops_those_beside_it(tmp_path):
    make_npz(tmp_path / "own.npz")
    words = ("--dataset=own.npz", "--model=lstm_fcn", "--epochs=1")
    line = error_of(tmp_path, "train", *words, "--sigmas=0.5,1e30")
    assert "training diverged (sigma 1e+30, seed 0)" in line
    assert line.endswith("; without it they go on from their last epoch that was saved")
    call(tmp_path, "train", *words, "--sigma=0.5")


def test_one_run_trained_otherwise_refuses_all_before_anything_is_written(trained):
    several = ("--model=lstm_fcn", "--epochs=5", "--sigmas=0.75,0.5")  # 0.5 had 4 epochs
    assert_refused(trained, "epochs is 4, not 5", "train", *several)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--sigmas=0.1,x",), "--sigmas must be numbers of at least 0"),
        (("--seeds=-1",), "--seeds must be numbers of at least 0"),
        (("--seeds=0,1", "--seed=2"), "--seed and --seeds: give one of them"),
    ],
)
def test_lists_of_sigmas_and_seeds_are_checked(trained, flags, says):
    assert_refused(trained, says, "train", "--model=lstm_fcn", *flags)

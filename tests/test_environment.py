"""The scripts on users' names, folders and machines: they work, or say why not in a line."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

from common import cli

import forked
import jax
import numpy as np
import pytest
from test_scripts import ROOT, RUN, command, make_npz, without_time

from selfens_jax import locks, paths, runs
from selfens_jax.errors import UserError
from selfens_jax.runs import records, run

TRAIN = ("--model=lstm_fcn", "--sigma=0.5", "--epochs=2")
CERTIFY = ("--model=lstm_fcn", "--sigma=0.5", "--num_draws=40", "--num_masks=2")
NOBODY = 12345
# Another user, who may read all files but write none but its own.
AS_NOBODY = (
    "setpriv",
    f"--reuid={NOBODY}",
    f"--regid={NOBODY}",
    "--clear-groups",
    "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
)


def start(folder, script, *arguments, user=(), **environment):
    """The finished process; an environment variable of None is not set."""
    quick_to_compile = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    changes = {"PYTHONDONTWRITEBYTECODE": "1", **quick_to_compile}
    # A folder that others may not write to; JAX warns of it.
    changes |= {"JAX_COMPILATION_CACHE_DIR": None} if user else {}
    changes |= environment
    if not user:
        return forked.run(ROOT / "experiments" / f"{script}.py", arguments, folder, **changes)
    variables = {**os.environ, **changes}
    return subprocess.run(
        [*user, *command(script, *arguments)],
        cwd=folder,
        env={name: value for name, value in variables.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_torn_program_in_the_cache_is_replaced_without_a_word(copied, tmp_path):
    """What a command leaves that was killed as it kept a compiled program."""
    home = {"HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    home |= {"JAX_COMPILATION_CACHE_DIR": None}
    place = (*CERTIFY, "--dataset=own.npz", f"--output_dir={tmp_path / 'out'}")
    assert_quiet(start(copied, "certify", *place, "--noise_seed=1", **home))
    kept = sorted((tmp_path / ".cache" / "selfens_jax" / "xla").glob("*-cache"))
    assert kept
    sizes = {}
    for entry in kept:
        sizes[entry] = entry.stat().st_size
        entry.write_bytes(entry.read_bytes()[:50])
    assert_quiet(start(copied, "certify", *place, "--noise_seed=2", **home))
    for entry, size in sizes.items():
        assert entry.stat().st_size > 50, entry.name
        assert entry.stat().st_size == pytest.approx(size, rel=0.2)


def assert_quiet(done, status=0):
    """It ended so, without a traceback or a warning; the error line, if there is one."""
    assert done.returncode == status, done.stderr
    for word in ("Traceback", "Warning", "warning:"):
        assert word not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == (status == 1), done.stderr
    return "".join(errors)


def certificates(run):
    """The tables of a run without their times, and its counts."""
    tables = {path.name: without_time(path) for path in run.glob("certificates-*.tsv")}
    return tables, {path.name: path.read_bytes() for path in run.glob("counts-*.npz")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, certified."""
    folder = tmp_path_factory.mktemp("trained")
    make_npz(folder / "own.npz")
    assert_quiet(start(folder, "train", "--dataset=own.npz", *TRAIN))
    assert_quiet(start(folder, "certify", "--dataset=own.npz", *CERTIFY))
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


# Names and paths

NAMES = {
    "brackets": ("[2024] lab", "心电 é [1]*?😀.npz", "心电 é [1]*?😀"),
    "signs": ("$HOME {x} %41 #1 ~", "$x_1$ & 'q' \\frac ^_.NPZ", "$x_1$ & 'q' \\frac ^_"),
    "no ending": ("-x лаборатория", "~own.v2", "~own.v2"),
}


@pytest.mark.parametrize(
    ("lab", "file", "name"),
    [
        pytest.param(*words, id=name, marks=[] if name == "brackets" else pytest.mark.slow)
        for name, words in NAMES.items()
    ],
)
def test_train_and_certify_find_one_run_from_the_same_words(tmp_path, lab, file, name):
    folder = tmp_path / lab
    folder.mkdir()
    make_npz(folder / "x.npz")
    (folder / "x.npz").rename(folder / file)
    words = f"--dataset={file if file.lower().endswith('.npz') else f'./{file}'}"
    assert_quiet(start(folder, "train", words, *TRAIN))
    done = start(folder, "certify", words, *CERTIFY)
    assert_quiet(done)
    assert done.stdout.startswith(f"{name}, lstm_fcn, mc")
    run = folder / "runs" / name / "lstm_fcn/mc/sigma=0.5/seed=0"
    (picture,) = run.glob("certificates-*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    # The same file by its absolute path, and the run by its own.
    again = start(folder, "train", f"--dataset={folder / file}", *TRAIN)
    assert "has already been trained" in again.stderr
    assert_quiet(
        start(folder, "certify", f"--dataset={folder / file}", f"--run_dir={run}", *CERTIFY[2:])
    )


def test_every_path_flag_knows_the_home_directory(copied):
    (copied / "home").mkdir()
    (copied / "own.npz").rename(copied / "home" / "own.npz")
    home = {"HOME": str(copied / "home")}
    shutil.copytree(copied / "runs", copied / "home" / "runs")
    shutil.rmtree(copied / "runs")
    words = ("--dataset=~/own.npz", "--runs_dir=~/runs", *CERTIFY, "--nocompilation_cache")
    assert_quiet(start(copied, "certify", *words, "--output_dir=~/results", **home))
    assert_quiet(start(copied, "certify", *words, f"--run_dir=~/{RUN}", **home))
    (counts,) = (copied / "home" / "results").glob("counts-*.npz")
    arguments = (f"--from_counts=~/results/{counts.name}", "--output_dir=~/more", "--alpha=0.01")
    assert_quiet(start(copied, "certify", *arguments, **home))
    assert list((copied / "home" / "more").glob("certificates-*-alpha0.01.tsv"))
    reproduce = ("--what=table3", "--results_dir=~/paper", "--data_dir=~/none", "--profile=smoke")
    assert f"'{copied}/home/none' is not a folder" in assert_quiet(
        start(copied, "reproduce", *reproduce, **home), status=1
    )
    assert not list(copied.glob("~*"))
    unknown = start(copied, "certify", *CERTIFY, "--runs_dir=~nobody_here/runs")
    assert "home directory of ~nobody_here is not known" in assert_quiet(unknown, status=1)


def test_a_file_that_is_called_like_a_home_directory_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("~x").touch()
    assert paths.expand("~x") == pathlib.Path("~x")
    assert paths.expand("~/x") == pathlib.Path.home() / "x"
    for words in ("", "a\0b", "~nobody_here/x"):
        with pytest.raises(UserError):
            paths.expand(words)


def test_a_network_that_cannot_be_read_back_is_not_said_to_be_trained(tmp_path, monkeypatch):
    saved = run.save_tree
    states, variables = {"w": np.ones(2, np.float32)}, {"w": np.zeros(2, np.float32)}
    history = [{"epoch": 1, "member": 0, "loss": 0.1, "accuracy": 0.5, "learning_rate": 1e-3}]
    runs.save_progress(tmp_path, 1, states, history)
    monkeypatch.setattr(run, "save_tree", lambda path, tree: saved(path, states))
    with pytest.raises(UserError, match="cannot be read back"):
        runs.save_networks(tmp_path, variables, history)
    assert not runs.is_finished(tmp_path)
    assert runs.load_progress(tmp_path, states)[0] == 1
    monkeypatch.setattr(run, "save_tree", lambda path, tree: path.mkdir())
    with pytest.raises(UserError, match=r"cannot be read back .*checkpoint"):
        runs.save_networks(tmp_path, variables, history)
    assert not runs.is_finished(tmp_path)


def test_a_damaged_network_is_not_said_to_be_trained(copied):
    for file in (copied / RUN / "checkpoint").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    for script, flags in (("train", TRAIN), ("certify", (*CERTIFY, "--noise_seed=4"))):
        done = start(copied, script, "--dataset=own.npz", *flags)
        assert "--overwrite" in assert_quiet(done, status=1)
    assert_quiet(start(copied, "train", "--dataset=own.npz", *TRAIN, "--overwrite"))


def test_a_network_of_other_numbers_than_were_trained_is_refused(copied):
    """Orbax reads what it finds; a bit that a disk lost would be certified as a network."""
    record = copied / RUN / "checkpoint.json"
    before = json.loads(record.read_text())["sha256"]
    record.write_text(json.dumps({"sha256": "0" * len(before)}))
    done = start(copied, "certify", "--dataset=own.npz", *CERTIFY)
    assert "other numbers than were trained" in assert_quiet(done, status=1)
    record.unlink()  # as in runs of older versions
    assert_quiet(start(copied, "certify", "--dataset=own.npz", *CERTIFY))


@pytest.mark.parametrize("content", [b"", b"PK\3\4 and not more", b"text"])
def test_a_damaged_file_of_arrays_is_one_line(copied, content):
    (counts,) = (copied / RUN).glob("counts-*.npz")
    (masks,) = (copied / RUN).glob("masks-*.npz")
    for file in (counts, masks):
        file.write_bytes(content)
    for words in ((f"--from_counts={counts}",), ("--dataset=own.npz", *CERTIFY)):
        error = assert_quiet(start(copied, "certify", *words), status=1)
        assert ".npz cannot be read: " in error


@pytest.mark.parametrize("config", ["{}", "null", "{", '{"model": "lstm_fcn", "data": []}', "-3"])
def test_a_damaged_configuration_is_one_line(copied, config):
    file = copied / RUN / "config.json"
    text = file.read_text().replace('"length": 16', '"length": -3') if config == "-3" else config
    file.write_text(text)
    for words in ((f"--run_dir={RUN}",), CERTIFY):
        error = assert_quiet(start(copied, "certify", "--dataset=own.npz", *words), status=1)
        assert "config.json" in error


def test_an_abstention_has_a_name_that_no_class_has():
    for classes in (["a"], ["-1", "1"], ["-1", "abstain"], ["-1", "abstain", "abstain_0"]):
        names = records.class_names({"classes": classes})
        assert names[:-1] == classes
        assert names[-1] not in classes
    assert records.class_names({"classes": ["1", "2"]})[-1] == "-1"


# Machines


def test_a_run_that_was_moved_and_renamed_is_the_same(copied):
    before = certificates(copied / RUN)
    moved = copied / "elsewhere" / "best run"
    moved.parent.mkdir()
    (copied / RUN).rename(moved)
    for path in [*moved.glob("certificates-*"), *moved.glob("counts-*"), *moved.glob("votes-*")]:
        path.unlink()
    words = ("--dataset=own.npz", f"--run_dir={moved}", *CERTIFY[2:])
    assert_quiet(start(copied, "certify", *words))
    assert certificates(moved) == before


@pytest.mark.parametrize(
    "variables",
    [
        {"JAX_ENABLE_X64": "1"},
        {
            "JAX_DEFAULT_PRNG_IMPL": "rbg",
            "JAX_THREEFRY_PARTITIONABLE": "0",
            "JAX_NUMPY_RANK_PROMOTION": "raise",
            "JAX_NUMPY_DTYPE_PROMOTION": "strict",
            "JAX_TRANSFER_GUARD": "disallow",
            "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
        },
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_settings_of_jax_change_nothing(copied, variables):
    before = certificates(copied / RUN)
    history = (copied / RUN / "history.csv").read_bytes()
    shutil.rmtree(copied / "runs")
    for script, flags in (("train", TRAIN), ("certify", CERTIFY)):
        assert_quiet(start(copied, script, "--dataset=own.npz", *flags, **variables))
    assert (copied / RUN / "history.csv").read_bytes() == history
    assert certificates(copied / RUN) == before


@pytest.mark.parametrize("device", ["cuda", "tpu", "gpu", "quantum"])
def test_a_device_that_is_not_here_is_one_line(copied, device):
    for script, flags in (("train", (*TRAIN, "--seed=1")), ("certify", CERTIFY)):
        done = start(copied, script, "--dataset=own.npz", *flags, JAX_PLATFORMS=device)
        line = assert_quiet(done, status=1)
        start_of_it = f"error: JAX_PLATFORMS={device} names a device that JAX cannot use here"
        reason, remedy = line.removeprefix(start_of_it).rsplit("; ", 1)
        assert remedy == "unset it, or install JAX for that device"
        assert reason == "" or (reason[:2], reason[-1], reason.count("(")) == (" (", ")", 1)
        assert "set JAX" not in reason  # JAX's own remedy, which is to set what is set


def test_no_device_at_all_is_one_line(copied):
    done = start(copied, "certify", "--dataset=own.npz", *CERTIFY, JAX_NUM_CPU_DEVICES="0")
    assert "JAX finds no device" in assert_quiet(done, status=1)


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root, to be somebody else"
)
class TestSomebodyElse:
    """A user without a home, or of other people's files."""

    @pytest.mark.parametrize("home", [None, pytest.param("/", marks=pytest.mark.slow)], ids=str)
    def test_no_home_is_needed(self, copied, home):
        for path in [copied, *copied.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)
        for script, flags in (("train", (*TRAIN, "--seed=1")), ("certify", CERTIFY)):
            words = ("--dataset=own.npz", *flags)
            assert_quiet(start(copied, script, *words, user=AS_NOBODY, HOME=home))

    @pytest.mark.slow
    def test_results_of_a_read_only_run_go_elsewhere(self, copied):
        before = certificates(copied / RUN)
        (counts,) = (copied / RUN).glob("counts-*.npz")
        (copied / "mine").mkdir()
        os.chown(copied / "mine", NOBODY, NOBODY)
        runs_before = {path: path.stat().st_mtime_ns for path in (copied / "runs").rglob("*")}
        words = ("--dataset=own.npz", *CERTIFY)
        attack = (*CERTIFY, "--steps=1", "--attack_draws=2", "--num_examples=2", "--epsilons=1")
        every = {
            "certify": words,
            "attack": ("--dataset=own.npz", *attack),
            "margins": (*words, "--num_examples=2", "--num_random_masks=2"),
        }
        for script, flags in every.items():
            done = start(copied, script, *flags, "--noise_seed=5", user=AS_NOBODY)
            error = assert_quiet(done, status=1)
            assert "Permission denied; --output_dir writes elsewhere" in error
            done = start(copied, script, *flags, "--output_dir=mine", user=AS_NOBODY)
            assert_quiet(done)
        assert certificates(copied / "mine") == before
        assert len(list((copied / "mine").glob("attack-*.npz"))) == 1
        assert len(list((copied / "mine").glob("margins-*.npz"))) == 1
        assert not list(copied.rglob(".*.lock"))
        again = ("--alpha=0.01", f"--from_counts={counts}")
        refused = start(copied, "certify", *again, user=AS_NOBODY)
        assert "--output_dir" in assert_quiet(refused, status=1)
        assert_quiet(start(copied, "certify", *again, "--output_dir=mine", user=AS_NOBODY))
        already = start(copied, "train", "--dataset=own.npz", *TRAIN, user=AS_NOBODY)
        assert "has already been trained" in already.stderr
        assert_quiet(already)
        after = {path: path.stat().st_mtime_ns for path in (copied / "runs").rglob("*")}
        assert after == runs_before

    @pytest.mark.parametrize(
        ("locked", "mode", "says"),
        [
            ("run", 0o700, "run must be readable"),
            ("run", 0o744, "run must be readable"),  # listed, but not entered
            ("run/config.json", 0o600, "run/config.json must be readable"),
            ("run", 0o711, None),  # entered, but not written into
        ],
    )
    def test_what_cannot_be_read_is_named(self, locked, mode, says, monkeypatch):
        """--output_dir mends what cannot be written, not what cannot be read."""
        defined = cli.flags.FlagValues()  # not what scripts imported by other tests have defined
        cli.flags.DEFINE_string("output_dir", None, "", flag_values=defined)
        monkeypatch.setattr(cli.flags, "FLAGS", defined)
        with tempfile.TemporaryDirectory() as name:
            path = pathlib.Path(name, "run", "config.json")
            path.parent.mkdir()
            path.write_text("{}")
            pathlib.Path(name).chmod(0o755)
            pathlib.Path(name, locked).chmod(mode)
            path = path if says else path.with_name("new")
            os.seteuid(NOBODY)
            try:
                with pytest.raises(PermissionError) as caught:
                    path.open("r" if says else "x")
                said = cli._of_files(caught.value)
                absent = paths.absence(path)
            finally:
                os.seteuid(0)
        assert said.startswith(f"{path}: Permission denied")
        remedy = f"{name}/{says} by who runs this" if says else "--output_dir writes elsewhere"
        assert said.partition("; ")[2] == remedy
        assert ("looked for" in absent) == (locked == "run" and bool(says))

    @pytest.mark.parametrize(("mode", "kept"), [(0o555, False), (0o755, True)])
    def test_programs_are_kept_only_where_they_can_be_written(
        self, mode, kept, tmp_path, monkeypatch
    ):
        with tempfile.TemporaryDirectory() as name:
            cache = pathlib.Path(name, ".cache", "selfens_jax", "xla")
            cache.mkdir(parents=True)
            for path in (cache, *cache.parents[:3]):
                os.chown(path, NOBODY, NOBODY)
            cache.chmod(mode)
            monkeypatch.setenv("HOME", name)
            monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
            changes = []
            monkeypatch.setattr(cli, "_drop_torn_programs", changes.append)
            before = jax.config.jax_compilation_cache_dir
            os.setresuid(NOBODY, NOBODY, 0)
            try:
                cli._keep_compiled_programs()
            finally:
                os.setresuid(0, 0, 0)
                jax.config.update("jax_compilation_cache_dir", before)
        assert changes == ([cache] if kept else [])

    def test_nothing_is_trained_where_nothing_can_be_written(self, copied):
        words = ("--dataset=own.npz", *TRAIN, "--seed=1")
        error = assert_quiet(start(copied, "train", *words, user=AS_NOBODY), status=1)
        assert "Permission denied; --runs_dir writes elsewhere" in error


def test_masks_of_several_runs_lie_side_by_side(copied):
    """In one folder of results, where their names could be the same."""
    rng = np.random.default_rng(1)
    y = np.arange(8) % 2
    np.savez(
        copied / "long.npz",
        X_train=rng.normal(size=(8, 20)),
        y_train=y,
        X_test=rng.normal(size=(8, 20)),
        y_test=y,
    )
    assert_quiet(start(copied, "train", "--dataset=long.npz", *TRAIN))
    for file in (copied / RUN).glob("masks-*"):
        file.unlink()
    for data in ("own", "long"):
        words = (f"--dataset={data}.npz", *CERTIFY, "--output_dir=results")
        assert_quiet(start(copied, "certify", *words))
    assert len(list((copied / "results").glob("masks-*.npz"))) == 2
    assert len(list((copied / "results").glob("certificates-*.tsv"))) == 2


# Twice at once


def begin(folder, script, *arguments):
    return subprocess.Popen(
        command(script, *arguments),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def busy(folder, script, *arguments):
    """The script at work, once it has its lock; ended when the block is left."""
    process = begin(folder, script, *arguments)
    try:
        limit = time.monotonic() + 120
        while not any(path.stat().st_size for path in folder.rglob(".*.lock")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < limit
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.communicate()


LONG = {
    "train": ("--dataset=own.npz", *TRAIN[:2], "--epochs=100000", "--seed=1"),
    "certify": ("--dataset=own.npz", *CERTIFY[:2], "--num_draws=100000"),
    "attack": ("--dataset=own.npz", *CERTIFY, "--steps=100000", "--epsilons=1"),
    "margins": ("--dataset=own.npz", *CERTIFY[:2], "--num_draws=100000"),
}


@pytest.mark.parametrize(("script", "arguments"), LONG.items(), ids=LONG)
def test_the_same_work_is_done_once_at_a_time(copied, script, arguments):
    with busy(copied, script, *arguments) as process:
        error = assert_quiet(start(copied, script, *arguments), status=1)
        assert f"is being done by process {process.pid} on " in error
        assert "wait until it has ended, or stop it" in error
        process.kill()
        process.wait()
    # A killed process holds nobody up, although its lock file is still there.
    assert list(copied.rglob(".*.lock"))
    with busy(copied, script, *arguments):
        pass


def test_a_run_in_use_is_not_trained_again(copied):
    words = ("--dataset=own.npz", *TRAIN, "--overwrite")
    with busy(copied, "certify", *LONG["certify"]) as process:
        error = assert_quiet(start(copied, "train", *words), status=1)
        assert "work on" in error
        assert (copied / RUN / "checkpoint").is_dir()
        process.kill()
        process.wait()
    assert_quiet(start(copied, "train", *words))


def test_a_log_that_was_deleted_is_not_begun_without_its_first_line(tmp_path):
    log = tmp_path / "votes.tsv"
    runs.open_log(log, {}, bool)
    log.unlink()
    with pytest.raises(FileNotFoundError):
        runs.append_log(log, {3: runs.Entry((1, 2), 0.5)})
    assert not log.exists()


def test_other_work_on_the_same_run_goes_on(copied):
    with busy(copied, "certify", *LONG["certify"]):
        assert_quiet(start(copied, "certify", "--dataset=own.npz", *CERTIFY, "--noise_seed=1"))
    with busy(copied, "train", *LONG["train"]):
        assert_quiet(start(copied, "train", "--dataset=own.npz", *TRAIN, "--seed=2"))


def test_the_same_command_in_two_shells_leaves_one_usable_log(copied):
    words = ("--dataset=own.npz", *CERTIFY, "--noise_seed=3")
    both = [begin(copied, "certify", *words) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    assert min(process.returncode for process in both) == 0, said
    assert_quiet(start(copied, "certify", *words))
    (log,) = [p for p in (copied / RUN).glob("votes-*.tsv") if '"noise_seed": 3' in p.read_text()]
    assert len(log.read_text().splitlines()) == 1 + 12


def test_equal_lines_of_a_log_are_one(tmp_path):
    """As two processes on file systems without locks leave them: only their times differ."""
    log = tmp_path / "votes.tsv"
    runs.open_log(log, {}, bool)
    for seconds in (0.5, 0.7):
        runs.append_log(log, {3: runs.Entry((1, 2), seconds)})
    assert runs.read_log(log, {}, bool) == {3: runs.Entry((1, 2), 0.5)}
    runs.append_log(log, {3: runs.Entry((2, 1), 0.5)})
    with pytest.raises(UserError, match="example 3 twice, differently"):
        runs.read_log(log, {}, bool)


def test_a_lock_is_gone_afterwards_and_names_its_holder(tmp_path):
    file = tmp_path / "deep" / ".x.lock"
    with locks.held(file, "the test"):
        assert f"process {os.getpid()} on " in file.read_text()
        with (
            pytest.raises(UserError, match=f"the test is being done by process {os.getpid()}"),
            locks.held(file, "the test"),
        ):
            pass
        assert file.exists()
    assert not file.exists()
    with pytest.raises(KeyError), locks.held(file, "the test"):
        raise KeyError
    assert not file.exists()


# Training that goes wrong


def test_training_that_diverges_stops_and_can_be_begun_again(tmp_path):
    make_npz(tmp_path / "own.npz")
    words = ("--dataset=own.npz", *TRAIN[:2], "--epochs=30")
    for flags in (("--learning_rate=1e38",), ("--learning_rate=1e38", "--epochs=1")):
        error = assert_quiet(start(tmp_path, "train", *words, *flags), status=1)
        assert ("training diverged (sigma 0.5, seed 0): the loss is " in error) == (len(flags) == 1)
        assert ("network holds numbers that are not finite" in error) == (len(flags) == 2)
        assert "lower the learning rate" in error
        assert not runs.is_finished(tmp_path / RUN)
    assert_quiet(start(tmp_path, "train", *words))  # nothing was trained that it would replace
    assert runs.is_finished(tmp_path / RUN)

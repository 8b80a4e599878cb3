"""Noise that nobody can know beforehand: --noise_seed=random, the default for new series."""

import json
import pathlib
import subprocess
import time
import types

import numpy as np
import pytest
from test_scripts import RUN, TINY, call, command, error_of, make_npz

from selfens_jax import counting

CERTIFY = ("--num_draws=60", "--num_masks=2", "--num_examples=8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise_seed")
    make_npz(folder / "own.npz")
    call(folder, "train", "--dataset=own.npz", *TINY)
    # Between the two classes, so that the votes depend on the noise.
    np.savez(folder / "new.npz", X=np.linspace(0.5, 2.5, 8)[:, None] + np.zeros((8, 16)))
    return folder


def certified(folder, output, *arguments):
    """The counts, and the seed that their record tells."""
    call(folder, "certify", f"--output_dir={output}", f"--run_dir={RUN}", *CERTIFY, *arguments)
    (file,) = pathlib.Path(folder / output).glob("counts-*.npz")
    with np.load(file) as found:
        return found["counts"], json.loads(str(found["settings"]))["noise_seed"]


def test_a_seed_is_drawn_for_new_series_told_and_gives_the_same_votes_again(trained):
    first, seed = certified(trained, "first", "--series=new.npz")
    second, other = certified(trained, "second", "--series=new.npz")
    assert seed != other  # they are equal once in 2^32 times
    assert (first != second).any()
    again, _ = certified(trained, "again", "--series=new.npz", f"--noise_seed={seed}")
    np.testing.assert_array_equal(again, first)
    assert not list(trained.rglob(".noise_seed*"))


def test_test_series_have_the_seed_of_the_run_unless_another_is_asked_for(trained):
    _, seed = certified(trained, "test", "--dataset=own.npz")
    assert seed == 0
    _, seed = certified(trained, "random", "--dataset=own.npz", "--noise_seed=random")
    assert seed > 0


def test_a_seed_that_another_process_forgot_is_forgotten(tmp_path):
    seed = types.SimpleNamespace(seed_file=tmp_path / ".noise_seed.json")
    seed.seed_file.touch()
    for _ in range(2):
        counting.Job.forget_seed(seed)
        assert not seed.seed_file.exists()


def test_a_command_that_was_killed_goes_on_with_its_seed(trained):
    arguments = (f"--run_dir={RUN}", *CERTIFY, "--series=new.npz", "--output_dir=killed")
    call(trained, "certify", *arguments)
    (log,) = (trained / "killed").glob("votes-*.tsv")
    expected = log.read_text().splitlines()
    seed = json.loads(expected[0])["noise_seed"]
    # What a kill before the last series leaves: some lines of the log, and the seed that was drawn.
    for file in (trained / "killed").iterdir():
        file.unlink()
    log.write_text("\n".join(expected[:-1]) + "\n")
    process = subprocess.Popen(
        command("certify", *arguments), cwd=trained, stderr=subprocess.DEVNULL
    )
    while not (kept := list((trained / "killed").glob(".noise_seed-*.json"))):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept[0].write_text(json.dumps({"noise_seed": seed}))
    call(trained, "certify", *arguments)
    found = log.read_text().splitlines()
    assert [line.split("\t")[2:-1] for line in found[1:]] == [
        line.split("\t")[2:-1] for line in expected[1:]
    ]
    assert not list((trained / "killed").glob(".noise_seed*"))


@pytest.mark.parametrize("script", ["attack", "margins"])
def test_other_commands_want_a_number(trained, script):
    said = error_of(trained, script, "--dataset=own.npz", *TINY[:2], "--noise_seed=random")
    assert "--noise_seed=random is for certify.py; give a number" in said


@pytest.mark.parametrize("seed", ["-1", "x", "4294967296", "1.5"])
def test_what_is_no_seed_is_refused(trained, seed):
    said = error_of(trained, "certify", "--dataset=own.npz", f"--noise_seed={seed}")
    assert "random, or a whole number from 0 to below 2**32" in said

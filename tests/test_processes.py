"""Several processes: each counts its share, the first merges, and the result is one process's."""

import socket
import subprocess
import types

from common import processes

import jax
import pytest
from test_scripts import CERTIFY, RUN, TINY, call, command, make_npz, results, without_time


@pytest.mark.parametrize(
    ("coordinator", "number", "this", "distributed", "joins"),
    [
        (None, None, None, False, False),
        (None, 2, 1, False, False),  # which meet in the folder alone
        ("host:1234", 2, 1, False, True),
        (None, None, None, True, True),  # where the cluster says who is who
    ],
)
def test_processes_come_together_if_asked(
    coordinator, number, this, distributed, joins, monkeypatch
):
    given = {"num_processes": number, "process_id": this, "distributed": distributed, "wait": 7.0}
    asked = types.SimpleNamespace(coordinator=coordinator, **given)
    joined = []
    monkeypatch.setattr(processes, "FLAGS", asked)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *words: joined.append(words))
    monkeypatch.setattr(jax, "process_count", lambda: 5)
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    share = processes.start()
    assert joined == [(coordinator, number, this)] * joins
    expected = (3, 5) if joins else (0, 1) if number is None else (1, 2)
    assert (share.process, share.number, share.wait) == (*expected, 7.0)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    make_npz(folder / "own.npz")
    call(folder, "train", "--dataset=own.npz", *TINY)
    return folder


@pytest.fixture(scope="module")
def alone(trained):
    """The certificates of one process, and the files it wrote, which are removed."""
    call(trained, "certify", "--dataset=own.npz", *CERTIFY)
    (tsv,) = results(trained, "certificates-*.tsv")
    (counts,) = results(trained, "counts-*.npz")
    found = without_time(tsv), counts.read_bytes()
    clear(trained)
    return found


def clear(folder):
    for pattern in ("votes-*", "counts-*", "certificates-*"):
        for path in results(folder, pattern):
            path.unlink()


def start(folder, *arguments):
    return subprocess.Popen(
        command("certify", "--dataset=own.npz", *CERTIFY, *arguments),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_like(folder, alone):
    (tsv,) = results(folder, "certificates-*.tsv")
    (counts,) = results(folder, "counts-*.npz")
    assert (without_time(tsv), counts.read_bytes()) == alone


def test_two_jax_distributed_processes_count_what_one_counts(trained, alone):
    port = free_port()
    both = [
        start(trained, f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={i}")
        for i in (0, 1)
    ]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "Traceback" not in said[0][1] + said[1][1]
    assert "process 1 of 2: 6 examples" in said[1][1]
    assert said[1][0] == ""
    first, second = sorted(p.name for p in results(trained, "votes-*.tsv"))
    assert (second, first) == (first.replace(".1.tsv", ".tsv"), first)
    assert_like(trained, alone)
    clear(trained)


def test_a_lost_process_leaves_its_share_and_a_rerun_finishes_the_rest(trained, alone):
    """Process 1 of 3 never runs; without a coordinator they need nothing but the folder."""
    last = start(trained, "--num_processes=3", "--process_id=2")
    last.communicate(timeout=300)
    assert last.returncode == 0
    first = start(trained, "--num_processes=3", "--process_id=0", "--wait=1")
    output, errors = first.communicate(timeout=300)
    assert first.returncode == 1
    assert output == ""
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "4 examples of other processes are not in" in line
    assert len(results(trained, "votes-*.tsv")) == 2
    assert not results(trained, "certificates-*")
    done = call(trained, "certify", "--dataset=own.npz", *CERTIFY)
    assert "8/12" in done.stderr  # it began where the two had stopped
    assert_like(trained, alone)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--num_processes=2"], "go together"),
        (["--process_id=0"], "go together"),
        (["--num_processes=0", "--process_id=0"], "--num_processes must be at least 1"),
        (["--num_processes=2", "--process_id=-1"], "from 0 to 1, not -1"),
        (["--coordinator=localhost:1"], "--coordinator needs"),
        (["--num_processes=2", "--process_id=2"], "from 0 to 1, not 2"),
    ],
)
def test_flags_that_do_not_fit_are_refused(trained, arguments, says):
    done = call(trained, "certify", "--dataset=own.npz", *CERTIFY, *arguments, status=1)
    assert says in done.stderr
    assert (trained / RUN).is_dir()

"""The campaign of harmed commands tells what is lost from what is not; `-m slow` runs it."""

import json
import random
import sys

import pytest
import reliability
from reliability import Outcome


def outcome(kind, survived=True, said=""):
    return Outcome(kind, "train", survived, said)


def test_ends_of_commands_that_are_no_good():
    assert reliability.complaint(0, "warning: slow\n") == ""
    assert reliability.complaint(1, "CBF\nerror: no such file\n") == ""
    assert reliability.complaint(1, "CBF\n") == "no error line"
    assert reliability.complaint(1, "error: a\nerror: b\n") == "no error line"
    assert "status 2" in reliability.complaint(2, "")
    for status in (0, 1, 130):
        said = "Traceback (most recent call last):\n  x\nKeyError: 3\n"
        assert reliability.complaint(status, said) == "a traceback: KeyError: 3"


def test_states_are_compared_without_times_alone(tmp_path):
    run = tmp_path / "runs"
    run.mkdir()
    (run / "a.tsv").write_text("idx\tradius\ttime\n3\t0.5\t0:00:01\n")
    (run / "votes.tsv").write_text('{"n": 1}\n4\t0.1\t7\t#ab\n3\t0.2\t9\t#cd\n')
    (run / "x.json").write_text(json.dumps({"alpha": 0.1, "deep": [{"seconds": 3}], "crc32": "1"}))
    (run / ".lock").write_text("1")
    before = reliability.state(tmp_path)
    assert set(before) == {"runs/a.tsv", "runs/votes.tsv", "runs/x.json"}

    (run / "a.tsv").write_text("idx\tradius\ttime\n3\t0.5\t0:00:09\n")
    (run / "votes.tsv").write_text('{"n": 1}\n3\t0.5\t9\t#11\n4\t0.6\t7\t#22\n')
    (run / "x.json").write_text(json.dumps({"alpha": 0.1, "deep": [{"seconds": 4}], "crc32": "2"}))
    assert reliability.difference(reliability.state(tmp_path), before) == ""

    for name, content in {
        "a.tsv": "idx\tradius\ttime\n3\t0.6\t0:00:01\n",
        "votes.tsv": '{"n": 1}\n3\t0.5\t8\t#11\n4\t0.6\t7\t#22\n',
        "x.json": '{"alpha": 0.2, "deep": [{}]}',
        "new.png": "x",
    }.items():
        old = (run / name).read_text() if (run / name).exists() else None
        (run / name).write_text(content)
        assert f"runs/{name}" in reliability.difference(reliability.state(tmp_path), before)
        (run / name).write_text(old) if old is not None else (run / name).unlink()


@pytest.mark.parametrize("how", ["torn", "flipped", "emptied", "lost"])
def test_harm_changes_a_file(tmp_path, how):
    path, rng = tmp_path / "file", random.Random(0)
    for _ in range(20):
        path.write_bytes(b"0123456789")
        reliability.harm(path, how, rng)
        found = path.read_bytes() if path.exists() else None
        if how == "flipped":
            bits = [a ^ b for a, b in zip(found, b"0123456789", strict=True)]
            assert sum(bits).bit_count() == 1
        else:
            assert found in {"torn": [b"0123456789"[:n] for n in range(10)]}.get(
                how, [{"emptied": b"", "lost": None}[how]] if how != "torn" else []
            )


def test_the_table_counts_and_tells():
    table = reliability.summary(
        [
            outcome("SIGKILL"),
            outcome("SIGKILL", False, "fault 3 of seed 0: lost"),
            outcome("clock set"),
        ]
    )
    assert "| SIGKILL | 2 | 1 | train: fault 3 of seed 0: lost |" in table
    assert "| clock set | 1 | 1 | nothing |" in table
    assert table.endswith("| all | 3 | 2 | |")


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_wrong_comes_out(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reliability.py", "--minutes=10", "--faults=60"])
    assert reliability.main() == 0, capsys.readouterr().out

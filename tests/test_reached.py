"""Which tests reach a line, in pytest's own process, in scripts and in forks."""

import json
import shutil
from pathlib import Path

import campaign
import faults_made
import pytest
import reached
from mutations import ROOT
from reached import Reached

LIBRARY = """\
LIMIT = 9


def clamp(
    x,
    low=0,
):
    if x > LIMIT:
        return (
            LIMIT
        )
    return max(low, x)
"""
SCRIPT = """\
import sys

from selfens_jax import clamp

if sys.argv[1] == "high":
    print(clamp.clamp(10))
else:
    print(clamp.clamp(-1))
"""
IN_PROCESS = """\
import pytest
from selfens_jax import clamp

@pytest.mark.parametrize("x", [1, "a|b (c)"])
def test_inside(x):
    assert x == "a|b (c)" or clamp.clamp(x) == 1
def test_outside():
    assert clamp.clamp(10) == 9
def test_none():
    pass
"""
OF_SCRIPTS = """\
import pathlib, subprocess, sys
import forked, pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "experiments" / "go.py"

@pytest.fixture(scope="module")
def made():
    return subprocess.run([sys.executable, SCRIPT, "low"], capture_output=True, check=True).stdout
def test_made(made):
    assert made == b"0\\n"
def test_fork():
    assert forked.run(SCRIPT, ["high"], SCRIPT.parent).stdout == "9\\n"
def test_scripts_do_not_find_what_is_for_tests():
    script = SCRIPT.with_name("find.py")
    script.write_text("import reached")
    assert "No module named 'reached'" in forked.run(script, [], SCRIPT.parent).stderr
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert "No module named 'reached'" in done.stderr
"""
HIGH, LOW = "test_b.py::test_fork", "test_b.py"


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    for name, text in {
        "selfens_jax/__init__.py": "",
        "selfens_jax/clamp.py": LIBRARY,
        **{f"selfens_jax/{name}.py": "" for name in ("certification", "report_page", "runs")},
        "selfens_jax/training.py": "",  # what forks import
        "experiments/go.py": SCRIPT,
        "tests/test_a.py": IN_PROCESS,
        "tests/test_b.py": OF_SCRIPTS,
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    for name in ("forked", "reached", "mutations", "faults_made"):
        shutil.copy(ROOT / "tests" / f"{name}.py", root / "tests")
    return root


@pytest.fixture(scope="module")
def found(toy, tmp_path_factory) -> Reached:
    path = tmp_path_factory.mktemp("found") / "reached.json"
    reached.write(path, reached.measure(toy, jobs=1))
    return reached.read(path)


def test_the_lines_that_tests_reach(found):
    lines = found.lines["selfens_jax/clamp.py"]
    inside, outside = "test_a.py::test_inside[1]", "test_a.py::test_outside"
    assert lines[8] == {inside, outside, HIGH, LOW}
    assert lines[10] == {outside, HIGH}
    assert lines[12] == {inside, LOW}
    script = found.lines["experiments/go.py"]
    assert script[6] == {HIGH}
    assert script[8] == {LOW}
    assert found.seconds["test_b.py"] == pytest.approx(
        sum(took for test, took in found.seconds.items() if test.startswith("test_b.py::"))
    )


@pytest.mark.parametrize(
    ("line", "reached_with"),
    [
        (1, None),  # it ran when imported, for all
        (6, 8),  # in a function's head: what reaches its body
        (8, 8),
        (11, 10),  # coverage knows the line on which the object is
        (12, 12),
    ],
)
def test_the_tests_of_a_fault(found, toy, line, reached_with):
    lines = found.lines["selfens_jax/clamp.py"]
    expected = lines[reached_with] if reached_with else set()
    assert found.tests(of_line(line), toy) == expected


def of_line(line: int) -> faults_made.Fault:
    return faults_made.Fault("", "selfens_jax/clamp.py", "", line, 0, 0, 0, "", "", 0)


def test_what_has_changed_since_is_not_told_by_its_lines(found, toy, tmp_path):
    root = tmp_path / "toy"
    shutil.copytree(toy, root)
    with (root / "tests" / "test_a.py").open("a") as file:
        file.write("# another one\n")
    assert found.tests(of_line(12), root) == {"test_a.py", LOW}
    (root / "tests" / "test_a.py").unlink()
    assert found.tests(of_line(12), root) == {LOW}
    with (root / "selfens_jax" / "clamp.py").open("a") as file:
        file.write("# another one\n")
    assert found.tests(of_line(12), root) == frozenset()


def test_a_fault_meets_the_tests_that_reach_it(found, toy, tmp_path):
    path = tmp_path / "results.jsonl"
    campaign.run(toy, ["selfens_jax/clamp.py"], 0, lines_reached=found, results=path, jobs=1)
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    met = {row["diff"]: set(row["tests"]) for row in rows if "diff" in row}
    assert met["return max([-low, x-]{+x, low+})"] == {"test_a.py::test_inside[1]", LOW}
    assert met["LIMIT = [-9-]{+10+}"] == {"test_a.py"}  # as without: the file that imports it

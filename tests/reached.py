"""Which tests reach which lines, for campaign.py --reached.

    python tests/reached.py REACHED.json [--jobs=2]

Runs all tests once in a copy of the project, but those that `mutations.LEFT_OUT` lists, measured by
coverage.py; so are the scripts that they start. What an earlier test had made JAX compile, or a
function keep, counts for that test alone; what a script did for a fixture, for all tests of the
file.
"""

import argparse
import ast
import collections
import dataclasses
import hashlib
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Container, Iterator

import mutations
import pytest
from faults_made import Fault

Path = pathlib.Path
CONFIGURATION = """\
[run]
data_file = {folder}/measured
parallel = true
source =
    {root}/selfens_jax
    {root}/experiments
concurrency =
    multiprocessing
    thread
context = ${{PYTEST_CURRENT_TEST-}}
patch = _exit
sigterm = true
disable_warnings = no-data-collected,module-not-measured,dynamic-conflict,already-imported
"""
# This file is found in the folder of tests by pytest alone, not by the scripts that tests start.
PYTEST = (
    "import os, sys, pytest; sys.path.append(os.path.abspath('tests')); sys.exit(pytest.main())"
)
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclasses.dataclass(frozen=True)
class Reached:
    """The tests by the lines that they reach, and their seconds.

    Tests are named as pytest does, from the folder of tests on; a whole file by its name.
    """

    lines: dict[str, dict[int, frozenset[str]]]
    seconds: dict[str, float]
    hashes: dict[str, str]  # of the files with the lines, and of those with the tests

    def tests(self, fault: Fault, root: Path) -> frozenset[str]:
        """Those that reach the statement with the fault; if it is a function's head, its body.

        None if its file has changed since, or the statement is in no function: it ran when the
        file was imported, for all tests. A file of tests that has changed is taken as a whole.
        """
        if not self._is_as_it_was(root, fault.file):
            return frozenset()
        lines, source = self.lines.get(fault.file, {}), (root / fault.file).read_text()
        found = (lines.get(line, frozenset()) for line in _lines_with(source, fault.line))
        tests = frozenset().union(*found)
        files = {file_of(test) for test in tests}
        same = {file for file in files if self._is_as_it_was(root, f"tests/{file}")}
        changed = {file for file in files - same if (root / "tests" / file).exists()}
        return frozenset(changed | {test for test in tests if file_of(test) in same})

    def _is_as_it_was(self, root: Path, file: str) -> bool:
        path = root / file
        return path.exists() and self.hashes.get(file) == _hash(path.read_text())


def file_of(test: str) -> str:
    return test.partition("::")[0]


def read(path: Path) -> Reached:
    stored = json.loads(path.read_text())
    names = list(stored["seconds"])
    lines = {
        file: {int(line): frozenset(names[test] for test in tests) for line, tests in each.items()}
        for file, each in stored["lines"].items()
    }
    return Reached(lines, stored["seconds"], stored["hashes"])


def _lines_with(source: str, line: int) -> range:
    """The lines of a function's smallest statement that has this one; none outside functions."""
    statements = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt) and _first(node) <= line <= node.end_lineno
    ]
    if not any(isinstance(node, FUNCTION) for node in statements):
        return range(0)
    node = min(statements, key=lambda each: each.end_lineno - _first(each))
    body = getattr(node, "body", None)
    if isinstance(node, FUNCTION):
        return range(body[0].lineno, node.end_lineno + 1)
    return range(node.lineno, body[0].lineno if body else node.end_lineno + 1)


def _first(node: ast.stmt) -> int:
    return min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])


def _hash(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


# In each process of pytest, whose plugin this file is


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    import coverage

    measured, began = coverage.Coverage.current(), time.monotonic()
    measured.switch_context(item.nodeid)
    outcome = yield
    measured.switch_context("")
    with (Path(item.config.rootpath).parent / "seconds").open("a") as file:
        file.write(json.dumps([item.nodeid, round(time.monotonic() - began, 2)]) + "\n")
    return outcome


# The run


def measure(source: Path, jobs: int) -> Reached:
    """Runs the tests.

    Raises:
      RuntimeError: if one fails.
    """
    with tempfile.TemporaryDirectory() as name:
        root = mutations.copy_project(Path(name).resolve() / "sound", source)
        root.parent.chmod(0o777)  # some tests are another user's
        configuration = root.parent / "coverage.ini"
        configuration.write_text(CONFIGURATION.format(folder=root.parent, root=root))
        ignored = [f"--ignore=tests/{test}" for test in mutations.LEFT_OUT]
        workers = ("-n", str(jobs), "--dist", "loadfile", "-p", "no:cacheprovider")
        done = mutations.run_python(
            root,
            *("-c", PYTEST, "--quiet", "-p", "reached", *workers, *ignored, "tests"),
            limit=mutations.SOUND_LIMIT,
            COVERAGE_PROCESS_START=str(configuration),
        )
        if done.returncode:
            raise RuntimeError(f"{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return collect(root)


def collect(root: Path) -> Reached:
    """What the processes of the run left beside its copy of the project."""
    import coverage

    seconds: dict[str, float] = collections.defaultdict(float)
    for row in (root.parent / "seconds").read_text().splitlines():
        test, took = json.loads(row)
        name = test.removeprefix("tests/")
        seconds[name] = took
        seconds[file_of(name)] += took
    lines: dict[str, dict[int, set[str]]] = {}
    for path in root.parent.glob("measured.*"):
        data = coverage.CoverageData(str(path))
        data.read()
        for file in data.measured_files():
            reached = lines.setdefault(str(Path(file).relative_to(root)), {})
            for line, contexts in data.contexts_by_lineno(file).items():
                tests = {_test(context, seconds.keys()) for context in contexts} - {""}
                reached.setdefault(line, set()).update(tests)
    files = [*lines, *(f"tests/{name}" for name in seconds if "::" not in name)]
    hashes = {file: _hash((root / file).read_text()) for file in files}
    frozen = {
        file: {line: frozenset(tests) for line, tests in sorted(each.items()) if tests}
        for file, each in sorted(lines.items())
    }
    return Reached(frozen, dict(seconds), hashes)


def _test(context: str, known: Container[str]) -> str:
    """The test of a context, or its file if a script of a fixture was measured; empty if neither.

    A context is the name of a test, in a script what pytest says in the environment; before it
    stands, in a fork, what the process that is forked began with.
    """
    for said in (context, context.rpartition("|")[2]):
        test = said.removeprefix("tests/")
        if test in known:
            return test
        test, _, phase = test.rpartition(" (")
        if test in known:
            return file_of(test) if phase == "setup)" else test
    return ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="REACHED.json")
    parser.add_argument("--jobs", type=int, default=2, help="processes of pytest")
    options = parser.parse_args(arguments)
    print("all tests run once, which takes longer than without measuring", flush=True)
    try:
        write(options.file, measure(mutations.ROOT, options.jobs))
    except RuntimeError as error:
        print(error)
        return 2
    return 0


def write(path: Path, reached: Reached) -> None:
    number = {test: index for index, test in enumerate(reached.seconds)}
    lines = {
        file: {line: sorted(number[test] for test in tests) for line, tests in each.items()}
        for file, each in reached.lines.items()
    }
    stored = {"seconds": reached.seconds, "hashes": reached.hashes, "lines": lines}
    path.write_text(json.dumps(stored))


if __name__ == "__main__":
    sys.exit(main())

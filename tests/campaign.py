"""Attacks a change before it lands: simple faults are made from sources, and tests must fail.

    python tests/campaign.py FILE [FILE ...] [--count=20] [--seed=0] [--lines=A-B] [--jobs=2]
        [--tests=PATTERN ...] [--budget=SECONDS] [--results=FILE.jsonl] [--whole] [--list]
        [--reached=REACHED.json]

A fault is one small edit, made by `faults_made.py`; a seeded sample of them is put in, each alone,
into a copy of the project. First come the tests that name the file (`named_tests`; --tests chooses
others) or its function: those that name the function or are called after the file, then the
fastest, as many as a --budget allows. With --whole, a
fault that these let pass meets all other tests too, but for those that `mutations.LEFT_OUT` lists.
With --reached, which `reached.py` makes, a fault in a line that tests reach meets those alone, test
by test, in the same order; the other faults meet what they would without it.
All must pass on a copy without a fault, where their times are taken; a fault that takes three times
as long and a minute more counts as killed, by timeout.

With --results, every outcome is appended as it comes, and the same command goes on from there: what
was killed is not tried again, what survived only if the sources or tests have changed or there are
tests that it has not met. `equivalent_faults.txt` names faults that change nothing that a test
could see ("id  reason" in each line); they are shown apart and left out of the rate.
"""

import argparse
import ast
import collections
import concurrent.futures
import contextlib
import dataclasses
import fnmatch
import functools
import hashlib
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import faults_made
import mutations
import reached
from faults_made import Fault
from mutations import Stage
from reached import Reached, file_of
from scipy import stats

Path = pathlib.Path
EQUIVALENTS = Path(__file__).parent / "equivalent_faults.txt"
NONE: frozenset[str] = frozenset()
FEW = 12  # files of tests that have a word which still tells them from others
KILLED, SURVIVED, TIMEOUT = "killed", "survived", "timeout"
BROKEN = "no verdict"  # pytest itself ended otherwise, say for want of memory: tried again


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a fault. Its fields are those of a line of the results file.

    ran: "named", or "whole" if it met all other tests too; tests: the files of both.
    killer: the test that failed, or the file of tests that could not be imported.
    state: tells the sources and tests that were tried from others.
    """

    id: str
    kind: str
    file: str
    line: int
    diff: str
    outcome: str
    killer: str
    ran: str
    tests: tuple[str, ...]
    seconds: float
    state: str

    def settles(self, tests: Iterable[str], state: str) -> bool:
        """Whether there is no need to let the fault meet these tests."""
        if self.outcome == SURVIVED:
            return self.state == state and set(tests) <= set(self.tests)
        return self.outcome != BROKEN


# Which tests


def named_tests(root: Path, file: str) -> tuple[str, ...]:
    """The test files that import the file or name its script; else those of what imports it.

    A script is named by a string that is its name, or that has its name with .py inside.
    """
    sources = sorted([*root.glob("selfens_jax/**/*.py"), *root.glob("experiments/**/*.py")])
    tests = {name: _names(root, root / "tests" / name) for name in mutations.test_files(root)}
    importers = {str(path.relative_to(root)): _names(root, path) for path in sources}
    wanted = {file}
    while True:
        found = tuple(test for test, names in tests.items() if names & wanted)
        wider = wanted | {source for source, names in importers.items() if names & wanted}
        if found or wider == wanted:
            return found
        wanted = wider


def _identifiers(path: Path) -> frozenset[str]:
    """The names that the code of a file has; not the words of its sentences."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                found.add(name)
    return frozenset(found)


@functools.cache
def _names(root: Path, path: Path) -> frozenset[str]:
    """The project's files that a file imports or, if it is a test, names as scripts."""
    scripts = {script.stem for script in root.glob("experiments/*.py")}
    modules = {}
    for source in [*root.glob("selfens_jax/**/*.py"), *root.glob("experiments/**/*.py")]:
        inside = source.relative_to(root)
        parts = inside.parent.parts if inside.stem == "__init__" else inside.with_suffix("").parts
        parts = parts[1:] if parts[0] == "experiments" else parts  # which is on the path of Python
        modules[".".join(parts)] = str(inside)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import():
                found |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            case ast.Constant(value=str(text)) if path.parent.name == "tests":
                found |= {text, *re.findall(r"\b(\w+)\.py\b", text)} & scripts
    return frozenset(modules[name] for name in found if name in modules)


@dataclasses.dataclass(frozen=True)
class Tests:
    """What the faults of each file meet, and the seconds that each file of tests takes."""

    named: dict[str, tuple[str, ...]]
    every: tuple[str, ...]  # none without --whole
    seconds: dict[str, float]
    budget: float = float("inf")  # seconds for the named tests of a fault
    words: dict[str, frozenset[str]] = dataclasses.field(default_factory=dict)  # in each of them

    def asked(
        self, file: str, functions: frozenset[str] = NONE, reaching: frozenset[str] = NONE
    ) -> set[str]:
        """All that a fault of the file may meet; those that a budget leaves out too."""
        return set(reaching) or {*self.named[file], *self.every, *self._telling(functions)}

    def planned(
        self, file: str, functions: frozenset[str] = NONE, reaching: frozenset[str] = NONE
    ) -> set[str]:
        """What a fault of the file will meet, as far as the times are known."""
        asked = self.asked(file, functions, reaching)
        if asked - self.seconds.keys():
            return asked
        return {test for stage in self.stages(file, functions, reaching) for test in stage.tests}

    def stages(
        self, file: str, functions: frozenset[str] = NONE, reaching: frozenset[str] = NONE
    ) -> list[Stage]:
        """functions: by which tests reach the fault, from `reached_by`; reaching: which do."""
        named = self._within_budget(file, functions, reaching)
        asked = self._ordered(file, self.asked(file, functions, reaching), functions)
        whole = [test for test in asked if test not in named] if self.every else []
        return [self._stage(*each) for each in (("named", named), ("whole", whole)) if each[1]]

    def _within_budget(
        self, file: str, functions: frozenset[str], reaching: frozenset[str]
    ) -> list[str]:
        """The file's own tests, which are called after it, and others as long as there is time."""
        chosen, left = [], self.budget
        candidates = reaching or {*self.named[file], *self._telling(functions)}
        for test in self._ordered(file, candidates, functions):
            own = self._own(file, test) and not reaching
            if own or not chosen or self.seconds[test] <= left:
                chosen.append(test)
                left -= self.seconds[test]
        return chosen

    def _telling(self, functions: frozenset[str]) -> set[str]:
        """The tests that name one of the functions, if not too many do."""
        found = (
            {test for test, words in self.words.items() if name in words} for name in functions
        )
        return set().union(*(tests for tests in found if len(tests) <= FEW))

    def _ordered(self, file: str, tests: Iterable[str], functions: frozenset[str]) -> list[str]:
        telling = self._telling(functions)

        def rank(test: str) -> int:
            own, names = self._own(file, test), file_of(test) in telling
            return 0 if own and names else 1 if names else 2 if own else 3

        return sorted(tests, key=lambda test: (rank(test), self.seconds[test], test))

    @staticmethod
    def _own(file: str, test: str) -> bool:
        return Path(file_of(test)).stem.endswith(f"_{Path(file).stem}")

    def _stage(self, name: str, tests: Sequence[str]) -> Stage:
        sound = sum(self.seconds[test] for test in tests)
        first = {}  # the tests of a file go together: they share what is made for them
        for test in tests:
            first.setdefault(file_of(test), len(first))
        together = tuple(sorted(tests, key=lambda test: first[file_of(test)]))
        return Stage(name, together, mutations.time_limit(sound))


def reached_by(source: str, function: str) -> frozenset[str]:
    """The function or, if it is private, the public ones of its file that lead to it."""
    bodies = {
        node.name: {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        | {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
    }
    reached = {part for part in function.split(".") if part and not part[0].isupper()}  # no class
    while all(name.startswith("_") for name in reached):
        callers = {name for name, words in bodies.items() if words & reached} - reached
        if not callers:
            break
        reached |= callers
    return frozenset(name for name in reached if not name.startswith("_") and name != "main")


# Faults


def chosen_faults(
    root: Path, files: Sequence[str], count: int, seed: int, lines: tuple[int, int] | None = None
) -> list[Fault]:
    """The sample, or all faults if count is 0."""
    sources = {file: (root / file).read_text() for file in files}
    made = [fault for file in files for fault in faults_made.faults(sources[file], file)]
    if lines:
        made = [fault for fault in made if lines[0] <= fault.line <= lines[1]]
    if not count:
        return made
    sizes = {file: faults_made.lines_of_code(source) for file, source in sources.items()}
    return faults_made.sample(made, sizes, count, seed)


def try_fault(sound: Path, fault: Fault, stages: list[Stage], state: str) -> Result:
    """Puts a fault into a copy of the sound copy and runs tests until one fails."""
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(dir=sound.parents[1]))  # beside the sound one
    root = mutations.copy_project(folder, sound)
    fault.apply(root)
    done, last = mutations.run_stages(root, stages)
    shutil.rmtree(folder, ignore_errors=True)
    met = stages[: stages.index(last) + 1]
    outcome, killer = judged(done.returncode, done.stdout)
    if outcome == BROKEN:
        print(f"{fault.id}: {done.stdout[-1000:]}{done.stderr[-1000:]}", file=sys.stderr)
    return Result(
        id=fault.id,
        kind=fault.kind,
        file=fault.file,
        line=fault.line,
        diff=fault.diff,
        outcome=outcome,
        killer=killer,
        ran=last.name,
        tests=tuple(test for stage in met for test in stage.tests),
        seconds=round(time.monotonic() - began, 1),
        state=state,
    )


def judged(status: int, output: str) -> tuple[str, str]:
    """Outcome and killer of a pytest run. Here an error counts too: the suite is not green."""
    if status in (0, mutations.NO_TESTS):
        return SURVIVED, ""
    if status == mutations.TIMED_OUT:
        return TIMEOUT, "timeout"
    failed = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - .*)?$", output, flags=re.MULTILINE)
    return (KILLED, failed[1]) if failed and status in (1, 2) else (BROKEN, f"status {status}")


# Results


def read_results(path: Path | None) -> tuple[dict[str, Result], dict[str, dict[str, float]]]:
    """The last result of each fault, and the sound run's seconds for each state."""
    results: dict[str, Result] = {}
    seconds: dict[str, dict[str, float]] = collections.defaultdict(dict)
    text = path.read_text() if path and path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:  # the last line was torn when the campaign was killed
        path.write_text(whole)
    for row in map(json.loads, whole.splitlines()):
        if "sound" in row:
            seconds[row["state"]] |= row["sound"]
        else:
            results[row["id"]] = Result(**(row | {"tests": tuple(row["tests"])}))
    return results, seconds


def append(path: Path | None, row: dict[str, Any]) -> None:
    if path:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read_equivalents(path: Path) -> dict[str, str]:
    """Fault: why nothing can notice it."""
    lines = path.read_text().splitlines() if path.exists() else []
    split = [line.split(maxsplit=1) for line in lines if line.strip() and line[0] != "#"]
    return {words[0]: words[1] for words in split}


def report(results: Sequence[Result], equivalents: dict[str, str]) -> str:
    """Tables by kind and by file, the rate with its interval, and who survived."""
    apart = [r for r in results if r.outcome == SURVIVED and r.id in equivalents]
    counted = [r for r in results if r.outcome != BROKEN and r not in apart]
    killed = [r for r in counted if r.outcome != SURVIVED]
    lines = []
    for what in ("kind", "file"):
        total = collections.Counter(getattr(result, what) for result in counted)
        dead = collections.Counter(getattr(result, what) for result in killed)
        lines += ["", f"| {what} | killed | of |", "|---|---|---|"]
        lines += [f"| {name} | {dead[name]} | {total[name]} |" for name in sorted(total)]
    if counted:
        test = stats.binomtest(len(killed), len(counted))
        low, high = test.proportion_ci(0.95, method="exact")  # Clopper and Pearson's
        rate = f"{test.statistic:.1%} (95 % interval {low:.1%} to {high:.1%})"
        lines += ["", f"killed {len(killed)} of {len(counted)}: {rate}"]
        late = sum(result.outcome == TIMEOUT for result in killed)
        uncollected = sum("::" not in r.killer for r in killed if r.outcome == KILLED)
        lines += [f"of these {late} by timeout, {uncollected} that could not even be imported"]
    if no_verdict := [result.id for result in results if result.outcome == BROKEN]:
        lines += ["", f"no verdict, to be tried again: {', '.join(no_verdict)}"]
    lines += ["", "survivors:" if len(counted) > len(killed) else "no survivors"]
    lines += [shown(result) for result in counted if result.outcome == SURVIVED]
    if apart:
        lines += ["", "equivalent, looked at:"]
        lines += [f"{shown(result)}\n    {equivalents[result.id]}" for result in apart]
    for result in killed:
        if result.id in equivalents:
            lines += ["", f"listed as equivalent, but killed: {shown(result)}"]
    return "\n".join(lines)


def shown(fault: Fault | Result) -> str:
    return f"  {fault.id}  {fault.file}:{fault.line}  {fault.diff}"


# The campaign


def state_of(root: Path) -> str:
    """Changes with any source or test of the project."""
    sha = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        sha.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return sha.hexdigest()[:16]


def sound_seconds(root: Path, tests: Iterable[str], jobs: int) -> Iterator[tuple[str, float]]:
    """Each file of tests with its seconds on a copy without a fault.

    Raises:
      RuntimeError: if one fails.
    """

    def timed(test: str) -> tuple[str, float, subprocess.CompletedProcess]:
        began = time.monotonic()
        done = mutations.run_tests(root, (test,))
        return test, round(time.monotonic() - began, 1), done

    with _workers(jobs) as pool:
        for test, seconds, done in pool.map(timed, tests):
            if done.returncode not in (0, mutations.NO_TESTS):
                raise RuntimeError(f"{done.stdout}{done.stderr}\n{test} fails without any fault")
            what = "skips itself" if done.returncode else "passes without a fault"
            print(f"{seconds:6.1f} s  {test} {what}", flush=True)
            yield test, seconds


@contextlib.contextmanager
def _workers(jobs: int) -> Iterator[concurrent.futures.Executor]:
    """Threads that wait for tests, which are stopped if anything goes wrong."""
    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        mutations.stop_all()
        raise
    finally:
        pool.shutdown()


def attempts(
    sound: Path, todo: dict[Fault, list[Stage]], state: str, jobs: int
) -> Iterator[Result]:
    """What becomes of the faults, in the order in which that is known."""
    with _workers(jobs) as pool:
        each = [pool.submit(try_fault, sound, *item, state) for item in todo.items()]
        for future in concurrent.futures.as_completed(each):
            result = future.result()
            took = f"{result.seconds:6.1f} s  {result.ran}  {result.outcome}"
            print(f"{took}\n{shown(result)}\n    {result.killer}".rstrip(), flush=True)
            yield result


def run(
    root: Path,
    files: Sequence[str],
    count: int = 20,
    seed: int = 0,
    lines: tuple[int, int] | None = None,
    patterns: Sequence[str] = (),
    jobs: int = 2,
    results: Path | None = None,
    whole: bool = False,
    budget: float = float("inf"),
    lines_reached: Reached | None = None,
    equivalents: dict[str, str] | None = None,
) -> int:
    """Tries the faults and prints what becomes of them.

    Returns 0 if none survives, 1 if one does, 2 if there are no tests to try them with.
    """
    equivalents = equivalents or {}
    with tempfile.TemporaryDirectory() as name:
        # Others may be at work in the checkout: all that follows is of this one state of it.
        sound = mutations.copy_project(Path(name).resolve() / "sound", root)
        state, faults = state_of(sound), chosen_faults(sound, files, count, seed, lines)
        known, seconds = read_results(results)
        every = mutations.test_files(sound)
        matching = tuple(t for t in every if any(fnmatch.fnmatch(t, p) for p in patterns))
        named = {file: matching if patterns else named_tests(sound, file) for file in files}
        words = {test: _identifiers(sound / "tests" / test) for test in every if not patterns}
        tests = Tests(named, every if whole else (), seconds[state], budget, words)
        sources = {file: (sound / file).read_text() for file in files}
        by = {
            fault: (
                fault.file,
                reached_by(sources[fault.file], fault.function),
                lines_reached.tests(fault, sound) if lines_reached else NONE,
            )
            for fault in faults
        }
        if lines_reached:
            tests.seconds.update(lines_reached.seconds)
        if alone := [file for file in files if not tests.asked(file)]:
            print(f"no test names {', '.join(alone)}: choose with --tests, or --whole")
            return 2
        todo = [
            fault
            for fault in faults
            if fault.id not in known
            or not known[fault.id].settles(tests.planned(*by[fault]), state)
        ]
        if old := [f for f in faults if f not in todo and known[f.id].state != state]:
            print(f"{len(old)} were killed in another state of the sources or tests")
        needed = sorted({test for fault in todo for test in tests.asked(*by[fault])})
        missing = [test for test in needed if test not in tests.seconds]
        for test, took in sound_seconds(sound, missing, jobs):
            tests.seconds[test] = took
            append(results, {"state": state, "sound": {test: took}})
        staged = {fault: tests.stages(*by[fault]) for fault in todo}
        for result in attempts(sound, staged, state, jobs):
            known[result.id] = result
            append(results, dataclasses.asdict(result))
    final = [known[fault.id] for fault in faults]
    print(report(final, equivalents))
    return int(any(r.outcome == SURVIVED and r.id not in equivalents for r in final))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="FILE", help="sources to put faults into")
    parser.add_argument("--count", type=int, default=20, help="how many faults; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="which faults")
    parser.add_argument("--lines", metavar="A-B", help="only faults in these lines of one file")
    parser.add_argument(
        "--tests", action="append", default=[], metavar="PATTERN", help="test files to run first"
    )
    parser.add_argument("--jobs", type=int, default=2, help="copies tried at the same time")
    parser.add_argument("--results", type=Path, help="a file of outcomes, to go on from")
    parser.add_argument("--whole", action="store_true", help="all other tests after the named ones")
    parser.add_argument(
        "--budget", type=float, default=float("inf"), help="seconds for a fault's named tests"
    )
    parser.add_argument(
        "--reached", type=Path, metavar="REACHED.json", help="the lines that tests reach"
    )
    parser.add_argument("--list", action="store_true", help="show the faults and stop")
    options = parser.parse_args(arguments)
    try:
        files = [str(Path(file).resolve().relative_to(mutations.ROOT)) for file in options.files]
    except ValueError as error:
        parser.error(str(error))
    lines = None
    if options.lines:
        if len(files) > 1 or not re.fullmatch(r"\d+-\d+", options.lines):
            parser.error("--lines=A-B are lines of one file")
        lines = tuple(int(number) for number in options.lines.split("-"))
    which = (files, options.count, options.seed, lines)
    if options.list:
        faults = chosen_faults(mutations.ROOT, *which)
        print("\n".join(f"{fault.id}  {fault.place}\n    {fault.diff}" for fault in faults))
        return 0
    equivalents = read_equivalents(EQUIVALENTS)
    more = (options.tests, options.jobs, options.results, options.whole, options.budget)
    lines_reached = reached.read(options.reached) if options.reached else None
    try:
        return run(mutations.ROOT, *which, *more, lines_reached, equivalents)
    except KeyboardInterrupt:
        print("interrupted; with --results, the same command goes on from here")
        return 130
    except RuntimeError as error:
        print(error)
        return 2


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # then the tests are stopped too
    sys.exit(main())

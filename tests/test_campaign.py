"""What the campaign does to sources, where it keeps its hands off, and how it counts."""

import ast
import dataclasses
import pathlib
import random
import re
import textwrap

import campaign
import faults_made
import mutations
import pytest
from campaign import BROKEN, KILLED, SURVIVED, TIMEOUT, Result
from mutations import ROOT


def made(source: str, kind: str) -> set[str]:
    """The edits of one kind, as [-old-]{+new+}."""
    faults = faults_made.faults(textwrap.dedent(source), "file.py")
    found = [re.search(r"\[-.*\+\}", f.shown) for f in faults if f.kind == kind]
    return {match[0] for match in found}


SMALL = {
    "swap": {
        "f(a, b, c)": {"[-a, b-]{+b, a+}", "[-b, c-]{+c, b+}"},
        "f((a), *b, k=c, m=d)": {"[-c, m=d-]{+d, m=c+}"},
        "f(a, a)": set(),
    },
    "drop": {
        "f(a, k=b)": {"[-, k=b-]{++}"},
        "f(k=(b),  # why\n  m=c,\n)": {"[-k=(b), # why -]{++}", "[-, # why m=c-]{++}"},
        "f(\n  k=b,\n)": {"[-k=b,-]{++}"},
        "f(help='for people', **rest)": set(),
    },
    "compare": {
        "(a) < b": {"[-<-]{+<=+}", "[-<-]{+>+}"},
        "a == b != c": {"[-==-]{+!=+}", "[-!=-]{+==+}"},
        "a in b": {"[-in-]{+not in+}"},
        "a is not None": {"[-is not-]{+is+}"},
    },
    "off-by-one": {
        "x = 3": {"[-3-]{+4+}", "[-3-]{+2+}"},
        "a[b:]": {"[-b-]{+b + 1+}", "[-b-]{+b - 1+}"},
        "range(b)": {"[-b-]{+b + 1+}", "[-b-]{+b - 1+}"},
        "(a) + 1": {"[- + 1-]{++}", "[-1-]{+2+}", "[-1-]{+0+}"},
        "True": set(),
    },
    "condition": {
        "if a:\n  b": {"[-a-]{+not a+}"},
        "if a:\n  b\nelif f(c) < 1:\n  d": {"[-a-]{+not a+}", "[-f(c) < 1-]{+not (f(c) < 1)+}"},
        "x = a if not b else c": {"[-not -]{++}"},
        "a and b": {"[-and-]{+or+}"},
        "[a for a in b if a]": {"[-a-]{+not a+}"},
        "if a == b:\n  c": set(),  # flipped as a comparison
    },
    "operator": {
        "a + (b)": {"[-+-]{+-+}"},
        "a += b": {"[-+=-]{+-=+}"},
        "x.min() & any(a)": {"[-min-]{+max+}", "[-&-]{+|+}", "[-any-]{+all+}"},
        "a + 'text'": set(),
        "path / 'name'": set(),
    },
    "name": {
        "def f(p_a, p_b, sigma):\n  return p_a": {"[-p_a-]{+p_b+}"},
        "def f(a):\n  return a\n  b = 1": set(),  # b is not there yet
        "def f(x):\n  return x.head() + x.last() + x.T": {"[-head-]{+last+}", "[-last-]{+head+}"},
        "def f():\n  s['a'] = s['b']": {"[-'b'-]{+\"a\"+}"},
        "import numpy\ndef f():\n  return numpy.sin(numpy.cos(1))": set(),
    },
    "delete": {
        "f(a)": {"[-f(a)-]{+pass+}"},
        "a += 1": {"[-a += 1-]{+pass+}"},
        "if a:\n  raise Error('no')": {"[-raise Error('no')-]{+pass+}"},
    },
    "constant": {
        "x = True": {"[-True-]{+False+}"},
        "x = 0.25": {"[-0.25-]{+0.5+}"},
        "def f(a='one'):\n  return a == 'two'": {"[-'one'-]{+\"two\"+}"},
    },
    "string": {
        "{'alpha': 1, 'alphas': x['beta']}": {
            "[-'alpha'-]{+\"alphas\"+}",
            "[-'alphas'-]{+\"alpha\"+}",
            "[-'beta'-]{+\"alpha\"+}",
        },
        "a == 'one' or a in ('two', 'ones')": {
            "[-'one'-]{+\"ones\"+}",
            "[-'two'-]{+\"one\"+}",
            "[-'ones'-]{+\"one\"+}",
        },
    },
}


@pytest.mark.parametrize("kind", SMALL)
def test_every_kind_makes_the_faults_expected(kind):
    for source, expected in SMALL[kind].items():
        assert made(source, kind) == expected, source


def test_every_kind_is_looked_at():
    assert SMALL.keys() == faults_made.KINDS.keys()


UNTOUCHED = '''\
"""Module 1 < 2."""
import a, b
from c import d as e
__all__ = ["a", "b"]
def f(x: Literal["a", 1], y: dict[1, 2] = None) -> tuple[1, 2]:
    """Function: not 1 + 1 == 2."""
    z: Annotated[int, 1]
    raise UserError(f"{x + 1} is not {y}, {1 if x else 2}", 1 < 2)
print("text", f"{1 + 1}")
say(f"{1:.3f}", "one")
flags.DEFINE_string("name", "CBF", "Help.")
if __name__ == "__main__":
    main
'''


def test_what_is_said_and_promised_stays():
    faults = faults_made.faults(UNTOUCHED, "file.py")
    assert {fault.kind for fault in faults} == {"delete"}
    assert [UNTOUCHED[f.start :].split("(")[0] for f in faults] == [
        "raise UserError",
        "print",
        "say",
        "flags.DEFINE_string",
    ]


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    files = sorted([*ROOT.glob("selfens_jax/**/*.py"), *ROOT.glob("experiments/**/*.py")])
    return {str(path.relative_to(ROOT)): path.read_text() for path in files}


@pytest.fixture(scope="module")
def every_fault(sources) -> list[faults_made.Fault]:
    return [fault for file in sources for fault in faults_made.faults(sources[file], file)]


def test_faults_of_the_project_compile_and_differ(sources, every_fault):
    """Each was compiled with the statement that it is in; some again with their whole file."""
    assert {fault.kind for fault in every_fault} == faults_made.KINDS.keys()
    assert len({fault.id for fault in every_fault}) == len(every_fault)
    for fault in random.Random(0).sample(every_fault, 40):
        source, mutated = sources[fault.file], fault.mutated(sources[fault.file])
        compile(mutated, fault.file, "exec")
        assert ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(source)), fault.diff
        assert fault.line == source.count("\n", 0, fault.start) + 1


def test_equivalent_faults_are_there(every_fault):
    assert campaign.read_equivalents(campaign.EQUIVALENTS).keys() <= {f.id for f in every_fault}


SOURCE = (ROOT / "selfens_jax" / "metrics.py").read_text()


def test_a_fault_keeps_its_id_where_lines_move():
    before = faults_made.faults(SOURCE, "a.py")
    after = faults_made.faults("# one line more\n" + SOURCE, "a.py")
    assert [fault.id for fault in before] == [fault.id for fault in after]
    assert all(one.line + 1 == two.line for one, two in zip(before, after, strict=True))
    assert not {f.id for f in before} & {f.id for f in faults_made.faults(SOURCE, "b.py")}


def test_samples_are_repeatable_even_and_in_proportion():
    faults = [fault for name in ("a.py", "b.py") for fault in faults_made.faults(SOURCE, name)]
    lines = {"a.py": 300, "b.py": 100}
    sample = faults_made.sample(faults, lines, 40, seed=1)
    assert sample == faults_made.sample(faults, lines, 40, seed=1)
    assert sample[:10] == faults_made.sample(faults, lines, 10, seed=1)
    assert sample != faults_made.sample(faults, lines, 40, seed=2)
    assert len({fault.id for fault in sample}) == 40
    assert sum(fault.file == "a.py" for fault in sample) == 30
    there = {kind: sum(fault.kind == kind for fault in faults) for kind in faults_made.KINDS}
    taken = {kind: sum(fault.kind == kind for fault in sample) for kind in faults_made.KINDS}
    assert all(taken[kind] >= min(there[kind], 3) for kind in taken)
    everything = faults_made.sample(faults, lines, 10**6, seed=1)
    assert sorted(f.id for f in everything) == sorted(f.id for f in faults)


def test_what_only_assures_is_left_alone():
    source = "import dataclasses\n\n\n@dataclasses.dataclass(frozen=True)\nclass A:\n    a: int\n"
    source += "\n\ndef f(x, y):\n    return list(zip(x, y, strict=True))\n"
    for fault in faults_made.faults(source, "a.py"):
        changed = fault.diff.partition("[-")[2].partition("-]")[0]
        assert changed not in ("frozen=True", "strict=True", ", strict=True", "True")


def test_lines_limit_the_faults():
    faults = campaign.chosen_faults(ROOT, ["selfens_jax/metrics.py"], 0, 0, lines=(70, 80))
    assert faults
    assert {fault.line for fault in faults} <= set(range(70, 81))


def test_tests_that_name_a_file():
    assert "test_certificates.py" in campaign.named_tests(ROOT, "selfens_jax/certificates.py")
    assert "test_scripts.py" in campaign.named_tests(ROOT, "experiments/train.py")
    assert "test_models.py" not in campaign.named_tests(ROOT, "selfens_jax/runs.py")
    # No test imports or runs it: those of the scripts that import it.
    assert "test_scripts.py" in campaign.named_tests(ROOT, "experiments/common/decisions.py")
    assert not set(mutations.LEFT_OUT) & set(mutations.test_files(ROOT))


CLAMP = """\
def clamp(x, low=0, high=9):
    return max(low, min(x, high))
"""
TEST = """\
from selfens_jax.clamp import clamp
def test_within():
    assert clamp(5, 3, 8) == 5
"""
MORE = """\
from selfens_jax import clamp
def test_below():
    assert clamp.clamp(-1) == 0
"""


@pytest.fixture
def toy(tmp_path) -> pathlib.Path:
    root = tmp_path / "toy"
    for name, text in {
        "selfens_jax/__init__.py": "",
        "selfens_jax/clamp.py": CLAMP,
        "tests/test_within.py": TEST,
        "tests/test_more.py": MORE,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_toy_project(toy, tmp_path, monkeypatch, capsys):
    """A fault that the first tests notice, one that only the others do, and two that none does."""
    file, path = "selfens_jax/clamp.py", tmp_path / "results.jsonl"
    by_diff = {fault.diff: fault for fault in faults_made.faults(CLAMP, file)}
    early, late, survivor, equal = chosen = [
        by_diff["return max(low, [-min-]{+max+}(x, high))"],
        by_diff["def clamp(x, low=[-0-]{+1+}, high=9):"],
        by_diff["def clamp(x, low=0, high=[-9-]{+10+}):"],
        by_diff["def clamp(x, low=0, high=[-9-]{+8+}):"],
    ]
    monkeypatch.setattr(campaign, "chosen_faults", lambda *_: chosen)
    settings = {"patterns": ["*within*"], "whole": True, "results": path}
    settings["equivalents"] = {equal.id: "nobody minds"}
    assert campaign.run(toy, [file], **settings) == 1
    results, seconds = campaign.read_results(path)
    assert [(results[f.id].outcome, results[f.id].ran, results[f.id].killer) for f in chosen] == [
        (KILLED, "named", "test_within.py::test_within"),
        (KILLED, "whole", "test_more.py::test_below"),
        (SURVIVED, "whole", ""),
        (SURVIVED, "whole", ""),
    ]
    assert results[early.id].tests == ("test_within.py",)
    assert set(results[late.id].tests) == {"test_within.py", "test_more.py"}
    assert [each.keys() for each in seconds.values()] == [{"test_within.py", "test_more.py"}]
    assert (toy / file).read_text() == CLAMP
    first = capsys.readouterr().out
    assert "killed 2 of 3: 66.7%" in first
    assert f"survivors:\n{campaign.shown(results[survivor.id])}\n\nequivalent, looked at" in first
    assert first.endswith("nobody minds\n")

    # All is done: the same call runs nothing and says the same.
    monkeypatch.setattr(mutations, "run_tests", None)
    assert campaign.run(toy, [file], **settings) == 1
    again = capsys.readouterr().out
    assert again.strip() == first[first.index("| kind") :].strip()
    assert campaign.run(toy, [file], patterns=["none"]) == 2


def result(number: int, outcome: str, killer: str = "", **more) -> Result:
    values = {"ran": "named", "tests": ("a", "b"), "seconds": 1.0, "state": "now"} | more
    return Result(str(number), "swap", "file.py", number, "diff", outcome, killer, **values)


def test_what_settles_a_fault():
    for outcome in (KILLED, TIMEOUT):
        assert result(0, outcome).settles(["c"], "then")
    assert result(0, SURVIVED).settles(["a"], "now")
    assert not result(0, SURVIVED).settles(["a", "c"], "now")
    assert not result(0, SURVIVED).settles(["a"], "then")
    assert not result(0, BROKEN).settles(["a"], "now")


def test_a_torn_line_is_dropped(tmp_path):
    path = tmp_path / "results.jsonl"
    for number, outcome in ((0, SURVIVED), (1, KILLED), (0, KILLED)):
        campaign.append(path, dataclasses.asdict(result(number, outcome)))
    whole = path.read_text()
    path.write_text(whole + '{"id": "2", "ki')
    assert campaign.read_results(path)[0] == {str(n): result(n, KILLED) for n in (0, 1)}
    assert path.read_text() == whole


def test_the_report():
    results = [result(n, KILLED, "test_x.py::test_y") for n in range(6)]
    results += [result(6, KILLED, "test_x.py"), result(7, TIMEOUT), result(8, BROKEN)]
    results += [result(9, SURVIVED), result(10, SURVIVED), result(11, SURVIVED)]
    said = campaign.report(results, {"11": "cannot be seen", "5": "wrong"})
    assert "| swap | 8 | 10 |" in said
    assert "killed 8 of 10: 80.0% (95 % interval 44.4% to 97.5%)" in said
    assert "of these 1 by timeout, 1 that could not even be imported" in said
    assert "tried again: 8" in said
    assert "survivors:\n  9  file.py:9  diff\n  10  file.py:10  diff\n" in said
    assert "equivalent, looked at:\n  11  file.py:11  diff\n    cannot be seen" in said
    assert "listed as equivalent, but killed:   5" in said


@pytest.mark.parametrize(
    ("status", "output", "outcome"),
    [
        (0, "", (SURVIVED, "")),
        (5, "all skipped", (SURVIVED, "")),
        (124, "", (TIMEOUT, "timeout")),
        (1, "FAILED tests/test_a.py::test_b[c-d] - no\n", (KILLED, "test_a.py::test_b[c-d]")),
        (1, "ERROR tests/test_a.py::test_b - no\n", (KILLED, "test_a.py::test_b")),
        (2, "ERROR tests/test_a.py - NameError\n", (KILLED, "test_a.py")),
        (-9, "FAILED tests/test_a.py::test_b\n", (BROKEN, "status -9")),
        (1, "", (BROKEN, "status 1")),
    ],
)
def test_how_a_run_is_judged(status, output, outcome):
    assert campaign.judged(status, output) == outcome


def test_a_run_that_hangs_is_stopped(toy, tmp_path):
    root = mutations.copy_project(tmp_path / "copy", toy)
    done = mutations.run_python(root, "-c", "import time; time.sleep(60)", limit=0.2)
    assert done.returncode == mutations.TIMED_OUT


def test_tests_that_name_the_function_come_first():
    named = ("test_a.py", "test_b.py", "test_c.py", "test_d.py")
    seconds = dict(zip(named, (1.0, 2.0, 30.0, 40.0), strict=True))
    words = {"test_b.py": {"g"}, "test_c.py": {"f"}, "test_d.py": {"f", "g"}, "test_a.py": set()}
    words |= {f"test_{i}.py": {"g"} for i in range(campaign.FEW)}  # too many to tell
    words["test_other.py"], seconds["test_other.py"] = {"f"}, 50.0  # it does not name the file
    tests = campaign.Tests({"x/d.py": named}, (), seconds, words=words)
    asked = frozenset({"f", "g"})
    (stage,) = tests.stages("x/d.py", asked)
    expected = ("test_d.py", "test_c.py", "test_other.py", "test_a.py", "test_b.py")
    assert stage.tests == expected
    (stage,) = tests.stages("x/d.py")
    assert stage.tests == ("test_d.py", "test_a.py", "test_b.py", "test_c.py")


def test_words_of_sentences_are_no_names(tmp_path):
    path = tmp_path / "test_a.py"
    path.write_text('"""They go together."""\nfrom a import b\nc.d(e, "f")  # and g\n')
    assert campaign._identifiers(path) == {"b", "c", "d", "e"}


def test_a_private_function_is_reached_by_public_ones():
    source = "def f(x): return _g(x)\ndef _g(x): return x._h\ndef _h(): pass\ndef main(): _h()\n"
    assert campaign.reached_by(source, "f") == {"f"}
    assert campaign.reached_by(source, "_g") == {"f"}
    assert campaign.reached_by(source, "C.m") == {"m"}
    assert campaign.reached_by(source, "") == frozenset()


def test_a_budget_leaves_out_the_slowest_but_never_a_files_own_tests():
    named = ("test_slow.py", "test_a.py", "test_quick.py", "test_more_b.py", "test_b.py")
    seconds = dict(zip(named, (60.0, 20.0, 5.0, 50.0, 45.0), strict=True))
    own = ["test_b.py", "test_more_b.py"]
    for budget, others in (
        (1, []),
        (100, ["test_quick.py"]),
        (125, ["test_quick.py", "test_a.py"]),
    ):
        tests = campaign.Tests({"x/b.py": named}, (), seconds, budget)
        (stage,) = tests.stages("x/b.py")
        assert stage.tests == (*own, *others)
        assert tests.planned("x/b.py") == {*own, *others}
    whole = campaign.Tests({"x/b.py": named[:1]}, named, seconds).stages("x/b.py")
    assert [stage.tests for stage in whole] == [named[:1], (*own, "test_quick.py", "test_a.py")]
    assert campaign.Tests({"x/b.py": named}, (), {}, 1).planned("x/b.py") == set(named)

"""The faults of `mutations.py` fit the sources; `pytest -m slow` puts them in."""

import pathlib
import re

import mutations
import pytest
from mutations import MUTATIONS, ROOT

EVERY = pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)


@EVERY
def test_a_fault_applies_once_and_compiles(mutation, tmp_path):
    source = (ROOT / mutation.file).read_text()
    assert source.count(mutation.old) == 1
    mutated = mutation.mutated(source)
    assert mutated != source
    compile(mutated, mutation.file, "exec")
    with pytest.raises(ValueError, match=re.escape(mutation.name)):
        mutation.mutated(mutated.replace(mutation.old, ""))


@EVERY
def test_the_tests_named_exist(mutation):
    assert mutation.tests
    for test in mutation.tests:
        file, _, function = test.partition("::")
        text = (pathlib.Path(__file__).parent / file).read_text()
        assert f"def {function.partition('[')[0]}(" in text


def test_names_tell_faults_apart():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
    assert len({(m.file, m.old, m.new) for m in MUTATIONS}) == len(MUTATIONS)


def test_a_copy_has_what_tests_read(tmp_path):
    root = mutations.copy_project(tmp_path / "copy")
    assert all((root / name).exists() for name in mutations.COPIED)
    left_out = {path.name for path in (root / "tests").glob("test_*.py")}
    left_out -= set(mutations.test_files(root))
    assert left_out == set(mutations.LEFT_OUT)


@pytest.mark.slow
def test_every_fault_is_killed(pytestconfig, capsys):
    if "slow" not in pytestconfig.getoption("markexpr"):
        pytest.skip("minutes; run with -m slow")
    assert mutations.main([]) == 0
    assert f"killed {len(MUTATIONS)} of {len(MUTATIONS)}" in capsys.readouterr().out

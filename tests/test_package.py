import ast
import importlib
import importlib.metadata
import json
import os
import pathlib
import pkgutil
import re
import subprocess
import sys
import tomllib

import forked
import pytest

import selfens_jax

ROOT = pathlib.Path(__file__).parents[1]
HEAVY = {"aeon", "matplotlib", "orbax", "pandas", "sklearn", "torch", "tslearn"}
# What serves other modules only. A new module is one of these, or public.
INTERNAL = {
    "backend",
    "classifier_files",
    "correction",
    "exact",
    "fit_arguments",
    "locks",
    "paths",
}

STEPS = ("plots", "runs", "SelfEnsembleClassifier")
PROBE = f"""
import json
import sys
import jax
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
)
def packages():
    return sorted({{name.partition(".")[0] for name in sys.modules}})
import selfens_jax
assert not compiled, compiled
found = {{"": packages()}}
for name in {STEPS}:
    getattr(selfens_jax, name)
    found[name] = packages()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def imported():
    """The packages that are imported with this one, and after each step of a fresh process."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    return {step: set(names) for step, names in json.loads(done.stdout).items()}


def test_importing_compiles_nothing_and_leaves_heavy_packages_alone(imported):
    assert {"selfens_jax", "jax", "flax"} <= imported[""]
    assert not HEAVY & imported[""]


def test_what_is_heavy_is_imported_with_what_needs_it(imported):
    assert not HEAVY & imported["plots"]  # Matplotlib comes with the first figure
    assert HEAVY & imported["runs"] == {"orbax"}
    assert {"orbax", "sklearn"} <= HEAVY & imported["SelfEnsembleClassifier"]


def test_the_version_is_that_of_the_project_and_of_what_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == selfens_jax.__version__
    assert importlib.metadata.version(project["name"]) == selfens_jax.__version__


@pytest.mark.parametrize("name", selfens_jax.__all__)
def test_a_public_name_exists_and_is_listed(name):
    assert getattr(selfens_jax, name) is not None
    assert name in dir(selfens_jax)


def test_every_module_is_public_or_said_to_be_internal():
    modules = {module.name for module in pkgutil.iter_modules(selfens_jax.__path__)}
    public = {name for name in modules if name in selfens_jax.__all__}
    assert modules - public == INTERNAL
    for name in public:
        assert getattr(selfens_jax, name) is importlib.import_module(f"selfens_jax.{name}")


def test_certify_and_the_classifier_are_names_of_the_package():
    from selfens_jax import SelfEnsembleClassifier, certification, certify, classifier

    assert certify is certification.certify
    assert SelfEnsembleClassifier is classifier.SelfEnsembleClassifier


def test_another_name_is_no_attribute():
    with pytest.raises(AttributeError, match="module 'selfens_jax' has no attribute 'smooth'"):
        _ = selfens_jax.smooth


def test_annotations_are_for_users_too():
    assert (pathlib.Path(selfens_jax.__file__).parent / "py.typed").exists()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["selfens_jax"]


def test_the_readme_has_its_marked_commands_and_no_dead_links():
    readme = (ROOT / "README.md").read_text()
    for mark in ("main job", "tests"):
        assert re.search(rf"<!-- {mark} -->\n```sh\n.+\n```", readme)
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_what_tests_import_of_the_scripts_can_be_imported_together():
    """One process runs many files of tests, and a flag can be defined once in a process."""
    scripts = {path.stem for path in (ROOT / "experiments").iterdir()}
    found = set()
    for file in (ROOT / "tests").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Import(names=[ast.alias(name=name)]) | ast.ImportFrom(module=str(name)):
                    if name.partition(".")[0] in scripts:
                        found.add(ast.unparse(node))
    assert {"import certify", "import accelerator_run"} <= found
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(sorted(found))],
        cwd=ROOT / "experiments",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-500:]


def test_a_forked_script_finds_and_says_what_a_command_does(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "print(sys.argv[1:], os.getcwd(), os.environ.get('OF_MINE'), sys.path[0], __name__)\n"
        "print('said', file=sys.stderr)\n"
        "try:\n    import helpers\nexcept ImportError:\n    print('no helpers')\n"
        "try:\n    import common\nexcept ImportError:\n    print('no common')\n"
        "sys.exit(int(sys.argv[1]))\n"
    )
    for variables in ({}, {"OF_MINE": "mine"}):
        expected = subprocess.run(
            [sys.executable, script, "3"],
            cwd=tmp_path,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
        )
        found = forked.run(script, ["3"], tmp_path, **variables)
        assert found.returncode == expected.returncode == 3
        assert found.stdout == expected.stdout
        assert found.stderr == expected.stderr == "said\n"
        assert "no helpers\nno common\n" in found.stdout
    script.write_text("import time; time.sleep(60)")
    with pytest.raises(subprocess.TimeoutExpired):
        forked.run(script, [], tmp_path, timeout=1)
    script.write_text("import sys; sys.exit('a reason')")
    assert forked.run(script, [], tmp_path).stderr == "a reason\n"
    script.write_text("raise ValueError('a fault')")
    failed = forked.run(script, [], tmp_path)
    assert failed.returncode == 1
    assert "Traceback" in failed.stderr

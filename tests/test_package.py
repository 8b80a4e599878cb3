import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]

PROBE = """
import sys
import jax
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
)
import selfens_jax
assert not compiled, compiled
print(" ".join(sorted(m for m in ("tslearn", "matplotlib", "torch", "orbax") if m in sys.modules)))
"""


def test_importing_compiles_nothing_and_leaves_heavy_packages_alone():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert not {"tslearn", "matplotlib", "torch"} & set(done.stdout.split())


def test_public_names_exist():
    import selfens_jax

    for name in selfens_jax.__all__:
        assert hasattr(selfens_jax, name)


def test_the_readme_has_its_marked_commands_and_no_dead_links():
    readme = (ROOT / "README.md").read_text()
    for mark in ("main job", "tests"):
        assert re.search(rf"<!-- {mark} -->\n```sh\n.+\n```", readme)
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        assert target.startswith("http") or (ROOT / target).exists(), target

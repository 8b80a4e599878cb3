"""Scripts run as commands, but in forks of a process that has imported what they all import.

Importing takes most of the time of a small command, and the tests run hundreds of them. A command
with variables that matter to an import runs in a fresh process, as all do for users. So do those
of .ci/run, of the README and of another user (`test_environment`): what is said at the exit of a
process, or imported by luck, shows there alone.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax

IMPORTED = (
    "absl.app",
    "flax.linen",
    "jax.numpy",
    "matplotlib.figure",
    "optax",
    "orbax.checkpoint.v1",
    "scipy.stats",
    "selfens_jax.certification",
    "selfens_jax.report_page",
    "selfens_jax.runs",
    "selfens_jax.training",
    "tqdm",
)
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(list(IMPORTED))
TESTS = Path(__file__).parent
_AT_FIRST = dict(os.environ)
AT_IMPORT = (
    "HOME",
    "JAX_",
    "LD_",
    "MPL",
    "OMP_",
    "PYTHON",
    "XDG_",
)  # variables that libraries read when imported
DEVICES = "JAX_NUM_CPU_DEVICES"  # which can be set afterwards, too
HARMLESS = ("PYTHONDONTWRITEBYTECODE", DEVICES)


def run(
    script: Path,
    arguments: Sequence[str],
    folder: Path,
    timeout: float = 300,
    **environment: str | None,
) -> subprocess.CompletedProcess[str]:
    """The finished script, as `subprocess.run` gives it.

    environment: variables that are set besides, or unset if None.
    """
    command = [sys.executable, str(script), *arguments]
    variables = {n: v for n, v in {**os.environ, **environment}.items() if v is not None}
    changed = {name for name, _ in variables.items() ^ _AT_FIRST.items()}
    if any(name.startswith(AT_IMPORT) and name not in HARMLESS for name in changed):
        return subprocess.run(
            command, cwd=folder, env=variables, capture_output=True, text=True, timeout=timeout
        )
    with tempfile.TemporaryDirectory() as place:
        said = [Path(place) / name for name in ("stdout", "stderr")]
        child = _FORKS.Process(
            target=_script, args=(command[1:], str(folder), variables, *map(str, said))
        )
        child.start()
        child.join(timeout)
        if child.is_alive():
            child.kill()
            child.join()
            raise subprocess.TimeoutExpired(command, timeout)
        assert child.exitcode is not None
        texts = [path.read_text(errors="replace") for path in said]
    return subprocess.CompletedProcess(command, child.exitcode, *texts)


def _script(
    command: list[str], folder: str, variables: dict[str, str], stdout: str, stderr: str
) -> None:
    os.chdir(folder)
    for stream, path in ((0, os.devnull), (1, stdout), (2, stderr)):
        file = os.open(path, os.O_RDONLY if stream == 0 else os.O_WRONLY | os.O_CREAT)
        os.dup2(file, stream)
    os.environ.clear()
    os.environ.update(variables)
    if "COVERAGE_PROCESS_START" in variables:  # by reached.py
        import coverage

        coverage.Coverage.current().switch_context(os.environ["PYTEST_CURRENT_TEST"])
    if DEVICES in variables:
        jax.config.update("jax_num_cpu_devices", int(variables[DEVICES]))
    sys.argv = command
    own = ("", str(TESTS), str(TESTS.parent / "experiments"))  # which commands do not find there
    sys.path[:] = [os.path.dirname(command[0]), *(path for path in sys.path if path not in own)]
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()

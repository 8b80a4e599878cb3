"""The notebook, executed top to bottom at tiny sizes, here and with Colab's versions."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / "experiments" / "colab.ipynb"
COLABS_OWN = ("jax==0.7.2", "jaxlib==0.7.2", "flax==0.11.2", "orbax-checkpoint==0.12.0")

EXECUTE = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
for cell in notebook.cells:
    for output in cell.get("outputs", ()):
        print(output.get("text", ""))
        print(*output.get("data", ()))
"""


def execute(python, folder) -> str:
    """What the notebook prints, run in an empty folder with a kernel of this Python."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("XLA", "PYTEST"))
    }
    # The kernel is the one installed beside this Python, whatever kernels the user has.
    environment |= {"SELFENS_SMOKE": "1", "PYTHONPATH": "", "JUPYTER_PREFER_ENV_PATH": "1"}
    environment |= {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "PWD": str(folder)}
    clone = folder / "selfens_jax-checkout"  # what the notebook's git clone makes
    clone.symlink_to(ROOT, target_is_directory=True)
    done = subprocess.run(
        [python, "-c", EXECUTE, str(NOTEBOOK)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def assert_whole(shown, version):
    assert f"JAX {version}" in shown
    assert "ACR (wrong or abstained = 0)" in shown
    assert "certified accuracy at r = 0.4" in shown
    assert "Class " in shown or "It abstains" in shown
    assert "# Benchmark" in shown
    assert shown.count("image/png") == 2
    assert "Traceback" not in shown


def test_the_notebook_has_no_outputs():
    notebook = json.loads(NOTEBOOK.read_text())
    assert [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in notebook["cells"])


@pytest.mark.slow
def test_the_notebook_runs_top_to_bottom(tmp_path):
    import jax

    assert_whole(execute(sys.executable, tmp_path), jax.__version__)


@pytest.mark.slow
def test_the_notebook_runs_with_colabs_own_jax(tmp_path):
    """It also installs the project itself there, and leaves those versions as they are."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *COLABS_OWN, "nbclient", "ipykernel"], check=True)
    (tmp_path / "work").mkdir()
    assert_whole(execute(python, tmp_path / "work"), "0.7.2")
    frozen = subprocess.run([*pip[:3], "freeze"], capture_output=True, text=True, check=True)
    assert set(COLABS_OWN) <= set(frozen.stdout.splitlines())

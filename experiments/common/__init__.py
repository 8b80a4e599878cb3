"""What the scripts share; they need the package to be installed."""

import importlib.util
import shlex
import sys
from pathlib import Path

if importlib.util.find_spec("selfens_jax") is None:
    checkout = shlex.quote(str(Path(__file__).parents[2]))
    sys.exit(f"error: selfens_jax is not installed: python -m pip install {checkout}")

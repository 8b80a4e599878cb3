"""What a result came from: versions, device, content; and where two records differ."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np


def versions() -> dict[str, str]:
    """The versions, the device and XLA's own flags, if any, that a result came from."""
    packages = (
        "selfens_jax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
        "scipy",
    )
    found = {name: importlib.metadata.version(name) for name in packages}
    return {
        "python": platform.python_version(),
        **found,
        "platform": jax.devices()[0].platform,
        "device": device_name(),
        "machine": platform.machine(),
        **({"xla_flags": flags} if (flags := os.environ.get("XLA_FLAGS")) else {}),
    }


def device_name() -> str:
    """The accelerator, or the processor with what the last bits depend on before all else.

    That is the AVX instructions of an x86, and the number of parts in which XLA adds up: one for
    each core that this process may use, or as many as the environment variable NPROC says if
    it is a number; XLA ignores it otherwise.
    """
    kind = jax.devices()[0].device_kind
    if jax.default_backend() != "cpu":
        return kind
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        info = ""
    found = dict(re.findall(r"^(model name|flags)\s*: (.*)$", info, re.MULTILINE))
    flags = found.get("flags", "").split()
    vectors = [name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags]
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    threads = os.environ.get("NPROC", "").strip()
    return ", ".join(
        [
            found.get("model name") or platform.processor() or kind,
            *vectors[:1],
            f"{cores} core{'s' * (cores != 1)}",
            *([f"NPROC={threads}"] if re.fullmatch(r"[+-]?\d+", threads) else []),
        ]
    )


def digest(value: Any) -> str:
    """sha256 of a tree of arrays (names, shapes, types and bits) or of a value that JSON holds."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        sha.update(jax.tree_util.keystr(path).encode())
        if isinstance(leaf, np.ndarray | jax.Array):
            array = np.ascontiguousarray(leaf)
            sha.update(f"{array.dtype.str}{array.shape}".encode())
            sha.update(array.tobytes())
        else:
            sha.update(json.dumps(leaf).encode())
    return sha.hexdigest()


def differences(found: dict[str, Any], asked: dict[str, Any]) -> str:
    """Where a run's record differs from what is asked now, in words; empty if nowhere.

    Only the keys of `asked` count. Of the data, it is the content that must agree.
    """
    words = [
        f"{key} is {found.get(key)!r}, not {value!r}"
        for key, value in asked.items()
        if key != "data" and found.get(key) != value
    ]
    old, new = found.get("data", {}), asked.get("data", {})
    if "data" in asked and old.get("sha256") != new["sha256"]:
        words.append(
            f"its data are other data ({old.get('name')} from {old.get('source')}, scaling "
            f"{old.get('scaling')}, sha256 {str(old.get('sha256'))[:12]}), not {new['name']} from "
            f"{new['source']}, scaling {new['scaling']}, sha256 {new['sha256'][:12]}"
        )
    return "; ".join(words)

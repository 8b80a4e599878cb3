"""Devices that programs are compiled for without having one.

XLA compiles for a described TPU where libtpu is installed, and for a described GPU where JAX's CUDA
plugin is: `pip install ".[compile-tpu]"` and `".[compile-gpu]"`. Nothing runs.
"""

import contextlib
import dataclasses
import importlib.util
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies

from selfens_jax.errors import UserError

FOUR = "1x4x1"  # devices of the largest GPU topology that is asked for


@dataclasses.dataclass(frozen=True)
class Target:
    """A device. peak: 10^12 operations a second by precision; clock: GHz, for cycles."""

    kind: str  # of `selfens_jax.backend`
    topology: str  # a TPU's name; a GPU's description, in the text form of XLA's GpuTargetConfig
    peak: dict[str, float]
    clock: float
    bandwidth: float  # GB a second


def _gpu(name: str, capability: tuple[int, int], **info: int | float) -> str:
    """XLA's text of a GPU, from the maker's data sheets."""
    common = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "threads_per_core_limit": 2048,
        "block_dim_limit_x": 2147483647,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    lines = [f"{key}: {value}" for key, value in {**common, **info}.items()]
    major, minor = capability
    return (
        f"gpu_device_info {{ {' '.join(lines)}\n"
        f"cuda_compute_capability {{ major: {major} minor: {minor} }} }}\n"
        'platform_name: "CUDA"\n'
        "dnn_version_info { major: 9 minor: 8 patch: 0 }\n"
        "runtime_version { major: 12 minor: 9 patch: 0 }\n"
        f'device_description_str: "{name}"\n'
    )


_H100 = _gpu(
    "NVIDIA H100 80GB HBM3",
    (9, 0),
    shared_memory_per_core=233472,
    shared_memory_per_block_optin=232448,
    core_count=132,
    fpus_per_core=128,
    memory_bandwidth=3352320000000,
    l2_cache_size=52428800,
    clock_rate_ghz=1.98,
    device_memory_size=84978434048,
)
_A100 = _gpu(
    "NVIDIA A100-SXM4-80GB",
    (8, 0),
    shared_memory_per_core=167936,
    shared_memory_per_block_optin=166912,
    core_count=108,
    fpus_per_core=64,
    memory_bandwidth=2039000000000,
    l2_cache_size=41943040,
    clock_rate_ghz=1.41,
    device_memory_size=85198045184,
)


def _tpu_peak(bfloat16: float) -> dict[str, float]:
    # A float32 product is made of three or six bfloat16 ones.
    return {"bfloat16": bfloat16, "tensorfloat32": bfloat16 / 3, "float32": bfloat16 / 6}


def _gpu_peak(bfloat16: float, float32: float) -> dict[str, float]:
    return {"bfloat16": bfloat16, "tensorfloat32": bfloat16 / 2, "float32": float32}


TARGETS = {
    "v5e": Target("tpu", "v5e:2x2", _tpu_peak(197), 1.5, 819),
    "v6e": Target("tpu", "v6e:2x2", _tpu_peak(918), 1.75, 1640),
    "h100": Target("gpu", _H100, _gpu_peak(989, 67), 1.98, 3352),
    "a100": Target("gpu", _A100, _gpu_peak(312, 19.5), 1.41, 2039),
}
_NEEDED = {
    "tpu": ("libtpu", "compile-tpu"),
    "gpu": ("jax_plugins.xla_cuda12", "compile-gpu"),
}


def devices(name: str) -> list[Any]:
    """Four described devices of a target.

    Raises:
      UserError: if what compiles for it is not installed, or cannot.
    """
    target = TARGETS[name]
    module, extra = _NEEDED[target.kind]
    try:
        installed = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        installed = False
    if not installed:
        raise UserError(f"nothing here compiles for a {name}: python -m pip install '.[{extra}]'")
    try:
        with quiet():
            if target.kind == "tpu":
                topology = topologies.get_topology_desc(target.topology, platform="tpu")
            else:
                topology = topologies.get_topology_desc(
                    FOUR, platform="cuda", target_config=target.topology, topology=FOUR
                )
    except Exception as error:  # the plugins raise errors of many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"this version of JAX cannot describe a {name}: {reason}") from error
    return list(topology.devices)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, nothing is written to stderr, where the plugins tell that there is no driver."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def prepare() -> None:
    """Sets what the compilers read; before JAX is asked for any device."""
    jax.config.update("jax_platforms", "cpu")  # or their plugins would look for real ones
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",  # which would look for a cloud machine
        TPU_ACCELERATOR_TYPE="v5litepod-4",
        TPU_WORKER_HOSTNAMES="localhost",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # several processes may compile
        TF_CPP_MIN_LOG_LEVEL="2",
    )
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0".strip()  # it would need a GPU

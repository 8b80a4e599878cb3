"""Independent random streams: every use of randomness has a name, and one seed makes them all."""

import jax

_NAMES = ("initialization", "training", "recalibration", "masks", "certification", "attack")


def stream(seed: int, name: str, member: int = 0) -> jax.Array:
    """The random key of one use of randomness; no two of (seed, name, member) share a key."""
    key = jax.random.key(seed, impl="threefry2x32")  # whatever JAX_DEFAULT_PRNG_IMPL says
    return jax.random.fold_in(jax.random.fold_in(key, _NAMES.index(name)), member)

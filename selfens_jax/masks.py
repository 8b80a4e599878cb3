"""Random masks over time (Section 5.3 of the paper): 1 keeps a time step, 0 hides it.

Mask i depends on the key and i alone, so the first five of twenty masks are the five of a
smaller ensemble. Every function can be traced: `num_masks`, `length` and `keep` are static.
"""

from functools import partial

import jax
import jax.numpy as jnp

from selfens_jax.errors import UserError

ENSEMBLES = ("single", "de", "mb", "mc")


def binomial(key: jax.Array, num_masks: int, length: int, keep: float = 0.9) -> jax.Array:
    """Masks that keep each time step independently with probability `keep` (M_B).

    Args:
      key: a JAX random key.
      num_masks: m, the number of masks.
      length: T, the number of time steps, at least 2.
      keep: p, in (0, 1].

    Returns:
      (m, T) float32 of zeros and ones.

    Raises:
      UserError: if an argument is outside its range.
    """
    _check(num_masks, length, keep)
    keys = _one_key_each(key, num_masks)
    return jax.vmap(lambda k: jax.random.bernoulli(k, keep, (length,)))(keys).astype(jnp.float32)


def continuous(key: jax.Array, num_masks: int, length: int, keep: float = 0.9) -> jax.Array:
    """Masks that hide a fixed number of time steps in separate runs (M_C).

    Exactly Z = round((1 - keep) T) steps are hidden (at most T - 1), in runs of at most
    (1 - keep) T / 2, at least one, steps. Runs never overlap or touch. Where keep and T are so
    small that runs this short cannot be kept apart, the limit rises to the least that can.

    Args:
      key: a JAX random key.
      num_masks: m, the number of masks.
      length: T, the number of time steps, at least 2.
      keep: the share of time steps that a mask keeps, in (0, 1].

    Returns:
      (m, T) float32 of zeros and ones.

    Raises:
      UserError: if an argument is outside its range.
    """
    _check(num_masks, length, keep)
    hidden = min(round((1 - keep) * length), length - 1)
    kept = length - hidden
    longest = max(1, int((1 - keep) * length / 2 + 1e-9))
    while hidden > longest * (kept + 1):
        longest += 1
    return _continuous_masks(key, num_masks, kept, hidden, longest)


def draw(ensemble: str, key: jax.Array, num_masks: int, length: int, keep: float) -> jax.Array:
    """The (m, T) masks of an ensemble: `mb` binomial, `mc` continuous, else all ones.

    Args:
      ensemble: one of `ENSEMBLES`.
      key, num_masks, length, keep: as in `binomial`.

    Raises:
      UserError: if an argument of a mask is outside its range.
    """
    if ensemble == "mb":
        return binomial(key, num_masks, length, keep)
    if ensemble == "mc":
        return continuous(key, num_masks, length, keep)
    return jnp.ones((num_masks, length), jnp.float32)


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _continuous_masks(
    key: jax.Array, num_masks: int, kept: int, hidden: int, longest: int
) -> jax.Array:
    one = partial(_continuous_mask, kept=kept, hidden=hidden, longest=longest)
    return jax.vmap(one)(_one_key_each(key, num_masks))


def _continuous_mask(key: jax.Array, *, kept: int, hidden: int, longest: int) -> jax.Array:
    # A mask is its `kept` ones with a run of zeros, often empty, in each of the kept + 1 gaps
    # before, between and after them: one run a gap, so no two runs touch.
    length_key, place_key = jax.random.split(key)
    max_runs = min(hidden, kept + 1)

    def next_run(left: jax.Array, run: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Uniform over the lengths that leave a rest which the remaining runs can still hold.
        shortest = jnp.maximum(jnp.minimum(left, 1), left - longest * (max_runs - 1 - run))
        high = jnp.minimum(left, longest)
        size = jax.random.randint(jax.random.fold_in(length_key, run), (), shortest, high + 1)
        return left - size, size

    runs = jnp.zeros(kept + 1, jnp.int32)
    if max_runs:
        _, sizes = jax.lax.scan(next_run, jnp.int32(hidden), jnp.arange(max_runs))
        runs = runs.at[:max_runs].set(sizes)
    before = jnp.cumsum(jax.random.permutation(place_key, runs))[:kept]
    return jnp.zeros(kept + hidden, jnp.float32).at[jnp.arange(kept) + before].set(1.0)


def _one_key_each(key: jax.Array, num_masks: int) -> jax.Array:
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(num_masks))


def _check(num_masks: int, length: int, keep: float) -> None:
    if num_masks < 1:
        raise UserError(f"num_masks must be at least 1, not {num_masks}")
    if length < 2:
        raise UserError(f"masks need series of at least 2 time steps, not {length}")
    if not 0 < keep <= 1:
        raise UserError(f"keep must be in (0, 1], not {keep}")

"""Masks over time: 1 keeps a time step, 0 hides it.

`binomial` and `continuous` are the paper's (Section 5.3); `windows` are what training for bursts
hides (`bursts`).

Mask i depends on the key and i alone, so the first five of twenty masks are the five of a
smaller ensemble. Every function can be traced: `num_masks`, `length` and `keep` are static.
"""

from functools import partial

import jax
import jax.numpy as jnp

from selfens_jax.errors import UserError

ENSEMBLES = ("single", "de", "mb", "mc", "mw")
DESIGNS = ("independent", "balanced")
HIDDEN_AS = ("zero", "last", "scaled", "indicator")
CANDIDATES = 256  # continuous masks of which a balanced one is the best


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


def binomial_balanced(key: jax.Array, num_masks: int, length: int, keep: float = 0.9) -> jax.Array:
    """Binomial masks of which every few in a row hide different time steps.

    Each mask alone is one of `binomial`: it keeps every step independently with probability `keep`.
    But no step is hidden twice by the first r = floor(1 / (1 - keep)) masks, nor by the next r, and
    so on: two masks that keep half are each other's opposite.

    Args, returns and raises: as `binomial`.
    """
    _check(num_masks, length, keep)
    hidden = 1 - keep
    together = num_masks  # r, but no more than there are
    if hidden * num_masks > 1:
        together = max(1, int(1 / hidden + 1e-9))
    # A step has a uniform place in [0, 1), and a mask hides an interval of it.
    rounds, places = divmod(jnp.arange(num_masks), together)
    keys = jax.vmap(partial(jax.random.fold_in, key))(rounds)
    drawn = jax.vmap(lambda k: jax.random.uniform(k, (length,)))(keys)
    begins, ends = places[:, None] * hidden, (places[:, None] + 1) * hidden  # one's end: the next's
    return 1 - ((drawn >= begins) & (drawn < ends)).astype(jnp.float32)


def continuous_balanced(
    key: jax.Array, num_masks: int, length: int, keep: float = 0.9
) -> jax.Array:
    """Continuous masks that hide different time steps as far as they can.

    Each is one that `continuous` can give: the one of `CANDIDATES` whose hidden steps the masks
    before it hide the least often.

    Args, returns and raises: as `continuous`.
    """
    _check(num_masks, length, keep)
    return _continuous_balanced(key, num_masks, length, keep)


def windows(key: jax.Array, num_masks: int, length: int, window: int, count: int = 2) -> jax.Array:
    """Masks that hide some windows of consecutive time steps, each anywhere (M_W).

    Each window lies inside the series, at a place that is uniform and independent of the others',
    so that two may overlap.

    Args:
      key, num_masks, length: as in `binomial`.
      window: time steps of a window, from 1 to below `length`.
      count: windows of a mask, at least 1.

    Returns:
      (m, T) float32 of zeros and ones.

    Raises:
      UserError: if an argument is outside its range.
    """
    _check(num_masks, length, 1.0)
    if not 1 <= window < length or count < 1:
        raise UserError(
            f"windows need 1 <= window < {length} time steps and count >= 1, not {window}, {count}"
        )

    def one(key: jax.Array) -> jax.Array:
        starts = jax.random.randint(key, (count, 1), 0, length - window + 1)
        after = jnp.arange(length) - starts
        return ~((after >= 0) & (after < window)).any(axis=0)

    return jax.vmap(one)(_one_key_each(key, num_masks)).astype(jnp.float32)


def draw(
    ensemble: str,
    key: jax.Array,
    num_masks: int,
    length: int,
    keep: float,
    window: int = 0,
    design: str = "independent",
) -> jax.Array:
    """The (m, T) masks of an ensemble: binomial, continuous, windows, or else all ones.

    Args:
      ensemble: one of `ENSEMBLES`; `mb`, `mc` and `mw` have masks.
      key, num_masks, length, keep: as in `binomial`.
      window: of `mw`, as in `windows`.
      design: of `mb` and `mc`, one of `DESIGNS`: independent masks, or `balanced` ones.

    Raises:
      UserError: if an argument of a mask is outside its range, or as `check_design`.
    """
    check_design(design, ensemble)
    balanced = design == "balanced"
    if ensemble == "mb":
        return (binomial_balanced if balanced else binomial)(key, num_masks, length, keep)
    if ensemble == "mc":
        return (continuous_balanced if balanced else continuous)(key, num_masks, length, keep)
    if ensemble == "mw":
        return windows(key, num_masks, length, window)
    return jnp.ones((num_masks, length), jnp.float32)


def hide(x: jax.Array, mask: jax.Array, hidden_as: str = "zero") -> jax.Array:
    """What a network is shown of series under masks: nothing of the values of hidden steps.

    Args:
      x: (..., T, C) series, finite.
      mask: (..., T) masks, whose other axes broadcast with those of x.
      hidden_as: what stands for hidden steps, one of `HIDDEN_AS`: `zero`, zeros, which is the
        paper's M * x; `last`, the last value that is kept before them, or else the first after;
        `scaled`, zeros, and the kept values are divided by the share that is kept, as dropout does;
        `indicator`, zeros, and the mask is one more channel.

    Returns:
      (..., T, C), or (..., T, C + 1) with the indicator.
    """
    kept = mask[..., None]
    shown = kept * x
    if hidden_as == "last":
        steps = jnp.where(mask > 0, jnp.arange(mask.shape[-1]), 0)
        last = jax.lax.cummax(steps, axis=mask.ndim - 1)
        source = jnp.maximum(last, mask.argmax(axis=-1, keepdims=True))  # not before the first kept
        return jnp.take_along_axis(shown, source[..., None], axis=-2)
    if hidden_as == "scaled":
        share = jnp.maximum(mask.mean(axis=-1), 1 / mask.shape[-1])  # of a mask that hides all, too
        return shown / share[..., None, None]
    if hidden_as == "indicator":
        channel = jnp.broadcast_to(kept, (*shown.shape[:-1], 1))
        return jnp.concatenate([shown, channel], axis=-1)
    return shown


def blank(length: int, channels: int, hidden_as: str = "zero") -> jax.Array:
    """A series of zeros as a network is shown it, (1, T, C) or (1, T, C + 1)."""
    return hide(jnp.zeros((1, length, channels)), jnp.ones((1, length)), hidden_as)


def check_hidden_as(hidden_as: str, ensemble: str) -> None:
    """Raises UserError for a hidden_as that there is not, or of an ensemble that hides nothing."""
    otherwise = f"is of the steps that the masks of mb and mc hide, not of {ensemble}"
    _check_option("hidden_as", hidden_as, HIDDEN_AS, ensemble, otherwise)


def check_design(design: str, ensemble: str) -> None:
    """Raises UserError for a design that there is not, or that the ensemble has no masks for."""
    otherwise = f"is of the masks of mb and mc; {ensemble} is certified without any"
    _check_option("mask_design", design, DESIGNS, ensemble, otherwise)


def _check_option(
    name: str, value: str, known: tuple[str, ...], ensemble: str, otherwise: str
) -> None:
    """Raises UserError unless the value is known and, but for the first, of mb or mc."""
    if not isinstance(value, str) or value not in known:
        raise UserError(f"unknown {name} {value!r}; choose from {', '.join(known)}")
    if value != known[0] and ensemble not in ("mb", "mc"):
        raise UserError(f"{name} {value} {otherwise}: leave it out")


@partial(jax.jit, static_argnums=(1, 2, 3))
def _continuous_balanced(key: jax.Array, num_masks: int, length: int, keep: float) -> jax.Array:
    def next_mask(times: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = 1 - continuous(own, CANDIDATES, length, keep)
        # Least also of sum(times^2) afterwards, which is that before + sum of 2 times + 1.
        best = hidden[(hidden @ times).argmin()]
        return times + best, 1 - best

    _, masks = jax.lax.scan(next_mask, jnp.zeros(length), _one_key_each(key, num_masks))
    return masks


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

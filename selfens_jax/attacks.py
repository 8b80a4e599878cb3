"""PGD-L2 (Madry et al., 2018) on networks, ensembles and smoothed classifiers.

The attack climbs the loss of what it attacks,

    loss(x) = -log mean_d softmax(predict(x + sigma * noise_d))_y,

by steps of fixed length along the normalised gradient, projected onto the L2 ball around the
original series. With sigma = 0 there is one draw without noise, and this is the cross-entropy of
the (mean) logits: the attack on a plain network or an ensemble. With sigma > 0 the noise is drawn
afresh at every step (expectation over draws): the attack on the smoothed classifier of Salman et
al. (2019). Whether it succeeded is for the attacked classifier to say, with draws of its own:
`prediction` for the former, the most voted class of `smoothing.count_votes` for the latter.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from selfens_jax.errors import UserError
from selfens_jax.smoothing import Predict, mean_logits


def pgd_l2(
    predict: Predict,
    x: np.ndarray,
    y: np.ndarray,
    *,
    epsilon: float | np.ndarray,
    key: jax.Array,
    sigma: float = 0.0,
    num_draws: int = 1,
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 1,
    indices: np.ndarray | None = None,
) -> np.ndarray:
    """Series within epsilon of x that the attacked classifier finds hardest to call y.

    Args:
      predict: maps series (B, T, C) to logits (B, K) or (members, B, K), as in `smoothing`.
      x: (N, T, C) original series; y: (N,) the classes to move away from.
      epsilon: the radius of the L2 ball, one for all or (N,).
      key: random key of starts and noise.
      sigma, num_draws: the noise of a smoothed classifier and its draws for each step's gradient.
      steps: gradient steps from each start.
      step_size: length of a step; 2.5 epsilon / steps if None.
      restarts: random starts, uniform in the ball. The end of highest loss is kept, or x itself
        where none is higher; the losses are compared on the same draws.
      indices: (N,) each example's index in its data set, which keys its randomness.

    Returns:
      (N, T, C) float32 series, ||result - x||_2 <= epsilon up to float32 rounding.

    Raises:
      UserError: for arguments outside their range.
    """
    x, y = np.asarray(x, np.float32), np.asarray(y)
    indices = np.arange(len(x)) if indices is None else np.asarray(indices)
    epsilon = np.broadcast_to(np.asarray(epsilon, np.float32), (len(x),))
    if x.ndim != 3 or y.shape != (len(x),) or not np.isfinite(x).all():
        raise UserError("x must be finite, (examples, time, channels), with one label an example")
    if not (np.isfinite(epsilon) & (epsilon >= 0)).all():
        raise UserError(f"epsilon must be finite and >= 0, not {epsilon.min()}")
    if not (np.isfinite(sigma) and sigma >= 0):
        raise UserError(f"sigma must be finite and >= 0, not {sigma}")
    if min(steps, restarts, num_draws) < 1:
        raise UserError("steps, restarts and num_draws must be at least 1")
    # Only noise makes one draw differ from another.
    num_draws = num_draws if sigma > 0 else 1
    step_sizes = 2.5 * epsilon / steps if step_size is None else np.full_like(epsilon, step_size)

    keys = jax.vmap(partial(jax.random.fold_in, key))(indices.astype(np.uint32))
    attacked = (predict, x, y, epsilon, np.float32(sigma), step_sizes)
    worst, worst_loss = jnp.asarray(x), _losses(attacked, keys, x, num_draws)
    for restart in range(restarts):
        of_restart = jax.vmap(lambda k, r=restart: jax.random.fold_in(k, r + 1))(keys)
        end = _climb(attacked, of_restart, _start(of_restart, x, epsilon), steps, num_draws)
        loss = _losses(attacked, keys, end, num_draws)
        worst = jnp.where((loss > worst_loss)[:, None, None], end, worst)
        worst_loss = jnp.maximum(loss, worst_loss)
    return np.asarray(worst)


def prediction(predict: Predict, x: np.ndarray) -> np.ndarray:
    """(N,) classes of an unsmoothed network or ensemble for series x (N, T, C)."""
    return np.asarray(_logits(predict, x).argmax(axis=-1))


def success_rates(before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The attack success rate in two definitions, from (N,) predictions and labels.

    Returns:
      (over all, over initially correct): the share of all examples that are wrong under attack
      (Section 5.4 of the paper), and the share of those right before that are wrong after, NaN
      if none was right. An abstention (-1) is wrong.
    """
    correct = before == labels
    fooled = after != labels
    return float(fooled.mean()), float(fooled[correct].mean()) if correct.any() else float("nan")


_logits = jax.jit(lambda predict, x: mean_logits(predict, x))


def _climb(
    attacked: tuple, keys: jax.Array, current: jax.Array, steps: int, num_draws: int
) -> jax.Array:
    # As in training: on CPU a convolution's gradient must stay out of control flow.
    if jax.default_backend() != "cpu":
        return _scanned_steps(attacked, keys, current, steps, num_draws)
    for step in range(steps):
        current = _compiled_step(attacked, keys, current, np.uint32(step), num_draws)
    return current


def _step(
    attacked: tuple, keys: jax.Array, current: jax.Array, step: jax.Array, num_draws: int
) -> jax.Array:
    """One PGD step from `current` (N, T, C)."""
    _, x, _, epsilon, _, step_size = attacked
    gradient = jax.grad(lambda series: _loss(attacked, keys, series, step, num_draws).sum())(
        current
    )
    moved = current + step_size[:, None, None] * gradient / _norm(gradient)
    return _project(moved, x, epsilon)


def _loss(
    attacked: tuple, keys: jax.Array, series: jax.Array, step: jax.Array, num_draws: int
) -> jax.Array:
    """-log mean_d softmax(predict(series + sigma * noise_d))_y, (N,)."""
    predict, _, y, _, sigma, _ = attacked
    noise = jax.vmap(
        lambda k: jax.random.normal(jax.random.fold_in(k, step + 1), (num_draws, *series.shape[1:]))
    )(keys)
    noised = series[:, None] + sigma * noise
    logits = mean_logits(predict, noised.reshape(-1, *series.shape[1:]))
    log_softmax = jax.nn.log_softmax(logits).reshape(*noised.shape[:2], -1)
    log_mean = jax.nn.logsumexp(log_softmax, axis=1) - jnp.log(num_draws)
    return -jnp.take_along_axis(log_mean, y[:, None], axis=1)[:, 0]


_compiled_step = partial(jax.jit, static_argnums=4)(_step)
_compiled_loss = partial(jax.jit, static_argnums=4)(_loss)


def _losses(attacked: tuple, keys: jax.Array, series: jax.Array, num_draws: int) -> jax.Array:
    return _compiled_loss(attacked, keys, series, np.uint32(0), num_draws)


@partial(jax.jit, static_argnums=(3, 4))
def _scanned_steps(
    attacked: tuple, keys: jax.Array, current: jax.Array, steps: int, num_draws: int
) -> jax.Array:
    def body(carry: jax.Array, step: jax.Array) -> tuple[jax.Array, None]:
        return _step(attacked, keys, carry, step, num_draws), None

    return jax.lax.scan(body, current, jnp.arange(steps, dtype=jnp.uint32))[0]


@jax.jit
def _start(keys: jax.Array, x: jax.Array, epsilon: jax.Array) -> jax.Array:
    """A uniform draw from each ball: a normal direction at radius epsilon u^(1 / dimension)."""

    def of_one(key: jax.Array, centre: jax.Array, radius: jax.Array) -> jax.Array:
        direction_key, radius_key = jax.random.split(jax.random.fold_in(key, 0))
        direction = jax.random.normal(direction_key, centre.shape)
        share = jax.random.uniform(radius_key) ** (1 / centre.size)
        return centre + radius * share * direction / jnp.linalg.norm(direction)

    return jax.vmap(of_one)(keys, x, epsilon)


def _project(moved: jax.Array, x: jax.Array, epsilon: jax.Array) -> jax.Array:
    difference = moved - x
    scale = jnp.minimum(1.0, epsilon[:, None, None] / _norm(difference))
    return x + scale * difference


def _norm(x: jax.Array) -> jax.Array:
    """(N, 1, 1) L2 norms over time and channels, kept off zero."""
    return jnp.sqrt((x**2).sum(axis=(1, 2), keepdims=True)) + 1e-20

"""PGD-L2 (Madry et al., 2018) on networks, ensembles and smoothed classifiers.

The attack climbs the loss of what it attacks,

    loss(x) = -log mean_d softmax(predict(x + sigma * noise_d))_y,

by steps of fixed length along the normalised gradient, projected onto the L2 ball around the
original series. With sigma = 0 there is one draw without noise, and this is the cross-entropy of
the (mean) logits: the attack on a plain network or an ensemble. With sigma > 0 the noise is drawn
afresh at every step (expectation over draws): the attack on the smoothed classifier of Salman et
al. (2019). Whether it succeeded is for the attacked classifier to say, with draws of its own:
`prediction` for the former, the most voted class of `smoothing.count_votes` for the latter.

As in `smoothing`, float rounding can depend on the shape a kernel is compiled for, so examples are
attacked `EXAMPLES_PER_CALL` at a time, the last call padded, and their randomness is keyed by
their index:

    example = fold_in(key, index)
    start of restart r           fold_in(fold_in(example, _STARTS), r)
    noise of its step s          fold_in(fold_in(fold_in(example, _STEPS), r), s)
    draws that compare points    fold_in(example, _COMPARISON)
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from selfens_jax import backend
from selfens_jax.classifiers import as_classifier
from selfens_jax.ensembles import Predict, mean_logits
from selfens_jax.errors import UserError, check_resolution, check_series

EXAMPLES_PER_CALL = 4  # times 16 draws and 5 masks, the activations of a gradient fit any machine
_STARTS, _STEPS, _COMPARISON = range(3)

_Array = jax.Array | np.ndarray  # NumPy's until a compiled function takes it
_State = tuple[_Array, _Array, jax.Array]  # the current series, the worst so far and its loss


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Attack:
    """What is attacked, on one call's examples; B = EXAMPLES_PER_CALL."""

    predict: Predict
    sigma: jax.Array | np.float32  # ()
    x: _Array  # (B, T, C)
    y: _Array  # (B,)
    epsilon: _Array  # (B,)
    step_size: _Array  # (B,)
    keys: jax.Array  # (B,) of the examples


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
      predict: maps series (B, T, C) to logits (B, K), as in `smoothing`.
      x: (N, T, C) original series.
      y: (N,) the classes to move away from.
      epsilon: the radius of the L2 ball, one for all or (N,).
      key: random key of starts and noise.
      sigma: standard deviation of the noise of a smoothed classifier; 0 for any other.
      num_draws: noise draws for each step's gradient.
      steps: gradient steps from each start.
      step_size: length of a step; 2.5 epsilon / steps if None.
      restarts: random starts, uniform in the ball. Of the points that the steps reach, the one of
        highest loss is kept, or x itself where none is higher; all are compared on the same
        draws, which no gradient sees. More restarts never lower this loss, nor do more steps of
        the same size.
      indices: (N,) each example's index in its data set, which keys its randomness.

    Returns:
      (N, T, C) float32 series, ||result - x||_2 <= epsilon up to float32 rounding.

    Raises:
      UserError: for arguments outside their range.
    """
    x, y = check_series(x), np.asarray(y)
    indices = np.arange(len(x)) if indices is None else np.asarray(indices)
    epsilon = np.broadcast_to(np.asarray(epsilon, np.float32), (len(x),))
    if not len(x) or y.shape != (len(x),):
        raise UserError("x must hold at least one series, with one label each")
    if not (np.isfinite(epsilon) & (epsilon >= 0)).all():
        raise UserError(f"epsilon must be finite and >= 0, not {epsilon.min()}")
    if not (np.isfinite(sigma) and sigma >= 0):
        raise UserError(f"sigma must be finite and >= 0, not {sigma}")
    if min(steps, restarts, num_draws) < 1:
        raise UserError("steps, restarts and num_draws must be at least 1")
    if not epsilon.any():
        return x.copy()  # the balls hold nothing else
    step = float(np.spacing(np.abs(x).max()))
    if step > epsilon[epsilon > 0].min():
        raise UserError(
            f"near the largest value of x float32 has steps of {step:g}, longer than epsilon "
            f"{epsilon[epsilon > 0].min():g}: no attack can move it; subtract a constant from x"
        )
    if sigma > 0:
        check_resolution(x, sigma)
    predict = as_classifier(predict)
    # Only noise makes one draw differ from another.
    num_draws = num_draws if sigma > 0 else 1
    step_sizes = 2.5 * epsilon / steps if step_size is None else np.full_like(epsilon, step_size)

    def attack(
        x: np.ndarray,
        y: np.ndarray,
        epsilon: np.ndarray,
        step_size: np.ndarray,
        index: np.ndarray,
    ) -> _Array:
        keys = jax.vmap(partial(jax.random.fold_in, key))(index)
        block = _Attack(predict, np.float32(sigma), x, y, epsilon, step_size, keys)
        return _climb(block, steps, restarts, num_draws)

    return _in_blocks(attack, x, y, epsilon, step_sizes, indices.astype(np.uint32))


def mean_loss(predict: Predict, noised: _Array, y: _Array) -> jax.Array:
    """(B,) -log mean_d softmax(predict(noised_d))_y, of noised series (B, D, T, C); traceable."""
    num_draws = noised.shape[1]
    logits = mean_logits(predict, noised.reshape(-1, *noised.shape[2:]))
    log_softmax = jax.nn.log_softmax(logits).reshape(*noised.shape[:2], -1)
    log_mean = jax.nn.logsumexp(log_softmax, axis=1) - jnp.log(num_draws)
    return -jnp.take_along_axis(log_mean, y[:, None], axis=1)[:, 0]


def climbed(loss_of: Callable[[_Array], jax.Array], series: _Array, step_size: _Array) -> jax.Array:
    """Series (B, T, C), each moved by its step_size (B,) along its gradient of a loss (B,)."""
    gradient = jax.grad(lambda at: loss_of(at).sum())(series)
    return series + step_size[:, None, None] * gradient / _norm(gradient)


def prediction(predict: Predict, x: np.ndarray) -> np.ndarray:
    """(N,) classes of an unsmoothed network or ensemble for series x (N, T, C).

    Raises:
      UserError: if a logit is NaN.
    """
    logits = _in_blocks(partial(_logits(), as_classifier(predict)), check_series(x))
    if np.isnan(logits).any():
        raise UserError("the network returned NaN: nothing can be predicted; train it again")
    return logits.argmax(axis=-1)


def success_rates(before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The attack success rate in two definitions, from (N,) predictions and labels.

    The paper's is "the proportion of misclassified samples by adversarial perturbation" (Section
    5.4), which can be read as either. Its Table 4 cannot be the first: on ChlorineConcentration it
    has 0.26 for M_C, and by Table 3 40 % of these series are wrong before any attack.

    Returns:
      (over all, over initially correct): the share of all examples that are wrong under attack,
      and the share of those right before that are wrong after, NaN if none was right. An
      abstention (-1) is wrong.
    """
    correct = before == labels
    fooled = after != labels
    return float(fooled.mean()), float(fooled[correct].mean()) if correct.any() else float("nan")


_logits = backend.reproducible(lambda predict, x: mean_logits(predict, x))


def _in_blocks(function: Callable[..., _Array], *arrays: np.ndarray) -> np.ndarray:
    """function(*arrays), EXAMPLES_PER_CALL rows at a time, the last block padded with copies."""
    results = []
    for first in range(0, len(arrays[0]), EXAMPLES_PER_CALL):
        blocks = [array[first : first + EXAMPLES_PER_CALL] for array in arrays]
        size = len(blocks[0])
        rows = np.minimum(np.arange(EXAMPLES_PER_CALL), size - 1)
        with jax.default_matmul_precision("float32"):  # one classifier, on a CPU and elsewhere
            results.append(np.asarray(function(*(block[rows] for block in blocks)))[:size])
    return np.concatenate(results)


def _climb(attack: _Attack, steps: int, restarts: int, num_draws: int) -> _Array:
    """The series (B, T, C) of highest loss that any restart comes by."""
    start_keys, step_keys = _fold_in(attack.keys, _STARTS), _fold_in(attack.keys, _STEPS)
    worst = attack.x
    worst_loss = _comparison()(attack, worst, num_draws)
    for restart in range(restarts):
        current = _start(_fold_in(start_keys, restart), attack.x, attack.epsilon)
        keys, state = _fold_in(step_keys, restart), (current, worst, worst_loss)
        # As in training: on CPU a convolution's gradient must stay out of control flow.
        if backend.on_cpu():
            for step in range(steps):
                state = _one_step()(attack, keys, state, np.uint32(step), num_draws)
        else:
            state = scanned_steps()(attack, keys, state, steps, num_draws)
        _, worst, worst_loss = state
    return worst


def _step(
    attack: _Attack, keys: jax.Array, state: _State, step: jax.Array | np.uint32, num_draws: int
) -> _State:
    """One PGD step."""
    current, worst, worst_loss = state
    noise_keys = _fold_in(keys, step)
    loss_of = partial(_loss, attack, noise_keys, num_draws=num_draws)
    moved = _project(climbed(loss_of, current, attack.step_size), attack.x, attack.epsilon)
    loss = _compared(attack, moved, num_draws)
    higher = loss > worst_loss
    worst = jnp.where(higher[:, None, None], moved, worst)
    return moved, worst, jnp.where(higher, loss, worst_loss)


def _loss(attack: _Attack, keys: jax.Array, series: _Array, num_draws: int) -> jax.Array:
    """-log mean_d softmax(predict(series + sigma * noise_d))_y, (B,)."""
    shape = (num_draws, *series.shape[1:])
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    return mean_loss(attack.predict, series[:, None] + attack.sigma * noise, attack.y)


def _compared(attack: _Attack, series: _Array, num_draws: int) -> jax.Array:
    """The loss on the draws that choose which point is kept."""
    return _loss(attack, _fold_in(attack.keys, _COMPARISON), series, num_draws)


def _scanned_steps(
    attack: _Attack, keys: jax.Array, state: _State, steps: int, num_draws: int
) -> _State:
    def body(carry: _State, step: jax.Array) -> tuple[_State, None]:
        return _step(attack, keys, carry, step, num_draws), None

    return jax.lax.scan(body, state, jnp.arange(steps, dtype=jnp.uint32))[0]


_comparison = backend.reproducible(_compared, ("num_draws",))
_one_step = backend.reproducible(_step, ("num_draws",))
scanned_steps = backend.reproducible(_scanned_steps, ("steps", "num_draws"))


@jax.jit
def _start(keys: jax.Array, x: _Array, epsilon: _Array) -> jax.Array:
    """A uniform draw from each ball: a normal direction at radius epsilon u^(1 / dimension)."""

    def start_of_one(key: jax.Array, centre: _Array, radius: _Array) -> jax.Array:
        direction_key, radius_key = jax.random.split(key)
        direction = jax.random.normal(direction_key, centre.shape)
        share = jax.random.uniform(radius_key) ** (1 / centre.size)
        return centre + radius * share * direction / jnp.linalg.norm(direction)

    return jax.vmap(start_of_one)(keys, x, epsilon)


def _project(moved: jax.Array, x: _Array, epsilon: _Array) -> _Array:
    difference = moved - x
    scale = jnp.minimum(1.0, epsilon[:, None, None] / _norm(difference))
    return x + scale * difference


def _norm(x: jax.Array) -> jax.Array:
    """(B, 1, 1) L2 norms over time and channels, kept off zero.

    The squares of a sure network's gradient would underflow; those of its shares do not.
    """
    largest = jnp.abs(x).max(axis=(1, 2), keepdims=True) + 1e-30
    return largest * (jnp.sqrt(((x / largest) ** 2).sum(axis=(1, 2), keepdims=True)) + 1e-7)


def _fold_in(keys: jax.Array, number: int | np.uint32 | jax.Array) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)

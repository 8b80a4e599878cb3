"""Certificates against bursts: whatever replaces any b consecutive steps, the answer stays.

Double masking (Xiang et al., PatchCleanser, USENIX Security 2022), for time series. Windows are
laid over the time axis so that every burst lies inside one of them. A classifier is asked under all
pairs of hidden windows, and `answer` is found by a rule that one hidden burst cannot deceive. No
noise is needed, and no alpha: the certificate is certain.

Guarantee
---------
*Statement.* Let f be a classifier of series (T, C), let M_1, ..., M_W hide the windows of length
l = b + s - 1 that begin at 0, s, 2s, ... and at T - l, and let f_ij(x) = f(M_i M_j x). If all
f_ij(x) are one class y, then `answer` gives y for x, and for every x' that differs from x in at
most b consecutive steps, in all channels, by whatever values, NaN and infinity included.

*The answer.* Let c_i = f_ii(x'), the class under one window, and let the majority be the most
frequent c_i (the lowest of several). The answer is c_i of the first window i that contradicts the
majority, c_i != majority, and is stable: f_ij(x') = c_i for all j. Without such a window it is the
majority.

*Assumptions.* f_ij is one fixed function: each pair is computed in its own row of one compiled
program, whose other rows do not change it. A class is a number from 0; where the logits hold NaN
there is none, which counts as one more class, and is never certified. x is what the program is
given: where each series is scaled by its own mean and deviation, a burst before the scaling changes
every step after it, and nothing is certified.

*Proof.*
1. Every burst lies in a window. Let it be the steps from a to a + b - 1, 0 <= a <= T - b. If
   a <= T - l, the multiple k of s with k <= a <= k + s - 1 begins a window, whose last step,
   k + l - 1 = k + s - 1 + b - 1, is at least a + b - 1. Otherwise the window at T - l begins before
   a and ends with the series.
2. Let window k hide the burst. Hidden steps are replaced by zeros, not multiplied by them, so that
   M_k x' = M_k x whatever the burst holds, and f_kj(x') = f_kj(x) = y for all j. So c_k = y, and k
   is stable.
3. A window i with c_i != y is not stable: f_ik(x') = f_ki(x') = y. So no window makes the answer
   another class by being stable.
4. If the majority is y, the answer is y by 3. If not, window k contradicts it and is stable by 2,
   and whichever stable window is the first, its class is y by 3. QED

*Gaps.* Step 2 asks f_kj(x) = y of one window only, and 3 and 4 use no more. So if x lacks values,
all inside one window k, and f_kj(x) = y for all j, then the answer is y whatever those values are.

*With noise.* Let g_ij be f_ij smoothed (`certificates`), and let R_ij be its certified radius at
level alpha / P, P = W (W + 1) / 2. If all certificates are of one class y, then with probability at
least 1 - alpha the answer of the g_ij is y for every x' that comes of x + d, ||d||_2 < R = min
R_ij, by a burst as above: g_kj looks at steps outside the burst alone, so that g_kj(x') =
g_kj(x + d) = y, and steps 3 and 4 follow. The union bound over P pairs gives alpha; their draws may
be the same.

*Not promised.* Anything about two bursts, or longer ones; that y is the right label; or, with
noise, what votes answer in place of the g_ij.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selfens_jax import backend, blocks
from selfens_jax.blocks import Block
from selfens_jax.certificates import ABSTAIN, certify_counts
from selfens_jax.certification import check_no_loss, noised, tally, with_channels
from selfens_jax.classifiers import HostClassifier, as_classifier, check_classifier
from selfens_jax.correction import NOTHING_GIVEN_UP, Correction
from selfens_jax.ensembles import Predict, mean_logits
from selfens_jax.errors import UserError, check_series, check_whole

NO_CLASS = -1  # of logits with NaN
PAIRS_PER_BLOCK = 64  # rows of one network call
_STRIDES = 20  # of a series, if no stride is given


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of time steps, each hidden in turn, such that every burst lies inside one.

    Attributes:
      length: T, of the series.
      burst: b, the longest burst, from 1 to T - 1.
      stride: s, steps between the beginnings of windows. Small ones hide less, and make more pairs.
    """

    length: int
    burst: int
    stride: int

    @property
    def size(self) -> int:
        """l, time steps of a window."""
        return self.burst + self.stride - 1

    @property
    def starts(self) -> np.ndarray:
        """(W,) where windows begin."""
        last = self.length - self.size
        return np.unique([*range(0, last, self.stride), last])

    @property
    def hidden(self) -> np.ndarray:
        """(W, T) bool, the steps that each window hides."""
        after = np.arange(self.length) - self.starts[:, None]
        return (after >= 0) & (after < self.size)

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """(P,) and (P,) the two windows of each pair, i <= j."""
        return np.triu_indices(len(self.starts))

    @property
    def kept(self) -> np.ndarray:
        """(P, T) bool, the steps that each pair of windows leaves."""
        i, j = self.pairs
        return ~(self.hidden[i] | self.hidden[j])

    def table(self, values: np.ndarray) -> np.ndarray:
        """(N, W, W), symmetric: values (N, P) of pairs, for both windows of each."""
        number = len(self.starts)
        (i, j), table = self.pairs, np.zeros((len(values), number, number), values.dtype)
        table[:, i, j] = table[:, j, i] = values
        return table


def windows(length: int, burst: int, stride: int | None = None) -> Windows:
    """The windows for bursts of so many steps.

    Args:
      length: T, at least 2.
      burst: b, from 1 to T - 1.
      stride: s; if None a twentieth of T, rounded, at least 1, and less where windows would hide
        all steps.

    Raises:
      UserError: if a window would hide the series.
    """
    check_whole("burst", burst, 1)
    if burst >= length:
        raise UserError(f"a burst of {burst} steps leaves nothing of series of {length}")
    longest = length - burst  # stride with which a window leaves one step
    stride = min(max(1, int(length / _STRIDES + 0.5)), longest) if stride is None else stride
    if check_whole("stride", stride, 1) > longest:
        raise UserError(
            f"windows of {burst + stride - 1} steps (burst {burst}, stride {stride}) leave nothing "
            f"of series of {length}: take a stride of at most {longest}"
        )
    return Windows(length, burst, stride)


@dataclasses.dataclass(frozen=True, eq=False)
class Bursts:
    """What double masking says of N series.

    Attributes:
      windows: that were hidden.
      prediction: (N,) int64, the answer; ABSTAIN where there is none, and, with noise, where it is
        not certified.
      certified: (N,) bool, whether it stays, whatever replaces any `windows.burst` steps in a row.
        Of a series that lacks values it says another thing: that the answer is the same whatever
        these are; nothing is said of a burst besides.
      lacks: (N,) bool, which series lack values.
      radius: (N,) float64, of changes beside the burst, 0 where not certified; None without noise.
      statement: one line that says so, for outputs.
    """

    windows: Windows
    prediction: np.ndarray
    certified: np.ndarray
    lacks: np.ndarray
    radius: np.ndarray | None
    statement: str


def statement(burst: int | str, alpha: float | None = None, lacking: bool = False) -> str:
    """What is certified of bursts of so many steps, in a line.

    alpha: with noise; lacking: whether some series lack values.
    """
    stays = f"whatever replaces any {burst} consecutive steps"
    if alpha is None:
        gaps = "; of a series that lacks values: whatever these are, and no burst besides"
        return f"a certified answer stays, {stays}: certain, no sampling" + gaps * lacking
    return (
        f"a certified answer stays for every change with L2 norm below its radius, and {stays} "
        f"besides, each with probability at least {1 - alpha:g}"
    )


def answer(classes: np.ndarray) -> int:
    """The answer of double masking.

    Args:
      classes: (W, W) of the module's f_ij(x'), symmetric; NO_CLASS where there is none.
    """
    alone = classes.diagonal()
    values, times = np.unique(alone, return_counts=True)
    majority = values[times.argmax()]
    for window in np.flatnonzero(alone != majority):
        if (classes[window] == alone[window]).all():
            return int(alone[window])
    return int(majority)


def is_certified(classes: np.ndarray, covering: np.ndarray | None = None) -> bool:
    """Whether the answer is certain.

    Args:
      classes: as in `answer`.
      covering: (W,) bool, for a series that lacks values, the windows that hide them all.
    """
    if covering is None:
        return _is_one_class(classes)
    return any(_is_one_class(row) for row in classes[covering])


def _is_one_class(classes: np.ndarray) -> bool:
    return bool((classes == classes.flat[0]).all() and classes.flat[0] != NO_CLASS)


def refuse_own_scaling(scaling: str, remedy: str) -> None:
    """Raises UserError if each series is scaled by itself, with the remedy as the last words."""
    if scaling == "z_score":
        raise UserError(
            "scaling z_score scales each series by its own mean and deviation, which a burst "
            f"changes, and with them every step: {remedy}"
        )


def certify_bursts(
    predict: Any,
    x: np.ndarray,
    burst: int,
    *,
    stride: int | None = None,
    variables: Any = None,
    num_classes: int | None = None,
) -> Bursts:
    """Certifies any classifier against bursts; the module has the statement and the proof.

    It helps if the classifier was trained with windows hidden (`masks.windows`).

    Args:
      predict, variables, num_classes: as in `certification.certify`.
      x: (N, T) or (N, T, C) series. What is no finite float32 is a value that is not known: such a
        series is certified if its answer is the same whatever they are, and all lie inside one
        window.
      burst, stride: as in `windows`.

    Raises:
      UserError: for what cannot be certified, in one line.
    """
    series = with_channels(x)
    if not series.size:
        raise UserError(f"x is empty: it has the shape {series.shape}")
    series, lacking = known_values(series)
    found = windows(series.shape[1], burst, stride)
    classes = pair_classes(as_classifier(predict, variables, num_classes), series, found)
    return from_classes(classes, found, lacking)


def from_classes(
    classes: np.ndarray, windows: Windows, lacking: np.ndarray | None = None
) -> Bursts:
    """Answers and certificates of classes (N, W, W), from `pair_classes`.

    lacking: (N, T) bool, the steps that each series lacks values of.
    """
    number = len(classes)
    if lacking is None:
        lacking = np.zeros((number, windows.length), bool)
    lacks = np.asarray(lacking.any(axis=1))
    certified = np.zeros(number, bool)
    for row in range(number):
        covering = (windows.hidden | ~lacking[row]).all(axis=1) if lacks[row] else None
        certified[row] = is_certified(classes[row], covering)
    return Bursts(
        windows=windows,
        prediction=np.array([answer(each) for each in classes], np.int64),
        certified=certified,
        lacks=lacks,
        radius=None,
        statement=statement(windows.burst, lacking=bool(lacks.any())),
    )


def pair_classes(predict: Predict, x: np.ndarray, windows: Windows) -> np.ndarray:
    """The class of each series under each pair of hidden windows; NO_CLASS of logits with NaN.

    Args:
      predict: maps series (B, T, C) to logits (B, K), as `classifiers.as_classifier` returns it.
      x: (N, T, C) series; 0 takes the place of values that are not known.
      windows: of length T.

    Returns:
      (N, W, W) int64, symmetric.
    """
    x, _ = known_values(x)
    spread = float(x.std(dtype=np.float64)) or 1.0
    predict, _ = check_classifier(predict, x, spread, PAIRS_PER_BLOCK, "float32")
    kept = windows.kept
    pairs, padding = len(kept), -len(kept) % PAIRS_PER_BLOCK
    kept = np.pad(kept, ((0, padding), (0, 0)), mode="edge")
    kept = kept.reshape(-1, PAIRS_PER_BLOCK, windows.length)
    found = np.zeros((len(x), pairs), np.int64)
    with jax.default_matmul_precision("float32"):  # one classifier, on a CPU and elsewhere
        for row, series in enumerate(x):
            found[row] = _classes(predict, series, kept).ravel()[:pairs]
    return windows.table(found)


def known_values(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Series (N, T, C) as float32, 0 where not known, and the steps (N, T) that lack a value."""
    if np.ma.is_masked(x) or x.dtype.kind != "f":
        return check_series(x), np.zeros(x.shape[:2], bool)
    with np.errstate(over="ignore"):
        known = np.isfinite(x.astype(np.float32))
    return check_series(np.where(known, x, 0)), np.any(~known, axis=2)


def _classes(predict: Predict, series: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Classes (blocks, B) of one series (T, C) under kept steps (blocks, B, T)."""
    if isinstance(predict, HostClassifier):
        rows = [_classes_of_block(predict, jnp.asarray(series), jnp.asarray(k)) for k in kept]
        return np.stack([np.asarray(row) for row in rows])
    return np.asarray(_on_device()(predict, series, kept))


def _classes_on_device(predict: Predict, series: jax.Array, kept: jax.Array) -> jax.Array:
    return jax.lax.map(partial(_classes_of_block, predict, series), kept)


_on_device = backend.reproducible(_classes_on_device)


def _classes_of_block(predict: Predict, series: jax.Array, kept: jax.Array) -> jax.Array:
    logits = mean_logits(predict, _shown(series, kept))
    return jnp.where(jnp.isnan(logits).any(axis=-1), NO_CLASS, logits.argmax(axis=-1))


def _shown(series: jax.Array, kept: jax.Array) -> jax.Array:
    """The series (T, C) or (B, T, C), under kept steps (B, T) or (T,); zeros for the others."""
    return jnp.where(kept[..., None], series, 0.0)


def count_pair_votes(
    predict: Predict,
    x: np.ndarray,
    windows: Windows,
    *,
    num_draws: int = 1000,
    first_draw: int = 0,
    **how: Any,
) -> np.ndarray:
    """Counts the votes under noise for each pair of hidden windows, all with the same draws.

    Args:
      predict, x, num_draws, first_draw: as in `smoothing.count_votes`.
      windows: of length T.
      how: sigma, key and the others of `smoothing.count_votes`.

    Returns:
      (N, P, K) int64 counts.

    Raises:
      UserError: as `smoothing.count_votes`.
    """
    program = blocks.prepare(predict, x, **how)
    if isinstance(program.predict, HostClassifier):
        raise UserError("a function of the host is not certified under noise and bursts at once")
    kept = windows.kept
    asked = dataclasses.replace(program, predict=_Pairs(program.predict, jnp.asarray(kept)))
    rows, draws = blocks.cut(program, first_draw, num_draws)
    counts = np.zeros((len(program.x), len(kept), program.num_classes), np.int64)
    for which, votes in blocks.compute(asked, _vote_of_pairs, rows, draws):
        np.add.at(counts, rows[which], votes)
    for pair in range(len(kept)):
        check_no_loss(counts[:, pair], num_draws, program.indices)
    return counts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Pairs:
    """A classifier, and the steps (P, T) that pairs of windows leave of its series."""

    predict: Predict
    kept: jax.Array


def _vote_of_pairs(block: Block) -> jax.Array:
    """The votes (P, K) of a block's draws, as `certification.vote` for each pair."""
    series = noised(block)

    def vote(kept: jax.Array) -> jax.Array:
        return tally(block, mean_logits(block.predict.predict, _shown(series, kept)))

    return jax.lax.map(vote, block.predict.kept)


def certify_pair_votes(
    counts: np.ndarray,
    windows: Windows,
    sigma: float,
    alpha: float = 0.001,
    given_up: Correction = NOTHING_GIVEN_UP,
) -> Bursts:
    """Answers that hold for a small change everywhere and a burst besides.

    Args:
      counts: (N, P, K), from `count_pair_votes`.
      windows: the same.
      sigma, given_up: as in `certificates.certify_counts`.
      alpha: probability that a certificate is false, for each series.
    """
    pairs = counts.shape[1]
    found = certify_counts(counts, sigma, alpha / pairs, given_up=given_up)
    radius = found.radius.min(axis=1)
    same = (found.prediction == found.prediction[:, :1]).all(axis=1)
    certified = same & (found.prediction[:, 0] != ABSTAIN) & (radius > 0)
    return Bursts(
        windows=windows,
        prediction=np.where(certified, found.prediction[:, 0], ABSTAIN),
        certified=certified,
        lacks=np.zeros(len(counts), bool),
        radius=np.where(certified, radius, 0.0),
        statement=statement(windows.burst, alpha),
    )

"""Where a hair decides: noise never below sigma, votes of NaN logits, evidence next to alpha."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import integrate

from selfens_jax import sequential, smoothing
from selfens_jax.errors import UserError

KEY = jax.random.key(8)
LENGTH = 3  # time steps, which are the classes of the networks here
KINDS = ("a function", "masks", "a consensus")


def classifier(network: nn.Module, kind: str) -> smoothing.Predict:
    if kind == "a function":
        return jax.tree_util.Partial(network)
    ensemble = smoothing.self_ensemble(network, {}, np.ones((3, LENGTH)))
    return smoothing.consensus(ensemble, 2) if kind == "a consensus" else ensemble


def count(predict: smoothing.Predict, **arguments) -> np.ndarray:
    if isinstance(predict, smoothing.Consensus):
        return smoothing.count_consensus_votes(predict, **arguments, key=KEY)[0]
    return smoothing.count_votes(predict, **arguments, key=KEY)


SEEN: list[np.ndarray] = []


class Shown(nn.Module):
    """Its logits are the series, which it keeps."""

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        jax.debug.callback(lambda x: SEEN.append(np.array(x)), x)
        return x[:, :, 0]


@pytest.mark.parametrize("sigma", [0.7, 3e-5, 1 + 2.0**-40])
@pytest.mark.parametrize("kind", KINDS)
def test_the_noise_is_that_of_the_next_float32_above_sigma(kind, sigma):
    """Bit for bit, and not that of the nearest, which is below these sigmas."""
    predict, x = classifier(Shown(), kind), np.zeros((1, LENGTH, 1))

    def shown(sigma: float) -> np.ndarray:
        SEEN.clear()
        count(predict, x=x, sigma=sigma, num_draws=40, draws_per_block=40, noise="float32")
        jax.effects_barrier()
        return SEEN[-1]

    nearest = np.float32(sigma)
    above = np.nextafter(nearest, np.float32(np.inf))
    assert float(nearest) < sigma < float(above)
    expected = shown(float(above))
    assert np.std(expected) == pytest.approx(sigma, rel=0.5)
    assert (shown(float(nearest)) != expected).any()
    np.testing.assert_array_equal(shown(sigma), expected)


class SometimesNan(nn.Module):
    """The logits are the series, but for a NaN where the noise of another step is large."""

    at: int  # the class of the NaN

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        logits, large = x[:, :, 0], x[:, self.at - 1, 0] > 1
        return logits.at[:, self.at].set(jnp.where(large, jnp.nan, logits[:, self.at]))


@pytest.mark.parametrize("at", range(LENGTH))
@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_with_one_nan_logit_is_no_vote(kind, at):
    predict = classifier(SometimesNan(at), kind)
    with pytest.raises(UserError, match=r"NaN on \d+ of 60 draws of example 0"):
        count(predict, x=np.zeros((1, LENGTH, 1)), sigma=1.0, num_draws=60)


class NanUnderTheLastMask(nn.Module):
    """The logits are the series, but where the mask hides the last step one of them is NaN."""

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        logits = x[:, :3, 0]
        return logits.at[:, 0].set(jnp.where(x[:, 3, 0] == 0, jnp.nan, logits[:, 0]))


def test_a_nan_logit_of_a_member_that_is_asked_last_is_no_vote():
    masks = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 0]])
    predict = smoothing.consensus(smoothing.self_ensemble(NanUnderTheLastMask(), {}, masks), 2)
    # On most draws the first two agree, and have no NaN.
    with pytest.raises(UserError, match=r"NaN on [1-2]?\d of 60 draws of example 0"):
        count(predict, x=np.zeros((1, 4, 1)), sigma=1.0, num_draws=60)


def log_evidence(successes: int, draws: int, p0: float, side: str) -> float:
    """The log of the mean likelihood ratio to p0 over the prior, Beta(1, 0.2) or Beta(4, 1)."""
    top = (1 - p0) ** 0.2 if side == "greater" else p0**4

    def ratio(uniform: float) -> float:
        p = 1 - uniform**5 if side == "greater" else uniform**0.25
        return (p / p0) ** successes * ((1 - p) / (1 - p0)) ** (draws - successes)

    mean, _ = integrate.quad(ratio, 0, top, epsabs=0, epsrel=1e-12, limit=500)
    return float(np.log(mean / top))


@pytest.mark.parametrize(
    ("successes", "draws", "side"),
    [(20, 20, "greater"), (57, 60, "greater"), (150, 180, "greater"), (8, 20, "less")],
)
def test_evidence_a_hair_above_alpha_decides_nothing(successes, draws, side):
    """Floats err by less than 1e-7; within 1e-6 above the threshold nothing is decided yet."""
    p0 = 0.7
    evidence = log_evidence(successes, draws, p0, side)
    assert evidence > 0.5

    def decision(beyond: float) -> int:
        level = float(np.exp(beyond - evidence))  # log(1 / level) is so far below the evidence
        other = 1e-9
        levels = (level, other) if side == "greater" else (other, level)
        return int(sequential.decide(successes, draws, p0, *levels))

    for beyond in (-1e-6, -2e-7, 2e-7, 8e-7):
        assert decision(beyond) == sequential.OPEN
    yes = sequential.CERTIFIED if side == "greater" else sequential.REJECTED
    assert decision(1.2e-6) == yes

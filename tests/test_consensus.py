"""Consensus: the votes of evaluating every member, in fewer passes, and valid certificates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import assert_binomial, init, mesh_of
from scipy import integrate, stats

from selfens_jax import counting, masks, models, smoothing, streams
from selfens_jax.certificates import certify_counts
from selfens_jax.errors import UserError

KEY = jax.random.key(31)
LENGTH = 16
SIGMA = 0.7
DRAWS = 230


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, LENGTH, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def consensus(x) -> smoothing.Consensus:
    """A network under masks that hide half of a series, so that they often disagree."""
    model = models.create("lstm_fcn", num_classes=3)
    fixed = masks.binomial(KEY, 5, LENGTH, 0.5)
    variables = balanced(model, init(model, x, seed=2), fixed)
    return smoothing.consensus(smoothing.self_ensemble(model, variables, fixed), 2)


def balanced(model, variables, fixed) -> dict:
    """The untrained network, with a bias that gives every class its share of noise."""
    noise = np.random.default_rng(1).normal(size=(200, LENGTH, 1)).astype(np.float32)
    mean = smoothing.self_ensemble(model, variables, fixed)(noise).mean(axis=0)
    head = variables["params"]["Dense_0"]
    params = variables["params"] | {"Dense_0": head | {"bias": head["bias"] - mean}}
    return variables | {"params": params}


@pytest.fixture(scope="module")
def counted(consensus, x) -> tuple[np.ndarray, np.ndarray]:
    return smoothing.count_consensus_votes(consensus, x, sigma=SIGMA, num_draws=DRAWS, key=KEY)


def test_a_job_counts_forward_passes(consensus, x):
    """Two of five masks for every draw, three more for those on which they disagree."""
    settings = {"sigma": SIGMA, "noise_seed": 9, "draws_per_block": 20, "precision": "float32"}
    job = counting.Job(x, np.zeros(3, int), np.arange(3), consensus, settings, batch_size=100)
    examples = np.array([2, 0])
    counts, forwards = job.count(examples, 0, DRAWS)
    expected, asked_all = smoothing.count_consensus_votes(
        consensus,
        x[examples],
        sigma=SIGMA,
        num_draws=DRAWS,
        key=streams.stream(9, "certification"),
        indices=examples,
        noise="float32",
    )
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_array_equal(forwards, 2 * DRAWS + 3 * asked_all)
    assert job.num_members == 5


def test_counts_are_those_of_evaluating_every_member(consensus, counted, x):
    counts, asked_all = counted
    every = smoothing.count_votes(consensus, x, sigma=SIGMA, num_draws=DRAWS, key=KEY)
    np.testing.assert_array_equal(counts, every)
    # The case is one: draws of both kinds, and other votes than by either half of the rule alone.
    assert (asked_all > 10).all()
    assert (asked_all < DRAWS - 10).all()
    for other in (consensus.ensemble, smoothing.self_ensemble(*first_two(consensus))):
        votes = smoothing.count_votes(other, x, sigma=SIGMA, num_draws=DRAWS, key=KEY)
        assert (votes != counts).any()


def first_two(consensus):
    ensemble = consensus.ensemble
    return ensemble.model, ensemble.variables, ensemble.masks[:2]


@pytest.mark.parametrize("batch_size", [1, 1000, 6000])
def test_counts_do_not_depend_on_the_batch_size(consensus, counted, x, batch_size):
    again = smoothing.count_consensus_votes(
        consensus, x, sigma=SIGMA, num_draws=DRAWS, key=KEY, batch_size=batch_size
    )
    for values, expected in zip(again, counted, strict=True):
        np.testing.assert_array_equal(values, expected)


def test_counts_do_not_depend_on_the_other_examples_and_the_cut(consensus, counted, x):
    parts = [
        smoothing.count_consensus_votes(
            consensus,
            x[[2, 0]],
            sigma=SIGMA,
            num_draws=stop - start,
            first_draw=start,
            key=KEY,
            indices=[2, 0],
        )
        for start, stop in ((0, 100), (100, DRAWS))
    ]
    for values, expected in zip(map(sum, zip(*parts, strict=True)), counted, strict=True):
        np.testing.assert_array_equal(values, expected[[2, 0]])


def test_counts_do_not_depend_on_the_devices(consensus, counted, x):
    again = smoothing.count_consensus_votes(
        consensus, x, sigma=SIGMA, num_draws=DRAWS, key=KEY, mesh=mesh_of(8)
    )
    for values, expected in zip(again, counted, strict=True):
        np.testing.assert_array_equal(values, expected)


def test_a_deep_ensemble_can_seek_consensus(x):
    model = models.create("lstm_fcn", num_classes=3)
    whole = np.ones((1, LENGTH))
    stacked = models.stack(tuple(balanced(model, init(model, x, seed), whole) for seed in range(3)))
    predict = smoothing.consensus(smoothing.deep_ensemble(model, stacked), 2)
    arguments = {"sigma": SIGMA, "num_draws": 100, "key": KEY}
    counts, asked_all = smoothing.count_consensus_votes(predict, x, **arguments)
    np.testing.assert_array_equal(counts, smoothing.count_votes(predict, x, **arguments))
    assert 0 < asked_all.sum() < 300


class Bilinear(nn.Module):
    """Logits (0, a v_1 + b v_2 + offset + c v_1 v_2) of series v of two steps."""

    weights: tuple[float, float, float, float]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        a, b, offset, c = self.weights
        side = a * x[:, 0, 0] + b * x[:, 1, 0] + offset + c * x[:, 0, 0] * x[:, 1, 0]
        return jnp.stack([jnp.zeros_like(side), side], axis=-1)


# One mask shows the first step, one the second, and one both.
MASKS = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def bilinear(*weights: float) -> smoothing.Consensus:
    return smoothing.consensus(smoothing.self_ensemble(Bilinear(weights), {}, MASKS), 2)


def repeated(predict, point, repetitions, num_draws):
    x = np.tile(np.reshape(point, (1, 2, 1)), (repetitions, 1, 1))
    return smoothing.count_consensus_votes(
        predict, x, sigma=SIGMA, num_draws=num_draws, key=KEY, batch_size=100_000
    )


def test_votes_have_the_probability_of_the_integral():
    """Against the probability of class 1 by quadrature over the plane; error probability 2e-9."""
    a, b, offset, c = 1.0, 1.0, 0.0, -3.0
    point = np.array([0.6, 0.5])
    grid = np.linspace(-6, 6, 1201)
    u, v = np.meshgrid(grid, grid, indexing="ij")
    first, second = point[0] + SIGMA * u, point[1] + SIGMA * v
    sides = np.stack([a * first, b * second, a * first + b * second + c * first * second]) + offset
    agreed = (sides[0] > 0) == (sides[1] > 0)
    density = stats.norm.pdf(u) * stats.norm.pdf(v)

    def share(of):
        return integrate.simpson(integrate.simpson(of * density, x=grid), x=grid)

    one = share(np.where(agreed, sides[0] > 0, sides.sum(axis=0) > 0))
    asked = share(~agreed)
    assert abs(one - share(sides.sum(axis=0) > 0)) > 0.02  # not the plain ensemble
    counts, asked_all = repeated(bilinear(a, b, offset, c), point, 200, 500)
    # The quadrature's own error, of a jump on a grid, is below 1e-3: as much is allowed for.
    for successes, p in ((counts[:, 1].sum(), one), (asked_all.sum(), asked)):
        slack = int(1e-3 * 100_000)
        low, high = stats.binom.ppf([5e-10, 1 - 5e-10], 100_000, p)
        assert low - slack <= successes <= high + slack


@pytest.mark.parametrize("p", [0.5, 0.52, 0.6, 0.95])
def test_no_more_than_alpha_of_the_certificates_are_false(p):
    """Without offset and product the consensus is the half-space a z_1 + b z_2 > 0.

    Where both first masks agree, so does their sum; else the vote is the sum's. In 4000
    repetitions a valid scheme makes more false certificates than allowed with probability 1e-6.
    """
    weights = np.array([0.6, 0.8])
    distance = SIGMA * stats.norm.ppf(p)
    counts, asked_all = repeated(bilinear(0.6, 0.8, 0.0, 0.0), distance * weights, 4000, 60)
    assert_binomial(counts[:, 1].sum(), counts.sum(), p, error=1e-6)
    assert 0.1 < asked_all.sum() / counts.sum() < 0.6
    certified = certify_counts(counts, SIGMA, alpha=0.05)
    false = (certified.prediction == 0) | (certified.radius > distance)
    assert (false & (certified.prediction >= 0)).sum() <= stats.binom.isf(1e-6, 4000, 0.05)


@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_a_consensus_needs_some_and_not_all_members(first):
    with pytest.raises(UserError, match=f"not {first}"):
        smoothing.consensus(smoothing.self_ensemble(Bilinear((1, 1, 1, 1)), {}, MASKS), first)

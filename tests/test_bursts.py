"""Certificates against bursts: windows, the rule, and that no burst changes a certified answer."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TinyNet, easy_problem, init
from scipy import stats

from selfens_jax import bursts, models, smoothing, synthetic, training
from selfens_jax.certification import count_votes
from selfens_jax.ensembles import Network
from selfens_jax.errors import UserError

ALPHABET = (0.0, 1.0, 2.0)
STEPS, CLASSES = 5, 3


def test_every_burst_lies_in_a_window():
    for length, burst in itertools.product(range(2, 41), range(1, 40)):
        for stride in range(1, length - burst + 1):
            windows = bursts.windows(length, burst, stride)
            assert windows.size == burst + stride - 1
            assert (windows.hidden.sum(axis=1) == windows.size).all()
            assert not windows.hidden.all(axis=1).any()
            for first in range(length - burst + 1):
                assert windows.hidden[:, first : first + burst].all(axis=1).any()


def test_windows_by_hand():
    windows = bursts.windows(10, 3, 2)
    np.testing.assert_array_equal(windows.starts, [0, 2, 4, 6])
    np.testing.assert_array_equal(windows.hidden[1], [0, 0, 1, 1, 1, 1, 0, 0, 0, 0])
    i, j = windows.pairs
    np.testing.assert_array_equal(i, [0, 0, 0, 0, 1, 1, 1, 2, 2, 3])
    np.testing.assert_array_equal(j, [0, 1, 2, 3, 1, 2, 3, 2, 3, 3])
    np.testing.assert_array_equal(windows.kept[3], [0, 0, 0, 0, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(bursts.windows(10, 3, 3).starts, [0, 3, 5])


@pytest.mark.parametrize(
    ("length", "burst", "stride"), [(128, 8, 6), (39, 4, 2), (24, 4, 1), (10, 9, 1)]
)
def test_the_stride_if_none_is_given(length, burst, stride):
    assert bursts.windows(length, burst).stride == stride


@pytest.mark.parametrize(
    ("burst", "stride", "said"),
    [
        (0, None, "burst must be a whole number of at least 1, not 0"),
        (2.0, None, "burst must be a whole number of at least 1, not 2.0"),
        (10, None, "a burst of 10 steps leaves nothing of series of 10"),
        (4, 0, "stride must be a whole number of at least 1, not 0"),
        (4, 7, "windows of 10 steps (burst 4, stride 7) leave nothing of series of 10: take a "
               "stride of at most 6"),
    ],
)  # fmt: skip
def test_windows_that_cannot_be(burst, stride, said):
    with pytest.raises(UserError) as error:
        bursts.windows(10, burst, stride)
    assert str(error.value) == said


def read_by_definition(classes):
    """The answer, word for word as the module says it, without NumPy."""
    windows = range(len(classes))
    one = [int(classes[i][i]) for i in windows]
    most = max(one.count(c) for c in one)
    majority = min(c for c in one if one.count(c) == most)
    for i in windows:
        if one[i] != majority and all(int(classes[i][j]) == one[i] for j in windows):
            return one[i]
    return majority


def test_the_answer_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    answers = set()
    for number in range(4000):
        size = 1 + number % 6
        table = rng.integers(-1, 3, (size, size)) * rng.choice([0, 1], (size, size), p=[0.7, 0.3])
        row = rng.integers(size)
        if number % 2:  # a stable window, and so answers that are not the majority's
            table[row] = table[:, row] = rng.integers(0, 3)
        table = np.triu(table) + np.triu(table, 1).T
        assert bursts.answer(table) == read_by_definition(table.tolist())
        answers.add((bursts.answer(table) == 0, bool(number % 2)))
    assert len(answers) == 4


@pytest.mark.parametrize(("burst", "stride"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_no_burst_changes_a_certified_answer(seed, burst, stride):
    """All series over an alphabet, all bursts, all contents, what is not finite included.

    The classifier gives every series a class of its own, mostly the one that most of its values
    vote for, so that some are certified and some are not.
    """
    everything = np.array(list(itertools.product(ALPHABET, repeat=STEPS)))
    rng = np.random.default_rng(seed)
    common = np.array(
        [np.bincount(row.astype(int), minlength=3)[1:].argmax() for row in everything]
    )
    table = np.where(rng.random(len(common)) < 0.06, rng.integers(0, CLASSES, len(common)), common)
    places = jnp.array([len(ALPHABET) ** k for k in range(STEPS)][::-1])
    table_on_device = jnp.asarray(table)

    def predict(x):
        index = (x[:, :, 0] * places).sum(axis=1).astype(int)
        return jax.nn.one_hot(table_on_device[index], CLASSES)

    found = bursts.certify_bursts(predict, everything, burst, stride=stride)
    answer = dict(zip(map(tuple, everything.tolist()), found.prediction.tolist(), strict=True))
    certified = everything[found.certified]
    assert 5 < len(certified) < len(everything)
    changes = 0
    strange = []
    for x in certified:
        y = answer[tuple(x)]
        for first in range(STEPS - burst + 1):
            for content in itertools.product(ALPHABET, repeat=burst):
                changed = x.copy()
                changed[first : first + burst] = content
                changes += answer[tuple(changed)] != y
            changed[first : first + burst] = rng.choice([np.nan, np.inf, -np.inf, 1e300], burst)
            strange.append((changed.copy(), y))
    assert not changes
    rows, expected = map(np.array, zip(*strange, strict=True))
    answers = bursts.certify_bursts(predict, rows, burst, stride=stride)
    np.testing.assert_array_equal(answers.prediction, expected)


def test_what_is_certified_is_what_the_pairs_agree_on():
    """Certificates against the definition, for a classifier of NumPy."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(40, 9, 2)).astype(np.float32)
    weights = rng.normal(size=(9, 2, 3)) + np.array([0.5, 0, 0])

    def scores(x):
        return np.einsum("btc,tck->bk", x, weights)

    found = bursts.certify_bursts(scores, X, 2, stride=3)
    starts = [0, 3, 5]
    for x, prediction, certified in zip(X, found.prediction, found.certified, strict=True):
        table = np.empty((3, 3), int)
        for i, j in itertools.product(range(3), repeat=2):
            masked = x.copy()
            masked[starts[i] : starts[i] + 4] = 0
            masked[starts[j] : starts[j] + 4] = 0
            table[i, j] = scores(masked[None])[0].argmax()
        assert prediction == read_by_definition(table)
        assert certified == (len(set(table.flat)) == 1)
    assert 0 < found.certified.sum() < 40


def test_blocks_of_pairs_change_nothing(monkeypatch):
    X, _ = easy_problem()
    network = TinyNet(3)
    predict = Network(network, init(network, X[:1]))
    windows = bursts.windows(16, 2, 1)  # 120 pairs
    whole = bursts.pair_classes(predict, X, windows)
    assert len(np.unique(whole)) > 1
    i, j = windows.pairs
    one_by_one = np.array(
        [np.asarray(predict(jnp.where(windows.kept[:, :, None], x, 0))).argmax(-1) for x in X]
    )
    np.testing.assert_array_equal(whole[:, i, j], one_by_one)
    np.testing.assert_array_equal(whole[:, j, i], one_by_one)
    np.testing.assert_array_equal(bursts.pair_classes(predict, X[7:8], windows), whole[7:8])


def test_nan_is_no_class():
    X = np.ones((2, 8, 1), np.float32)
    X[1] *= 2

    def predict(x):  # NaN for the second series alone
        total = x.max(axis=(1, 2))[:, None]
        return jnp.where(total > 1.5, jnp.nan, jnp.array([0.0, 1.0]))

    found = bursts.certify_bursts(predict, X, 2)
    np.testing.assert_array_equal(found.prediction, [1, bursts.NO_CLASS])
    np.testing.assert_array_equal(found.certified, [True, False])


def test_a_gap_in_one_window_is_certified_whatever_it_hid():
    """Every filling of a certified series with a gap has its answer; other gaps are refused."""
    everything = np.array(list(itertools.product(ALPHABET, repeat=STEPS)))
    rng = np.random.default_rng(5)
    table = jnp.asarray((rng.random(len(everything)) < 0.15) | (everything.sum(axis=1) > 7))
    places = jnp.array([3**k for k in range(STEPS)][::-1])

    def predict(x):
        return jax.nn.one_hot(table[(x[:, :, 0] * places).sum(axis=1).astype(int)].astype(int), 2)

    answer = dict(
        zip(
            map(tuple, everything.tolist()),
            bursts.certify_bursts(predict, everything, 2, stride=1).prediction.tolist(),
            strict=True,
        )
    )
    with_gaps = np.array([row for row in itertools.product((*ALPHABET, np.nan), repeat=STEPS)])
    gaps = np.isnan(with_gaps)
    with_gaps, gaps = with_gaps[gaps.any(axis=1)], gaps[gaps.any(axis=1)]
    found = bursts.certify_bursts(predict, with_gaps, 2, stride=1)
    assert found.lacks.all()
    assert found.statement.endswith("whatever these are, and no burst besides")
    spans = [np.ptp(np.flatnonzero(gap)) + 1 for gap in gaps]
    certified = 0
    for row, gap, span, y, sure in zip(
        with_gaps, gaps, spans, found.prediction, found.certified, strict=True
    ):
        if span > 2:
            assert not sure
        if not sure:
            continue
        certified += 1
        for content in itertools.product(ALPHABET, repeat=int(gap.sum())):
            filled = row.copy()
            filled[gap] = content
            assert answer[tuple(filled)] == y
    assert certified > 100


@pytest.mark.slow
def test_an_attack_inside_certified_bursts_changes_no_answer():
    """Random contents, pieces of other series, and gradients, on a trained network."""
    X, y = synthetic.cbf(0, 60)
    y = y - 1
    X = np.asarray(X, np.float32).reshape(60, -1, 1)
    config = training.TrainConfig(ensemble="mw", burst=8, sigma=0.1, epochs=40, seed=1)
    model = models.create("lstm_fcn", 3)
    (variables,), _ = training.fit(model, X[:30], y[:30], config)
    predict, stride = Network(model, variables), 24
    windows = bursts.windows(X.shape[1], 8, stride)
    found = bursts.certify_bursts(predict, X[30:], 8, stride=stride)
    certified = np.flatnonzero(found.certified)
    assert len(certified) >= 6
    rng, alone = np.random.default_rng(2), jnp.asarray(~windows.hidden)[:, :, None]

    @jax.jit
    def gradient(x, label):
        """Of the mean loss under single windows."""

        def loss(x):
            return -jax.nn.log_softmax(predict(jnp.where(alone, x, 0)))[:, label].mean()

        return jax.grad(loss)(x)

    attacked, expected = [], []
    for row in certified[:6]:
        x, answer = X[30 + row], found.prediction[row]
        for _ in range(3):
            first = rng.integers(len(x) - 7)
            burst = slice(first, first + 8)
            contents = [
                rng.normal(scale=10.0 ** rng.integers(-1, 6), size=(8, 1)),
                X[rng.integers(60)][burst],
                np.full((8, 1), np.nan),
            ]
            climbed = x.copy()
            for _ in range(5):
                climbed[burst] += 3 * np.sign(np.asarray(gradient(climbed, answer)))[burst]
            contents.append(climbed[burst])
            for content in contents:
                changed = x.copy()
                changed[burst] = content
                attacked.append(changed)
                expected.append(answer)
    answers = bursts.certify_bursts(predict, np.array(attacked), 8, stride=stride)
    np.testing.assert_array_equal(answers.prediction, expected)


# With noise


def linear(weights):
    """A classifier of two classes by the sign of <weights, x>, whose smoothed form is known."""
    weights = jnp.asarray(weights, jnp.float32)

    def predict(x):
        score = (x[:, :, 0] * weights).sum(axis=1)
        return jnp.stack([-score, score], axis=-1)

    return predict


def test_votes_of_a_pair_are_those_of_its_masked_network():
    X, _ = easy_problem(3)
    network = TinyNet(3)
    variables = init(network, X[:1])
    windows = bursts.windows(16, 3, 5)
    how = {"sigma": 0.7, "num_draws": 50, "key": jax.random.key(3), "indices": np.array([4, 0, 9])}
    counts = bursts.count_pair_votes(Network(network, variables), X, windows, **how)
    assert counts.shape == (3, len(windows.kept), 3)
    for pair, kept in enumerate(windows.kept):
        mask = kept[None].astype(np.float32)
        alone = count_votes(smoothing.self_ensemble(network, variables, mask), X, **how)
        np.testing.assert_array_equal(counts[:, pair], alone)


def test_a_radius_beside_a_burst_is_at_most_the_true_one():
    """Closed form: under kept steps k the smoothed class changes at distance |<w, k x>| / ||k w||.

    A certificate is false if its radius is above the least of these, or its class another. alpha is
    0.2; that more than 0.2 of 400 independent series are false has a probability below 1e-6 if the
    bound holds, and here none of them should be anywhere near.
    """
    rng = np.random.default_rng(0)
    weights = rng.normal(size=12) + 1
    X = rng.normal(size=(400, 12, 1)) * 0.2 + 0.2 * rng.choice([-1, 1], (400, 1, 1))
    windows, sigma, alpha = bursts.windows(12, 2, 4), 0.5, 0.2
    counts = bursts.count_pair_votes(
        linear(weights), X, windows, sigma=sigma, num_draws=100, key=jax.random.key(0)
    )
    found = bursts.certify_pair_votes(counts, windows, sigma, alpha)
    scores = (windows.kept[None] * X[:, None, :, 0]) @ weights
    distances = scores / np.linalg.norm(windows.kept * weights, axis=1)
    truth = np.where(found.prediction[:, None] == 1, distances, -distances).min(axis=1)
    false = found.certified & (truth < found.radius)
    assert found.certified.sum() > 50
    assert (found.radius[~found.certified] == 0).all()
    assert (found.prediction[~found.certified] == -1).all()
    assert false.sum() <= stats.binom.isf(1e-6, 400, alpha)
    # The shares of votes are those of the closed form, so that what is compared is what was drawn.
    expected = stats.norm.cdf(distances / sigma)
    for pair in range(0, len(windows.kept), 5):
        total = int(counts[:, pair, 1].sum())
        mean, spread = (
            100 * expected[:, pair].sum(),
            10 * np.sqrt((expected[:, pair] * (1 - expected[:, pair])).sum()),
        )
        assert abs(total - mean) < 6 * spread


def test_values_under_a_mask_are_not_taken_for_known():
    x = np.random.default_rng(0).normal(size=(2, 5, 1))
    whole, lacks = bursts.known_values(x)
    np.testing.assert_array_equal(whole, x.astype(np.float32))
    assert not lacks.any()
    hidden = np.ma.masked_greater(x, np.median(x))
    with pytest.raises(UserError, match="mask"):
        bursts.known_values(hidden)
    numbers, lacks = bursts.known_values(np.arange(10).reshape(2, 5, 1))
    np.testing.assert_array_equal(numbers, np.arange(10).reshape(2, 5, 1))
    assert not lacks.any()


def test_certificates_of_pairs_share_alpha():
    """Unanimous votes get the radius of alpha over the number of pairs, and no other."""
    windows = bursts.windows(12, 2, 4)
    pairs = len(windows.kept)
    counts = np.zeros((2, pairs, 2), int)
    counts[:, :, 1] = 1000
    counts[1, 3] = [400, 600]
    found = bursts.certify_pair_votes(counts, windows, 0.5, 0.01)
    lower = (0.01 / pairs / 2) ** (1 / 1000)
    assert found.radius[0] == pytest.approx(0.5 * stats.norm.ppf(lower), rel=1e-6)
    weakest = stats.beta.ppf(0.01 / pairs / 2, 600, 401)
    assert found.radius[1] == pytest.approx(0.5 * stats.norm.ppf(weakest), rel=1e-6)
    counts[1, 3] = [600, 400]
    found = bursts.certify_pair_votes(counts, windows, 0.5, 0.01)
    assert not found.certified[1]
    assert found.prediction[1] == -1
    assert found.radius[1] == 0


def test_noise_refuses_what_it_cannot_draw():
    windows = bursts.windows(16, 3)
    how = {"sigma": 0.7, "num_draws": 5, "key": jax.random.key(3)}
    with pytest.raises(UserError, match="a function of the host is not certified"):
        bursts.count_pair_votes(
            lambda x: np.asarray(x)[:, :2, 0], easy_problem(2)[0], windows, **how
        )


@pytest.mark.parametrize("shape", [(0, 8, 1), (3, 8, 0)])
def test_nothing_is_not_certified(shape):
    with pytest.raises(UserError, match="x is empty"):
        bursts.certify_bursts(lambda x: x[:, :2, 0], np.zeros(shape), 2)


def test_products_are_of_float32_on_every_device():
    """Elsewhere than on a CPU, JAX would multiply with fewer bits, and certify another network."""
    seen = []

    def predict(x):
        seen.append(jax.config.jax_default_matmul_precision)
        return x[:, :2, 0] @ jnp.eye(2)

    bursts.certify_bursts(jax.tree_util.Partial(predict), np.ones((1, 8, 1)), 2)
    assert seen[-1] == "float32"

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TinyNet, assert_uncorrelated, init
from scipy import stats

from selfens_jax import attacks, certificates, masks, models, smoothing, synthetic, training
from selfens_jax.errors import UserError
from selfens_jax.streams import stream

WEIGHT = np.array([[3.0, -4.0]]).T[None]  # (1, T = 2, C = 1), of norm 5


def half_space_logits(weight, x):
    score = (x * weight).sum(axis=(1, 2))
    return jnp.stack([score, -score], axis=-1)


HALF_SPACE = jax.tree_util.Partial(half_space_logits, jnp.asarray(WEIGHT))


def points(distances):
    """Series at the given signed distances from the boundary, class 0 on the positive side."""
    along = WEIGHT / 5
    return (np.asarray(distances)[:, None, None] * along).astype(np.float32)


def test_a_half_space_falls_exactly_at_its_distance():
    x = points([1.0, 1.0, -1.0])
    labels = np.array([0, 0, 1])
    key = jax.random.key(0)
    inside = attacks.pgd_l2(HALF_SPACE, x, labels, epsilon=0.99, key=key)
    assert attacks.prediction(HALF_SPACE, inside).tolist() == [0, 0, 1]
    outside = attacks.pgd_l2(HALF_SPACE, x, labels, epsilon=1.01, key=key, step_size=0.2)
    assert attacks.prediction(HALF_SPACE, outside).tolist() == [1, 1, 0]


def test_a_smoothed_half_space_falls_just_outside_its_radius():
    # The smoothed half-space is the half-space: its true radius is the distance.
    x, labels = points([0.5, -0.5]), np.array([0, 1])
    settings = {"sigma": 0.5, "num_draws": 32, "key": jax.random.key(1)}
    for epsilon, expected in ((0.4, [0, 1]), (0.6, [1, 0])):
        moved = attacks.pgd_l2(HALF_SPACE, x, labels, epsilon=epsilon, **settings)
        counts = smoothing.count_votes(
            HALF_SPACE, moved, sigma=0.5, num_draws=4000, key=jax.random.key(2)
        )
        # At distance 0.1 the minority has p = Phi(-0.2) = 0.42: P(it wins) < 1e-20.
        assert counts.argmax(axis=1).tolist() == expected


def test_norms_stay_within_epsilon():
    epsilon = np.array([0.0, 1e-3, 0.7, 30.0, 0.7])
    x = np.random.default_rng(0).normal(size=(5, 2, 1)).astype(np.float32)
    x[4] *= 1000  # a perturbation of 0.7 has few digits here
    y = 1 - attacks.prediction(HALF_SPACE, x)  # wrong already: outwards the loss always rises
    settings = {"key": jax.random.key(0), "restarts": 2, "steps": 7, "step_size": 8.0}
    moved = attacks.pgd_l2(HALF_SPACE, x, y, epsilon=epsilon, **settings)
    norm = np.sqrt(((moved.astype(float) - x) ** 2).sum(axis=(1, 2)))
    size = np.sqrt((moved.astype(float) ** 2).sum(axis=(1, 2)))
    assert (norm <= epsilon + np.finfo(np.float32).eps * (size + 4 * epsilon)).all()
    assert (norm >= 0.99 * epsilon).all()
    np.testing.assert_array_equal(moved[0], x[0])
    alone = attacks.pgd_l2(HALF_SPACE, x, y, epsilon=0.0, **settings)
    np.testing.assert_array_equal(alone, x)


def test_a_network_too_sure_for_the_squares_of_its_gradient():
    # Its margin is 80, its gradient of the order of exp(-80); float32 ends at exp(-87).
    sure = jax.tree_util.Partial(half_space_logits, jnp.asarray(8 * WEIGHT))
    moved = attacks.pgd_l2(sure, points([1.0]), [0], epsilon=1.05, key=jax.random.key(0))
    assert attacks.prediction(sure, moved).tolist() == [1]


def tiny_ensemble():
    """A network with random weights under two masks, and series of 12 steps for it."""
    x = np.random.default_rng(1).normal(size=(6, 12, 1)).astype(np.float32)
    chosen = masks.continuous(stream(0, "masks"), 2, 12, keep=0.8)
    model = TinyNet()
    return smoothing.self_ensemble(model, init(model, x), chosen), x


def test_examples_are_attacked_alike_in_any_company():
    predict, x = tiny_ensemble()
    y, indices = np.arange(6) % 2, np.array([3, 1, 4, 15, 9, 2])
    settings = {"epsilon": 1.0, "sigma": 0.5, "num_draws": 3, "steps": 3, "key": jax.random.key(4)}
    moved = attacks.pgd_l2(predict, x, y, indices=indices, **settings)
    for rows in ([5, 4, 3, 2, 1, 0], [2], [1, 5]):
        some = attacks.pgd_l2(predict, x[rows], y[rows], indices=indices[rows], **settings)
        np.testing.assert_array_equal(some, moved[rows])
        np.testing.assert_array_equal(
            attacks.prediction(predict, x[rows]), attacks.prediction(predict, x)[rows]
        )
    assert len(np.unique(moved - x, axis=0)) == len(x)


def test_more_steps_or_restarts_never_lower_the_kept_loss():
    predict, x = tiny_ensemble()
    y, key, sigma, num_draws = np.arange(6) % 2, jax.random.key(5), 0.5, 3

    def loss(series):
        """On the draws that compare points: of the key that `attacks` names for them."""
        losses = []
        for index, (one, label) in enumerate(zip(series, y, strict=True)):
            of_example = jax.random.fold_in(jax.random.fold_in(key, index), 2)
            noise = jax.random.normal(of_example, (num_draws, *one.shape))
            p = jax.nn.softmax(predict(one + sigma * noise))[:, label]
            losses.append(-np.log(p.mean()))
        return np.array(losses)

    def kept(steps, restarts):
        return loss(
            attacks.pgd_l2(
                predict,
                x,
                y,
                epsilon=1.0,
                step_size=1.5,  # so long that the loss goes up and down
                steps=steps,
                restarts=restarts,
                sigma=sigma,
                num_draws=num_draws,
                key=key,
            )
        )

    by_steps = [loss(x), *(kept(steps, 1) for steps in (1, 2, 4, 8))]
    by_restarts = [kept(1, restarts) for restarts in (1, 2, 4)]
    for losses in (by_steps, by_restarts):
        assert (np.diff(losses, axis=0) >= -1e-6).all()
        assert (losses[-1] > losses[0] + 1e-3).any()


def test_starts_steps_and_comparisons_have_noise_of_their_own(monkeypatch):
    seen, starts = [], []

    def predict(x):
        jax.debug.callback(lambda x: seen.append(np.array(x)), x)
        return x[:, :2, 0]

    def start(keys, x, epsilon, original=attacks._start):
        starts.append(np.asarray(original(keys, x, epsilon), float) / epsilon[:, None, None])
        return original(keys, x, epsilon)

    monkeypatch.setattr(attacks, "_start", start)
    attacks.pgd_l2(
        jax.tree_util.Partial(predict),
        np.zeros((2, 2000, 1)),
        [0, 1],
        epsilon=1e-20,  # the noised series are the noise
        sigma=1.0,
        num_draws=2,
        steps=2,
        restarts=2,
        key=stream(0, "attack"),
    )
    jax.effects_barrier()
    # The calls are padded with copies, and the draws that compare come back after every step.
    noise, directions = (np.unique(np.concatenate(a)[..., 0], axis=0) for a in (seen, starts))
    examples, draws = 2, 2
    assert len(noise) == examples * (2 * 2 * draws + draws)
    assert len(directions) == examples * 2
    assert noise.std() > 0.9
    assert_uncorrelated(np.concatenate([noise, directions]), error=1e-9)


def test_an_epsilon_for_each_example():
    x = points([1.0, 1.0])
    moved = attacks.pgd_l2(
        HALF_SPACE, x, np.zeros(2, int), epsilon=np.array([0.5, 1.5]), key=jax.random.key(0)
    )
    assert attacks.prediction(HALF_SPACE, moved).tolist() == [0, 1]


def test_more_restarts_never_lower_the_loss_and_one_key_fixes_the_result():
    def loss(x):
        return -jax.nn.log_softmax(HALF_SPACE(x))[:, 0]

    x = points([0.3, 2.0])
    settings = {"epsilon": 1.0, "key": jax.random.key(3), "steps": 2, "step_size": 0.1}
    labels = np.zeros(2, int)
    once = attacks.pgd_l2(HALF_SPACE, x, labels, **settings)
    many = attacks.pgd_l2(HALF_SPACE, x, labels, **settings, restarts=8)
    assert (loss(many) >= loss(once) - 1e-6).all()
    assert (loss(many) > loss(once)).any()
    np.testing.assert_array_equal(once, attacks.pgd_l2(HALF_SPACE, x, labels, **settings))
    alone = attacks.pgd_l2(
        HALF_SPACE, x[1:], labels[1:], **settings, indices=np.array([1]), restarts=8
    )
    np.testing.assert_allclose(alone, many[1:], rtol=1e-6)


def test_the_scan_over_steps_is_the_loop_over_steps(monkeypatch):
    x = points([0.3, 2.0])
    settings = {"epsilon": 1.0, "key": jax.random.key(3), "steps": 5, "sigma": 0.3, "num_draws": 4}
    looped = attacks.pgd_l2(HALF_SPACE, x, np.zeros(2, int), **settings)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    scanned = attacks.pgd_l2(HALF_SPACE, x, np.zeros(2, int), **settings)
    np.testing.assert_allclose(scanned, looped, rtol=1e-5, atol=1e-6)


def test_success_rates_in_both_definitions():
    before, after = np.array([0, 0, 1, -1, 1]), np.array([0, 1, 1, 0, -1])
    labels = np.array([0, 0, 0, 0, 1])
    # Wrong after: examples 1, 2 and 4 of five; right before: 0, 1, 4, of which 1 and 4 fell.
    assert attacks.success_rates(before, after, labels) == (3 / 5, 2 / 3)
    assert np.isnan(attacks.success_rates(1 - labels, after, labels)[1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": -1.0},
        {"epsilon": np.nan},
        {"epsilon": 1.0, "sigma": -0.1},
        {"epsilon": 1.0, "steps": 0},
        {"epsilon": 1.0, "restarts": 0},
    ],
)
def test_bad_arguments(wrong):
    with pytest.raises(UserError):
        attacks.pgd_l2(HALF_SPACE, points([1.0]), np.zeros(1, int), key=jax.random.key(0), **wrong)


def test_nan_is_no_prediction():
    nowhere = jax.tree_util.Partial(half_space_logits, jnp.asarray(np.nan * WEIGHT))
    with pytest.raises(UserError, match="NaN"):
        attacks.prediction(nowhere, points([1.0]))


@pytest.mark.slow
def test_deep_ensembles_can_be_attacked():
    model = models.create("lstm_fcn", 2)
    x = np.random.default_rng(0).normal(size=(2, 16, 1)).astype(np.float32)
    members = [model.init(jax.random.key(k), x) for k in range(2)]
    predict = smoothing.deep_ensemble(model, models.stack(tuple(members)))
    labels = attacks.prediction(predict, x)
    moved = attacks.pgd_l2(
        predict, x, labels, epsilon=5.0, key=jax.random.key(0), steps=10, restarts=2
    )
    log_p = [jax.nn.log_softmax(predict(v))[np.arange(2), labels] for v in (x, moved)]
    assert (log_p[1] < log_p[0]).all()


def test_no_attack_inside_the_certified_radius_of_a_trained_network_succeeds():
    """Issue: a certificate is false when some series inside its radius has another class.

    A false alarm of this test needs, for one of the attacked series, a Clopper-Pearson interval at
    level 1e-6 that misses its true vote share: probability at most 15 x 1e-6. Certificates are
    drawn at alpha = 0.001, so at most 1 false one of 15 is tolerated (binomial tail 1e-4).
    """
    sigma, num_draws = 0.8, 200
    x, y = synthetic.cbf(0, 30)
    x, y = x[:, ::8, None].astype(np.float32), np.asarray(y) - 1  # 16 of the 128 time steps
    model = models.create("lstm_fcn", 3)
    config = training.TrainConfig(ensemble="mc", sigma=sigma, epochs=60)
    (variables,), history = training.fit(model, x, y.astype(np.int32), config)
    assert history[-1]["accuracy"] > 0.5
    fixed = masks.continuous(stream(0, "masks"), 5, 16)
    predict = smoothing.self_ensemble(model, variables, fixed)

    test_x = synthetic.cbf(1, 15)[0][:, ::8, None].astype(np.float32)
    key = stream(0, "certification")
    counts = smoothing.count_votes(predict, test_x, sigma=sigma, num_draws=num_draws, key=key)
    certified = certificates.certify_counts(counts, sigma)
    chosen = np.flatnonzero(certified.prediction >= 0)
    assert len(chosen) >= 5  # the search has something to break
    settings = {"sigma": sigma, "num_draws": 16, "steps": 10, "key": stream(0, "attack")}
    classes, radius = certified.prediction[chosen], certified.radius[chosen]

    def falls(epsilon):
        moved = attacks.pgd_l2(predict, test_x[chosen], classes, epsilon=epsilon, **settings)
        votes = smoothing.count_votes(
            predict, moved, sigma=sigma, num_draws=400, key=stream(1, "certification")
        )
        own = votes[np.arange(len(chosen)), classes]
        return np.array([stats.binomtest(int(k), 400, 0.5, "less").pvalue < 1e-6 for k in own])

    assert falls(0.999 * radius).sum() <= 1
    assert falls(6 * radius + 3).any()  # far outside, the same search does find other classes

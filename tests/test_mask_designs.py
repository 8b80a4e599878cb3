"""The study of mask designs: what it counts, and what it makes of it."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import app
from studies import mask_designs as study
from test_plots import figure_of

from selfens_jax import certificates, masks, models, smoothing
from selfens_jax.errors import UserError
from selfens_jax.streams import stream

# Two masks, one series of class 1, two draws, three classes.
LOGITS = np.array([[[[3.0, 0, 0], [0, 1, 0]]], [[[0, 4.0, 0], [0, 0, 3]]]])
ANSWERS = study.Answers(LOGITS, np.array([1]))


class Bar:
    steps = 0

    def update(self, steps=1):
        self.steps += steps


def test_votes_are_of_the_mean_logits_of_the_chosen_masks():
    assert ANSWERS.votes(slice(1)).tolist() == [[1, 1, 0]]
    assert ANSWERS.votes([1]).tolist() == [[0, 1, 1]]
    assert ANSWERS.votes(slice(2)).tolist() == [[0, 1, 1]]
    assert ANSWERS.votes(slice(2), slice(0, 1)).tolist() == [[0, 1, 0]]


def test_scores_on_training_series():
    # Means of both: (1.5, 2, 0) and (0, 0.5, 1.5): margins 0.5 and -1.
    assert study.margin(ANSWERS, np.array([0, 1])) == -0.25
    assert study.right(ANSWERS, np.array([0, 1])) == 0.5
    assert study.right(ANSWERS, np.array([1])) == 0.5
    assert study.margin(ANSWERS, np.array([0])) == -1.0  # -3 and 1


def test_a_spread_is_parted_into_masks_and_draws():
    values = np.array([1.0, 2, 3])
    assert study.Spread.of(values, np.stack([values, values])) == study.Spread(2.0, 1.0, 1.0)
    assert study.Spread.of(values, np.stack([values, -values])).of_masks == 0
    random = np.random.default_rng(0)
    of_masks, of_draws = random.normal(size=20000), random.normal(size=(2, 20000))
    halves = 0.3 * of_masks + of_draws
    spread = study.Spread.of(halves.mean(axis=0), halves)
    # The covariance has a standard error of (0.09 + 1) / sqrt(20000) = 0.008.
    assert spread.of_masks**2 == pytest.approx(0.09, abs=0.04)
    assert spread.deviation == pytest.approx((0.09 + 0.5) ** 0.5, rel=0.03)


def test_what_averaging_brings_leaves_out_the_luck_of_single_masks(monkeypatch):
    monkeypatch.setattr(study, "acr", lambda votes, _: float(votes[0, 1]))  # votes that are right
    logits = np.concatenate([LOGITS] * 5)
    gains = study.gain(study.Answers(logits, np.array([1])))
    # Masks alone have 1 right vote each, and so has the mean of as many of either; of five masks
    # three are the first: (9, 8, 0) and (0, 3, 6).
    assert gains.tolist() == [0, 0, -1, 0]
    both = np.array([[[[0, -1.0, -3]]], [[[-3, -1.0, 0]]]])  # right together, wrong alone
    gains = study.gain(study.Answers(np.concatenate([both] * 5), np.array([1])))
    assert gains.tolist() == [0, 1, 1, 1]


def test_what_averaging_brings_is_compared_with_independent_masks(monkeypatch):
    monkeypatch.setattr(study, "gain", lambda given: np.array([0.0, *given]))
    designs = {
        "independent": [(0.1, 0.5, 1.0), (0.3, 0.5, 1.0), (0.2, 0.5, 1.0)],  # one for each set
        "balanced": [(0.4, 0.5, 1.0), (0.4, 0.5, 2.0), (0.4, 0.5, 3.0)],
    }
    _, _, *rows = study.complementing(designs)
    alone = 0.1 / 3**0.5  # the error of the mean of 0.1, 0.2 and 0.3
    assert rows == [
        "| 2 | independent | 0.2000 |  |",
        f"| 2 | balanced | 0.4000 | +0.2000 ({alone:.4f}) |",
        "| 5 | independent | 0.5000 |  |",
        "| 5 | balanced | 0.5000 | +0.0000 (0.0000) |",
        "| 10 | independent | 1.0000 |  |",
        f"| 10 | balanced | 2.0000 | +1.0000 ({1 / 3**0.5:.4f}) |",
    ]


def test_the_picture_shows_every_set_and_their_mean(monkeypatch):
    monkeypatch.setattr(study, "acr", lambda votes, _: float(votes[0, 0]))
    logits = np.concatenate([LOGITS] * 5)
    sets = [study.Answers(logits, np.array([1])), study.Answers(-logits, np.array([1]))]
    designs = {"independent": sets, "balanced": sets[:1]}
    (axes,) = figure_of(monkeypatch, lambda: study.figure(designs, 2.0, "title")).axes
    lines = [line.get_xydata() for line in axes.get_lines()]
    assert len(lines) == 2 * 2 * len(study.SIZES)
    first = lines[: len(lines) // 2]  # the first design's
    for size, dots, mean in zip(study.SIZES, first[::2], first[1::2], strict=True):
        heights = [2.0 * each.votes(slice(size))[0, 0] for each in sets]
        assert dots[:, 1].tolist() == heights
        assert mean[:, 1].tolist() == [np.mean(heights)] * 2
        assert mean[:, 0].mean() == pytest.approx(dots[:, 0].mean())


def test_a_difference_has_the_error_of_both_means():
    one, other = study.Spread(1.5, 0.3, 0.1), study.Spread(1.0, 0.4, 0.2)
    assert one.cells(other, 25, 1, 2) == ["1.50", "+0.50 (0.10)", "0.30", "0.10"]
    assert one.cells(one, 25, 100, 0) == ["150", "", "30", "10"]


def test_a_word_too_many_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(study, "FLAGS", types.SimpleNamespace(run_dir=tmp_path / "none"))
    with pytest.raises(app.UsageError, match="unexpected argument 'more'"):
        study.main(["script", "more"])
    with pytest.raises(UserError, match="none"):
        study.main(["script"])


def test_only_right_certificates_count():
    votes, labels = np.array([[200, 0], [0, 200], [110, 90]]), np.array([0, 0, 0])
    bound = certificates.certify_counts(votes[:1], 1.0, study.ALPHA).radius[0]
    assert study.radii(votes, labels).tolist() == [bound, 0, 0]
    assert study.acr(votes, labels) == pytest.approx(bound / 3)
    assert study.certified_accuracy(votes, labels) == pytest.approx(1 / 3)


@pytest.mark.parametrize("design", masks.DESIGNS)
def test_what_is_measured_is_what_certify_counts(design, tmp_path, monkeypatch):
    model = models.create("lstm_fcn", 3)
    x = np.random.default_rng(1).normal(size=(3, 20, 1)).astype(np.float32)
    variables = model.init(jax.random.key(0), jnp.asarray(x))
    network = smoothing.self_ensemble(model, variables, np.ones((1, 20)))
    config = {"ensemble": "mc", "keep": 0.8, "sigma": 1.5, "seed": 4}
    asked = (tmp_path, network, config, design, 7, "test", x, np.zeros(3, int), 30)
    bar = Bar()
    answers = study.answered(*asked, bar)
    assert answers.logits.shape == (10, 3, 30, 3)
    drawn = masks.draw("mc", stream(7, "masks"), 3, 20, 0.8, design=design)
    counts = smoothing.count_votes(
        smoothing.self_ensemble(model, variables, drawn),
        x,
        sigma=1.5,
        num_draws=30,
        key=stream(4, "certification"),
    )
    np.testing.assert_array_equal(answers.votes(slice(3)), counts)
    assert (counts.max(axis=1) < 30).any()  # the noise decides

    monkeypatch.setattr(smoothing, "draw_logits", None)  # a set that is done is not asked again
    np.testing.assert_array_equal(study.answered(*asked, bar).logits, answers.logits)
    assert bar.steps == 20

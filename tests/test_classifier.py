"""SelfEnsembleClassifier, as its users meet it: beside the scripts, in scikit-learn, from a folder.

Networks are tiny and hardly trained, so that votes differ and a wrong network would show.
"""

import copy
import csv
import dataclasses
import functools
import gc
import json
import os
import pathlib
import pickle
import pickletools
import shutil
import subprocess
import sys
from collections.abc import Callable

import jax
import joblib
import numpy as np
import pandas
import pytest
from helpers import assert_same, easy_problem, read_record
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from test_scripts import call

from selfens_jax import masks, models, runs, smoothing, training
from selfens_jax.classifier import SelfEnsembleClassifier
from selfens_jax.errors import UserError
from selfens_jax.runs import records
from selfens_jax.streams import stream

LABELS = np.array([-3, 7])
SERIES, WHICH = easy_problem(26)
X, Y = SERIES[:20, :, 0], LABELS[WHICH[:20]]
NEW = SERIES[20:, :, 0] * np.linspace(0.05, 0.8, 6, dtype=np.float32)[:, None]  # some are hard
TINY = {"model": "lstm_fcn", "epochs": 1, "num_masks": 3}
CASES = {
    "mc": {"ensemble": "mc"},
    "mb": {"ensemble": "mb", "scaling": "z_score"},
    "single": {"ensemble": "single"},
    "de": {"ensemble": "de", "scaling": "z_score", "num_members": 2},
}
LONG = [pytest.param(name, marks=pytest.mark.slow) for name in ("de", "mb", "single")]
TRAINED = {"model": "lstm_fcn", "sigma": 1.0, "epochs": 2, "batch_size": 8}


def tiny(**changes) -> SelfEnsembleClassifier:
    return SelfEnsembleClassifier(**(TINY | changes))


def flags(arguments: dict) -> list[str]:
    return [f"--{name}={value}" for name, value in arguments.items()]


def listing(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    """The files below a folder, with their sizes and times."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def message_of(call, *arguments, **named) -> str:
    """The one line with which the call is refused."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **named)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def run_of(tmp_path_factory) -> Callable[[str], pathlib.Path]:
    """The run of a case, which the scripts have trained and certified."""
    folder = tmp_path_factory.mktemp("classifier")
    np.savez(folder / "own.npz", X_train=X, y_train=Y, X_test=NEW, y_test=LABELS[WHICH[20:]])

    # Float rounding on a CPU depends on how many devices share its threads.
    same_device = {"JAX_NUM_CPU_DEVICES": str(jax.device_count())}

    def train_and_certify(case: dict) -> None:
        own = ["--dataset=own.npz", "--seed=5", *flags(TRAINED | case)]
        call(folder, "train", *own, **same_device)
        left_out = ("--epochs", "--batch_size", "--num_members")  # what certify.py has no use for
        same = [flag for flag in own if not flag.startswith(left_out)]
        counting = ["--num_draws=120", "--alpha=0.01", "--num_masks=3", "--batch_size=60"]
        call(folder, "certify", *same, *counting, **same_device)
        if case["ensemble"] == "mc":
            target = ("--num_masks=3", "--target_radius=0.5")
            call(folder, "certify", *same, *target, **same_device)

    @functools.cache
    def run_of(name: str) -> pathlib.Path:
        train_and_certify(CASES[name])
        return runs.directory(folder / "runs", "own", "lstm_fcn", name, TRAINED["sigma"], 5)

    return run_of


@functools.cache
def fitted(name: str) -> SelfEnsembleClassifier:
    """The classifier of the same data, settings and seed. Tests leave it as it is."""
    return tiny(**(TRAINED | CASES[name]), random_state=5).fit(X, Y)


@pytest.fixture(scope="module")
def clf() -> SelfEnsembleClassifier:
    return fitted("mc")


@pytest.fixture(scope="module")
def shares(clf) -> np.ndarray:
    """(6, 2) of 60 votes for the new series, which do not all agree."""
    shares = clf.predict_proba(NEW, num_draws=60)
    assert len(np.unique(shares[:, 0])) > 2
    return shares


@pytest.fixture(scope="module")
def saved(clf, tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("saved") / "model"
    clf.save(path)
    return path


# --- beside the scripts --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mc", *LONG])
def test_the_network_is_that_of_train_py(run_of, name):
    run, clf = run_of(name), fitted(name)
    config = read_record(run / "config.json")
    recorded = read_record(run / "checkpoint.json")["sha256"]
    assert runs.digest(clf.variables_) == recorded
    assert clf.history_ == runs.read_history(run)
    for source in ("data", "versions"):
        theirs, ours = config.pop(source), dict(clf.config_[source])
        differ = {key for key in theirs if theirs[key] != ours.pop(key)}
        assert differ == ({"name", "source", "sha256", "num_test"} if source == "data" else set())
        assert not ours
    assert {key: clf.config_[key] for key in config} == config


@pytest.mark.parametrize("name", ["mc", *LONG[:2]])
def test_certificates_are_those_of_certify_py(run_of, name):
    """Which counted in batches of another size, on several devices."""
    run, clf = run_of(name), fitted(name)
    (file,) = run.glob("counts-*.npz")
    counted = records.read_counts(file)
    found = clf.certify(NEW, alpha=0.01, num_draws=120)
    np.testing.assert_array_equal(found.counts, counted.counts)
    assert (found.counts.min(axis=1) > 0).any()
    assert counted.settings["weights_sha256"] == runs.digest(clf.variables_)
    (tsv,) = run.glob("certificates-*.tsv")
    theirs = records.read_certificates(tsv)
    ours = ["-1" if label is None else str(label) for label in found.label]
    assert ours == theirs["predict"].tolist()
    assert (theirs["radius"] <= found.radius).all()
    assert (found.radius < theirs["radius"] + 1e-5).all()
    assert found.abstained.tolist() == [label is None for label in found.label]
    record = json.loads(tsv.with_suffix(".json").read_text())
    assert (record["statement"], record["alpha"]) == (found.statement, found.certificates.alpha)


def test_decisions_are_those_of_target_radius(run_of, clf):
    (tsv,) = run_of("mc").glob("target-*.tsv")
    with tsv.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    found = clf.decide(NEW, 0.5)
    assert found.decision.tolist() == [row["decision"] for row in rows]
    assert found.draws.tolist() == [int(row["draws"]) for row in rows]
    assert len(set(found.draws.tolist())) > 1
    ours = ["-1" if label is None else str(label) for label in found.label]
    assert ours == [row["predict"] for row in rows]
    assert found.certified.tolist() == [label is not None for label in found.label]


PLAIN = (int, float, bool, str)

# --- labels --------------------------------------------------------------------------------------

NAMES = {
    "floats": np.array([-0.5, 2.25], np.float32),
    "booleans": [False, True],
    "objects": np.array([np.int64(2), np.int64(40)], object),
    "text": ["high", "low"],
    "numbers as text": np.array(["9", "10"]),  # in the network's order, which is not theirs
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_labels_are_names_and_come_back_as_they_are(clf, shares, tmp_path, capfd, names):
    y = [names[i] for i in WHICH[:20]]
    y = np.array(y, names.dtype) if isinstance(names, np.ndarray) else y
    found = clone(clf).fit(X, y)
    assert runs.digest(found.variables_) == runs.digest(clf.variables_)
    assert found.classes_.dtype == np.asarray(y).dtype
    classes = found.classes_.tolist()
    assert classes == sorted(np.asarray(names).tolist())
    by_name = [found.predict_proba(NEW, num_draws=60)[:, classes.index(name)] for name in names]
    np.testing.assert_array_equal(np.transpose(by_name), shares)

    certified = found.certify(NEW, num_draws=60)
    np.testing.assert_array_equal(certified.counts / 60, found.predict_proba(NEW, num_draws=60))
    for answer, share in zip(found.predict(NEW, num_draws=60).tolist(), shares, strict=True):
        assert share[list(names).index(answer)] == share.max()
    for answer, share in zip(certified.label.tolist(), shares, strict=True):
        assert answer is None or (answer == names[share.argmax()] and type(answer) in PLAIN)
    assert not certified.abstained.all()
    same = {None: None, -3: names[0], 7: names[1]}
    theirs = clf.decide(NEW, 0.1).label.tolist()
    assert found.decide(NEW, 0.1).label.tolist() == [same[label] for label in theirs]

    if found.classes_.dtype.kind in "bU":  # which scikit-learn's scorers take
        right = found.predict_proba(X)[np.arange(20), [classes.index(label) for label in y]]
        expected = np.log(np.clip(right, np.finfo(float).eps, 1)).mean()
        assert get_scorer("neg_log_loss")(found, X, y) == pytest.approx(expected)
        assert get_scorer("roc_auc")(found, X, y) > 0.9

    found.save(tmp_path / "model")
    loaded = SelfEnsembleClassifier.load(tmp_path / "model")
    assert loaded.classes_.dtype == found.classes_.dtype
    assert loaded.predict(NEW, 60).tolist() == found.predict(NEW, 60).tolist()
    assert capfd.readouterr() == ("", "")  # verbose is 0


BAD_LABELS = {
    "text and numbers": (["a", 1] * 10, "both text and numbers"),
    "bytes": (np.array([b"a", b"b"] * 10), "labels of type bytes"),
    "long doubles": (np.array([0.5, 1] * 10, np.longdouble), "labels of type longdouble"),
    "none": (None, "requires y"),
    "too few": (Y[:5], "20 series, but its labels have shape (5,)"),
    "one class": (np.ones(20), "one class only"),
    "a missing one": ([None, 1] * 10, "label None"),
    "under a mask": (np.ma.masked_equal(Y, 7), "under a mask"),
    "one-hot": (np.eye(2)[WHICH[:20]], "labels have shape (20, 2)"),
}


@pytest.mark.parametrize(("y", "says"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_other_labels_are_refused(clf, y, says):
    assert says in message_of(clone(clf).fit, X, y)


def test_one_column_of_labels_is_taken_with_a_warning(clf):
    with pytest.warns(DataConversionWarning, match="one column") as caught:
        found = clone(clf).fit(X, pandas.DataFrame({"y": Y}))
    assert caught[0].filename == __file__
    assert runs.digest(found.variables_) == runs.digest(clf.variables_)


# --- series --------------------------------------------------------------------------------------

FORMS = {
    "three axes": lambda x: x[:, :, None],
    "a list": lambda x: x.tolist(),
    "a table": lambda x: pandas.DataFrame(x, columns=[f"t{i}" for i in range(x.shape[1])]),
    "float64": lambda x: x.astype(np.float64),
    "the other byte order": lambda x: x.astype(">f4"),
    "by columns": np.asfortranarray,
    "single series": list,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_series_may_come_in_any_form(clf, shares, form):
    np.testing.assert_array_equal(clf.predict_proba(form(NEW), num_draws=60), shares)


def test_whole_numbers_are_series_too(clf):
    whole = np.rint(4 * NEW)
    found = clf.predict_proba(whole.astype(np.int16), num_draws=20)
    np.testing.assert_array_equal(found, clf.predict_proba(whole, num_draws=20))


def test_noise_is_of_the_place_in_x(clf):
    """As the docstring says: rows may be left out at the end, and are asked anew elsewhere."""
    counts = clf.certify(NEW, num_draws=120).counts
    np.testing.assert_array_equal(clf.certify(NEW[:2], num_draws=120).counts, counts[:2])
    assert (clf.certify(NEW[1:], num_draws=120).counts != counts[1:]).any()
    assert (clf.certify(NEW, num_draws=120, noise_seed=6).counts != counts).any()


def test_channels_come_last_or_first(tmp_path):
    pairs = np.stack([X, -X], axis=2)
    last = tiny(ensemble="single").fit(pairs, Y)
    first = tiny(ensemble="single", channels_first=True).fit(pairs.swapaxes(1, 2), Y)
    assert runs.digest(last.variables_) == runs.digest(first.variables_)
    first.save(tmp_path / "model")
    loaded = SelfEnsembleClassifier.load(tmp_path / "model")
    assert loaded.channels_first is True
    found = loaded.predict_proba(pairs.swapaxes(1, 2), num_draws=20)
    np.testing.assert_array_equal(found, last.predict_proba(pairs, num_draws=20))
    assert "is it (series, channels, time)" in message_of(last.predict, pairs.swapaxes(1, 2))
    assert "leave that out" in message_of(first.predict, X)
    assert "1 channel; the run needs 16 time steps and 2" in message_of(last.predict, X)


def test_unequal_lengths_and_gaps_are_filled_where_asked(clf, tmp_path):
    ragged = [row[: 16 - i % 3] for i, row in enumerate(X)]
    padded = np.stack([np.pad(row, (0, 16 - len(row))) for row in ragged])
    assert "unequal=pad" in message_of(clone(clf).fit, ragged, Y)
    found = clone(clf).set_params(unequal="pad", missing="zero").fit(ragged, Y)
    found.save(tmp_path / "model")
    loaded = SelfEnsembleClassifier.load(tmp_path / "model")
    assert (loaded.unequal, loaded.missing) == ("pad", "zero")
    gaps = padded.copy()
    gaps[:, 5] = np.nan
    padded[:, 5] = 0
    for X_new, same in ((ragged[:4], None), (gaps[:4], padded[:4])):
        expected = found.predict_proba(X_new if same is None else same, num_draws=20)
        np.testing.assert_array_equal(loaded.predict_proba(X_new, num_draws=20), expected)


def changed(place: tuple, value: float) -> np.ndarray:
    x = X.copy()
    x[place] = value
    return x


BAD_SERIES = {
    "one series": (X[0], "(series, time[, channels])"),
    "none": (X[:0], "empty"),
    "no axis": (None, "real numbers"),
    "four axes": (X[..., None, None], "(series, time[, channels])"),
    "NaN": (changed((3, 4), np.nan), "series 3"),
    "infinity": (changed((3, 4), np.inf), "time 4 has value inf"),
    "under a mask": (np.ma.masked_greater(X, 1), "under a mask"),
    "complex": (X + 0j, "complex"),
    "text": (X.astype(str), "real numbers"),
    "sparse": (sparse.csr_array(X), "X.toarray()"),
    "too large for float32": (X + 1e7, "subtract a constant"),
    "too large for the grid": (X + 3e3, "subtract a constant"),
}


@pytest.mark.parametrize(("x", "says"), BAD_SERIES.values(), ids=BAD_SERIES)
def test_bad_series_are_refused(clf, x, says):
    y = Y[: len(x)] if isinstance(x, np.ndarray) and len(x) else Y
    assert says in message_of(clone(clf).fit, x, y)
    for ask in (clf.predict, clf.predict_proba, clf.certify):
        assert says in message_of(ask, x)
    assert says in message_of(clf.decide, x, 0.5)


def test_series_of_another_length_are_refused(clf):
    assert "15 time steps and 1 channel; the run needs 16" in message_of(clf.predict, NEW[:, :15])


# --- parameters and requests ---------------------------------------------------------------------

BAD_PARAMETERS = [
    ({"sigma": 0}, "sigma must be"),
    ({"sigma": "0.5"}, "sigma must be"),
    ({"sigma": np.nan}, "sigma must be a finite number above 0, not nan"),
    ({"sigma": 1e-9}, "not small against sigma"),
    ({"epochs": -1}, "epochs must be"),
    ({"epochs": 1.5}, "epochs must be"),
    ({"batch_size": 0}, "batch_size must be"),
    ({"num_masks": 0}, "num_masks must be"),
    ({"ensemble": "de", "num_members": 0}, "num_members must be"),
    ({"keep": 0}, "keep must be"),
    ({"keep": None}, "keep must be"),
    ({"learning_rate": -1}, "learning_rate must be"),
    ({"learning_rate": "fast"}, "learning_rate must be a finite number, not 'fast'"),
    ({"class_weights": {0: 1}}, "unknown class_weights"),
    ({"model": "resnet"}, "unknown model 'resnet'; choose from inception_time, lstm_fcn, macnn"),
    ({"model": models.create("lstm_fcn", 2)}, "model must be one of"),
    ({"ensemble": "bagging"}, "unknown ensemble"),
    ({"scaling": "minmax"}, "scaling 'minmax' is unknown"),
    ({"unequal": "trim"}, "unequal 'trim' is unknown"),
    ({"missing": "mean"}, "missing 'mean' is unknown"),
    ({"channels_first": "yes"}, "channels_first must be True or False"),
    ({"random_state": -1}, "random_state must be"),
    ({"random_state": True}, "random_state must be"),
    ({"random_state": 2**32}, "random_state must be below 2**32"),
]


@pytest.mark.parametrize(("change", "says"), BAD_PARAMETERS, ids=str)
def test_bad_parameters_are_refused(clf, change, says):
    new = clone(clf).set_params(**change)
    assert says in message_of(new.fit, X, Y)
    with pytest.raises(NotFittedError):
        new.predict(NEW)


@pytest.mark.parametrize("state", [0.5, "0", np.random.default_rng(0)], ids=["0.5", "text", "new"])
def test_random_states_are_scikit_learns(clf, state):
    with pytest.raises(ValueError, match="cannot be used to seed"):
        clone(clf).set_params(random_state=state).fit(X, Y)


def test_a_generator_gives_the_seed_and_moves_on(clf):
    ours, theirs = np.random.RandomState(3), np.random.RandomState(3)
    found = clone(clf).set_params(random_state=ours).fit(X, Y)
    assert found.config_["seed"] == theirs.randint(2**31)
    assert ours.randint(2**31) == theirs.randint(2**31)


BAD_REQUESTS = [
    ("predict", {"num_draws": 0}, "num_draws must be"),
    ("predict_proba", {"num_draws": 1.5}, "num_draws must be"),
    ("certify", {"num_draws": 0}, "num_draws must be"),
    ("certify", {"num_draws": 100.0}, "num_draws must be"),
    ("certify", {"num_draws": 5}, "at least 11 are needed"),
    ("certify", {"alpha": 0}, "alpha must be"),
    ("certify", {"alpha": "0.1"}, "alpha must be"),
    ("certify", {"noise_seed": -1}, "noise_seed must be"),
    ("certify", {"noise_seed": 0.5}, "noise_seed must be"),
    ("certify", {"noise_seed": 2**32}, "noise_seed must be below 2**32"),
    ("decide", {"radius": -1}, "must not be negative"),
    ("decide", {"radius": np.nan}, "radius must be"),
    ("decide", {"radius": [0.1]}, "radius must be"),
    ("decide", {"radius": 100}, "no votes certify it"),
    ("decide", {"radius": 2, "max_draws": 40}, "raise the draws, or lower the radius"),
    ("decide", {"radius": 0.1, "max_draws": 50}, "multiple of 20"),
    ("decide", {"radius": 0.1, "alpha": 1}, "alpha must be"),
    ("decide", {"radius": 0.1, "alpha_futility": 1}, "alpha_futility must be"),
]


@pytest.mark.parametrize(("ask", "arguments", "says"), BAD_REQUESTS, ids=str)
def test_bad_requests_are_refused(clf, monkeypatch, ask, arguments, says):
    monkeypatch.setattr(smoothing, "count_votes", None)  # before the work
    assert says in message_of(getattr(clf, ask), NEW, **arguments)


@pytest.mark.parametrize("ask", ["predict", "predict_proba", "certify", "decide", "save", "score"])
def test_nothing_is_asked_of_what_is_not_fitted(tmp_path, ask):
    arguments = {"decide": (NEW, 0.5), "score": (X, Y), "save": (tmp_path / "model",)}
    with pytest.raises(NotFittedError):
        getattr(tiny(), ask)(*arguments.get(ask, (NEW,)))
    assert not list(tmp_path.iterdir())


def test_a_fit_that_is_interrupted_leaves_the_classifier_as_it_was(clf, monkeypatch):
    """However late, and whether it was fitted before or not."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "recalibrated", interrupt)
    new, again = clone(clf), copy.deepcopy(clf).set_params(sigma=3.0)
    with pytest.raises(KeyboardInterrupt):
        new.fit(X, Y)
    with pytest.raises(NotFittedError):
        new.predict(NEW)
    before = dict(vars(again))
    with pytest.raises(KeyboardInterrupt):
        again.fit(X, Y)
    assert vars(again).keys() == before.keys()
    assert all(vars(again)[name] is value for name, value in before.items())
    assert again.config_["sigma"] == clf.config_["sigma"]


def test_what_is_not_given_is_as_for_the_commands():
    given, of_training = (
        SelfEnsembleClassifier().get_params(),
        dataclasses.asdict(training.TrainConfig()),
    )
    shared = given.keys() & of_training.keys() - {"num_members"}
    assert {"sigma", "keep", "epochs", "learning_rate", "ensemble"} <= shared
    assert {name: given[name] for name in shared} == {name: of_training[name] for name in shared}
    assert (given["num_masks"], given["num_members"]) == (5, 5)  # the paper's
    assert (given["unequal"], given["missing"], given["scaling"]) == ("refuse", "refuse", "none")


def test_bars_are_shown_if_asked_for(clf, capfd):
    loud = clone(clf).set_params(verbose=1).fit(X, Y)
    assert "training: 100%" in (shown := capfd.readouterr()).err
    assert "epoch" in shown.err  # of which it tells how many a second
    assert shown.out == ""
    loud.decide(NEW, 0.1)
    assert "certifying: 100%" in (shown := capfd.readouterr()).err
    assert shown.out == ""


# --- in scikit-learn -----------------------------------------------------------------------------


def through_pickle(estimator, folder):
    return pickle.loads(pickle.dumps(estimator))


def through_joblib(estimator, folder):
    joblib.dump(estimator, folder / "model.joblib")
    return joblib.load(folder / "model.joblib")


@pytest.mark.parametrize("copied", [through_pickle, through_joblib, lambda e, _: copy.deepcopy(e)])
def test_copies_are_the_same_classifier(clf, shares, tmp_path, copied):
    same = copied(clf, tmp_path)
    assert same.get_params() == clf.get_params()
    assert_same(same.variables_, clf.variables_)
    np.testing.assert_array_equal(same.predict_proba(NEW, num_draws=60), shares)
    new = copied(tiny(sigma=0.3), tmp_path)
    assert new.get_params() == tiny(sigma=0.3).get_params()
    with pytest.raises(NotFittedError):
        new.predict(NEW)


def test_another_design_of_masks_needs_no_training(clf):
    other = copy.deepcopy(clf).set_params(mask_design="balanced")
    settings = clf.keep, clf.random_state
    expected = masks.continuous_balanced(stream(settings[1], "masks"), 3, NEW.shape[1], settings[0])
    np.testing.assert_array_equal(other._network().masks, expected)
    assert not np.array_equal(clf._network().masks, expected)
    assert "unknown mask_design" in message_of(other.set_params(mask_design="even").predict, NEW)
    assert "unknown mask_design" in message_of(other.fit, X, Y)
    assert "unknown mask_design" in message_of(
        other.set_params(mask_design=np.array("balanced")).fit, X, Y
    )
    other.set_params(mask_design="balanced", ensemble="single")
    line = message_of(other.fit, X, Y)
    assert line.startswith("mask_design balanced is of the masks of mb and mc; single is certified")


def test_another_number_of_masks_needs_no_training(clf, shares):
    other = copy.deepcopy(clf).set_params(num_masks=9)
    assert (other.predict_proba(NEW, num_draws=60) != shares).any()
    assert "num_masks must be" in message_of(other.set_params(num_masks=0).predict, NEW)
    assert clone(other).get_params() == other.get_params()


@pytest.mark.slow
def test_a_grid_of_sigmas_in_a_pipeline():
    steps = [("halve", FunctionTransformer(np.tanh)), ("clf", tiny(**TRAINED))]
    y = np.array(["low", "high"])[WHICH[:20]]
    search = GridSearchCV(Pipeline(steps), {"clf__sigma": [0.3, np.float32(30)]}, cv=2)
    search.fit(X[..., None], y)
    results = search.cv_results_["mean_test_score"]
    assert search.best_params_ == {"clf__sigma": 0.3}
    assert results[0] > 0.9 > results[1]
    assert set(search.predict(NEW)) <= {"low", "high"}
    best = search.best_estimator_.named_steps["clf"]
    np.testing.assert_array_equal(search.predict(NEW), best.predict(np.tanh(NEW)))


def test_cross_validation(clf):
    scores = cross_val_score(clf, X, Y, cv=2)
    assert scores.shape == (2,)
    assert scores.min() > 0.5


# --- in a folder ---------------------------------------------------------------------------------

IN_A_FRESH_PROCESS = """
import json, sys
import numpy as np
from selfens_jax.classifier import SelfEnsembleClassifier
clf = SelfEnsembleClassifier.load(sys.argv[1])
X = np.load(sys.argv[2])
found = clf.certify(X, num_draws=60)
answers = [found.counts.tolist(), found.radius.tolist(), found.label.tolist()]
clf.save(sys.argv[3])
print(json.dumps([clf.get_params(), clf.classes_.tolist(), *answers]))
"""


def test_a_saved_classifier_is_the_same_in_a_fresh_process(clf, saved, tmp_path):
    np.save(tmp_path / "new.npy", NEW)
    before = listing(saved)
    paths = (saved, tmp_path / "new.npy", tmp_path / "again")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IN_A_FRESH_PROCESS, *map(str, paths)],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": str(jax.device_count())},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = clf.certify(NEW, num_draws=60)
    answers = [found.counts.tolist(), found.radius.tolist(), found.label.tolist()]
    assert json.loads(done.stdout) == [clf.get_params(), [-3, 7], *answers]
    assert listing(saved) == before
    again = SelfEnsembleClassifier.load(tmp_path / "again")
    assert again.config_ == clf.config_
    assert again.history_ == clf.history_
    assert_same(again.variables_, clf.variables_)


def test_a_run_of_train_py_is_a_classifier(run_of, clf, tmp_path):
    """Its masks are not written there: the run may be another's, and is left as it is."""
    run = tmp_path / "run"
    shutil.copytree(run_of("mc"), run)
    for file in run.glob("masks-*"):
        file.unlink()
    before = listing(run)
    for path in (run, *run.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    loaded = SelfEnsembleClassifier.load(run)
    assert loaded.num_masks == 5  # as certify.py takes, if it is not told
    loaded.set_params(num_masks=3)
    assert listing(run) == before
    for path in (run, *run.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert loaded.get_params() == clf.get_params()
    assert loaded.classes_.tolist() == ["-3", "7"]
    theirs, ours = loaded.certify(NEW, num_draws=60), clf.certify(NEW, num_draws=60)
    np.testing.assert_array_equal(theirs.counts, ours.counts)


def test_certify_py_takes_a_saved_folder(clf, tmp_path):
    """With as many masks, and as they were chosen, as the classifier had."""
    clf = copy.deepcopy(clf).set_params(mask_design="balanced")
    clf.save(tmp_path / "model")
    (file,) = (tmp_path / "model").glob("masks-*.npz")
    assert file.name == f"masks-m3-seed{clf.random_state}-balanced.npz"
    np.savez(tmp_path / "new.npz", X=NEW, y=LABELS[WHICH[20:]])
    same = ("--num_draws=120", "--alpha=0.01", "--noise_seed=5")
    done = call(
        tmp_path,
        "certify",
        "--run_dir=model",
        "--series=new.npz",
        *same,
        JAX_NUM_CPU_DEVICES=str(jax.device_count()),
    )
    assert "certified accuracy" in done.stdout
    (file,) = (tmp_path / "model").glob("counts-*.npz")
    found = clf.certify(NEW, alpha=0.01, num_draws=120)
    assert SelfEnsembleClassifier.load(tmp_path / "model").get_params() == clf.get_params()
    np.testing.assert_array_equal(records.read_counts(file).counts, found.counts)


def test_save_never_overwrites_and_is_whole_or_not_there(clf, saved, tmp_path, monkeypatch):
    before = listing(saved)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    for path in (saved, tmp_path, tmp_path / "file", tmp_path / "dangling"):
        assert "there already" in message_of(clf.save, path)
    assert listing(saved) == before

    monkeypatch.setattr(runs, "load_classifier", None)  # what is done last
    with pytest.raises(TypeError):
        clf.save(tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "dangling"}


def test_the_home_directory_may_be_named(clf, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    clf.save("~/models [a]*/first")
    assert (tmp_path / "models [a]*" / "first" / "config.json").exists()
    assert SelfEnsembleClassifier.load("~/models [a]*/first").get_params() == clf.get_params()


def test_the_files_hold_no_pickles(saved):
    def is_pickle(content: bytes) -> bool:
        try:
            return bool(list(pickletools.genops(content)))
        except Exception:  # each damaged opcode has its own
            return False

    assert is_pickle(pickle.dumps({"a": 1}))
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not any(is_pickle(path.read_bytes()) for path in files)
    for path in saved.glob("*.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype != object for name in arrays)


def test_a_pickle_from_before_a_parameter_has_its_default(clf):
    old = copy.deepcopy(clf)
    del old.__dict__["mask_design"]
    loaded = pickle.loads(pickle.dumps(old))
    assert loaded.mask_design == "independent"
    assert loaded.get_params() == clf.get_params()
    np.testing.assert_array_equal(loaded._network().masks, clf._network().masks)


def edited(**changes):
    """A damage: other values in config.json, or in what it says of the classifier."""

    def edit(folder):
        config = json.loads((folder / "config.json").read_text())
        del config["crc32"]  # so that it is not for this that it is refused
        own = {*config["classifier"], "mask_design"}  # which is left out where it is the default
        (config["classifier"] if changes.keys() & own else config).update(changes)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def harmed(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def written(name, text):
    return lambda folder: (folder / name).write_text(text)


def with_other_masks(folder):
    (file,) = folder.glob("masks-*.npz")
    with np.load(file) as arrays:
        np.savez(file, masks=1 - arrays["masks"])


def with_half_a_checkpoint(folder):
    files = [path for path in (folder / "checkpoint").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])


DAMAGES = {
    "no folder": (shutil.rmtree, "holds no trained classifier"),
    "a file": (lambda f: (shutil.rmtree(f), f.write_text("x")), "holds no trained classifier"),
    "unfinished": (lambda f: shutil.rmtree(f / "checkpoint"), "holds no trained classifier"),
    "no config": (lambda f: (f / "config.json").unlink(), "holds no trained classifier"),
    "half a config": (written("config.json", '{"model": '), "config.json cannot be read"),
    "a list": (written("config.json", "[]"), "config.json is damaged"),
    "a digit": (lambda f: harmed(f / "config.json", "0.9", "0.8"), "config.json is damaged: it is"),
    "another history": (
        lambda f: harmed(f / "history.csv", "1,0", "2,0"),
        "history.csv is damaged",
    ),
    "epochs": (edited(epochs="many"), "config.json is damaged (epochs must be"),
    "seed": (edited(seed=1.5), "config.json is damaged (seed must be"),
    "sigma": (edited(sigma="0.5"), "config.json is damaged"),
    "no noise": (edited(sigma=0), "was trained with sigma 0: without noise there is no radius"),
    "ensemble": (edited(ensemble="bag"), "config.json is damaged (unknown ensemble"),
    "masks' design": (edited(mask_design="nonsense"), "config.json is damaged"),
    "masks' design, a list": (edited(mask_design=[]), "config.json is damaged"),
    "masks' number": (edited(num_masks="5"), "config.json is damaged (num_masks must be"),
    "other labels": (edited(classes=[7, -3]), "its labels are not the classes of its data"),
    "too few labels": (edited(classes=[7]), "config.json is damaged"),
    "wide labels": (edited(dtype="|u1"), "config.json is damaged"),
    "no dtype": (edited(dtype="numbers"), "config.json is damaged"),
    "no dictionary": (edited(classifier=3), "config.json is damaged"),
    "other weights": (written("checkpoint.json", '{"sha256": "0"}'), "holds other numbers"),
    "half the weights": (with_half_a_checkpoint, "is damaged; train again"),
    "half the weights of an older run": (
        lambda f: (with_half_a_checkpoint(f), (f / "checkpoint.json").unlink()),
        "checkpoint cannot be read",
    ),
    "other masks": (with_other_masks, "holds other masks"),
    "no history": (lambda f: (f / "history.csv").unlink(), "history.csv is damaged"),
    "odd history": (written("history.csv", "epoch,loss\n1\n"), "history.csv is damaged"),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGES.values(), ids=DAMAGES)
# Orbax reads in threads, which may end after its event loop when one finds the damage.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_is_damaged_is_refused(saved, tmp_path, damage, says):
    model = tmp_path / "model"
    shutil.copytree(saved, model)
    damage(model)
    message = message_of(SelfEnsembleClassifier.load, model)
    assert says in message
    assert str(model) in message
    gc.collect()  # so that what Orbax left warns here, where it is ignored, and not at the end

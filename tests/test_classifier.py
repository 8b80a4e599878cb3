"""SelfEnsembleClassifier, as its users meet it: beside the scripts, in scikit-learn, from a folder.

Networks are tiny and hardly trained, so that votes differ and a wrong network would show.
"""

import concurrent.futures
import copy
import csv
import json
import os
import pathlib
import pickle
import re
import shutil
import subprocess
import sys

import joblib
import numpy as np
import pandas
import pytest
from helpers import assert_same, easy_problem
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.metrics import get_scorer, log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import estimator_checks_generator
from test_scripts import call, error_of

from selfens_jax import runs, sequential, smoothing, training
from selfens_jax.classifier import SelfEnsembleClassifier
from selfens_jax.errors import UserError
from selfens_jax.runs import records

LABELS = np.array([-3, 7])
SERIES, WHICH = easy_problem(26)
X, Y = SERIES[:20, :, 0], LABELS[WHICH[:20]]
NEW = SERIES[20:, :, 0]
TINY = {"model": "lstm_fcn", "epochs": 1, "num_masks": 3}
CASES = {
    "mc": {"ensemble": "mc"},
    "mb": {"ensemble": "mb", "scaling": "z_score"},
    "single": {"ensemble": "single"},
    "de": {"ensemble": "de", "scaling": "z_score", "num_members": 2},
}
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
def folder(tmp_path_factory) -> pathlib.Path:
    """Where the scripts have trained and certified every case."""
    folder = tmp_path_factory.mktemp("classifier")
    np.savez(folder / "own.npz", X_train=X, y_train=Y, X_test=NEW, y_test=LABELS[WHICH[20:]])

    def train_and_certify(case: dict) -> None:
        own = ["--dataset=own.npz", "--seed=5", *flags(TRAINED | case)]
        call(folder, "train", *own)
        left_out = ("--epochs", "--batch_size", "--num_members")  # what certify.py has no use for
        same = [flag for flag in own if not flag.startswith(left_out)]
        counting = ["--num_draws=120", "--alpha=0.01", "--num_masks=3", "--batch_size=60"]
        call(folder, "certify", *same, *counting)
        if case["ensemble"] == "mc":
            call(folder, "certify", *same, "--num_masks=3", "--target_radius=0.5")

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(train_and_certify, CASES.values()))
    return folder


def run_of(folder: pathlib.Path, name: str) -> pathlib.Path:
    return runs.directory(folder / "runs", "own", "lstm_fcn", name, TRAINED["sigma"], 5)


@pytest.fixture(scope="module")
def fitted() -> dict[str, SelfEnsembleClassifier]:
    """The classifiers of the same data, settings and seed. Tests leave them as they are."""
    return {
        name: tiny(**(TRAINED | case), random_state=5).fit(X, Y) for name, case in CASES.items()
    }


@pytest.fixture(scope="module")
def clf(fitted) -> SelfEnsembleClassifier:
    return fitted["mc"]


@pytest.fixture(scope="module")
def votes(clf) -> np.ndarray:
    """Shares (6, 2) for the new series, which do not all agree."""
    shares = clf.predict_proba(NEW, num_draws=60)
    assert len(np.unique(shares[:, 0])) > 2
    return shares


@pytest.fixture(scope="module")
def saved(clf, tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("saved") / "model"
    clf.save(path)
    return path


# --- beside the scripts --------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_network_is_that_of_train_py(folder, fitted, name):
    run, clf = run_of(folder, name), fitted[name]
    config = json.loads((run / "config.json").read_text())
    recorded = json.loads((run / "checkpoint.json").read_text())["sha256"]
    assert runs.digest(clf.variables_) == recorded
    assert clf.history_ == runs.read_history(run)
    for source in ("data", "versions"):
        theirs, ours = config.pop(source), dict(clf.config_[source])
        differ = {key for key in theirs if theirs[key] != ours.pop(key)}
        assert differ == ({"name", "source", "sha256", "num_test"} if source == "data" else set())
        assert not ours
    assert {key: clf.config_[key] for key in config} == config


@pytest.mark.parametrize("name", CASES)
def test_certificates_are_those_of_certify_py(folder, fitted, name):
    """Which counted in batches of another size, on another number of devices."""
    run, clf = run_of(folder, name), fitted[name]
    (file,) = run.glob("counts-*.npz")
    counted = records.read_counts(file)
    found = clf.certify(NEW, alpha=0.01, num_draws=120)
    np.testing.assert_array_equal(found.counts, counted.counts)
    assert (found.counts.min(axis=1) > 0).any()
    assert counted.settings["weights_sha256"] == runs.digest(clf.variables_)
    (tsv,) = run.glob("certificates-*.tsv")
    theirs = records.read_certificates(tsv)
    ours = ["-1" if label is None else str(label) for label in found.label]
    assert ours == [{"-1": "-1"}.get(text, text) for text in theirs["predict"].tolist()]
    assert (theirs["radius"] <= found.radius).all()
    assert (found.radius < theirs["radius"] + 1e-5).all()
    assert found.abstained.tolist() == [label is None for label in found.label]
    record = json.loads(tsv.with_suffix(".json").read_text())
    assert (record["statement"], record["alpha"]) == (found.statement, found.certificates.alpha)


def test_decisions_are_those_of_target_radius(folder, clf):
    (tsv,) = run_of(folder, "mc").glob("target-*.tsv")
    with tsv.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    found = clf.decide(NEW, 0.5)
    assert found.decision.tolist() == [row["decision"] for row in rows]
    assert found.draws.tolist() == [int(row["draws"]) for row in rows]
    assert len(set(found.draws.tolist())) > 1
    ours = ["-1" if label is None else str(label) for label in found.label]
    assert ours == [row["predict"] for row in rows]
    assert found.certified.tolist() == [label is not None for label in found.label]

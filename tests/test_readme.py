"""The README's library examples run as they are printed, on small data and with short training."""

import pathlib
import re

import numpy as np
import pytest
from helpers import easy_problem

from selfens_jax.classifier import SelfEnsembleClassifier

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def names(monkeypatch):
    """What the examples take as given, and a classifier whose defaults train in seconds."""
    defaults = SelfEnsembleClassifier.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "epochs", 2)
    monkeypatch.setitem(defaults, "model", "lstm_fcn")
    X, y = easy_problem(12, length=16)

    def predict(x: np.ndarray) -> np.ndarray:
        return (np.asarray(x).mean(axis=(1, 2)) > 0).astype(int)

    return {"X": X[:, :, 0], "y": y, "X_new": X[:3, :, 0], "predict": predict}


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_run(names, number, capsys):
    exec(compile(EXAMPLES[number], f"README example {number}", "exec"), names)
    if "result" in names:
        assert "radius" in capsys.readouterr().out
        assert len(names["result"].radius) == 3
    else:
        expected = np.array([0, 1, 0])  # series around -1 and +1 in turn
        np.testing.assert_array_equal(names["found"].prediction, expected)
        assert (names["found"].radius > 0.5).all()


def test_there_are_examples():
    assert len(EXAMPLES) == 2

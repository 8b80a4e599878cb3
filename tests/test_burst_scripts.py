"""train.py --burst and certify.py --burst, run as a user runs them; every number worked out again.

The pairs of windows are written out here, and the network is asked for one masked series at a time.
"""

import csv
import itertools
import json
import re

import numpy as np
import pytest
from scipy import stats
from test_scripts import assert_refused, call, error_of, without_time

from selfens_jax import SelfEnsembleClassifier, runs

LENGTH, CHANNELS, STRIDE = 16, 2, 3
BURSTS = (2, 5)
CLASSES = ["fall", "rest", "walk"]
TINY = ("--ensemble=mw", "--model=lstm_fcn", "--burst=4", "--epochs=25")
CERTIFY = ("--ensemble=mw", "--model=lstm_fcn", "--burst=5,2", f"--stride={STRIDE}")
RUN = "runs/own/lstm_fcn/mw/sigma=0.1/seed=0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bursts")
    rng = np.random.default_rng(0)
    y = np.arange(36) % 3
    X = rng.normal(size=(36, LENGTH, CHANNELS))
    X[:, 3:13, 0] += 1.5 * (y == 1)[:, None]
    X[:, 5:16, 1] -= 1.5 * (y == 2)[:, None]
    names = np.array(CLASSES)[y]
    np.savez(
        folder / "own.npz", X_train=X[:18], y_train=names[:18], X_test=X[18:], y_test=names[18:]
    )
    gaps = X[18:].copy()
    gaps[0, 4:6] = np.nan
    gaps[1, 2:13, 0] = np.nan
    gaps[2, 15, 1] = np.nan
    np.savez(folder / "gaps.npz", X=gaps)
    call(folder, "train", "--dataset=own.npz", *TINY)
    return folder


@pytest.fixture(scope="module")
def said(folder):
    return call(folder, "certify", "--dataset=own.npz", *CERTIFY)


def starts_of(burst):
    size = burst + STRIDE - 1
    return sorted({*range(0, LENGTH - size + 1, STRIDE), LENGTH - size}), size


@pytest.fixture(scope="module")
def tables(folder):
    """For each burst length, the classes (W, W) of each test series; NaN become zeros."""
    model, stacked, _ = runs.load_networks(folder / RUN)
    variables = {"params": stacked["params"], "batch_stats": stacked["batch_stats"]}
    variables = {name: _first(tree) for name, tree in variables.items()}
    with np.load(folder / "own.npz") as arrays:
        X = arrays["X_test"].astype(np.float32)
    with np.load(folder / "gaps.npz") as arrays:
        gaps = np.nan_to_num(arrays["X"]).astype(np.float32)
    found = {}
    for name, series in (("own", X), ("gaps", gaps)):
        for burst in BURSTS:
            starts, size = starts_of(burst)
            masked = np.repeat(series[:, None, None], len(starts), axis=1)
            masked = np.repeat(masked, len(starts), axis=2)
            for i, j in itertools.product(range(len(starts)), repeat=2):
                for start in (starts[i], starts[j]):
                    masked[:, i, j, start : start + size] = 0
            rows = masked.reshape(-1, LENGTH, CHANNELS)
            logits = np.asarray(model.apply(variables, rows, train=False))
            found[name, burst] = logits.argmax(-1).reshape(masked.shape[:3])
    return found


def _first(tree):
    return {k: _first(v) if isinstance(v, dict) else v[0] for k, v in tree.items()}


def answer(table):
    one = [table[i][i] for i in range(len(table))]
    majority = min(one, key=lambda c: (-one.count(c), c))
    for i in range(len(table)):
        if one[i] != majority and set(table[i]) == {one[i]}:
            return one[i]
    return majority


def read(tsv):
    with tsv.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return rows, json.loads(tsv.with_suffix(".json").read_text())


def printed(stdout):
    return dict(re.findall(r"^  (\S.*?)  +(\S+)$", stdout, re.MULTILINE))


def test_every_cell_and_line(folder, said, tables):
    (tsv,) = (folder / RUN).glob("bursts-b2-5-18ex-*.tsv")
    rows, record = read(tsv)
    assert list(rows[0]) == ["idx", "label", "burst", "predict", "certified", "correct", "time"]
    labels = [CLASSES[(18 + i) % 3] for i in range(18)]
    expected = []
    for i, burst in itertools.product(range(18), BURSTS):
        table = tables["own", burst][i].tolist()
        sure = len(set(np.ravel(table).tolist())) == 1
        name = CLASSES[answer(table)]
        right = str(int(sure and name == labels[i]))
        expected.append([str(i), labels[i], str(burst), name, str(int(sure)), right])
    assert [list(row.values())[:-1] for row in rows] == expected
    assert {row[4] for row in expected} == {"0", "1"}
    shown = printed(said.stdout)
    shares = [np.mean([row[4] == "1" for row in expected if row[2] == str(b)]) for b in BURSTS]
    told = ", ".join(f"b = {b}: {share:.0%}" for b, share in zip(BURSTS, shares, strict=True))
    assert f"certified {told}" in said.stderr  # beside the bar, at the end
    for burst, share in zip(BURSTS, ("12.5%", "31.2%"), strict=True):
        own = [row for row in expected if row[2] == str(burst)]
        what = f"b = {burst} ({share})"
        pairs = len(starts_of(burst)[0]) * (len(starts_of(burst)[0]) + 1) // 2
        for line, value in {
            "right answers": f"{np.mean([row[1] == row[3] for row in own]):.2%}",
            "certified": f"{np.mean([row[4] == '1' for row in own]):.2%}",
            "certified and right": f"{np.mean([row[5] == '1' for row in own]):.2%}",
            "forward passes a series": str(pairs),
        }.items():
            assert shown[f"{what}: {line}"] == value
    assert record["valid"] is True
    assert "alpha" not in record
    assert record["windows"] == [
        {"length": LENGTH, "burst": burst, "stride": STRIDE} for burst in BURSTS
    ]
    assert "noise_seed" not in record["settings"]
    assert "grid" not in record["settings"]
    assert len(record["series_sha256"]) == 18
    assert tsv.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "certain, no sampling" in said.stdout
    assert "whatever replaces any b consecutive steps" in said.stdout
    assert "radii" not in said.stdout
    assert ["any 2 " in record["statement"][0], "any 5 " in record["statement"][1]] == [True, True]


def test_the_run_says_what_it_was_trained_for(folder):
    config = json.loads((folder / RUN / "config.json").read_text())
    assert (config["ensemble"], config["burst"], config["sigma"]) == ("mw", 4, 0.1)


def test_a_killed_certification_goes_on(folder, said):
    (tsv,) = (folder / RUN).glob("bursts-b2-5-18ex-*.tsv")
    (log,) = [p for p in (folder / RUN).glob("bursts-*.tsv") if "ex-" not in p.name]
    before = without_time(tsv)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:8]) + lines[8][:5])
    kept = lines[:8]
    done = call(folder, "certify", "--dataset=own.npz", *CERTIFY)
    assert log.read_bytes().startswith(b"".join(kept))
    assert without_time(tsv) == before
    assert printed(done.stdout) == printed(said.stdout)


def test_two_processes_share_the_work(folder, said, tmp_path):
    out = f"--output_dir={tmp_path}"
    for process in (1, 0):
        share = ("--num_processes=2", f"--process_id={process}")
        done = call(folder, "certify", "--dataset=own.npz", *CERTIFY, out, *share)
    assert (
        printed(done.stdout)["b = 5 (31.2%): certified"]
        == (printed(said.stdout)["b = 5 (31.2%): certified"])
    )


def test_series_with_gaps(folder, tables):
    run = (f"--run_dir={RUN}", "--series=gaps.npz", "--burst=2", f"--stride={STRIDE}")
    assert "missing" in error_of(folder, "certify", *run)
    done = call(folder, "certify", *run, "--missing=hide")
    (tsv,) = (folder / RUN).glob("bursts-b2-18ex-*.tsv")
    rows, _ = read(tsv)
    starts, size = starts_of(2)
    gaps = {0: (4, 6), 1: (2, 13), 2: (15, 16)}
    for i, row in enumerate(rows):
        table = tables["gaps", 2][i].tolist()
        first, end = gaps.get(i, (0, 0))
        covering = [k for k, s in enumerate(starts) if s <= first and end <= s + size]
        asked = [table[k] for k in covering] if i in gaps else [np.ravel(table).tolist()]
        assert row["certified"] == str(int(any(len(set(each)) == 1 for each in asked)))
        assert row["predict"] == CLASSES[answer(table)]
        assert row["label"] == row["correct"] == ""
        assert row["lacks"] == str(int(i in gaps))
    assert rows[1]["certified"] == "0"
    lacking = [rows[i]["certified"] == "1" for i in gaps]
    whole = [row["certified"] == "1" for i, row in enumerate(rows) if i not in gaps]
    shown = printed(done.stdout)
    assert shown["b = 2 (12.5%): certified"] == f"{np.mean(whole):.2%}"
    assert shown["b = 2 (12.5%): certified whatever they lack"] == f"{np.mean(lacking):.2%}"
    statement = json.loads(tsv.with_suffix(".json").read_text())["statement"]
    assert "whatever these are, and no burst besides" in statement[0]
    assert "whatever these are, and no burst besides" in done.stdout
    assert "missing values: hide" in done.stdout
    assert "right" not in done.stdout


def test_with_noise(folder):
    """Radii beside a burst, from the votes in the log."""
    flags = ("--burst=5", f"--stride={STRIDE}", "--num_draws=300", "--alpha=0.05")
    done = call(folder, "certify", "--dataset=own.npz", *CERTIFY[:2], *flags, "--num_examples=6")
    (tsv,) = (folder / RUN).glob("bursts-b5-6ex-*-n300-alpha0.05.tsv")
    rows, record = read(tsv)
    pairs = len(starts_of(5)[0]) * (len(starts_of(5)[0]) + 1) // 2
    log = next(
        p
        for p in (folder / RUN).glob("bursts-*.tsv")
        if "ex-" not in p.name and '"num_draws"' in p.read_text()
    )
    votes = {}
    for line in log.read_text().splitlines():
        index, *numbers = line.split("\t")
        if index.isdigit():
            votes[index] = np.array(numbers[-3 * pairs - 1 : -1], int).reshape(pairs, 3)
    grid = record["settings"]["grid"]
    assert record["alpha"] == 0.05
    certified = 0
    for row in rows:
        counts = votes[row["idx"]]
        assert (counts.sum(axis=1) == 300).all()
        classes = counts.argmax(axis=1)
        lower = stats.beta.ppf(0.05 / pairs / 2, counts.max(axis=1), 301 - counts.max(axis=1))
        radius = (0.1 * stats.norm.ppf(lower) - grid * np.sqrt(LENGTH * CHANNELS)).min()
        sure = len(set(classes)) == 1 and radius > 0
        certified += sure
        assert row["certified"] == str(int(sure))
        assert row["predict"] == (CLASSES[classes[0]] if sure else "-1")
        assert float(row["radius"]) == pytest.approx(radius if sure else 0, abs=2e-6)
    assert certified
    shown = printed(done.stdout)
    assert shown["b = 5 (31.2%): forward passes a series"] == str(300 * pairs)
    mean = np.mean([float(row["radius"]) for row in rows])
    assert float(shown["b = 5 (31.2%): mean radius"]) == pytest.approx(mean, abs=1e-4)
    assert "L2 norm below its radius, and whatever replaces any b" in done.stdout


def test_the_classifier_says_the_same(folder, said, tables, tmp_path):
    with np.load(folder / "own.npz") as arrays:
        X, y, X_test = arrays["X_train"], arrays["y_train"], arrays["X_test"]
    clf = SelfEnsembleClassifier(
        ensemble="mw", burst=4, sigma=0.1, model="lstm_fcn", epochs=25
    ).fit(X, y)
    clf.save(tmp_path / "saved")
    for each in (clf, SelfEnsembleClassifier.load(tmp_path / "saved")):
        assert each.burst == 4
        found = each.certify_bursts(X_test, BURSTS, stride=STRIDE)
        for burst in BURSTS:
            table = tables["own", burst]
            assert found[burst].label.tolist() == [CLASSES[answer(t.tolist())] for t in table]
            same = [len(set(t.ravel().tolist())) == 1 for t in table]
            assert found[burst].certified.tolist() == same
    with np.load(folder / "gaps.npz") as arrays:
        gaps = clf.certify_bursts(arrays["X"], 2, stride=STRIDE)[2]
    assert gaps.bursts.lacks.tolist() == [True] * 3 + [False] * 15
    assert list(gaps.table().columns) == ["label", "certified", "lacks"]
    assert clf.certify_bursts(X_test, np.int64(2))[2].certified.shape == (18,)
    stretched = SelfEnsembleClassifier(
        model="lstm_fcn", epochs=1, unequal="resample", ensemble="single"
    ).fit(X, y)
    assert not stretched.certify_bursts(X_test, 2)[2].bursts.lacks.any()


@pytest.mark.parametrize(
    ("says", "script", "flags"),
    [
        ("give both, or neither", "train", ("--ensemble=mw",)),
        ("give both, or neither", "train", ("--burst=4",)),
        ("a burst of 16 steps leaves nothing", "train", ("--ensemble=mw", "--burst=16")),
        ("burst must be a whole number of at least 1", "train", ("--ensemble=mw", "--burst=0")),
        ("'hide' is for new series", "train", ("--missing=hide",)),
        ("burst is 4, not 5", "train", (*TINY[:2], "--burst=5", "--epochs=25")),
        ("--burst=16: a burst of 16 steps", "certify", (*CERTIFY[:2], "--burst=16")),
        ("--burst must be numbers of at least 1", "certify", (*CERTIFY[:2], "--burst=x")),
        ("--burst must be numbers of at least 1", "certify", (*CERTIFY[:2], "--burst=")),
        ("take a stride of at most 12", "certify", (*CERTIFY[:2], "--burst=4", "--stride=13")),
        ("no use for --alpha", "certify", (*CERTIFY[:2], "--burst=4", "--alpha=0.1")),
        ("no use for --target_radius", "certify", (*CERTIFY, "--target_radius=1")),
        ("no use for --report", "certify", (*CERTIFY, "--report")),
        ("no use for --max_draws", "certify", (*CERTIFY, "--max_draws=100")),
        ("--ensemble=mw --seed=8 --burst=5", "certify", (*CERTIFY, "--seed=8")),
        ("--ensemble=mw --seed=8 --burst=8", "certify", (*CERTIFY[:2], "--seed=8")),
        ("--stride is of the windows of --burst", "certify", (*CERTIFY[:2], "--stride=3")),
        ("--missing=hide is for --series", "certify", (*CERTIFY, "--missing=hide")),
        ("at least 15 are needed", "certify", (*CERTIFY, "--num_draws=5")),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(folder, says, script, flags):
    assert_refused(folder, says, script, *flags)


def test_series_scaled_by_themselves_are_not_certified(folder):
    call(
        folder,
        "train",
        "--dataset=own.npz",
        *TINY[:3],
        "--epochs=2",
        "--scaling=z_score",
        "--seed=3",
    )
    flags = ("--seed=3", "--scaling=z_score", *CERTIFY)
    assert_refused(folder, "which a burst changes", "certify", *flags)
    clf = SelfEnsembleClassifier.load(folder / RUN.replace("seed=0", "seed=3"))
    with np.load(folder / "own.npz") as arrays, pytest.raises(ValueError, match="which a burst"):
        clf.certify_bursts(arrays["X_test"], 2)


def test_without_noise_bursts_are_certified_alone(folder):
    flags = ("--ensemble=mw", "--model=lstm_fcn", "--sigma=0")
    call(folder, "train", "--dataset=own.npz", *flags, "--burst=4", "--epochs=3")
    call(folder, "certify", "--dataset=own.npz", *flags, "--burst=4")
    assert_refused(folder, "without noise there is no radius", "certify", *flags)
    assert_refused(folder, "needs noise", "certify", *flags, "--burst=4", "--num_draws=1000")


def test_an_ensemble_costs_its_members_and_many_lengths_have_a_short_name(folder):
    flags = ("--ensemble=de", "--model=lstm_fcn", "--sigma=0.3")
    call(folder, "train", "--dataset=own.npz", *flags, "--num_members=2", "--epochs=1")
    lengths = ",".join(map(str, range(1, 13)))
    words = (*flags, f"--burst={lengths}", "--stride=4", "--num_examples=2")
    shown = printed(call(folder, "certify", "--dataset=own.npz", *words).stdout)
    assert len(list((folder / "runs").rglob("bursts-b1to12-2ex-*.tsv"))) == 1
    starts = len({*range(0, LENGTH - 5 + 1, 4), LENGTH - 5})
    assert shown["b = 2 (12.5%): forward passes a series"] == str(starts * (starts + 1))

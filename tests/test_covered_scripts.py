"""What radii cover, and all series at once, where the user meets them: certify.py, a classifier."""

import csv
import json
import re

from common import summaries

import numpy as np
import pytest
from scipy import stats
from test_scripts import CERTIFY, TINY, assert_refused, call

from selfens_jax import SelfEnsembleClassifier, coverage
from selfens_jax.certificates import certify_counts
from selfens_jax.runs.records import Counts

STEPS, CHANNELS = 16, 2
KINDS = (*coverage.SIZES, *coverage.COUNTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("covered")
    rng, y = np.random.default_rng(0), np.array(["rest", "walk"] * 12)
    X = rng.normal(size=(24, STEPS, CHANNELS)) + 0.2 * (y == "walk")[:, None, None]
    np.savez(folder / "own.npz", X_train=X[:12], y_train=y[:12], X_test=X[12:], y_test=y[12:])
    call(folder, "train", "--dataset=own.npz", *TINY)
    return folder


@pytest.fixture(scope="module")
def said(folder):
    """What certify.py says of half of the series, and its table and record."""
    done = call(folder, "certify", "--dataset=own.npz", *CERTIFY, "--num_examples=6")
    (tsv,) = folder.rglob("certificates-*-6ex-*-alpha0.001.tsv")
    rows, record = read(tsv)
    radii = {row["radius"] for row in rows}
    assert len(radii - {"0.000000"}) > 3  # so that one series is told from another
    return done.stdout, rows, record


def read(tsv):
    with tsv.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return rows, json.loads(tsv.with_suffix(".json").read_text())


def series_of(folder, rows):
    with np.load(folder / "own.npz") as arrays:
        return arrays["X_test"].astype(np.float32).astype(float)[[int(row["idx"]) for row in rows]]


def longest(x, radius):
    """Sizes at which a change of each kind is as long as the radius, from changes written out."""
    time, one = np.arange(STEPS) / (STEPS - 1), np.ones(x.shape)
    changes = {
        "offset": one,
        "channel_offset": one[:, :1],
        "gain": x,
        "sample": one[:1, :1],
        "samples": np.ones(10),
        "every_sample": one,
        "total": one[:1, :1],
        "sinusoid": np.sin(2 * np.pi * np.arange(STEPS) / STEPS)[:, None] * one,
        "drift": time[:, None] * one,
        "centred_drift": (time - 0.5)[:, None] * one,
        "quantisation": one / 2,
    }
    return {kind: radius / np.linalg.norm(change) for kind, change in changes.items()}


def test_the_record_has_what_every_radius_covers(folder, said):
    _, rows, record = said
    covered = record["covered"]
    assert list(covered) == ["radius", *KINDS]
    assert len(rows) == 6
    for place, (row, x) in enumerate(zip(rows, series_of(folder, rows), strict=True)):
        radius = float(row["radius"])
        assert (
            covered["radius"][place] <= radius == pytest.approx(covered["radius"][place], rel=1e-5)
        )
        if radius == 0:
            assert row["predict"] == "-1"
            assert {covered[kind][place] for kind in KINDS} == {0}
            continue
        for kind, size in longest(x, radius).items():
            assert covered[kind][place] == pytest.approx(size, rel=3e-5)
            assert covered[kind][place] <= size * (1 + 2e-6 / radius)  # the table has 6 decimals
        by = np.ptp(x) / 10
        ends = np.stack([x - x.min(axis=0), x.max(axis=0) - x]).max(axis=0)
        costs = np.sort(ends.ravel())[::-1] ** 2
        late = [x[np.maximum(np.arange(STEPS) - d, 0)] - x for d in range(1, STEPS)]
        runs = [np.square(x).sum(axis=1)[t : t + b].sum() for b in (1,) for t in range(STEPS)]
        assert covered["moved"][place] == min(x.size, int(np.ceil(radius**2 / by**2)) - 1)
        assert covered["replaced"][place] == (np.cumsum(costs) < radius**2).sum()
        assert (covered["delay"][place] == 0) == (np.linalg.norm(late[0]) >= radius)
        assert (covered["dropout"][place] == 0) == (max(runs) >= radius**2)


def test_what_the_median_radius_covers_is_printed(folder, said):
    stdout, rows, _ = said
    order = sorted(rows, key=lambda row: float(row["radius"]))
    certified = [row for row in order if row["predict"] != "-1"]
    median = certified[(len(certified) - 1) // 2]  # at least half reach it
    _, text = stdout.split(".tsv (.json, .png)\n")
    head, *lines = text.splitlines()
    shown = re.fullmatch(
        r"  the median radius, (\S+) of series (\d+), covers each of these "
        r"\(all: --explain=(\d+)\):",
        head,
    )
    assert shown
    assert shown[2] == shown[3] == median["idx"]
    radius = float(median["radius"])
    assert radius - 0.01 * radius < float(shown[1]) <= radius
    (x,) = series_of(folder, [median])
    sizes = longest(x, radius)
    assert len(lines) == 6
    for line, kind in zip(lines, ("offset", "gain", "sample", "samples", "drift"), strict=False):
        found = re.search(r"below (\S+)( %)?", line)
        assert found
        told = float(found[1]) / (100 if found[2] else 1)
        assert told <= sizes[kind] * (1 + 1e-5)
        assert told == pytest.approx(sizes[kind], rel=0.01)
    assert lines[5].startswith("    late or early, edges held")


def test_one_series_is_explained(folder, said):
    _, rows, record = said
    place = np.argmax([float(row["radius"]) for row in rows])
    row = rows[place]
    asked = (*CERTIFY, "--num_examples=6", f"--explain={row['idx']}", "--report")
    stdout = call(folder, "certify", "--dataset=own.npz", *asked).stdout
    _, text = stdout.split(".tsv (.json, .png, .html)\n")
    head, *lines = text.splitlines()
    assert head == (
        f"  series {row['idx']}: {row['predict']}, radius {row['radius']}, which covers each of "
        "these by itself:"
    )
    assert len(lines) == len(KINDS)
    for kind, line in zip(KINDS, lines, strict=True):
        value = record["covered"][kind][place]
        found = re.search(
            r"(?:below|up to) (\S+)( %)?(?: each| at| from| a| sample| step|s|$)", line[46:]
        )
        if value == 0:
            assert line.endswith("none")
            continue
        assert found, line
        assert float(found[1]) / (100 if found[2] else 1) == pytest.approx(value, rel=1e-9)
    (page,) = folder.rglob("*-6ex-*-alpha0.001.html")
    assert page.read_text().count("Covered, each by itself") == 2


def test_a_bound_for_all_series_stands_beside_the_certified_accuracy(said):
    stdout, rows, record = said
    right = sum(row["correct"] == "1" for row in rows)
    q = int(stats.binom.isf(0.001, 6, 0.001))
    assert right > q == 1
    what = "truly so, with probability 0.999, at least"
    assert record["summary"][what] == pytest.approx((right - q) / 6)
    assert re.search(rf"{what} +{100 * (right - q) / 6:.2f}%", stdout)
    assert list(record["summary"]).index(what) == 1 + list(record["summary"]).index(
        "certified and correct"
    )


def test_certificates_that_do_not_hold_cover_nothing(folder, said):
    (counts,) = folder.rglob("counts-*-6ex-*.npz")
    for flags in (["--paper"], ["--interval=goodman"]):
        done = call(folder, "certify", "--dataset=own.npz", *CERTIFY, "--num_examples=6", *flags)
        assert "covers" not in done.stdout
        assert "truly so" not in done.stdout
    for file in (folder / "runs").rglob("certificates-*-6ex-*.json"):
        record = json.loads(file.read_text())
        assert ("covered" in record) == record["valid"]
    # Nor does anybody know the series of saved votes.
    done = call(folder, "certify", f"--from_counts={counts}", "--output_dir=again")
    assert "covers" not in done.stdout
    (file,) = (folder / "again").glob("*.json")
    assert "covered" not in json.loads(file.read_text())


def test_alpha_total_is_shared_by_all_series(folder, said):
    total = ("--num_examples=6", "--alpha_total=0.03")
    done = call(folder, "certify", "--dataset=own.npz", *CERTIFY, *total)
    (tsv,) = folder.rglob("certificates-*-6ex-*-alpha_total0.03.tsv")
    rows, record = read(tsv)
    assert (record["alpha"], record["alpha_total"]) == (0.005, 0.03)
    says = "each holds with probability at least 1 - 0.005, all 6 at once with at least 1 - 0.03"
    assert record["statement"].endswith(says)
    assert says in done.stdout
    call(folder, "certify", "--dataset=own.npz", *CERTIFY, total[0], "--alpha=0.005")
    (each,) = folder.rglob("certificates-*-6ex-*-alpha0.005.tsv")
    assert [row["radius"] for row in rows] == [row["radius"] for row in read(each)[0]]
    assert "alpha_total" not in read(each)[1]
    # The number of saved votes is what counts there.
    (counts,) = folder.rglob("counts-*-6ex-*.npz")
    call(folder, "certify", f"--from_counts={counts}", total[1], "--output_dir=shared")
    (again,) = (folder / "shared").glob("*-alpha_total0.03.tsv")
    assert read(again)[1]["alpha"] == 0.005


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--explain=1",), "--explain=1: that series is not certified; give one of the 6 from 0"),
        (("--explain=-1",), "--explain=-1: that series is not certified"),
        (("--explain=0", "--paper"), "--explain is of valid certificates"),
        (("--explain=0", "--interval=goodman"), "--explain is of valid certificates"),
        (("--explain=0", "--target_radius=0.2"), "leave out --explain"),
        (("--alpha_total=0.1", "--alpha=0.01"), "--alpha_total sets alpha"),
        (("--alpha_total=0",), "--alpha_total must be between 0 and 1"),
        (("--alpha_total=1",), "--alpha_total must be between 0 and 1"),
        (("--alpha_total=0.1", "--paper"), "leave out --alpha_total"),
        (
            ("--alpha_total=0.1", "--interval=sison_glaz"),
            "proves no alpha; leave out --alpha_total",
        ),
        (
            ("--alpha_total=1e-9", "--num_draws=30"),
            "30 draws can certify nothing at alpha 1.66666e",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused(folder, flags, says):
    given = CERTIFY[:2] if "--target_radius=0.2" in flags else CERTIFY
    assert_refused(folder, says, "certify", *given, "--num_examples=6", *flags)


def test_saved_votes_do_not_have_the_series_to_explain(folder, said):
    (counts,) = folder.rglob("counts-*-6ex-*.npz")
    flags = (f"--from_counts={counts}", "--explain=0")
    assert_refused(folder, "--explain needs the series", "certify", *flags)


def test_an_abstention_covers_nothing_and_no_median_is_made_of_them():
    votes = np.array([[20, 20], [40, 0], [21, 19]])
    certified = certify_counts(votes, 1.0)
    assert certified.prediction.tolist() == [-1, 0, -1]
    settings = {"data": {"classes": ["rest", "walk"]}}
    empty = np.zeros(3)
    counted = Counts(np.array([4, 6, 9]), votes, empty, empty, settings, empty)
    covered = [coverage.cover(radius, np.ones((5, 1))) for radius in certified.radius]
    (line,) = summaries.covered_in_full(counted, certified, covered, 9)
    assert line == "  series 9: the classifier abstains, and no change is covered"
    head, *_ = summaries.covered_in_short(counted, covered)
    assert "of series 6" in head
    none = [coverage.cover(0, np.ones((5, 1)))] * 3
    assert summaries.covered_in_short(counted, none) == []


def test_a_classifier_s_certificates_cover_what_they_say_in_the_units_of_the_radius():
    """With scaling these are not the units of X."""
    rng, y = np.random.default_rng(0), np.arange(12) % 2
    X = 50 + 10 * (rng.normal(size=(12, STEPS)) + 3 * y[:, None] * np.linspace(-1, 1, STEPS))
    clf = SelfEnsembleClassifier(
        model="lstm_fcn", epochs=4, sigma=0.5, num_masks=2, scaling="z_score"
    ).fit(X, y)
    found = clf.certify(X[:4], alpha=0.1, num_draws=40)
    covers = found.covers(num_samples=3)
    assert (found.radius > 0).any()
    scaled = (X[:4] - X[:4].mean(axis=1, keepdims=True)) / X[:4].std(axis=1, keepdims=True, ddof=1)
    for radius, x, one in zip(found.radius, scaled, covers, strict=True):
        assert one.radius == radius
        assert one.gain == pytest.approx(radius / np.linalg.norm(x), rel=1e-5)
        assert one.samples == pytest.approx(radius / np.sqrt(3))
        assert one.by == pytest.approx(np.ptp(x) / 10, rel=1e-5)

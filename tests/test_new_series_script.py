"""certify.py --series, run as a user runs it; every number worked out again from the votes.

The run is not where it was trained, and its data are gone: its folder alone must know the rest. All
files hold the same series, some with gaps that are to be filled, so all must get the same votes.
"""

import contextlib
import csv
import hashlib
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from data_files import ts_text, write
from scipy import stats
from test_report_page import Tree, rows_of
from test_scripts import call, command, error_of, kill_when, make_npz, without_time

from selfens_jax import data

NUM_SERIES, LENGTH, SIGMA, NUM_DRAWS, MEMBERS = 10, 16, 0.5, 200, 5
GRID = 2.0**-14  # SIGMA / 2^13
RUN, READ_ONLY = "kept/my run", "kept/read only"
CERTIFY = (f"--num_draws={NUM_DRAWS}", "--noise_seed=0")
PREPARE = ("--unequal=pad", "--missing=zero")
PREPARED = {"unequal": "pad", "missing": "zero"}
LABELS = ["walk", "rest", "rest", "walk", "rest", "walk", "rest", "rest", "walk", "walk"]


def new_series():
    """(10, 16): near one class, near the other, and some between the two, where noise decides."""
    offsets = np.array([3, 0, 2.75, 1.5, 0.5, 1.6, 1.7, 1.8, 1.9, 2.0])
    X = np.random.default_rng(1).normal(offsets[:, None], 0.3, (NUM_SERIES, LENGTH)).round(3)
    X[1, 11:] = 0  # what pads it in gaps.csv
    X[2, 5:7] = X[4, 0] = 0  # gaps
    return X


def cells():
    """The series as text, with their gaps."""
    rows = [[repr(value) for value in row] for row in new_series().tolist()]
    rows[1] = rows[1][:11]
    rows[2][5:7] = ["", "NaN"]
    rows[4][0] = ""
    return rows


def lines(rows, separator, labels=None):
    rows = rows if labels is None else [[y, *row] for y, row in zip(labels, rows, strict=True)]
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("new series")
    make_npz(folder / "own.npz")
    train = ("--model=lstm_fcn", "--sigma=0.5", "--keep=0.8", "--seed=3", "--scaling=channel")
    done = call(folder, "train", "--dataset=own.npz", *train, "--epochs=3")
    (folder / "kept").mkdir()
    shutil.move(done.stdout.strip(), folder / RUN)
    shutil.copytree(folder / RUN, folder / READ_ONLY)
    shutil.rmtree(folder / "runs")
    (folder / "own.npz").unlink()

    X = new_series()
    (folder / "bare").mkdir()
    (folder / "labelled").mkdir()
    np.savez(folder / "bare" / "new.npz", X=X)
    np.savez(folder / "labelled" / "new.npz", X=X, y=LABELS)
    text = [",".join(map(repr, row)) for row in X.tolist()]
    labelled = [f"{row}:{label}" for row, label in zip(text, LABELS, strict=True)]
    for name, content in {
        "bare/new.csv": lines(X.tolist(), ","),
        "bare/gaps.csv": lines(cells(), ","),
        "bare/new.ts": ts_text([f"{row}:?" for row in text], "true rest walk"),
        "labelled/gaps.tsv": lines(cells(), "\t", LABELS),
        "labelled/new.ts": ts_text(labelled, "true walk rest"),
    }.items():
        write(folder / name, content)
    return folder


def units():
    """What the run divides its channel by: the deviation of the training series."""
    y = np.arange(24) % 2
    X = np.random.default_rng(0).normal(size=(24, LENGTH, 1)) + 3 * (y == 1)[:, None, None]
    return X[:12].std()


def hashes():
    x = (new_series() / units()).astype("<f4")
    digests = [hashlib.sha256(b"[16, 1]" + row.tobytes()).hexdigest()[:16] for row in x]
    assert digests == [data.series_digest(row[:, None])[:16] for row in x]
    return digests


def certify(folder, series, *flags, run=RUN):
    return call(folder, "certify", f"--run_dir={run}", f"--series={series}", *CERTIFY, *flags)


@pytest.fixture(scope="module")
def whole(folder):
    """What is said of series without labels; the results are in the folder of the run."""
    return certify(folder, "bare/new.npz", "--report")


@contextlib.contextmanager
def nothing_written(folder):
    """Nothing below the folder is made, removed or changed meanwhile, hidden files included."""

    def state():
        found = {path: path.stat() for path in folder.rglob("*")}
        return {
            path: path.is_dir() or (stat.st_mtime_ns, stat.st_size) for path, stat in found.items()
        }

    before = state()
    yield
    assert state() == before


@contextlib.contextmanager
def forbidden(folder):
    """Nothing can be written there, other than by an administrator."""
    paths = [folder, *folder.rglob("*")]
    modes = [path.stat().st_mode for path in paths]
    for path, mode in zip(paths, modes, strict=True):
        path.chmod(mode & ~0o222)
    try:
        yield
    finally:
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode)


def results(folder, kind="certificates"):
    """The rows of the one table there, and its record."""
    (tsv,) = folder.glob(f"{kind}-*.tsv")
    with tsv.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return rows, json.loads(tsv.with_suffix(".json").read_text())


def counts_of(folder):
    """The votes for each class, and the forward passes, of each series."""
    (path,) = folder.glob("counts-*.npz")
    with np.load(path) as file:
        return file["counts"], file["forwards"]


def certificates(counts, alpha=0.001):
    """The class of each row of votes, or -1, and its radius."""
    top = counts.max(axis=1)
    share = stats.beta.ppf(alpha / 2, top, NUM_DRAWS - top + 1)
    radius = SIGMA * stats.norm.ppf(share) - GRID * np.sqrt(LENGTH)
    names = np.array(["rest", "walk"])[counts.argmax(axis=1)]
    return np.where(radius > 0, names, "-1"), radius.clip(0)


def assert_certified(rows, counts, labels=None, alpha=0.001):
    names, radii = certificates(counts, alpha)
    assert [row["idx"] for row in rows] == [str(i) for i in range(NUM_SERIES)]
    assert [row["predict"] for row in rows] == names.tolist()
    told = np.array([float(row["radius"]) for row in rows])
    assert ((told <= radii) & (radii < told + 3e-6)).all()  # rounded down
    if labels is None:
        assert {row["label"] + row["correct"] for row in rows} == {""}
    else:
        assert [row["label"] for row in rows] == labels
        right = [str(int(name == label)) for name, label in zip(names, labels, strict=True)]
        assert [row["correct"] for row in rows] == right


def printed(stdout):
    return dict(re.findall(r"^  (\S.*?)  +(\S+)$", stdout, re.MULTILINE))


def without_labels(counts, alpha=0.001):
    """What is printed of series without labels, but for the share that is truly so."""
    names, radii = certificates(counts, alpha)
    lines = {
        "certified": f"{np.mean(names != '-1'):.2%}",
        "abstentions": f"{np.mean(names == '-1'):.2%}",
        "mean radius": f"{radii.mean():.4f}",
        "median radius": f"{np.median(radii):.4f}",
    }
    for r in (0.125, 0.25, 0.5, 0.75, 1):
        lines[f"certified at r = {r:g}"] = f"{np.mean((names != '-1') & (radii >= r)):.2%}"
    return lines


def assert_nothing_is_right_or_wrong(*texts):
    for text in texts:
        assert not re.search(r"accura|correct|\bright\b|wrong|frequent class|ACR", text)


def test_the_run_knows_all_else(folder, whole):
    rows, record = results(folder / RUN)
    counts, forwards = counts_of(folder / RUN)
    assert (counts.sum(axis=1) == NUM_DRAWS).all()
    assert (forwards == NUM_DRAWS * MEMBERS).all()
    assert {row["predict"] for row in rows} == {"rest", "walk", "-1"}
    assert ((counts > 0) & (counts < NUM_DRAWS)).any()  # the noise decides
    assert_certified(rows, counts)

    assert record["series_sha256"] == hashes()
    settings = record["settings"]
    assert settings["series"].pop("sha256")
    assert settings["series"] == {"name": "new", "number": NUM_SERIES}
    known = json.loads((folder / RUN / "config.json").read_text())
    assert settings["data"] == known["data"]
    assert known["data"]["units"] == [pytest.approx(units(), rel=1e-12)]
    asked = ("model", "ensemble", "sigma", "keep", "mask_seed", "num_masks", "noise_seed")
    found = {name: settings[name] for name in asked}
    expected = dict(zip(asked, ("lstm_fcn", "mc", SIGMA, 0.8, 3, MEMBERS, 0), strict=True))
    assert found == expected

    assert whole.stdout.startswith("new, own's lstm_fcn, mc, sigma 0.5, 10 examples\n")
    assert "  series: new, new to the run on own, scaling channel; radii" in whole.stdout
    shown = printed(whole.stdout)
    own = re.search(r" mean radius +\S+\n    in channel 0 alone +(\S+)\n", whole.stdout)[1]
    assert float(own) == pytest.approx(certificates(counts)[1].mean() * units(), rel=1e-3)
    for what, value in (without_labels(counts) | {"forward passes a draw": "5.00"}).items():
        assert shown[what] == value
    others = {"truly so, with probability 0.999, at least", "forward passes a draw"}
    assert shown.keys() == without_labels(counts).keys() | others
    share = f"certified {np.mean([row['predict'] != '-1' for row in rows]):.1%}"
    assert share in whole.stderr
    (page,) = (folder / RUN).glob("certificates-*.html")
    told = rows_of(Tree(page.read_bytes()).root)
    for row, cells in zip(rows, told, strict=True):
        state = "abstained" if row["predict"] == "-1" else "certified"
        assert (cells[0], *cells[2:4]) == (row["idx"], "–", state)
        assert row["predict"] == "-1" or {row["predict"], row["radius"]} <= set(cells)
    assert_nothing_is_right_or_wrong(whole.stdout, whole.stderr, *record["summary"])


@pytest.mark.parametrize(
    ("file", "flags", "prepared"),
    [
        ("new.npz", (), {}),
        ("new.ts", (), {}),
        ("gaps.tsv", ("--labelled", *PREPARE), PREPARED),
    ],
)
def test_labelled_series_have_the_same_votes_in_every_format(
    folder, whole, tmp_path, file, flags, prepared
):
    """With a run that was only to be read; the results go elsewhere."""
    out = tmp_path / "made" / "for it"
    with forbidden(folder / "kept"), nothing_written(folder):
        flags = (*flags, f"--output_dir={out}")
        done = certify(folder, f"labelled/{file}", *flags, run=READ_ONLY)
    rows, record = results(out)
    counts, _ = counts_of(out)
    np.testing.assert_array_equal(counts, counts_of(folder / RUN)[0])
    assert_certified(rows, counts, LABELS)
    assert {row["correct"] for row in rows} == {"0", "1"}
    assert record["series_sha256"] == hashes()
    bare = results(folder / RUN)[1]["settings"]
    described = record["settings"].pop("series")
    assert described.pop("sha256") != bare.pop("series")["sha256"]  # of the labels too
    assert described == {"name": file.partition(".")[0], "number": NUM_SERIES, **prepared}
    assert record["settings"] == bare

    said = ", unequal lengths: pad to 16 time steps, missing values: zero; radii"
    assert (said in done.stdout) == bool(prepared)
    names, radii = certificates(counts)
    right = names == LABELS
    most = np.array(["rest", "walk"])[counts.argmax(axis=1)]
    shown = printed(done.stdout)
    for what, value in {
        "accuracy of the most voted class": f"{np.mean(most == LABELS):.2%}",
        "certified and correct": f"{right.mean():.2%}",
        "abstentions": f"{np.mean(names == '-1'):.2%}",
        "ACR (wrong or abstained = 0)": f"{(right * radii).mean():.4f}",
        "mean radius, correct predictions": f"{radii[right].mean():.4f}",
        "certified accuracy at r = 0.5": f"{np.mean(right & (radii >= 0.5)):.2%}",
    }.items():
        assert shown[what] == value
    assert f"certified and correct {right.mean():.1%}" in done.stderr


def votes_in(log):
    """The settings that begin it; the index, forward passes and votes of each line."""
    settings, *rows = log.read_text().splitlines()
    return settings, {(row.split("\t")[0], *row.split("\t")[2:5]) for row in rows}


def test_a_killed_command_goes_on_to_the_same_files(folder, whole, tmp_path):
    """To those of the same series in another format, byte by byte, but for the seconds."""
    flags = (f"--run_dir={RUN}", *CERTIFY, "--batch_size=200", f"--output_dir={tmp_path}")
    flags = ("--series=bare/new.csv", *flags)
    process = subprocess.Popen(
        command("certify", *flags), cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    assert kill_when(
        process, lambda: any(p.read_text().count("\n") > 2 for p in tmp_path.glob("votes-*.tsv"))
    )
    assert not list(tmp_path.glob("c*"))
    (log,) = tmp_path.glob("votes-*.tsv")
    kept = log.read_bytes()
    kept = kept[: kept.rindex(b"\n") + 1]
    done_before = kept.count(b"\n") - 1
    assert 2 <= done_before < NUM_SERIES
    log.write_bytes(kept + b"7\t0.1\t10")  # torn
    done = call(folder, "certify", *flags)
    assert f"{done_before}/{NUM_SERIES}" in done.stderr
    assert log.read_bytes().startswith(kept)

    for path in tmp_path.glob("*"):
        other = folder / RUN / path.name
        if path == log:
            assert votes_in(path) == votes_in(other)
        elif path.suffix == ".tsv":
            assert without_time(path) == without_time(other)
        else:
            assert path.read_bytes() == other.read_bytes()
    endings = [".json", ".npz", ".png", ".tsv", ".tsv"]
    assert sorted(path.suffix for path in tmp_path.glob("*")) == endings
    assert printed(done.stdout) == printed(whole.stdout)


def test_saved_counts_are_certified_at_another_level(folder, whole, tmp_path):
    (file,) = (folder / RUN).glob("counts-*.npz")
    with nothing_written(folder):
        flags = (f"--from_counts={file}", "--alpha=0.01", f"--output_dir={tmp_path}")
        done = call(folder, "certify", *flags)
    rows, record = results(tmp_path)
    counts, _ = counts_of(folder / RUN)
    assert_certified(rows, counts, alpha=0.01)
    assert record["alpha"] == 0.01
    for what in ("series_sha256", "settings", "counts"):
        assert record[what] == results(folder / RUN)[1][what]
    assert record["series_sha256"] == hashes()
    expected = without_labels(counts, 0.01)
    assert {what: printed(done.stdout)[what] for what in expected} == expected
    assert "new to the run on own" in done.stdout
    assert_nothing_is_right_or_wrong(done.stdout, done.stderr, *record["summary"])


def draws_until_certified(radius, edges):
    """Of a series whose draws all vote for one class.

    The e-value is the mean of p^n / p0^n, p being of the density (1 - p)^-0.8 on (p0, 1]: then
    (1 - p)^0.2 is uniform.
    """
    p0 = stats.norm.cdf((radius + GRID * np.sqrt(LENGTH)) / SIGMA)
    u = (np.arange(100_000) + 0.5) / 100_000 * (1 - p0) ** 0.2
    return next(n for n in edges[1:] if np.mean(((1 - u**5) / p0) ** (n - edges[0])) >= 1000)


def test_decisions_at_a_target_radius(folder, whole, tmp_path):
    flags = (f"--run_dir={RUN}", "--series=bare/gaps.csv", "--nolabelled", *PREPARE, CERTIFY[1])
    target = ("--target_radius=0.4", f"--output_dir={tmp_path}")
    with nothing_written(folder):
        done = call(folder, "certify", *flags, *target)
    rows, record = results(tmp_path, "target")
    assert record["series_sha256"] == hashes()
    described = record["settings"]["series"]
    assert described.pop("sha256") == results(folder / RUN)[1]["settings"]["series"]["sha256"]
    assert described == {"name": "gaps", "number": NUM_SERIES, **PREPARED}
    assert ", unequal lengths: pad to 16 time steps, missing values: zero; " in done.stdout

    counts, _ = counts_of(folder / RUN)
    draws = draws_until_certified(0.4, record["settings"]["batches"])
    assert (counts.max(axis=1) == NUM_DRAWS).sum() > 2
    for row, votes in zip(rows, counts.tolist(), strict=True):
        assert row["label"] == row["correct"] == ""
        assert int(row["forwards"]) == MEMBERS * int(row["draws"])
        assert (row["predict"] == "-1") == (row["decision"] != "certified")
        if max(votes) == NUM_DRAWS:  # as the first of these draws are
            decided = [row["predict"], row["decision"], row["draws"]]
            assert decided == [["rest", "walk"][votes.index(NUM_DRAWS)], "certified", str(draws)]
    assert {"certified", "rejected"} <= {row["decision"] for row in rows}
    shown = printed(done.stdout)
    for decision in ("certified", "rejected", "undecided"):
        share = np.mean([row["decision"] == decision for row in rows])
        assert shown[decision] == f"{share:.2%}"
    (log,) = tmp_path.glob("decisions-*.tsv")  # cut off as by a kill
    (table,) = tmp_path.glob("target-*.tsv")
    logged, said, before = log.read_text().splitlines(), done.stdout, without_time(table)
    table.unlink()
    log.write_text("\n".join([*logged[:4], logged[4][:7]]))
    done = call(folder, "certify", *flags, *target)
    assert f"3/{NUM_SERIES}" in done.stderr
    assert (done.stdout, without_time(table)) == (said, before)

    mean = np.mean([int(row["draws"]) for row in rows])
    assert shown["draws an example, mean"] == f"{mean:.1f}"
    assert_nothing_is_right_or_wrong(done.stdout, done.stderr, *record["summary"])


def test_a_consensus_asks_fewer(folder, tmp_path):
    flags = ("--consensus=2", f"--output_dir={tmp_path}", "--report")
    done = certify(folder, "bare/new.ts", *flags)
    rows, record = results(tmp_path)
    counts, forwards = counts_of(tmp_path)
    assert_certified(rows, counts)
    assert record["series_sha256"] == hashes()
    assert record["settings"]["consensus"] == 2
    assert (counts.sum(axis=1) == NUM_DRAWS).all()
    asked_all = (forwards - 2 * NUM_DRAWS) / 3
    assert (asked_all == asked_all.round()).all()
    assert (asked_all >= 0).all()
    assert 0 < asked_all.sum() < NUM_SERIES * NUM_DRAWS / 2
    assert (asked_all <= counts.min(axis=1) + NUM_DRAWS / 2).all()
    expected = without_labels(counts)
    expected["forward passes a draw"] = f"{forwards.mean() / NUM_DRAWS:.2f}"
    assert {what: printed(done.stdout)[what] for what in expected} == expected
    assert "mc (consensus of 2)" in done.stdout
    (page,) = tmp_path.glob("certificates-*.html")
    assert "consensus" in page.read_text()
    assert_nothing_is_right_or_wrong(done.stdout, done.stderr)


BAD = {
    "another length": ("short.npz", "has series of 12 time steps and 1 channel; the run needs 16"),
    "other channels": ("two.npz", "has series of 16 time steps and 2 channels; the run needs 16"),
    "a label that the run lacks": (
        "run.tsv",
        "series 2 of the file has label 'run', which is none of the run's classes: they are 'rest'",
    ),
    "an empty file": ("empty.csv", "the file is empty"),
    "no file": ("none.ts", "there is no such file"),
    "a folder": ("bare", "is a folder"),
    "a gap": ("gap.npz", "series 2 of the file, time 5 has value nan"),
    "gaps with shorter series": (
        "bare/gaps.csv",
        "series 2 of the file, time 5 has value nan, which is missing: fill it",
        "--nolabelled",
        "--unequal=pad",
    ),
    "text in a field": ("text.csv", "line 2, column 6: 'abc' is not a number"),
    "labels or none": ("bare/gaps.csv", "does not tell whether the first is a label", *PREPARE),
    "no labels where they were said to be": (
        "bare/new.csv",
        "has series of 15 time steps and 1 channel; the run needs 16 time steps and 1 channel; it "
        "was said that the first field of a line is a label: leave that out",
        "--labelled",
    ),
    "labels where none were said to be": (
        "numbered.csv",
        "it was said that the first field of a line is not a label: leave that out",
        "--nolabelled",
    ),
    "values far from zero": ("far.npz", "subtract a constant from all series, such as 99999"),
    "labels of arrays": ("bare/new.npz", "labelled is for .csv, .tsv and .txt files", "--labelled"),
}


@pytest.fixture(scope="module")
def bad(folder):
    X, one = new_series(), new_series()
    X[2, 5] = np.nan
    np.savez(folder / "gap.npz", X=X)
    np.savez(folder / "short.npz", X=one[:, :12])
    np.savez(folder / "two.npz", X=np.stack([one, one], axis=2))
    np.savez(folder / "far.npz", X=one * 1e-3 + 1e9)
    rows = one.tolist()
    write(folder / "numbered.csv", lines(rows, ",", ["1", "2"] * (len(rows) // 2)))
    write(folder / "run.tsv", lines(rows, "\t", [*LABELS[:2], "run", *LABELS[3:]]))
    rows[1][5] = "abc"
    write(folder / "text.csv", lines(rows, ","))
    write(folder / "empty.csv", "")
    return folder


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_file_is_said_in_a_line(bad, case):
    file, says, *flags = BAD[case]
    flags = (f"--run_dir={RUN}", f"--series={file}", *flags, "--output_dir=refused")
    with nothing_written(bad):  # no seed of the noise either
        said = error_of(bad, "certify", *flags)
    assert said.startswith(f"error: {file}: ")
    assert says in said


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--explain=99", "--explain=99: that series is not certified"),
        ("--alpha_total=1e-150", "draws can certify nothing"),
    ],
)
def test_a_refused_command_leaves_nothing_behind(folder, flag, says):
    words = (f"--run_dir={RUN}", "--series=bare/new.npz", "--num_draws=20", "--output_dir=none")
    with nothing_written(folder):
        assert says in error_of(folder, "certify", *words, flag)


def test_noise_that_was_drawn_can_be_had_again(folder, tmp_path):
    """What is said of the median radius names the seed, without which --explain is of others."""
    words = (f"--run_dir={RUN}", "--series=bare/new.csv", "--nolabelled", "--num_draws=100")
    words += (f"--output_dir={tmp_path}",)
    said = call(folder, "certify", *words).stdout
    radius, index, again = re.search(
        r"the median radius, (\S+) of series (\d+), covers each of these \(all: (.+)\):", said
    ).groups()
    before = sorted(tmp_path.iterdir())
    seed = json.loads(next(tmp_path.glob("certificates-*.json")).read_text())["settings"][
        "noise_seed"
    ]
    assert again == f"--explain={index} --noise_seed={seed}"
    said = call(folder, "certify", *words, *again.split()).stdout
    assert f"series {index}: " in said
    assert f"radius {radius}" in said
    assert sorted(tmp_path.iterdir()) == before

"""The study of objectives: what it asks for, and what it makes of certificates."""

import csv
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from scipy import stats
from studies import objectives as study
from test_scripts import ROOT, make_npz

from selfens_jax.certificates import certify_counts
from selfens_jax.errors import UserError
from selfens_jax.runs import records

CELL = study.Cell("CBF", "lstm_fcn", "mc", 0.8, "two_views", 0, 50, 100, None, passes=100)


def asked(**changes):
    """The cells of these flags."""
    flags = {
        "control": "two_views",
        "datasets": ["CBF"],
        "models": ["lstm_fcn"],
        "ensembles": ["single", "mc"],
        "sigmas": ["0.8"],
        "seeds": ["0"],
        "passes": 300,
        "num_draws": 100,
        "num_examples": None,
    }
    return study.cells(types.SimpleNamespace(**flags | changes))


def test_epochs_are_scaled_by_the_passes_of_a_step():
    names = ["cross_entropy", "consistency+consistency_weight=1", "smoothmix+average=0.999"]
    found = {cell.objective: cell.epochs for cell in asked(objectives=names)}
    expected = {"two_views": 150, names[0]: 300, names[1]: 150, names[2]: 50}
    assert found == expected
    assert next(iter(found)) == "two_views"  # the control comes first
    of_ensemble = [cell.ensemble for cell in asked(objectives=["ensemble"], control="ensemble")]
    assert of_ensemble == ["mc"]  # single has no masks to average over
    with pytest.raises(UserError, match="unknown objective 'hinge'"):
        asked(objectives=["hinge"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"control": "hinge"}, "--control=hinge: unknown objective"),
        ({"control": "foo/cross_entropy"}, "--control=cross_entropy: unknown ensemble 'foo'"),
        ({"control": "/cross_entropy"}, "unknown ensemble ''"),
        ({"control": "single/ensemble"}, "objective ensemble is for mb and mc"),
        ({"ensembles": ["de"]}, "unknown ensemble 'de'; choose from single, mb, mc"),
        ({"objectives": ["cross_entropy+hidden_as=mean"]}, "unknown hidden_as 'mean'"),
        ({"objectives": ["cross_entropy+epochs=3"]}, "unknown flag 'epochs'"),
        ({"objectives": ["cross_entropy+keep=much"]}, "could not convert string to float"),
        ({"objectives": ["cross_entropy+keep"]}, "keep has no value: +keep=VALUE"),
        ({"ensembles": ["single"], "objectives": ["ensemble"]}, "is for mb and mc"),
        ({"models": ["resnet"]}, "--models: unknown 'resnet'; choose from inception_time, "),
        ({"sigmas": ["abc"]}, "--sigmas must be numbers above 0, not 'abc'"),
        ({"sigmas": []}, "--sigmas and --seeds: at least one number each"),
        ({"seeds": ["0.5"]}, "--seeds must be whole numbers from 0 to below 4294967296"),
        ({"seeds": ["-1"]}, "--seeds must be whole numbers from 0"),
        ({"datasets": [""]}, "--datasets: a name is missing"),
        ({"num_draws": 2}, "--num_draws: "),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(changes, says):
    with pytest.raises(UserError, match=re.escape(says)):
        asked(**{"objectives": ["cross_entropy"]} | changes)


def test_objectives_are_left_out_where_they_are_not_of_the_ensemble():
    names = ["cross_entropy+hidden_as=last", "ensemble"]
    kinds = {cell.kind for cell in asked(objectives=names, ensembles=["single", "mc"])}
    assert kinds == {("single", "two_views"), ("mc", "two_views"), *(("mc", n) for n in names)}


def test_the_legend_names_the_curves_of_all_panels(monkeypatch):
    seen = []
    monkeypatch.setattr(study.plots, "png", lambda drawn, *_: seen.append(drawn) or b"")
    other = dataclasses.replace(CELL, ensemble="single", objective="cross_entropy")
    more_draws = dataclasses.replace(CELL, num_draws=10 * CELL.num_draws)
    study.figure({CELL: CONTROL, other: BETTER, more_draws: CONTROL})
    (legend,) = seen[0].legends
    assert {text.get_text() for text in legend.get_texts()} == {"two_views", "cross_entropy"}
    titles = [axes.get_title() for axes in seen[0].axes if axes.axison]
    assert len(set(titles)) == 3
    assert sum(f"n = {more_draws.num_draws}" in title for title in titles) == 1


def measured(voted, radius, share) -> study.Measured:
    number = len(voted)
    label = np.array([0, 0, 1, 1])[:number]
    return study.Measured(
        np.arange(number), label, np.array(voted), np.array(radius), np.array(share)
    )


CONTROL = measured([0, 0, 1, 0], [1.6, 0.3, 0.0, 0.0], [1.0, 0.7, 0.5, 0.2])
BETTER = measured([0, 0, 1, 0], [1.8, 0.6, 0.5, 0.0], [1.0, 0.8, 0.75, 0.3])


def test_a_cell_is_summed_up():
    assert CONTROL.summary == {
        "accuracy": 0.75,
        "certified_at_0.25_sigma": 0.5,
        "certified_at_0.5_sigma": 0.25,
        "certified_at_1_sigma": 0.25,
        "certified_at_1.5_sigma": 0.25,
        "acr_over_sigma": pytest.approx(1.9 / 4),
        "most_answered": 0.75,
        "most_frequent": 0.5,
    }


def test_differences_are_paired_and_have_both_errors():
    found = study.difference([(BETTER, CONTROL), (CONTROL, CONTROL)], lambda m: m.radius)
    each = np.array([[0.2, 0.3, 0.5, 0.0], [0, 0, 0, 0]])
    assert found.mean == pytest.approx(each.mean())
    assert found.over_series == pytest.approx(stats.sem(each.mean(axis=0)))
    assert found.over_seeds == pytest.approx(stats.sem(each.mean(axis=1)))
    assert found.text(100, 1) == f"+12.5 ({100 * found.over_series:.1f}, 12.5)"
    alone = study.difference([(BETTER, CONTROL)], lambda m: m.certified(0.5))
    assert alone.text() == "+0.500 (0.289, ?)"
    moved = dataclasses.replace(CONTROL, index=CONTROL.index + 1)
    with pytest.raises(UserError, match="different series"):
        study.difference([(BETTER, moved)], lambda m: m.radius)


def test_the_table_and_the_figure_show_every_objective():
    other = dataclasses.replace(CELL, objective="ensemble", epochs=60)
    found = {other: BETTER, CELL: CONTROL}
    lines = list(study.table(found, "two_views"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:4]]
    shown = [dict(zip(study.HEADINGS, row, strict=True)) for row in rows]
    assert [row["objective"] for row in shown] == ["two_views", "ensemble"]
    assert [row["more ACR / sigma"] for row in shown] == ["", "+0.250 (0.104, ?)"]
    assert [row["certified at 0.5 sigma (%)"] for row in shown] == ["25.0", "75.0"]
    assert [row["most answered (%)"] for row in shown] == ["75 of 50"] * 2
    assert study.figure(found).startswith(b"\x89PNG")


def test_radii_in_the_units_of_the_series_are_compared_over_sigmas():
    """CONTROL has radii of 1.6 and 0.3 sigmas; the best of a data set is marked."""
    wide, elsewhere = dataclasses.replace(CELL, sigma=1.6), dataclasses.replace(CELL, dataset="Own")
    seeds = [dataclasses.replace(CELL, seed=seed) for seed in (0, 1)]
    found = {wide: CONTROL, elsewhere: CONTROL, seeds[0]: CONTROL, seeds[1]: BETTER}
    assert list(study.table_at(found, [])) == []
    _, heads, _, *lines = study.table_at(found, [0.4, 2.0])
    sizes = ("n", "series", "objective")
    columns = ("seeds", "accuracy (%)", "certified at 0.4 (%)", "certified at 2 (%)")
    assert (
        heads == f"| {' | '.join(('data set', 'model', 'ensemble', 'sigma', *sizes, *columns))} |"
    )
    rows = [line.split("|")[1:-1] for line in lines[:3]]
    sizes = ("100", "4", "two_views")
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["CBF", "lstm_fcn", "mc", "0.8", *sizes, "2", "**75.0**", "**50.0**", "0.0"],
        ["CBF", "lstm_fcn", "mc", "1.6", *sizes, "1", "**75.0**", "**50.0**", "**25.0**"],
        ["Own", "lstm_fcn", "mc", "0.8", *sizes, "1", "**75.0**", "**25.0**", "0.0"],
    ]


def test_a_cell_has_the_votes_of_its_latest_certification(tmp_path):
    settings = {"ensemble": "single", "sigma": CELL.sigma, "num_draws": CELL.num_draws}
    settings |= {"data": {"name": "CBF", "source": "file", "classes": ["a", "b"], "num_test": 9}}
    settings |= {"model": "lstm_fcn"}
    settings["data"]["scaling"] = "none"
    votes = np.array([[100, 0], [60, 40], [10, 90]])
    # The earlier one has the name that comes last.
    for made, (seed, counts) in enumerate(((9, votes[::-1]), (1, votes))):
        path = records.write_counts(
            tmp_path,
            records.Counts(
                indices=np.arange(3),
                counts=counts,
                labels=np.array([0, 1, 1]),
                forwards=counts.sum(axis=1),
                settings=settings | {"noise_seed": seed},
                seconds=np.zeros(3),
            ),
        )
        os.utime(path, (made, made))
        path.rename(path.with_name(f"counts-n{CELL.num_draws}-{seed}.npz"))
    found = study.measured_in(tmp_path, CELL)
    assert found.share.tolist() == [1.0, 0.4, 0.9]
    assert found.voted.tolist() == [0, 0, 1]
    radius = certify_counts(votes, CELL.sigma, study.ALPHA).radius / CELL.sigma
    assert found.radius.tolist() == [radius[0], 0.0, radius[2]]


def test_cells_of_other_sizes_are_not_compared(tmp_path):
    """A folder may have cells of any; the table is of all, each beside its own control."""
    more = [
        dataclasses.replace(CELL, num_draws=200),
        dataclasses.replace(CELL, epochs=25, passes=50),
    ]
    others = [dataclasses.replace(cell, objective="ensemble") for cell in (CELL, more[0])]
    found = dict.fromkeys([CELL, *more], CONTROL) | dict.fromkeys(others, BETTER)
    for cell, measured in found.items():
        study.write_series(tmp_path, cell, measured)
        record = {**dataclasses.asdict(cell), **measured.summary}
        if cell == CELL:  # as those of before have it
            del record["passes"]
        else:
            record["data_sha256"] = "f00d"
        study.runs.write_json(study.record_file(tmp_path, cell), record)
    study.write_lines(tmp_path)
    with (tmp_path / "cells.csv").open() as file:
        assert sorted(row["passes"] for row in csv.DictReader(file)) == ["100"] * 4 + ["50"]
    known = {cell: study.read_series(tmp_path, cell) for cell in study.cells_in(tmp_path)}
    assert known.keys() == found.keys()
    rows = [[each.strip() for each in line.split("|")] for line in study.table(known, "two_views")]
    assert [(row[5], row[7], row[8], row[-3]) for row in rows[2:7]] == [
        ("100", "two_views", "25", ""),
        ("100", "two_views", "50", ""),
        ("100", "ensemble", "50", "+0.250 (0.104, ?)"),
        ("200", "two_views", "50", ""),
        ("200", "ensemble", "50", "+0.250 (0.104, ?)"),
    ]
    best = [
        line for line in study.table_at(known, [0.4]) if "**75.0**" in line and "ensemble" in line
    ]
    assert len(best) == 2


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied", "binary", "lost"])
def test_series_that_are_not_those_of_the_record_are_refused(tmp_path, damage):
    study.write_series(tmp_path, CELL, BETTER)
    record = {**dataclasses.asdict(CELL), **BETTER.summary}
    study.runs.write_json(study.record_file(tmp_path, CELL), record)
    assert study.read_series(tmp_path, CELL).summary == BETTER.summary
    file = study.series_file(tmp_path, CELL)
    lines = file.read_text().splitlines(keepends=True)
    match damage:
        case "cut":
            file.write_text("".join(lines[:2]))
        case "changed":
            study.write_series(tmp_path, CELL, CONTROL)
        case "emptied":
            file.write_text("")
        case "binary":
            file.write_bytes(b"\xff\x00")
        case "lost":
            file.unlink()
    with pytest.raises(UserError, match=r"does not hold the series of .*: remove both"):
        study.read_series(tmp_path, CELL)
    study.record_file(tmp_path, CELL).write_text("{")
    with pytest.raises(UserError, match="is damaged: remove it, and the command of this cell"):
        study.cells_in(tmp_path)


def test_cells_of_other_data_are_not_compared():
    other = dataclasses.replace(BETTER, label=BETTER.label[::-1])
    assert not np.array_equal(other.label, CONTROL.label)
    with pytest.raises(UserError, match="cells of different data cannot be compared"):
        study.difference([(other, CONTROL)], lambda m: m.radius)


def write_record(results, cell, **hashed):
    line = {"cell": cell.name, **dataclasses.asdict(cell), **hashed}
    study.runs.write_json(study.record_file(results, cell), line)


def test_cells_of_one_name_and_other_data_are_refused(tmp_path):
    cells = [dataclasses.replace(CELL, seed=seed) for seed in range(4)]
    write_record(tmp_path, cells[0], data_sha256="one")
    write_record(tmp_path, cells[1])  # an old one
    write_record(tmp_path, cells[2], data_sha256="one")
    write_record(tmp_path, dataclasses.replace(CELL, dataset="Other"), data_sha256="another")
    assert len(study.cells_in(tmp_path)) == 4
    write_record(tmp_path, cells[3], data_sha256="another")
    with pytest.raises(UserError, match=f"cells of different data of the name {CELL.dataset}"):
        study.cells_in(tmp_path)


def test_other_data_are_refused_before_anything_is_trained(tmp_path):
    for place, shift in (("A", 0), ("B", 1)):
        folder = tmp_path / place / "Toy"
        folder.mkdir(parents=True)
        for half in ("TRAIN", "TEST"):
            rows = [f"{i % 2}\t{i + shift}\t{i * i}\t2\n" for i in range(6)]
            (folder / f"Toy_{half}.tsv").write_text("".join(rows))
    cells = [dataclasses.replace(CELL, dataset="Toy", seed=seed) for seed in (0, 1)]
    described = study.data.describe(study.data.load("Toy", str(tmp_path / "A")))
    write_record(tmp_path, cells[0], data_sha256=described["sha256"])
    write_record(tmp_path, cells[1])  # an old one
    study.refuse_other_data(tmp_path, cells[:1], str(tmp_path / "A"))
    study.refuse_other_data(tmp_path, [CELL], str(tmp_path / "B"))  # of which no cell is done
    with pytest.raises(UserError, match="holds cells of other data of the name Toy: give the --da"):
        study.refuse_other_data(tmp_path, cells[1:], str(tmp_path / "B"))


@pytest.mark.parametrize("radii", [["0.1", "x"], ["0"], ["-1"], ["inf"]])
def test_what_is_no_radius_is_refused(radii):
    with pytest.raises(UserError, match="--radii must be numbers above 0"):
        study.numbers("radii", radii)


def test_one_ensemble_can_be_the_control_of_all():
    names = ["cross_entropy", "cross_entropy+keep=0.5"]
    found = asked(ensembles=["mb", "mc"], objectives=names, control="single/cross_entropy")
    expected = [("single", names[0]), *((e, n) for e in ("mb", "mc") for n in names)]
    assert [cell.kind for cell in found] == expected
    results = dict(zip(found, [CONTROL, BETTER, CONTROL, CONTROL, BETTER], strict=True))
    lines = list(study.table(results, "single/cross_entropy"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:7]]
    shown = [dict(zip(study.HEADINGS, row, strict=True)) for row in rows]
    assert [(row["ensemble"], row["objective"]) for row in shown] == expected
    gained = ["", "+0.250 (0.104, ?)", "+0.000 (0.000, ?)", "+0.000 (0.000, ?)"]
    assert [row["more ACR / sigma"] for row in shown] == [*gained, "+0.250 (0.104, ?)"]
    assert "than cross_entropy of single, paired" in lines[-1]
    assert study.figure(results).startswith(b"\x89PNG")


def test_each_ensemble_has_its_own_control():
    kinds = [(e, o) for e in ("mb", "single") for o in ("two_views", "cross_entropy")]
    values = [CONTROL, BETTER, BETTER, CONTROL]
    results = {
        dataclasses.replace(CELL, ensemble=ensemble, objective=objective): value
        for (ensemble, objective), value in zip(kinds, values, strict=True)
    }
    lines = list(study.table(results, "two_views"))
    gained = [line.split("|")[-3].strip() for line in lines[2:6]]  # the last but one column
    assert gained == ["", "+0.250 (0.104, ?)", "", "-0.250 (0.104, ?)"]


def test_when_it_is_ended_the_command_it_waits_for_ends_too(monkeypatch):
    began = []

    def main(_):
        began.append(time.monotonic())
        code = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
        subprocess.run([sys.executable, "-c", code])

    monkeypatch.setattr(study, "main", main)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            study.start([])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143
    assert time.monotonic() - began[0] < 30


@pytest.mark.slow
def test_it_trains_certifies_and_goes_on(tmp_path):
    make_npz(tmp_path / "own.npz")
    command = [
        sys.executable,
        str(ROOT / "experiments" / "studies" / "objectives.py"),
        "--datasets=own.npz",
        "--sigmas=0.5",
        "--objectives=consistency+consistency_weight=1",
        "--passes=4",
        "--num_draws=100",
        "--num_examples=6",
    ]

    def call():
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=True
        )
        return done.stdout, done.stderr

    stdout, stderr = call()
    results = tmp_path / "results-objectives"
    assert stderr.count("own.npz-lstm_fcn") == 2
    with (results / "cells.csv").open() as file:
        lines = {line["objective"]: line for line in csv.DictReader(file)}
    assert list(lines) == ["consistency+consistency_weight=1", "two_views"]
    assert {line["epochs"] for line in lines.values()} == {"2"}
    assert len(list((results / "series").iterdir())) == 2
    assert (results / "shares.png").read_bytes().startswith(b"\x89PNG")
    again, said = call()
    assert (again, "own.npz-lstm_fcn" in said) == (stdout, False)
    assert (results / "table.md").read_text() == stdout

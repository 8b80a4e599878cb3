"""The benchmark runs, with PyTorch or without, and its tables say what was measured."""

import csv
import itertools
import re
import runpy
import sys
import time
from pathlib import Path

import forked
import pytest
from comparison import contenders
from comparison import tables as benchmark_tables
from comparison.tables import Row
from test_plots import figure_of

from selfens_jax import backend, models

ROOT = Path(__file__).parents[1]


def run_benchmark(*arguments):
    return forked.run(ROOT / "experiments" / "benchmark.py", arguments, ROOT)


def test_without_pytorch_jax_is_measured_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    names = runpy.run_path(contenders.__file__)
    assert names["torch"] is None
    assert names["torch_baseline"] is None


def test_what_is_timed_is_done():
    done = []
    assert contenders.timed(lambda: done.append(time.sleep(0.05))) >= 0.05
    assert len(done) == 1


def test_flops_are_those_of_the_papers():
    flops = [
        contenders.forward_flop(contenders.Case(name, "CBF", 1, 1, 1)) for name in models.NAMES
    ]
    assert flops == pytest.approx([107e6, 67.5e6, 661e6], rel=0.01)


@pytest.mark.parametrize(
    ("kind", "names"), [("cpu", ["jax"]), ("gpu", ["jax", "jax tensorfloat32", "jax bfloat16"])]
)
def test_an_accelerator_is_measured_at_every_precision(kind, names, monkeypatch):
    """So that PyTorch's TensorFloat-32 and bfloat16 have something to be compared with."""
    monkeypatch.setattr(contenders, "torch", None)
    case = contenders.Case("lstm_fcn", "tiny", 20, 2, 1)
    with backend.compiling_for(kind):
        assert contenders.untuned(case) == names
        asked = []
        monkeypatch.setattr(
            contenders.smoothing, "count_votes", lambda *_, precision, **__: asked.append(precision)
        )
        for name in names:
            contenders.CERTIFIERS[name](case)(case.series())
    assert asked == ["float32", "tensorfloat32", "bfloat16"][: len(names)]


def test_how_far_times_are_from_a_line():
    def rows(seconds):
        sizes = (100, 200, 400)
        return [
            Row("scaling", "lstm_fcn", "CBF", "jax", n, 5, 1, median_seconds=s, note="num_draws")
            for n, s in zip(sizes, seconds, strict=True)
        ]

    straight = benchmark_tables.straight_line(rows((1.5, 2.5, 4.5)), "num_draws")
    assert straight == "num_draws: 0.5 s + 0.01 s each; the farthest point is 0.0% off the line"
    bent = benchmark_tables.straight_line(rows((1.0, 4.0, 16.0)), "num_draws")
    assert float(re.search(r"is (\S+)% off", bent)[1]) > 10
    assert benchmark_tables.straight_line(rows((1, 2, 3)), "num_masks").endswith("too few points")


def test_a_table_leaves_out_what_was_not_measured(tmp_path):
    measured = Row("certify", "macnn", "CBF", "jax", 1000, 5, 1, 2, 1.5, 1.25, 1.75)
    skipped = Row("certify", "macnn", "CBF", "torch published", note="not measured")
    benchmark_tables.write(tmp_path / "table", [measured, skipped], {"date": "today"})
    text = (tmp_path / "table.md").read_text()
    assert "- date: today" in text
    assert "n = 1000, m = 5, 1 example(s), 2 turn(s)" in text
    assert "| macnn | CBF | jax | 1.500 | 1.250 | 1.750 |" in text
    assert "| macnn | CBF | torch published |  |  |  |" in text
    assert "- macnn, CBF, torch published: not measured" in text
    first, header, *_ = (tmp_path / "table.csv").read_text().splitlines()
    assert first == "# date: today"
    assert header.startswith("what,model,dataset,contender")
    assert (tmp_path / "table.png").exists()


def test_lines_of_the_scaling_are_named(monkeypatch):
    rows = [
        Row("scaling", name, "CBF", "jax", 20, 2, 1, median_seconds=1.0, note="num_draws")
        for name in ("lstm_fcn", "macnn")
    ]
    figure = figure_of(monkeypatch, lambda: benchmark_tables.figure(rows, {}))
    legends = [axes.get_legend() for axes in figure.axes]
    said = [[text.get_text() for text in each.get_texts()] for each in legends if each]
    assert said[0] == ["lstm_fcn", "macnn"]


@pytest.mark.parametrize("slowest", [1.2, 3, 30, 300])
def test_labels_of_times_do_not_overlap(slowest, monkeypatch):
    times = {"jax": 1.0, "torch": slowest}
    rows = [Row("certify", "macnn", "CBF", name, 1, 1, 1, 1, s, s, s) for name, s in times.items()]
    (axes,) = figure_of(monkeypatch, lambda: benchmark_tables.figure(rows, {})).axes
    axes.figure.canvas.draw()
    low, high = axes.get_ylim()
    labels = [*axes.get_yticklabels(), *axes.get_yticklabels(minor=True)]
    shown = [label for label in labels if low <= label.get_position()[1] <= high]
    boxes = sorted((label.get_window_extent() for label in shown), key=lambda box: box.y0)
    assert len(boxes) >= 2
    assert all(above.y0 > below.y1 for below, above in itertools.pairwise(boxes))


def test_the_benchmark_runs_and_writes_its_table(tmp_path):
    done = run_benchmark("--smoke", "--what=certify,scaling", f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    (table,) = tmp_path.glob("*.csv")
    lines = [line for line in table.read_text().splitlines() if not line.startswith("#")]
    rows = list(csv.DictReader(lines))
    assert rows[0]["contender"] == "jax"
    assert all(float(row["median_seconds"]) > 0 for row in rows)
    assert len(list(tmp_path.glob("*.md"))) == len(list(tmp_path.glob("*.png"))) == 1
    sizes = ("num_draws", "num_masks", "num_examples")
    varied = [tuple(int(row[name]) for name in sizes) for row in rows if row["what"] == "scaling"]
    notes = [row["note"] for row in rows if row["what"] == "scaling"]
    assert list(zip(notes, varied, strict=True)) == [
        *(("num_draws", (n, 2, 1)) for n in (8, 20, 40, 80)),
        *(("num_masks", (8, m, 1)) for m in (1, 2, 4)),
        *(("num_examples", (8, 2, number)) for number in (1, 2, 4, 8)),
    ]


@pytest.mark.slow
def test_the_benchmark_runs_whole(tmp_path):
    done = run_benchmark("--smoke", "--memory", f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    (table,) = tmp_path.glob("*.md")
    for head in ("One example certified", "One training step", "Time for all examples"):
        assert head in table.read_text()


@pytest.mark.parametrize("argument", ["--models=resnet", "--what=", "--num_draws=0", "--repeats=x"])
def test_the_benchmark_says_a_user_error_in_one_line(argument, tmp_path):
    done = run_benchmark(argument, f"--output_dir={tmp_path}")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ")

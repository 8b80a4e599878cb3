"""reproduce.py: the plan, running and merging with stand-in scripts, tables from known results."""

import csv
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import data_files
import forked
import numpy as np
import pytest
from reproduction import estimates, figures, jobs, measured, plan, report, tables
from scipy import stats

from selfens_jax import models, runs
from selfens_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = plan.Settings(3, 100, 4, None, (), 4, 1)
CELL = plan.Cell("CBF", "inception_time", "mc", 0.4)
GRID = plan.Grid(datasets=("CBF",), ensembles=("single", "mc"))


# The plan


def ids(*names, grids=plan.GRIDS, profile="paper"):
    chosen = {name: grids[name] for name in names}
    return [job.id for job in plan.all_jobs(chosen, plan.PROFILES[profile], profile)]


def test_table3_is_every_run_and_its_certification():
    planned = ids("table3")
    assert len(planned) == len(set(planned)) == 6 * 5 * 3 * 4 * 2
    assert "certify runs/CricketZ/macnn/mb/sigma=1.6/seed=0 m=5" in planned


def test_every_table_and_figure_is_over_what_the_papers_is():
    six = {"CBF", "ChlorineConcentration", "CricketX", "CricketY", "CricketZ", "SyntheticControl"}
    chlorine, cricket = {"ChlorineConcentration"}, {"CricketX"}
    four, masked = {"single", "de", "mb", "mc"}, {"mb", "mc"}
    over = {
        **dict.fromkeys(("table1", "table2", "figure2"), (six, {0.4}, four)),
        "table3": (six, {0.1, 0.2, 0.4, 0.8, 1.6}, four),
        "table4": (chlorine | cricket, {0.4}, four),
        "figure3": (chlorine, {0.4}, four),
        "figure4": (chlorine, {0.2, 0.4, 0.8, 1.6}, four),
        "figure5": (chlorine, {0.4}, masked),
        "figure6": (cricket, {0.4}, masked | {"single"}),
        "theory": (chlorine, {0.4}, masked | {"single"}),
    }
    assert over == {
        name: (set(grid.datasets), set(grid.sigmas), set(grid.ensembles))
        for name, grid in plan.GRIDS.items()
    }
    assert all(
        grid.models == (tuple(models.NAMES) if name == "table3" else ("inception_time",))
        for name, grid in plan.GRIDS.items()
    )


def test_jobs_come_after_what_they_need_and_once():
    planned = plan.all_jobs(plan.GRIDS, plan.PROFILES["paper"], "paper")
    seen = set()
    for job in planned:
        assert job.id not in seen
        assert not job.needs or job.needs in seen
        seen.add(job.id)
    assert len(ids("table3", "figure4", "table1")) == len(ids("table3"))
    trainings = sum(job.script == "train" for job in planned)
    assert f"makes {trainings} runs of" in (ROOT / "README.md").read_text()


def test_single_networks_are_taken_from_deep_ensembles():
    grids = {"table3": dataclasses.replace(GRID, ensembles=plan.ENSEMBLES, sigmas=(0.4, 0.8))}
    every = plan.all_jobs(grids, SETTINGS, "paper")
    single, deep, alone, other = (
        plan.train(dataclasses.replace(CELL, ensemble=ensemble, sigma=sigma), SETTINGS)
        for sigma in (0.4, 0.8)
        for ensemble in ("single", "de")
    )
    planned = plan.with_members_taken(every, {alone.id})
    assert {job.id for job in planned} == {job.id for job in every}
    assert len(planned) == len(every)
    seen = set()
    for job in planned:
        assert not job.needs or job.needs in seen
        seen.add(job.id)
    by_id = {job.id: job for job in planned}
    taken = by_id.pop(single.id)
    assert (taken.needs, taken.arguments) == (deep.id, (*single.arguments, "--member_of_de"))
    assert by_id[alone.id] == alone
    assert by_id[other.id] == other
    assert all(job in every for job in by_id.values())
    assert estimates.operations(taken) == 0
    # A deep ensemble that failed, or is not asked for, gives nobody a network.
    assert plan.with_members_taken(every, {deep.id, other.id}) == every
    few = [job for job in every if "/de/" not in job.run]
    assert plan.with_members_taken(few, ()) == few


def test_other_keep_ratios_have_folders_of_their_own():
    planned = [job for job in ids("figure6") if job.startswith("train")]
    assert "train runs-keep0.95/CricketX/inception_time/mb/sigma=0.4/seed=0" in planned
    assert "train runs/CricketX/inception_time/mb/sigma=0.4/seed=0" in planned  # keep 0.9
    assert "train runs/CricketX/inception_time/single/sigma=0.4/seed=0" in planned
    assert len(planned) == 1 + 2 * len(plan.KEEPS)
    assert not any("keep" in argument for argument in plan.train(CELL, SETTINGS).arguments)
    half = plan.train(dataclasses.replace(CELL, keep=0.5), SETTINGS)
    assert "--keep=0.5" in half.arguments


def test_ensemble_sizes_are_certifications_of_one_run():
    planned = ids("figure5")
    assert sum(job.startswith("train") for job in planned) == 2
    sizes = [job.split("m=")[1] for job in planned if " m=" in job and "/mb/" in job]
    assert sizes == ["1", "2", "5", "10", "20"]


def test_table4_attacks_the_network_trained_without_noise_too():
    planned = ids("table4")
    assert "attack runs/CricketX/inception_time/single/sigma=0/seed=0" in planned
    assert len([job for job in planned if job.startswith("attack")]) == 2 * 5


def test_fewer_series_can_be_attacked_than_certified():
    fewer = dataclasses.replace(SETTINGS, num_attacked=2)
    assert "--num_examples=2" in plan.attack(CELL, fewer).arguments
    assert "--num_examples=4" in plan.attack(CELL, SETTINGS).arguments
    assert "--num_examples=4" in plan.certify(CELL, fewer).arguments


def test_networks_can_be_trained_without_class_weights():
    none = dataclasses.replace(SETTINGS, class_weights="none")
    assert "--class_weights=none" in plan.train(CELL, none).arguments
    assert plan.train(CELL, none).id == plan.train(CELL, SETTINGS).id  # kept apart by directory
    assert SETTINGS.trained == "3 epochs"
    assert none.trained == "3 epochs, no class weights"


def test_a_job_is_a_command_line_of_a_script():
    job = plan.certify(CELL, SETTINGS)
    script, *arguments = jobs.command([job], pathlib.Path("results"), ["--data_dir=ucr"])
    assert (ROOT / script).exists()
    assert arguments == [*job.arguments, "--runs_dir=results/runs", "--data_dir=ucr"]
    assert {"--sigma=0.4", "--seed=0", "--num_examples=4"} <= set(arguments)


def trainings(sigmas, seeds, **changes):
    return {
        (sigma, seed): plan.train(
            dataclasses.replace(CELL, sigma=sigma, seed=seed, **changes), SETTINGS
        )
        for sigma in sigmas
        for seed in seeds
    }


@pytest.mark.parametrize(
    ("most", "sigmas", "seeds"),
    [
        (1, "0.1", "0"),
        (2, "0.1,0.4", "0"),
        (3, "0.1,0.4,1.6", "0"),
        (5, "0.1,0.4,1.6", "0"),
        (6, "0.1,0.4,1.6", "0,1"),
        (99, "0.1,0.4,1.6", "0,1"),
    ],
)
def test_trainings_of_one_command_are_every_pair_of_sigmas_and_seeds(most, sigmas, seeds):
    every = trainings((0.1, 0.4, 1.6), (0, 1))
    every |= trainings((0.1,), (2,))  # whose other sigmas are done
    others = [*trainings((0.1,), (0,), ensemble="mb").values(), plan.certify(CELL, SETTINGS)]
    others += trainings((0.1,), (0,), keep=0.5).values()
    group = jobs.together([*every.values(), *others], {}, most)
    assert group[0] == every[0.1, 0]
    pairs = [(float(s), int(z)) for s in sigmas.split(",") for z in seeds.split(",")]
    assert group == [every[pair] for pair in pairs]
    words = jobs.command(group, pathlib.Path("results"), [])
    if len(group) == 1:
        assert words[1:-1] == list(group[0].arguments)
    else:
        assert {f"--sigmas={sigmas}", f"--seeds={seeds}", "--epochs=3"} <= set(words)
        assert not [word for word in words if word.startswith(("--sigma=", "--seed="))]


def test_what_failed_before_is_tried_alone():
    every = trainings((0.1, 0.4, 1.6), (0,))
    first, second, third = every.values()
    lost = jobs.Outcome(second.id, "", second.run, "", "failed", "1", "", "", "", "diverged")
    assert jobs.together([first, second, third], {second.id: lost}, 5) == [first, third]
    assert jobs.together([second, third], {second.id: lost}, 5) == [second]


def test_runs_are_certified_by_one_command_if_nothing_else_tells_them_apart():
    cells = [dataclasses.replace(CELL, sigma=sigma) for sigma in (0.1, 0.4)]
    certified = [plan.certify(cell, SETTINGS, num_masks) for num_masks in (5, 3) for cell in cells]
    attacks = [plan.attack(cell, SETTINGS) for cell in cells]
    trained = [plan.train(cell, SETTINGS) for cell in cells]
    assert jobs.together([*certified, *attacks, *trained], {}, 5) == certified[:2]
    assert jobs.together(certified[2:], {}, 5) == certified[2:]
    assert jobs.together(attacks, {}, 5) == attacks[:1]
    words = jobs.command(certified[:2], pathlib.Path("results"), [])
    assert {"--sigmas=0.1,0.4", "--seeds=0", "--num_masks=5", "--num_draws=100"} <= set(words)


# Running, with stand-in scripts


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """A checkout whose train.py notes that it ran, fails for `de` and never ends for `mb`."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "train.py").write_text(
        """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.default_int_handler)
flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
place = f"{flags['dataset']}/{flags['model']}/{flags['ensemble']}"
for sigma in flags.get("sigmas", flags.get("sigma")).split(","):
    run = pathlib.Path(flags["runs_dir"]) / place / f"sigma={sigma}/seed=0"
    run.mkdir(parents=True, exist_ok=True)
    with open(run / "calls", "a") as file: file.write("x")
    (run / "checkpoint").mkdir(exist_ok=True)
    (run / "history.csv").write_text(flags["ensemble"])
if flags["ensemble"] == "de" or "1.6" in flags.get("sigmas", flags.get("sigma")):
    sys.exit("warming up\\nerror: no such luck\\n")
if flags["ensemble"] == "mb":
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        (run / "interrupted").touch()
        sys.exit(130)
(run / "checkpoint").mkdir(exist_ok=True)
(run / "history.csv").write_text(flags["ensemble"])
"""
    )
    (folder / "certify.py").write_text((folder / "train.py").read_text())
    monkeypatch.setattr(jobs, "CHECKOUT", tmp_path)
    monkeypatch.setattr(jobs, "device_kind", lambda: ("cpu", "abacus"))
    return tmp_path / "results"


def grid_of(*ensembles):
    return {"table3": dataclasses.replace(GRID, ensembles=ensembles)}


def run_all(results_dir, *ensembles, time_limit=None):
    todo = plan.all_jobs(grid_of(*ensembles), SETTINGS, "paper")
    jobs.run_all(todo, results_dir, [], time_limit)
    return todo, jobs.read(results_dir)


def calls(results_dir, ensemble):
    return (results_dir / dataclasses.replace(CELL, ensemble=ensemble).run / "calls").read_text()


def test_a_failing_job_stops_only_what_needs_it_and_is_tried_again(scripts):
    todo, outcomes = run_all(scripts, "single", "de", "mc")
    assert [outcomes[j.id].status for j in todo if j.id in outcomes] == [
        "done",
        "done",
        "failed",
        "done",
        "done",
    ]
    failed = next(o for o in outcomes.values() if o.status == "failed")
    assert failed.message == "no such luck"
    assert failed.device == "abacus"
    assert failed.command.startswith("python experiments/train.py --dataset=CBF")
    left = jobs.missing(todo, scripts)
    assert left["failed"] == [failed.id]
    assert [job_id.split()[0] for job_id in left["not run"]] == ["certify"]

    run_all(scripts, "single", "de", "mc")
    assert calls(scripts, "de") == "xx"
    assert calls(scripts, "single") == "xx"  # train and certify, once each


def test_trainings_side_by_side_are_jobs_of_their_own(scripts, capfd):
    grid = dataclasses.replace(GRID, sigmas=(0.4, 0.8, 0.2), ensembles=("single",))
    todo = plan.all_jobs({"table3": grid}, SETTINGS, "paper")
    alone = todo[2].id
    jobs.run_all(todo, scripts, [], None, side_by_side=5, alone=[alone])
    outcomes = jobs.read(scripts)
    # Trainings beside each other; what they are needed for, beside each other too.
    assert list(outcomes) == [todo[place].id for place in (0, 4, 1, 5, 2, 3)]
    assert {outcome.status for outcome in outcomes.values()} == {"done"}
    for first, beside in (list(outcomes.values())[:2], list(outcomes.values())[2:4]):
        assert first.command == beside.command
        assert "--sigmas=0.4,0.2 --seeds=0" in first.command
        assert first.seconds == beside.seconds
    assert "--sigma=0.8 --seed=0" in outcomes[alone].command
    for cell in grid.cells():
        assert (scripts / cell.run / "calls").read_text() == "xx"  # train and certify, once each
    assert "and 1 beside it (" in capfd.readouterr().err


def test_on_a_cpu_trainings_are_one_after_another(scripts, monkeypatch):
    grid = dataclasses.replace(GRID, sigmas=(0.4, 0.8), ensembles=("single",))
    todo = plan.all_jobs({"table3": grid}, SETTINGS, "paper")
    jobs.run_all(todo[:2], scripts, [], None)
    assert "--sigma=0.4" in jobs.read(scripts)[todo[0].id].command
    monkeypatch.setattr(jobs, "device_kind", lambda: ("gpu", "abacus"))
    grid = dataclasses.replace(grid, ensembles=("mc",))
    jobs.run_all(plan.all_jobs({"table1": grid}, SETTINGS, "paper"), scripts, [], None)
    assert "--sigmas=0.4,0.8" in list(jobs.read(scripts).values())[-1].command


def test_a_training_that_fails_stops_none_that_is_beside_it(scripts):
    grid = dataclasses.replace(GRID, sigmas=(0.4, 1.6, 0.8), ensembles=("single",))
    todo = plan.all_jobs({"table3": grid}, SETTINGS, "paper")
    jobs.run_all(todo, scripts, [], None, side_by_side=3)
    outcomes = jobs.read(scripts)
    states = {job.id: outcomes[job.id].status for job in todo if job.id in outcomes}
    assert list(states.values()) == ["done", "done", "failed", "done", "done"]
    assert "--sigma=0.4" in outcomes[todo[0].id].command
    assert jobs.missing(todo, scripts) == {"failed": [todo[2].id], "not run": [todo[3].id]}


def test_planned_work_is_counted_before_any_is_done():
    """A pass of LSTM-FCN has 67.5 MFLOP at CBF's 128 steps (its published count)."""
    lstm_fcn = dataclasses.replace(CELL, model="lstm_fcn")
    members = {"single": 1, "de": 5, "mb": 7, "mc": 7}
    for ensemble, number in members.items():
        cell = dataclasses.replace(lstm_fcn, ensemble=ensemble)
        networks = 5 if ensemble == "de" else 1
        steps = estimates.operations(plan.train(cell, SETTINGS))
        assert steps == pytest.approx(3 * 30 * 3 * networks * 67.5e6, rel=0.01)
        votes = estimates.operations(plan.certify(cell, SETTINGS, num_masks=7))
        assert votes == pytest.approx(4 * 100 * number * 67.5e6, rel=0.01)
    whole = dataclasses.replace(SETTINGS, num_examples=None)
    votes = estimates.operations(plan.certify(lstm_fcn, whole))
    assert votes == pytest.approx(900 * 100 * 5 * 67.5e6, rel=0.01)
    assert estimates.operations(plan.attack(lstm_fcn, SETTINGS)) == 0


def test_the_papers_profile_is_the_papers():
    paper = plan.PROFILES["paper"]
    assert (paper.epochs, paper.num_draws, paper.num_examples) == (1000, 1000, None)
    assert (paper.margin_masks, paper.class_weights) == (100, "balanced")
    assert paper.attack == ()


def test_a_dry_run_says_what_is_left_and_changes_nothing(tmp_path):
    asked = ("--what=table3", "--models=lstm_fcn", "--datasets=CBF", "--sigmas=0.4", "--dry_run")
    done = call(tmp_path, *asked)
    assert list(tmp_path.iterdir()) == []
    assert "8 jobs, of which 0 are done" in done.stdout
    assert "| train | lstm_fcn | CBF | 4 | 0.0425 |" in done.stdout  # 7 networks, one used twice
    assert "| certify | lstm_fcn | CBF | 4 | 0.972 |" in done.stdout  # 16 networks
    least = float(re.search(r"h100 (\S+) h", done.stdout)[1])
    assert least == pytest.approx((0.0425 + 0.972) * 1e15 / 67e12 / 3600, rel=0.05)
    assert "time left not known yet" in done.stdout
    every = call(tmp_path, "--what=all", "--dry_run").stdout
    number = len(plan.all_jobs(plan.GRIDS, plan.PROFILES["paper"], "paper"))
    assert f"{number} jobs, of which 0 are done" in every
    for wrong, says in (("--report", "changes nothing"), ("--side_by_side=0", "at least 1")):
        assert says in call(tmp_path, *asked, wrong, status=1).stderr
    assert list(tmp_path.iterdir()) == []


def test_of_a_run_that_is_there_only_what_it_lacks_is_taken(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for run, counts in ((source, "theirs"), (target, "ours")):
        runs.save_networks(run, {"w": np.ones(2, np.float32)}, [])
        (run / "counts-a.npz").write_text(counts)
    (source / "counts-b.npz").write_text("theirs")
    (source / "progress").mkdir()
    assert jobs.take_run(source, target)
    assert (target / "counts-a.npz").read_text() == "ours"
    assert (target / "counts-b.npz").read_text() == "theirs"
    assert not (target / "progress").exists()


def test_done_jobs_run_again_only_where_their_results_are_gone(scripts, capfd):
    run_all(scripts, "single")
    lines = (scripts / "jobs.csv").read_text()
    run_all(scripts, "single")
    assert (scripts / "jobs.csv").read_text() == lines
    assert "2 jobs, of which 2 are done" in capfd.readouterr().err
    run = scripts / dataclasses.replace(CELL, ensemble="single").run
    run.rename(scripts / "gone")
    run_all(scripts, "single")
    assert calls(scripts, "single") == "xx"


def test_at_the_time_limit_the_running_job_is_interrupted_and_recorded(scripts):
    # Seconds enough for Python to start on a busy machine.
    todo, outcomes = run_all(scripts, "mb", "single", time_limit=12)
    run = dataclasses.replace(CELL, ensemble="mb").run
    assert [outcome.status for outcome in outcomes.values()] == ["interrupted"]
    assert (scripts / run / "interrupted").exists()
    assert len(jobs.missing(todo, scripts)["not run"]) == 4


@pytest.mark.parametrize(
    "content",
    ["id,needs\nx,y\n", "\0", ",".join(jobs.FIELDS) + "\na,,../b,c,done,1,d,e,f,\n"],
)
def test_a_damaged_list_of_jobs_is_said_to_be_one(tmp_path, content):
    (tmp_path / "jobs.csv").write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        jobs.read(tmp_path)


def test_the_time_left_is_what_alike_jobs_took():
    train = plan.train(CELL, SETTINGS)
    other = plan.train(dataclasses.replace(CELL, model="macnn"), SETTINGS)
    done = jobs.Outcome(train.id, "", train.run, "", "done", "60.0", "", "", "", "")
    assert jobs.time_left([train, other], {done.id: done}) == "about 0:02:00 left"
    slow = dataclasses.replace(done, id=other.id, seconds="180")
    assert jobs.time_left([other], {done.id: done, slow.id: slow}) == "about 0:03:00 left"
    assert "not known" in jobs.time_left([plan.certify(CELL, SETTINGS)], {done.id: done})


def test_merging_takes_over_what_is_not_done_here(scripts, capfd):
    other = scripts.with_name("other")
    run_all(scripts, "single")
    run_all(other, "single", "mc")
    ours = (scripts / "jobs.csv").read_text()
    jobs.merge(scripts, other)
    assert (scripts / "jobs.csv").read_text().startswith(ours)
    assert (scripts / CELL.run / "checkpoint").is_dir()
    todo, _ = run_all(scripts, "single", "mc")
    assert not any(jobs.missing(todo, scripts).values())
    assert calls(scripts, "mc") == "xx"  # as the other directory has it: nothing ran here


def test_merging_never_mixes_two_trainings_of_a_run(scripts, capfd):
    other = scripts.with_name("other")
    for place in (scripts, other):
        run_all(place, "mc")
    certification = plan.certify(CELL, SETTINGS)
    for file, job_id in ((scripts, certification.id), (other, None)):
        jobs.write(file, [o for o in jobs.read(file).values() if o.id != job_id])
    (other / CELL.run / "counts-1.npz").write_text("theirs")
    (other / CELL.run / "history.csv").write_text("another training")
    jobs.merge(scripts, other)
    assert not (scripts / CELL.run / "counts-1.npz").exists()
    assert "trained here too, otherwise" in capfd.readouterr().err
    (other / CELL.run / "history.csv").write_text("mc")
    jobs.merge(scripts, other)
    assert (scripts / CELL.run / "counts-1.npz").read_text() == "theirs"
    assert certification.id in jobs.read(scripts)


# Tables and figures, from results made by hand


def make_run(results_dir, cell, counts, seconds=12.0, num_masks=5):
    """A finished run with these counts (N, K) of series whose class is 0."""
    run = results_dir / cell.run
    (run / "checkpoint").mkdir(parents=True)
    data = {"name": cell.dataset, "source": "directory", "num_test": len(counts)}
    data |= {"scaling": "none", "classes": ["1", "2", "3"]}
    versions = {"device": "abacus", "machine": "wood"}
    runs.write_json(run / "config.json", {"data": data, "versions": versions})
    runs.write_training_time(run, seconds)
    settings = {
        "model": cell.model,
        "ensemble": cell.ensemble,
        "sigma": cell.sigma,
        "num_draws": int(np.sum(counts[0])),
        "num_masks": num_masks,
        "keep": cell.keep,
        "mask_seed": cell.seed,
        "noise_seed": cell.seed,
        "data": data,
    }
    runs.write_npz(
        run / "counts-1.npz",
        indices=np.arange(len(counts)),
        counts=np.array(counts),
        labels=np.zeros(len(counts), int),
        forwards=np.full(len(counts), 500),
        settings=np.array(json.dumps(settings)),
    )


SURE, UNSURE, WRONG = [100, 0, 0], [60, 40, 0], [0, 0, 100]


def column(table, heading):
    place = [c.heading for c in table.columns].index(heading)
    return [row[place] for row in table.rows]


def test_results_of_other_masks_are_not_the_papers(tmp_path):
    """Though they are in the run's folder, and newer."""
    run = tmp_path / CELL.run
    for kind in ("attack", "margins"):
        for made, design in enumerate(({}, {"mask_design": "balanced"})):
            file = run / f"{kind}-{made}.json"
            runs.write_json(file, {"settings": {"num_masks": 5, **design}})
            os.utime(file, (made, made))
        assert measured.latest(tmp_path, CELL, f"{kind}-*.json", {}) == run / f"{kind}-0.json"
    assert measured.latest(tmp_path, CELL, "other-*.json", {}) is None


def test_training_time_outlives_the_networks(tmp_path):
    """Of a finished training only, whether the network or the list of jobs shows that it is."""
    make_run(tmp_path, CELL, [SURE] * 4, seconds=12.5)
    grid = dataclasses.replace(GRID, ensembles=("mc",))
    assert column(tables.table1(tmp_path, grid, SETTINGS), "ours (s)") == [
        tables.Spread(12.5, 12.5, 12.5)
    ]
    job = plan.train(CELL, SETTINGS)
    shared = "train.py --sigmas=0.4,0.8 --seeds=0"  # whose time is not that of one training
    beside = jobs.Outcome(job.id, "", job.run, shared, "done", "1", "2026-01-01", "h", "d", "")
    jobs.write(tmp_path, [beside])
    assert column(tables.table1(tmp_path, grid, SETTINGS), "ours (s)") == [None]
    jobs.write(tmp_path, [])
    (tmp_path / CELL.run / "checkpoint").rmdir()
    assert column(tables.table1(tmp_path, grid, SETTINGS), "ours (s)") == [None]
    done = jobs.Outcome(job.id, "", job.run, "", "done", "1", "2026-01-01", "h", "d", "")
    jobs.write(tmp_path, [done])
    assert column(tables.table1(tmp_path, grid, SETTINGS), "ours (s)") == [
        tables.Spread(12.5, 12.5, 12.5)
    ]


def test_table3_has_the_papers_number_ours_its_way_and_the_valid_one(tmp_path):
    make_run(tmp_path, CELL, [SURE, SURE, UNSURE, WRONG])
    table = tables.table3(tmp_path, GRID, SETTINGS)
    assert column(table, "ensemble") == ["single", "mc"]
    accuracy = column(table, "accuracy, ours (%)")[1]
    assert accuracy.mean == 0.75
    assert column(table, "accuracy, paper (%)") == [1.0, 1.0]
    assert column(table, "difference (points)")[1] == pytest.approx(-0.25)
    assert column(table, "certified, valid (%)")[1].mean == 0.5  # 60 of 100 is no certificate
    largest = 0.4 * stats.norm.ppf(0.0005 ** (1 / 100))
    assert column(table, "ACR, valid")[1].mean == pytest.approx(largest / 2)
    assert column(table, "radius, paper") == [0.979, 0.979]
    found = measured.certified(tmp_path, CELL, SETTINGS)
    theirs = found.published.radius
    assert theirs[2] > 0  # it never abstains
    assert column(table, "radius, ours")[1].mean == pytest.approx(theirs.mean())
    assert column(table, "s.e.") == [None, pytest.approx(stats.sem(theirs))]
    assert table.texts()[0].count("not measured") == 7
    assert "not measured" in table.text(tmp_path)
    assert "Series from files in the archive's layout" in table.caption


def test_cells_that_the_paper_does_not_have(tmp_path):
    grid = dataclasses.replace(GRID, sigmas=(0.3,))
    table = tables.table3(tmp_path, grid, SETTINGS)
    assert column(table, "radius, paper") == ["-", "-"]
    assert column(table, "difference") == ["-", "-"]


def test_what_an_ensemble_adds_is_the_mean_difference_on_the_same_series(tmp_path):
    single = dataclasses.replace(CELL, ensemble="single")
    make_run(tmp_path, CELL, [SURE, SURE, UNSURE, WRONG])
    make_run(tmp_path, single, [SURE, UNSURE, UNSURE, UNSURE])
    table = tables.gains(tmp_path, GRID, SETTINGS)
    assert column(table, "ensemble") == ["mc"]
    largest = 0.4 * stats.norm.ppf(0.0005 ** (1 / 100))
    # Series by series: 0, the largest, 0 (both abstain), 0 (one abstains, one is wrong).
    assert column(table, "ACR, valid") == [pytest.approx(largest / 4)]
    assert column(table, "s.e. (ACR)") == [pytest.approx(largest / 4)]  # sd largest / 2, 4 series
    ours, alone = (measured.certified(tmp_path, c, SETTINGS) for c in (CELL, single))
    expected = ours.published_radius - alone.published_radius
    assert column(table, "radius, ours") == [pytest.approx(expected)]
    assert column(table, "radius, paper") == [0.0]  # 0.979 for both

    # A seed without its `single` has nothing to be compared with.
    make_run(tmp_path, dataclasses.replace(CELL, seed=1), [SURE] * 4)
    two = tables.gains(tmp_path, dataclasses.replace(GRID, seeds=(0, 1)), SETTINGS)
    assert column(two, "seeds") == ["1/2"]
    assert column(two, "ACR, valid") == [pytest.approx(largest / 4)]
    none = tables.gains(tmp_path, dataclasses.replace(GRID, sigmas=(0.3,)), SETTINGS)
    assert none.texts()[0][4:] == ["0/1", "-", *["not measured"] * 4]


def test_seeds_are_summed_up_as_mean_and_range(tmp_path):
    make_run(tmp_path, CELL, [SURE] * 4, seconds=10)
    make_run(tmp_path, dataclasses.replace(CELL, seed=1), [SURE, WRONG] * 2, seconds=20)
    grid = dataclasses.replace(GRID, seeds=(0, 1, 2))
    table = tables.table3(tmp_path, grid, SETTINGS)
    assert column(table, "seeds") == ["0/3", "2/3"]
    assert "75.0 (50.0..100.0)" in table.texts()[1]
    times = tables.table1(tmp_path, grid, SETTINGS)
    assert times.texts()[1][-2:] == ["45.3", "15.0 (10.0..20.0)"]
    assert times.texts()[0][-1] == "not measured"
    assert "abacus (wood)" in times.caption
    table.write(tmp_path)
    with (tmp_path / "tables" / "table3.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[1]
    assert float(row["accuracy, ours (%)"]) == 75
    assert float(row["accuracy, ours (%), least"]) == 50
    assert float(row["accuracy, ours (%), most"]) == 100


@pytest.mark.parametrize(
    "settings",
    [
        dataclasses.replace(SETTINGS, num_draws=200),
        dataclasses.replace(SETTINGS, num_examples=2),
    ],
)
def test_results_of_other_settings_are_not_shown(tmp_path, settings):
    make_run(tmp_path, CELL, [SURE] * 4)
    assert measured.certified(tmp_path, CELL, SETTINGS) is not None
    assert measured.certified(tmp_path, CELL, settings) is None
    assert measured.certified(tmp_path, CELL, SETTINGS, num_masks=2) is None
    assert measured.certified(tmp_path, dataclasses.replace(CELL, keep=0.5), SETTINGS) is None
    with np.load(tmp_path / CELL.run / "counts-1.npz") as file:
        arrays = {**file, "settings": np.array("{}")}
    runs.write_npz(tmp_path / CELL.run / "counts-1.npz", **arrays)
    with pytest.raises(UserError, match="is damaged"):
        measured.certified(tmp_path, CELL, SETTINGS)


def test_table2_is_counted_in_the_data(tmp_path):
    data_files.write_archive(tmp_path / "ucr")
    grid = dataclasses.replace(GRID, datasets=("CBF",))
    (row,) = tables.table2(grid, str(tmp_path / "ucr")).texts()
    assert row == [
        "CBF",
        "Simulated",
        "12 (paper: 30)",
        "24 (paper: 900)",
        "3",
        "16 (paper: 128)",
        "33.3",
        "directory",
    ]


def test_table4_reads_the_rates_of_an_attack(tmp_path):
    record = {
        "attacks": [
            {"epsilon": e, "wrong_of_initially_correct": e / 2, "wrong_of_all": e / 4}
            for e in plan.EPSILONS
        ],
        "num_examples": 4,
    }
    cell = dataclasses.replace(CELL, dataset="CricketX")

    def write(attacked, name, rates=record, **changes):
        asked = plan.attack_settings(attacked, SETTINGS) | {"data": {"num_test": 9}} | changes
        file = tmp_path / attacked.run / f"attack-{asked['target']}-4ex-{name}.json"
        runs.write_json(file, {**rates, "settings": asked})

    for attacked in (cell, plan.benign(cell)):
        write(attacked, "ours")
    # Newer ones that are not the paper's.
    nothing = {**record, "attacks": []}
    for name, change in (
        ("steps", {"steps": 1}),
        ("target", {"target": "mean_logits"}),
        ("draws", {"num_draws": 7}),
        ("rounded", {"precision": "bfloat16"}),
        ("masks", {"mask_design": "balanced"}),
        ("hidden", {"hidden_as": "last"}),
    ):
        write(cell, name, nothing, **change)
    grid = dataclasses.replace(GRID, datasets=("CricketX",))
    table = tables.table4(tmp_path, grid, SETTINGS)
    assert column(table, "ensemble") == ["benign"] * 4 + ["single"] * 4 + ["mc"] * 4
    assert table.texts()[0][-4:] == ["22.0", "12.5", "-9.5", "6.2"]
    assert table.texts()[4][-1] == "not measured"
    assert table.texts()[11][-4:] == ["39.0", "50.0", "+11.0", "25.0"]
    with pytest.raises(UserError, match="not written by"):
        measured.attack_rates({"attacks": [{}]})
    every = dataclasses.replace(SETTINGS, num_examples=None)
    assert measured.attack_success(tmp_path, cell, every) == {}  # 4 of 9 are not all


def test_the_plan_knows_what_attack_py_does_unless_told():
    source = (ROOT / "experiments" / "attack.py").read_text()
    for name, value in plan.ATTACK.items():
        assert re.search(rf'DEFINE_integer\(\s*"{name}", {value},', source)
    told = dataclasses.replace(SETTINGS, attack=("--steps=5", "--restarts=2"))
    found = plan.attack_settings(CELL, told)
    assert (found["steps"], found["restarts"], found["attack_draws"]) == (5, 2, 16)


def test_the_bounds_of_figure2_lie_in_their_order(tmp_path):
    drawing = figures.figure2()
    (axes,) = drawing.figure.axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    cohen, best = lines.pop("Cohen et al., tight"), lines.pop("Renyi, best order")
    assert (cohen >= best - 1e-9).all()
    assert len(lines) == len(figures.RENYI_ORDERS)
    for values in lines.values():
        assert (best >= values - 1e-9).all()
        assert values.max() > 0.5
    drawing.write(tmp_path)
    png, svg = drawing.paths(tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in svg.read_bytes()


def test_figures_of_curves_show_what_was_measured_and_say_what_was_not(tmp_path):
    make_run(tmp_path, CELL, [SURE, SURE, UNSURE, WRONG])
    half = dataclasses.replace(CELL, keep=0.5)
    make_run(tmp_path, half, [SURE, UNSURE, UNSURE, WRONG])
    (fourth,) = figures.figure4(tmp_path, GRID, SETTINGS)
    assert [axes.get_title() for axes in fourth.figure.axes] == ["sigma 0.4"]
    (line,) = fourth.figure.axes[0].lines
    assert line.get_ydata()[0] == 50  # two of four certified and right
    assert "Not measured: sigma 0.4 single." in fourth.caption
    (sixth,) = figures.figure6(tmp_path, GRID, SETTINGS, (0.5, 0.9))
    assert [line.get_label() for line in sixth.figure.axes[0].lines] == ["keep 0.5", "keep 0.9"]
    assert [line.get_ydata()[0] for line in sixth.figure.axes[0].lines] == [25, 50]
    masked = dataclasses.replace(GRID, ensembles=("mb", "mc"))
    (fifth,) = figures.figure5(tmp_path, masked, SETTINGS, (1, 5))
    assert "Not measured: mb m = 1, mb m = 5, mc m = 1." in fifth.caption
    assert fifth.figure is None  # one size alone is no comparison
    make_run(tmp_path, dataclasses.replace(CELL, ensemble="mb"), [SURE] * 4)
    (sixth,) = figures.figure6(tmp_path, masked, SETTINGS, (0.5, 0.9))
    assert [axes.get_title() for axes in sixth.figure.axes] == ["mc"]
    make_run(tmp_path, dataclasses.replace(CELL, ensemble="single"), [SURE, SURE, SURE, WRONG])
    (sixth,) = figures.figure6(tmp_path, GRID, SETTINGS, (0.5, 0.9))
    curves = {line.get_label(): line.get_ydata()[0] for line in sixth.figure.axes[0].lines}
    assert curves == {"keep 0.5": 25, "keep 0.9": 50, "single": 75}
    (nothing,) = figures.figure4(tmp_path / "empty", GRID, SETTINGS)
    assert nothing.figure is None
    nothing.write(tmp_path)
    assert not (tmp_path / "figures").exists()


def test_there_is_room_for_the_legend_above_the_margins():
    drawn = np.random.default_rng(0).normal(size=(1, 500))
    found = {"mc": measured.Margins(np.arange(1), drawn, 2 * drawn, np.ones(1), [])}
    for axes in figures.draw_margins(found).axes:
        tallest = max(bar.get_height() for bar in axes.patches)
        assert 1.4 * tallest < axes.get_ylim()[1] < 2 * tallest
        assert [text.get_text().split(":")[0] for text in axes.get_legend().get_texts()] == ["mc"]


def test_a_network_without_masks_has_its_rows_in_the_theory_table(tmp_path, monkeypatch):
    margin = np.array([[1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 2.0, 6.0]])
    drawn = measured.Margins(np.array([3, 7]), margin, margin, np.array([0.5, 0.75]), [])
    monkeypatch.setattr(tables, "margins", lambda *_: drawn)
    alone = dataclasses.replace(GRID, ensembles=("single",))
    table, parts = tables.theory(tmp_path, alone, SETTINGS)
    assert parts.rows == []
    headings = [column.heading for column in table.columns]
    rows = [dict(zip(headings, row, strict=True)) for row in table.rows]
    assert [row["series"] for row in rows] == [3, 7]
    assert [row["masks fixed, measured"] for row in rows] == pytest.approx([5 / 3, 4.0])
    of_margins = [heading for heading in headings if heading.startswith("p_A, measured")]
    assert [[row[heading] for heading in of_margins] for row in rows] == [[0.5], [0.75]]


def test_tables_and_figures_are_named_and_titled_before_anything_is_measured(tmp_path):
    given = tmp_path, GRID, SETTINGS
    items = [
        *(make(*given) for make in (tables.table1, tables.table3, tables.gains, tables.table4)),
        tables.table2(GRID, str(tmp_path)),
        *tables.theory(*given),
        *figures.figure4(*given),
        *figures.figure5(*given, (1, 5)),
        *figures.figure6(*given, (0.5, 0.9)),
    ]
    known = {
        "table1": "Table 1: training time",
        "table3": "Table 3: accuracy and average certified radius",
        "table3_gains": "Table 3: what an ensemble adds to single",
        "table4": "Table 4: attack success rate",
        "table2": "Table 2: data sets",
        "theory": "Theory: variance of the margin and p_A, predicted and measured",
        "theory_parts": "Theory: what enters Lemma 4.2, and its assumptions",
        "figure4-CBF-inception_time": "Figure 4: ",
        "figure5-CBF-inception_time": "Figure 5: ",
        "figure6-CBF-inception_time": "Figure 6: ",
    }
    assert [(item.name.partition("-sigma")[0]) for item in items] == list(known)
    for item, title in zip(items, known.values(), strict=True):
        assert item.title.startswith(title)
        assert (item.title == title) == isinstance(item, tables.Table)
        assert len(item.caption) > 60
        item.write(tmp_path)
    written = sorted(path.stem for path in (tmp_path / "tables").iterdir())
    assert written == sorted(name for name in known if not name.startswith("figure"))


def test_the_report_needs_nothing_but_itself(tmp_path):
    make_run(tmp_path, CELL, [SURE] * 4)
    job = plan.train(CELL, SETTINGS)
    failed = jobs.Outcome(job.id, "", job.run, "", "failed", "1", "2026-01-01", "h", "d", "<oops>")
    jobs.write(tmp_path, [failed])
    items = [
        tables.table3(tmp_path, GRID, SETTINGS),
        *figures.figure4(tmp_path, GRID, SETTINGS),
        *figures.figure5(tmp_path / "empty", GRID, SETTINGS, (1, 5)),
    ]
    page = report.write(tmp_path, SETTINGS, items).read_text()
    references = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')>\s]{0,30})""", page)
    assert references
    assert all(
        reference.startswith(("data:image/svg+xml;base64,", "#")) for reference in references
    )
    assert "<script" not in page
    assert "&lt;oops&gt;" in page
    assert "1 row not measured</summary>" in page  # `single`, whose run there is not
    assert "<li>Figure 5: " in page
    assert 'class="number"' in page


# The command


def command(*arguments):
    return [sys.executable, str(ROOT / "experiments" / "reproduce.py"), *arguments]


def call(folder, *arguments, status=0):
    done = forked.run(ROOT / "experiments" / "reproduce.py", arguments, folder)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


TINY = ("--datasets=CBF", "--models=lstm_fcn", "--sigmas=0.4", "--ensembles=mc", "--data_dir=ucr")
TINY += ("--profile=smoke", "--epochs=2", "--num_examples=3")


def test_from_nothing_to_a_table_a_figure_and_the_theory_check(tmp_path):
    data_files.write_archive(tmp_path / "ucr")
    process = subprocess.Popen(
        command("--what=table1,table3,figure3,theory", *TINY),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = tmp_path / "results/runs/CBF/lstm_fcn/mc/sigma=0.4/seed=0"
    limit = time.monotonic() + 120
    while not (run / "config.json").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # while it trains
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    # The signal may come just after the training's end; no other job was started in any case.
    (outcome,) = jobs.read(tmp_path / "results").values()
    assert outcome.status in ("interrupted", "done")

    done = call(tmp_path, "--what=table1,table3,figure3,theory", *TINY, "--report")
    assert {o.status for o in jobs.read(tmp_path / "results").values()} == {"done"}
    assert "[3/3] margins" in done.stderr
    (record,) = run.glob("certificates-*.json")
    acr = json.loads(record.read_text())["summary"]["ACR (wrong or abstained = 0)"]
    with (tmp_path / "results/tables/table3.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["ACR, valid"]) == pytest.approx(acr)
    with (tmp_path / "results/tables/theory.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["m"] for row in rows[:5]] == ["1", "2", "5", "10", "20"]
    assert all(float(row["masks fixed, predicted"]) > 0 for row in rows)
    with (tmp_path / "results/tables/table1.csv").open(newline="") as file:
        assert 0 < float(next(csv.DictReader(file))["ours (s)"]) < 300
    assert (tmp_path / "results/figures/figure3-CBF-lstm_fcn-sigma0.4.png").exists()
    assert (tmp_path / "results/report.html").exists()


REFUSED = [
    ([], "--what is empty"),
    (["--what=table5"], "--what: unknown 'table5'; choose from table1"),
    (["--what=table3", "--datasets=CBF,Coffee"], "--datasets: unknown 'Coffee'"),
    (["--what=table3", "--models=resnet"], "--models: unknown 'resnet'"),
    (["--what=table3", "--ensembles=mx"], "--ensembles: unknown 'mx'"),
    (["--what=figure5", "--ensembles=de"], "--ensembles leaves nothing of figure5"),
    (["--what=table3", "--sigmas=0.4,x"], "--sigmas must be numbers"),
    (["--what=table3", "--sigmas=0"], "--sigmas must be numbers"),
    (["--what=table3", "--sigmas=9e-7"], "--sigmas must be numbers of at least 1e-06"),
    (["--what=table3", "--seeds=-1"], "--seeds must be numbers"),
    (["--what=table3", "--seeds="], "--seeds must be numbers"),
    (["--what=table3", "--seeds=0,4294967296"], "of at least 0 and below 4294967296, separated"),
    (["--what=table3", "--sigmas=0.12345678"], "more than six digits; 0.123457 would do"),
    (["--what=table3", "--epochs=0"], "--epochs must be at least 1"),
    (["--what=table3", "--num_examples=0"], "--num_examples must be at least 1"),
    (["--what=table3", "--time_limit=0"], "--time_limit=0.0: must be more than 0 minutes"),
    (["--what=table3", "--time_limit=nan"], "--time_limit=nan: must be more than 0 minutes"),
    (["--what=table3", "--data_dir=nowhere"], "--data_dir: 'nowhere' is not a folder"),
    (["--what=table2", "--results_dir=old"], "old holds results of other settings: epochs is 3"),
    (
        ["--what=table2", "--results_dir=old", "--profile=smoke", "--class_weights=none"],
        "class_weights is 'balanced', not 'none'",
    ),
    (["--report", "--merge=old"], "old holds results of other settings: epochs is 3, not 1000"),
    (["--merge=nowhere"], "--merge: 'nowhere' is not another results directory"),
]
TRY_ALL = """
import json, sys
import reproduce
from absl import flags
from selfens_jax.errors import UserError
for arguments in json.loads(sys.argv[1]):
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    try:
        flags.FLAGS(["reproduce.py", *arguments])
        reproduce.main()
        print("accepted")
    except (UserError, flags.Error) as error:
        print(error)
"""


def test_bad_flags_are_refused_before_anything_is_written(tmp_path):
    runs.write_json(tmp_path / "old" / "settings.json", dataclasses.asdict(SETTINGS))
    done = subprocess.run(
        [sys.executable, "-c", TRY_ALL, json.dumps([arguments for arguments, _ in REFUSED])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "experiments"), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(REFUSED), done.stderr
    for line, (_, says) in zip(lines, REFUSED, strict=True):
        assert says in line
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "settings.json"]
    refused = call(tmp_path, "--what=table5", status=1)
    assert refused.stderr.startswith("error: --what: unknown 'table5'")
    assert len(refused.stderr.splitlines()) == 1

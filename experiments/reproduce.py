"""Reproduces the paper's tables and figures: its numbers, ours its way, ours with valid radii.

    python experiments/reproduce.py --what=table3 --profile=smoke
    python experiments/reproduce.py --what=all --profile=paper --time_limit=600 --report

Runs train.py, certify.py, attack.py and margins.py, one job after another, and then reads what they
wrote. A killed call, started again, goes on; jobs that failed are tried again.
"""

import dataclasses
from pathlib import Path

from common import cli

from absl import flags
from reproduction import estimates, figures, jobs, measured, plan, report, tables
from reproduction.plan import Grid, Settings

from selfens_jax import certificates, data, locks, models, runs, training
from selfens_jax.errors import UserError

flags.DEFINE_list("what", [], f"Any of {', '.join(plan.NAMES)}, or all.")
flags.DEFINE_list("datasets", None, "Only these data sets; each table has its own default.")
flags.DEFINE_list("models", None, "Only these architectures.")
flags.DEFINE_list("sigmas", None, "Only these noise levels.")
flags.DEFINE_list("ensembles", None, "Only these ensembles.")
flags.DEFINE_list("seeds", ["0"], "Every run once for each of these seeds.")
flags.DEFINE_enum(
    "profile", "paper", list(plan.PROFILES), "smoke: a little of everything, to see that it works."
)
flags.DEFINE_integer("epochs", None, "Instead of the profile's.")
flags.DEFINE_integer("num_draws", None, "n, instead of the profile's.")
flags.DEFINE_integer("num_examples", None, "Evenly spaced test series, instead of the profile's.")
flags.DEFINE_integer(
    "num_attacked",
    None,
    "Test series that are attacked, instead of as many as are certified.",
)
flags.DEFINE_enum(
    "class_weights", None, list(training.CLASS_WEIGHTS), "As train.py's, instead of the profile's."
)
cli.define_path("data_dir", None, "A folder in the archive's layout: NAME/NAME_TRAIN.tsv.")
cli.define_path("results_dir", "results", "Where runs, tables and figures are kept.")
cli.define_time_limit("Minutes after which it stops; call it again to go on.")
flags.DEFINE_integer(
    "side_by_side",
    None,
    f"Runs of one train.py or certify.py, which differ in sigma and seed; {jobs.SIDE_BY_SIDE} on a "
    "GPU or TPU if not given, and 1 on a CPU. Table 1's trainings have one each, for their time.",
)
flags.DEFINE_bool("dry_run", False, "Say what would be run and how much work it is, and stop.")
cli.define_path("merge", None, "Another results directory, whose finished jobs to take over.")
flags.DEFINE_bool("report", False, "Write everything there is to report.html.")
flags.DEFINE_bool("compilation_cache", True, "Let the scripts keep compiled programs.")
FLAGS = flags.FLAGS

LISTED = 20  # jobs named at the end, of those that failed or did not run


def main() -> None:
    names = check_what()
    settings = check_settings()
    grids = {name: check_grid(name) for name in plan.NAMES}
    if FLAGS.data_dir is not None and not Path(FLAGS.data_dir).is_dir():
        raise UserError(f"--data_dir: {FLAGS.data_dir!r} is not a folder")
    results_dir = Path(FLAGS.results_dir)
    if FLAGS.merge is not None:
        other = Path(FLAGS.merge)
        if not (other / "settings.json").exists() or other.absolute() == results_dir.absolute():
            raise UserError(f"--merge: {FLAGS.merge!r} is not another results directory")
        check_same_settings(other, settings)
    check_same_settings(results_dir, settings)
    for name in names:
        if not grids[name].ensembles:
            known = ", ".join(plan.GRIDS[name].ensembles)
            raise UserError(f"--ensembles leaves nothing of {name}, which has {known}")
    if FLAGS.dry_run:
        todo, _ = planned(names, grids, settings, results_dir)
        print(estimates.text(todo, results_dir))
        return
    with locks.held(results_dir / ".lock", f"a reproduction in {results_dir}"):
        reproduce(names, grids, settings, results_dir)


def reproduce(
    names: tuple[str, ...], grids: dict[str, Grid], settings: Settings, results_dir: Path
) -> None:
    """Runs the jobs of the tables and figures asked for, and shows what came out."""
    if not (results_dir / "settings.json").exists():
        runs.write_json(results_dir / "settings.json", dataclasses.asdict(settings))
    if FLAGS.merge is not None:
        jobs.merge(results_dir, Path(FLAGS.merge))
    todo, alone = planned(names, grids, settings, results_dir)
    if todo:
        limit = None if FLAGS.time_limit is None else 60 * FLAGS.time_limit
        common = [f"--data_dir={FLAGS.data_dir}"] if FLAGS.data_dir is not None else []
        common += [] if FLAGS.compilation_cache else ["--nocompilation_cache"]
        jobs.run_all(todo, results_dir, common, limit, FLAGS.side_by_side, alone)
    shown = plan.NAMES if FLAGS.report else names
    made = make({name: grids[name] for name in shown}, settings, results_dir)
    for name in names:
        for item in made[name]:
            print(item.text(results_dir), end="\n\n")
    if FLAGS.report:
        file = report.write(
            results_dir, settings, [item for items in made.values() for item in items]
        )
        print(f"written to {file}")
    say_what_is_left(todo, results_dir)


def planned(
    names: tuple[str, ...], grids: dict[str, Grid], settings: Settings, results_dir: Path
) -> tuple[list[jobs.Job], set[str]]:
    """The jobs of the tables and figures asked for, and the ids of those timed alone."""
    every = plan.all_jobs({name: grids[name] for name in names}, settings, FLAGS.profile)
    alone = timed_alone(names, grids, settings)
    outcomes = jobs.read(results_dir).values()
    failed = {outcome.id for outcome in outcomes if outcome.status == jobs.FAILED}
    return plan.with_members_taken(every, alone | failed), alone


def timed_alone(names: tuple[str, ...], grids: dict[str, Grid], settings: Settings) -> set[str]:
    """The ids of the trainings whose own time Table 1 has: the paper's, and those asked for."""
    seeds = cli.listed_seeds(FLAGS)
    timed = [dataclasses.replace(plan.GRIDS["table1"], seeds=seeds)]
    timed += [grids["table1"]] if "table1" in names else []
    return {plan.train(cell, settings).id for grid in timed for cell in grid.cells()}


def make(
    grids: dict[str, Grid], settings: Settings, results_dir: Path
) -> dict[str, list[tables.Table | figures.Drawing]]:
    """Each table and figure of what has been measured so far, written to the results directory."""
    makers = {
        "table1": lambda grid: [tables.table1(results_dir, grid, settings)],
        "table2": lambda grid: [tables.table2(grid, FLAGS.data_dir)],
        "table3": lambda grid: [
            table(results_dir, grid, settings) for table in (tables.table3, tables.gains)
        ],
        "table4": lambda grid: [tables.table4(results_dir, grid, settings)],
        "figure2": lambda grid: [figures.figure2()],
        "figure3": lambda grid: figures.figure3(results_dir, grid, settings),
        "figure4": lambda grid: figures.figure4(results_dir, grid, settings),
        "figure5": lambda grid: figures.figure5(
            results_dir, grid, settings, plan.ensemble_sizes(FLAGS.profile)
        ),
        "figure6": lambda grid: figures.figure6(
            results_dir, grid, settings, plan.keeps(FLAGS.profile)
        ),
        "theory": lambda grid: tables.theory(results_dir, grid, settings),
    }
    made = {name: makers[name](grid) for name, grid in grids.items()}
    for items in made.values():
        for item in items:
            item.write(results_dir)
    return made


def say_what_is_left(todo: list[jobs.Job], results_dir: Path) -> None:
    """Says what is still to be done.

    Raises:
      UserError: if a job failed.
    """
    left = jobs.missing(todo, results_dir)
    for state, ids in left.items():
        for job_id in ids[:LISTED]:
            cli.say(f"{state}: {job_id}")
        if len(ids) > LISTED:
            cli.say(f"{state}: {len(ids) - LISTED} more")
    if left["failed"]:
        raise UserError(
            f"{len(left['failed'])} of {len(todo)} jobs failed, {results_dir / 'jobs.csv'} says "
            "why; the same command tries them again"
        )


# Flags


def check_what() -> tuple[str, ...]:
    if not FLAGS.what and not FLAGS.report and FLAGS.merge is None:
        raise UserError(f"--what is empty; choose from {', '.join(plan.NAMES)}, all")
    check_known("what", (*plan.NAMES, "all"))
    return plan.NAMES if "all" in FLAGS.what else tuple(dict.fromkeys(FLAGS.what))


def check_known(name: str, known: tuple[str, ...]) -> None:
    for value in FLAGS[name].value or ():
        if value not in known:
            raise UserError(f"--{name}: unknown {value!r}; choose from {', '.join(known)}")


def check_settings() -> Settings:
    """The profile with its overrides."""
    numbers_given = ("epochs", "num_draws", "num_examples", "num_attacked")
    for name in numbers_given:
        value = FLAGS[name].value
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")
    if FLAGS.side_by_side is not None and FLAGS.side_by_side < 1:
        raise UserError(f"--side_by_side must be at least 1, not {FLAGS.side_by_side}")
    if FLAGS.dry_run and (FLAGS.merge is not None or FLAGS.report):
        raise UserError("--dry_run changes nothing; leave out --merge and --report")
    settings = plan.PROFILES[FLAGS.profile]
    given = {name: FLAGS[name].value for name in (*numbers_given, "class_weights")}
    given = {name: value for name, value in given.items() if value is not None}
    settings = dataclasses.replace(settings, **given)
    try:
        certificates.check_budget(settings.num_draws, measured.ALPHA, num_classes=2)
    except UserError as error:
        raise UserError(f"--num_draws: {error}") from None
    return settings


def check_grid(name: str) -> Grid:
    """What a table or figure ranges over, after the filters."""
    check_known("datasets", data.PAPER_DATASETS)
    check_known("models", tuple(models.NAMES))
    check_known("ensembles", plan.ENSEMBLES)
    grid = plan.GRIDS[name] if FLAGS.profile == "paper" else plan.smoke(plan.GRIDS[name])
    given = {
        name: tuple(dict.fromkeys(getattr(FLAGS, name)))
        for name in ("datasets", "models")
        if getattr(FLAGS, name)
    }
    if FLAGS.sigmas is not None:
        given["sigmas"] = cli.numbers(FLAGS, "sigmas", float, 1e-6)
        for sigma in given["sigmas"]:
            if float(f"{sigma:g}") != sigma:  # as jobs are named
                raise UserError(f"--sigmas={sigma!r}: more than six digits; {sigma:g} would do")
    if FLAGS.ensembles is not None:
        given["ensembles"] = tuple(e for e in grid.ensembles if e in FLAGS.ensembles)
    return dataclasses.replace(grid, seeds=cli.listed_seeds(FLAGS), **given)


def check_same_settings(results_dir: Path, settings: Settings) -> None:
    """Results of different settings must not stand in one table."""
    file = results_dir / "settings.json"
    if not file.exists():
        return
    asked = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(settings).items()
    }
    differences = runs.differences(runs.read_json(file), asked)
    if differences:
        raise UserError(
            f"{results_dir} holds results of other settings: {differences}; "
            "choose another --results_dir or these settings"
        )


if __name__ == "__main__":
    cli.run(main)

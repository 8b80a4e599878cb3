"""Certifies test series of a trained run (Algorithm 2): counts votes, turns them into radii.

    python experiments/certify.py --ensemble=mc
    python experiments/certify.py --ensemble=mc --sigmas=0.4,0.8 --seeds=0,1
    python experiments/certify.py --from_counts=runs/.../counts-....npz --alpha=0.01
    python experiments/certify.py --ensemble=mc --target_radius=0.4
    python experiments/certify.py --run_dir=runs/... --series=new.npz --report
    python experiments/certify.py --ensemble=mc --explain=17
    python experiments/certify.py --ensemble=mw --burst=4,8,16

A killed command, started again, goes on and ends with the same files.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import cli, decisions, double_masking, processes, summaries, trained

import numpy as np
from absl import flags

from selfens_jax import (
    blocks,
    certificates,
    counting,
    coverage,
    metrics,
    noise,
    paths,
    runs,
    smoothing,
)
from selfens_jax.errors import UserError, check_resolution
from selfens_jax.runs import records
from selfens_jax.runs.records import Counts

cli.define_run_flags()
cli.define_several()
for module in (trained, processes, decisions, double_masking):
    module.define_flags()
flags.DEFINE_float("alpha", 0.001, "Probability that a certificate is false, for each example.")
flags.DEFINE_float(
    "alpha_total",
    None,
    "Probability that any certificate of the command is false; alpha is its share.",
)
flags.DEFINE_enum(
    "interval",
    "clopper_pearson",
    certificates.INTERVALS,
    "clopper_pearson is exact; goodman is approximate; sison_glaz does not hold.",
)
flags.DEFINE_enum(
    "bound", "cohen", certificates.BOUNDS, "cohen is tight; renyi is the paper's Theorem 4.1."
)
flags.DEFINE_bool(
    "paper", False, "Radii as the paper's code computes them. They are NOT valid certificates."
)
cli.define_path("from_counts", None, "Certify saved counts again, without a model.")
cli.define_path(
    "series",
    None,
    "Certify the series of this file, with labels or without.",
)
flags.DEFINE_bool(
    "labelled", None, "Whether the lines of --series, if it is text, begin with a label."
)
flags.DEFINE_bool("report", False, "Write a page, .html, with every series and its certificate.")
flags.DEFINE_integer(
    "explain", None, "Print all that the radius of one series covers; its idx in the table."
)
FLAGS = flags.FLAGS
WITH_SAVED_COUNTS = ("from_counts", "output_dir", "compilation_cache")  # beside this file's own


def main() -> None:
    check_flags()
    if FLAGS.from_counts is not None:
        path = Path(FLAGS.from_counts)
        counted = records.read_counts(path)
        alpha = alpha_of_each(len(counted.indices))
        num_classes = len(counted.settings["data"]["classes"])
        check_budget(counted.settings["num_draws"], num_classes, alpha, path)
        folder = trained.output_folder(path.parent)
        return write(counted, folder, path.stem.removeprefix("counts-"))
    share = processes.start()
    found = trained.find_runs(noisy=not FLAGS["burst"].present)
    several = len(found) > 1
    for run, config in found:
        with told_of(run if several else None):
            check_draws(config)
    written = []
    for number, (run, config) in enumerate(found, start=1):
        if several:
            cli.say(f"[{number}/{len(found)}] {run}")
            if share.process == 0:
                print(run, flush=True)
        with told_of(run if several else None):
            written.append(certify(run, config, share))
    # Not before all are done: a killed command goes on with the noise of the runs that it finished.
    for job in written:
        if job is not None:
            job.forget_seed()
    return None


@contextlib.contextmanager
def told_of(run: Path | None) -> Iterator[None]:
    """Inside, errors say the run that they are of, if it is one of several."""
    try:
        yield
    except UserError as error:
        if run is None or str(run) in str(error):
            raise
        raise UserError(f"{run}: {error}") from None


def check_draws(config: dict[str, Any]) -> None:
    """Raises UserError, before anything is loaded, if they could certify nothing of such a run."""
    if FLAGS["burst"].present:
        double_masking.check_budget(config)
    elif FLAGS.target_radius is not None:
        decisions.check_budget(config)
    elif FLAGS.alpha_total is None:
        check_budget(FLAGS.num_draws, len(config["data"]["classes"]), FLAGS.alpha)


def certify(run: Path, config: dict[str, Any], share: counting.Share) -> counting.Job | None:
    """Certifies the series of the flags under one run; what was done, if this process wrote it."""
    folder = trained.output_folder(run)
    if FLAGS["burst"].present:
        windows = double_masking.check_budget(config)
        job = make_job(run, config, blocks.default_batch_size())
        certified = double_masking.certify(job, windows, folder, share)
        if certified is not None:
            double_masking.write(*certified, folder, job.num_members)
        return None if certified is None else job
    if FLAGS.target_radius is not None:
        edges = decisions.check_budget(config)
        job = make_job(run, config, decisions.default_batch_size(config))
        levels = (FLAGS.target_radius, FLAGS.alpha, FLAGS.alpha_futility)
        show = decisions.beside_the_bar
        decided = counting.decide_examples(job, edges, *levels, folder, share, show)
        if decided is not None:
            decisions.write(decided, folder, job.num_members)
        return None if decided is None else job
    job = make_job(run, config, blocks.default_batch_size())
    counted = counting.count_examples(job, FLAGS.num_draws, folder, share, Progress(job))
    if counted is not None:
        records.write_counts(folder, counted)
        drawn = "" if job.seed_file is None else f" --noise_seed={job.settings['noise_seed']}"
        write(counted, folder, counted.name, job.x[job.chosen], drawn)
    return None if counted is None else job


def make_job(run: Path, config: dict[str, Any], batch_size: int) -> counting.Job:
    """What the flags ask of a run; `batch_size` if --batch_size is not given.

    Raises:
      UserError: if the flags contradict the run or each other.
    """
    cli.check_precision()
    x, labels, series_settings = load_series(run, config)
    chosen = counting.evenly_spaced(FLAGS.num_examples, len(x))
    noisy = not FLAGS["burst"].present or double_masking.under_noise()
    if noisy:
        check_noise(x[chosen], config)
    if FLAGS.alpha_total is not None:
        alpha = alpha_of_each(len(chosen))
        check_budget(FLAGS.num_draws, len(config["data"]["classes"]), alpha)
    if FLAGS.explain is not None and FLAGS.explain not in chosen:
        raise UserError(
            f"--explain={FLAGS.explain}: that series is not certified; give one of the "
            f"{len(chosen)} from {chosen[0]} to {chosen[-1]} that are"
        )
    predict, classifier = trained.load_classifier(run)
    if FLAGS.consensus is not None:
        predict = smoothing.consensus(predict, FLAGS.consensus)
        classifier["consensus"] = FLAGS.consensus
    at_random = FLAGS.noise_seed == trained.RANDOM
    at_random |= FLAGS.noise_seed is None and FLAGS.series is not None
    at_random &= noisy
    seed = 0 if at_random else trained.noise_seed(config)
    settings = {
        **trained.shared_settings(config, classifier, seed if noisy else None),
        **series_settings,
    }
    if noisy:
        settings["draws_per_block"] = blocks.default_draws_per_block(x.shape[1])
        settings["precision"] = FLAGS.precision
    seed_file = None
    if at_random:
        names = ("num_draws", "target_radius", "max_draws", "alpha", "burst", "stride")
        asked = [FLAGS[name].value for name in names]
        identity = records.short_id([settings, chosen.tolist(), asked])
        seed_file = trained.output_folder(run) / f".noise_seed-{identity}.json"
        settings["noise_seed"] = trained.draw_seed(seed_file)
    return counting.Job(
        x=x,
        labels=labels,
        chosen=chosen,
        predict=predict,
        settings=settings,
        batch_size=batch_size if FLAGS.batch_size is None else FLAGS.batch_size,
        mesh=counting.local_mesh(),
        seed_file=seed_file,
    )


def load_series(run: Path, config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The series (n, T, C) to certify, their labels (n,), and what settings say of them."""
    if FLAGS.series is None:
        dataset = trained.load_data(run, config)
        return dataset.x_test, dataset.y_test, {}
    series, prepared = cli.load_new_series(FLAGS, config["data"])
    labels = np.full(len(series.x), -1) if series.labels is None else series.labels
    described = {"name": series.name, "sha256": series.sha256, "number": len(series.x)}
    return series.x, labels, {"series": {**described, **prepared}}


def check_noise(x: np.ndarray, config: dict[str, Any]) -> None:
    """Raises UserError, before anything is written, for series that are too large for the noise."""
    sigma, described = config["sigma"], config["data"]
    try:
        check_resolution(x, sigma, described.get("units", ()))
        if grid := trained.grid_setting(sigma):
            noise.check_grid(grid["grid"], sigma, x)
    except UserError as error:
        given = described["name"] if FLAGS.series is None else FLAGS.series
        raise UserError(f"{paths.shown(given)}: {error}") from None


def check_flags() -> None:
    """Raises UserError for flags that do not fit together or lie outside their range."""
    if not 0 < FLAGS.alpha < 1:
        raise UserError(f"--alpha must be between 0 and 1, not {FLAGS.alpha}")
    if FLAGS.alpha_total is not None:
        if not 0 < FLAGS.alpha_total < 1:
            raise UserError(f"--alpha_total must be between 0 and 1, not {FLAGS.alpha_total}")
        if FLAGS["alpha"].present:
            raise UserError("--alpha_total sets alpha; leave out --alpha, or --alpha_total")
        if FLAGS.interval != "clopper_pearson":
            raise UserError(f"--interval={FLAGS.interval} proves no alpha; leave out --alpha_total")
        if FLAGS["sigmas"].present or FLAGS["seeds"].present:
            raise UserError(
                "--alpha_total is shared by the series of one run; give one --sigma and one --seed"
            )
    if FLAGS.num_draws < 1:
        raise UserError(f"--num_draws must be at least 1, not {FLAGS.num_draws}")
    if FLAGS.from_counts is not None:
        for module in (cli, trained, processes, decisions):
            for flag in FLAGS.flags_by_module_dict()[module.__name__]:
                if flag.present and flag.name not in WITH_SAVED_COUNTS:
                    raise UserError(
                        f"--from_counts has its votes, with all they rest on; leave out "
                        f"--{flag.name}"
                    )
    if FLAGS.report and FLAGS.from_counts is not None:
        raise UserError("--report draws the series, which --from_counts lacks; leave it out")
    if FLAGS.report and FLAGS.target_radius is not None:
        raise UserError("--report is of radii, --target_radius of one; leave one of them out")
    if FLAGS["burst"].present:
        double_masking.check_flags()
    elif FLAGS["stride"].present:
        raise UserError("--stride is of the windows of --burst; leave it out")
    if FLAGS.missing == "hide" and (
        FLAGS.series is None or not FLAGS["burst"].present or double_masking.under_noise()
    ):
        raise UserError(
            "--missing=hide is for --series with --burst and without noise; zero, last and linear "
            "fill missing values"
        )
    if FLAGS.labelled is not None and FLAGS.series is None:
        raise UserError("--labelled is of the lines of --series; leave it out")
    if FLAGS.explain is not None:
        if FLAGS.from_counts is not None:
            raise UserError("--explain needs the series, which --from_counts lacks; leave it out")
        if FLAGS.paper or FLAGS.interval != "clopper_pearson":
            raise UserError("--explain is of valid certificates; leave it out")
    if FLAGS.paper:
        for name in ("alpha", "alpha_total", "interval", "bound", "target_radius"):
            if FLAGS[name].present:
                raise UserError(f"--paper fixes the interval, bound and level; leave out --{name}")
    if FLAGS.target_radius is not None:
        for name in ("num_draws", "alpha_total", "interval", "bound", "from_counts", "explain"):
            if FLAGS[name].present:
                raise UserError(f"--target_radius chooses its draws and test; leave out --{name}")
        if not 0 < FLAGS.alpha_futility < 1:
            raise UserError(f"--alpha_futility must be between 0 and 1, not {FLAGS.alpha_futility}")


def alpha_of_each(num_examples: int) -> float:
    if FLAGS.alpha_total is None:
        return FLAGS.alpha
    return metrics.alpha_of_each(FLAGS.alpha_total, num_examples)


def check_budget(
    num_draws: int, num_classes: int, alpha: float, where: str | Path = "--num_draws"
) -> None:
    """Raises UserError, which begins with `where`, if so many draws could certify nothing."""
    if FLAGS.paper:
        return  # which never abstains
    try:
        certificates.check_budget(num_draws, alpha, num_classes, FLAGS.interval, FLAGS.bound)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


class Progress:
    """What stands beside the progress bar: the share certified, and correct, so far."""

    def __init__(self, job: counting.Job) -> None:
        self.job, self.done, self.right = job, 0, 0
        self.alpha = alpha_of_each(len(job.chosen))

    def __call__(self, examples: np.ndarray, votes: np.ndarray) -> str:
        prediction = certify_votes(votes, self.job.settings, self.alpha).prediction
        labels = self.job.labels[examples]
        self.done += len(examples)
        if (self.job.labels < 0).all():
            self.right += int((prediction >= 0).sum())
            return f"certified {self.right / self.done:.1%}"
        self.right += int((prediction == labels).sum())
        return f"certified and correct {self.right / self.done:.1%}"


def certify_votes(
    counts: np.ndarray, settings: dict[str, Any], alpha: float
) -> certificates.Certificates:
    """The certificates of votes (N, K) that the flags ask for."""
    sigma = settings["sigma"]
    if FLAGS.paper:
        return certificates.certify_counts_as_published(counts, sigma)
    asked = (alpha, FLAGS.interval, FLAGS.bound)
    return certificates.certify_counts(counts, sigma, *asked, noise.given_up(settings))


def write(
    counted: Counts,
    folder: Path,
    name: str,
    series: np.ndarray | None = None,
    drawn: str = "",
) -> None:
    """Writes the certificates, their record, curve and page; prints what they come to.

    Args:
      counted, folder, name: the votes, and where and under what name the files are written.
      series: (N, T, C), for what the radii cover and for the page; None where not at hand.
      drawn: the flag that gives the noise again, if its seed was drawn at random.
    """
    number, total = len(counted.indices), FLAGS.alpha_total
    certified = certify_votes(counted.counts, counted.settings, alpha_of_each(number))
    how = f"alpha{FLAGS.alpha:g}"
    if total is not None:
        how = f"alpha_total{total:g}"
        at_once = f"{certified.statement}, all {number} at once with at least 1 - {total:g}"
        certified = dataclasses.replace(certified, statement=at_once)
    if FLAGS.paper:
        how = "paper"
    elif (FLAGS.interval, FLAGS.bound) != ("clopper_pearson", "cohen"):
        how += f"-{FLAGS.interval}-{FLAGS.bound}"
    stem = f"certificates-{name}-{how}"
    table = summaries.summary(counted, certified)
    covered = []
    if series is not None and certified.valid:
        units = counted.settings["data"].get("units", ())
        rows = zip(certified.radius, series, strict=True)
        covered = [coverage.cover(radius, x, units=units) for radius, x in rows]
    file = f"counts-{name}.npz"
    records.write_certificates(folder, stem, counted, certified, table, file, covered, total)
    runs.write_bytes(folder / f"{stem}.png", summaries.curve(counted, certified))
    endings = [".json", ".png"]
    if FLAGS.report and series is not None:
        runs.write_bytes(folder / f"{stem}.html", summaries.page(counted, certified, series))
        endings.append(".html")
    cli.print_summary(
        counting.title(counted.settings, len(counted.indices)),
        certified.statement,
        counted.settings,
        table,
        f"{folder / stem}.tsv ({', '.join(endings)})",
    )
    lines = summaries.covered_in_short(counted, covered, drawn)
    if FLAGS.explain is not None:
        lines = summaries.covered_in_full(counted, certified, covered, FLAGS.explain)
    print(*lines, sep="\n", end="\n" * bool(lines))


if __name__ == "__main__":
    cli.run(main)

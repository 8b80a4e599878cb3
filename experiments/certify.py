"""Certifies test series of a trained run (Algorithm 2): counts votes, turns them into radii.

    python experiments/certify.py --ensemble=mc
    python experiments/certify.py --from_counts=runs/.../counts-....npz --alpha=0.01
    python experiments/certify.py --ensemble=mc --target_radius=0.4

A killed command, started again, goes on and ends with the same files.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from common import cli, counting, decisions, trained

from selfens_jax import certificates, metrics, plots, runs, smoothing
from selfens_jax.errors import UserError

cli.define_run_flags()
for module in (trained, counting, decisions):
    module.define_flags()
for module in (cli, trained, counting, decisions):
    flags.adopt_module_key_flags(module)
flags.DEFINE_float("alpha", 0.001, "Probability that a certificate is false, for each example.")
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
FLAGS = flags.FLAGS
WITH_SAVED_COUNTS = ("from_counts", "output_dir", "compilation_cache")  # beside this file's own


@dataclasses.dataclass(frozen=True)
class Counts:
    """The votes of one certification, and everything they depend on."""

    indices: np.ndarray  # (N,) places in the test split
    counts: np.ndarray  # (N, K)
    labels: np.ndarray  # (N,) class indices
    forwards: np.ndarray  # (N,) forward passes of a network
    settings: dict[str, Any]
    seconds: np.ndarray  # (N,) zero where unknown


def main() -> None:
    check_flags()
    if FLAGS.from_counts is not None:
        path = Path(FLAGS.from_counts)
        counted = read_counts(path)
        check_budget(counted.settings["num_draws"], len(counted.settings["data"]["classes"]))
        folder = trained.output_folder(path.parent)
        report(counted, certify(counted), folder, path.stem.removeprefix("counts-"))
    elif FLAGS.target_radius is not None:
        decisions.decide(counting.start_processes())
    else:
        counted, folder = count(counting.start_processes())
        name = counts_name(counted)
        write_counts(folder / f"counts-{name}.npz", counted)
        report(counted, certify(counted), folder, name)


def check_flags() -> None:
    """Raises UserError for flags that do not fit together or lie outside their range."""
    if not 0 < FLAGS.alpha < 1:
        raise UserError(f"--alpha must be between 0 and 1, not {FLAGS.alpha}")
    if FLAGS.from_counts is not None:
        for module in (cli, trained, counting, decisions):
            for flag in FLAGS.flags_by_module_dict()[module.__name__]:
                if flag.present and flag.name not in WITH_SAVED_COUNTS:
                    raise UserError(
                        f"--from_counts has its votes, with all they rest on; leave out "
                        f"--{flag.name}"
                    )
    if FLAGS.paper:
        for name in ("alpha", "interval", "bound", "target_radius"):
            if FLAGS[name].present:
                raise UserError(f"--paper fixes the interval, bound and level; leave out --{name}")
    if FLAGS.target_radius is not None:
        for name in ("num_draws", "interval", "bound", "from_counts"):
            if FLAGS[name].present:
                raise UserError(f"--target_radius chooses its draws and test; leave out --{name}")
        if not 0 < FLAGS.alpha_futility < 1:
            raise UserError(f"--alpha_futility must be between 0 and 1, not {FLAGS.alpha_futility}")


def check_budget(num_draws: int, num_classes: int) -> None:
    """Raises UserError if nothing could be certified with so many draws."""
    if FLAGS.paper:
        return  # which never abstains
    try:
        certificates.check_budget(num_draws, FLAGS.alpha, num_classes, FLAGS.interval, FLAGS.bound)
    except UserError as error:
        raise UserError(f"--num_draws: {error}") from None


# Counting


def count(processes: tuple[int, int]) -> tuple[Counts, Path]:
    """Counts the votes of the run that the flags name, going on where an earlier call stopped."""
    if FLAGS.num_draws < 1:
        raise UserError(f"--num_draws must be at least 1, not {FLAGS.num_draws}")
    run, config = trained.find_run(noisy=True)
    check_budget(FLAGS.num_draws, len(config["data"]["classes"]))
    job = counting.prepare(
        run, config, smoothing.default_draws_per_block(), smoothing.default_batch_size()
    )
    settings = {**job.settings, "num_draws": FLAGS.num_draws}
    labels, num_classes = job.dataset.y_test, job.dataset.num_classes

    def measure(some: np.ndarray) -> list[tuple[int, ...]]:
        counts, forwards = job.count(some, 0, FLAGS.num_draws)
        return [tuple(map(int, row)) for row in np.column_stack([forwards, counts])]

    done, certified_and_correct = 0, 0

    def show(new: dict[int, runs.Entry]) -> str:
        nonlocal done, certified_and_correct
        if not new:
            return ""
        alpha = certificates.PAPER_ALPHA if FLAGS.paper else FLAGS.alpha
        counts = np.array([entry.values[1:] for entry in new.values()])
        certified = certificates.certify_counts(counts, settings["sigma"], alpha)
        certified_and_correct += int((certified.prediction == labels[list(new)]).sum())
        done += len(new)
        return f"certified and correct {certified_and_correct / done:.1%}"

    entries = counting.measure_examples(
        processes,
        job.folder / f"votes-{counting.short(settings)}",
        settings,
        lambda values: len(values) == 1 + num_classes and sum(values[1:]) == FLAGS.num_draws,
        job.chosen,
        max(1, job.batch_size // FLAGS.num_draws),
        measure,
        show,
    )
    values = np.array([entries[i].values for i in job.chosen])
    return Counts(
        indices=job.chosen,
        counts=values[:, 1:],
        labels=labels[job.chosen].astype(np.int64),
        forwards=values[:, 0],
        settings=settings,
        seconds=np.array([entries[i].seconds for i in job.chosen]),
    ), job.folder


# Files


def counts_name(counted: Counts) -> str:
    settings = counted.settings
    size = f"m{settings['num_masks']}-" if settings["ensemble"] in ("mb", "mc") else ""
    return (
        f"n{settings['num_draws']}-{size}{len(counted.indices)}ex-"
        f"{counting.short([settings, counted.indices.tolist()])}"
    )


def write_counts(path: Path, counted: Counts) -> None:
    runs.write_npz(
        path,
        indices=counted.indices,
        counts=counted.counts,
        labels=counted.labels,
        forwards=counted.forwards,
        settings=np.array(json.dumps(counted.settings, sort_keys=True)),
    )


def read_counts(path: Path) -> Counts:
    arrays = runs.read_npz(path, ["indices", "counts", "labels", "forwards", "settings"])
    try:
        settings = json.loads(str(arrays.pop("settings")))
        shape = (len(arrays["indices"]), len(settings["data"]["classes"]))
        whole = arrays["counts"].shape == shape and arrays["labels"].shape == shape[:1]
        whole &= arrays["forwards"].shape == shape[:1]
        whole &= (arrays["counts"].sum(axis=1) == settings["num_draws"]).all()
        whole &= np.isin(arrays["labels"], range(shape[1])).all()
        whole &= {"sigma", "model", "ensemble"} <= settings.keys()
        whole &= {"name", "source", "scaling"} <= settings["data"].keys()
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{path} is damaged or was not written by certify.py")
    return Counts(settings=settings, seconds=np.zeros(len(arrays["indices"])), **arrays)


def certify(counted: Counts) -> certificates.Certificates:
    sigma = counted.settings["sigma"]
    if FLAGS.paper:
        return certificates.certify_counts_as_published(counted.counts, sigma)
    return certificates.certify_counts(
        counted.counts, sigma, FLAGS.alpha, FLAGS.interval, FLAGS.bound
    )


def report(counted: Counts, certified: certificates.Certificates, folder: Path, name: str) -> None:
    """Writes the certificates, their record and curve; prints what they come to."""
    settings, source = counted.settings, counted.settings["data"]
    if not FLAGS.paper and (FLAGS.interval, FLAGS.bound) == ("clopper_pearson", "cohen"):
        how = f"alpha{FLAGS.alpha:g}"
    else:
        how = "paper" if FLAGS.paper else f"alpha{FLAGS.alpha:g}-{FLAGS.interval}-{FLAGS.bound}"
    stem = f"certificates-{name}-{how}"
    correct = certified.prediction == counted.labels
    table = summary(counted, certified)

    names = cli.class_names(source)
    rows = [["idx", "label", "predict", "radius", "correct", "time"]]
    rows += [
        [
            str(index),
            names[label],
            names[prediction],
            certificates.format_radius(radius),
            str(int(right)),
            runs.seconds_text(seconds),
        ]
        for index, label, prediction, radius, right, seconds in zip(
            counted.indices,
            counted.labels,
            certified.prediction,
            certified.radius,
            correct,
            counted.seconds,
            strict=True,
        )
    ]
    runs.write_bytes(folder / f"{stem}.tsv", runs.file_text(rows))
    note = f"{certified.statement}; series: {cli.provenance(source)}"
    runs.write_json(
        folder / f"{stem}.json",
        {
            "statement": certified.statement,
            "valid": certified.valid,
            "alpha": certified.alpha,
            "interval": certified.interval,
            "bound": certified.bound,
            "radius_units": f"L2 norm, in the units of the series (scaling: {source['scaling']})",
            "num_examples": len(counted.indices),
            "abstain": names[certificates.ABSTAIN],
            "counts": f"counts-{name}.npz",
            "settings": settings,
            # JSON has no NaN (no correct prediction) and no infinity (Sison-Glaz): as text.
            "summary": {
                what: value if np.isfinite(value) else str(value) for what, value, _ in table
            },
        },
    )
    title = counting.title_of(settings, len(counted.indices))
    curve = {f"n = {settings['num_draws']}": (certified.radius, correct)}
    runs.write_bytes(
        folder / f"{stem}.png", plots.certified_accuracy_curve(curve, title, note=note)
    )

    written = f"{folder / stem}.tsv (.json, .png)"
    cli.print_summary(title, certified.statement, source, table, written)


def summary(counted: Counts, certified: certificates.Certificates) -> list[tuple[str, float, str]]:
    """What the certificates come to: (what, value, its format); radii in the series' units."""
    prediction, radius, labels = certified.prediction, certified.radius, counted.labels
    most_voted = counted.counts.argmax(axis=1)
    radii = np.array([0.25, 0.5, 1.0, 1.5, 2.0]) * counted.settings["sigma"]
    certified_accuracy = metrics.certified_accuracy(prediction, radius, labels, radii)
    shares = [
        ("accuracy of the most voted class", metrics.accuracy(most_voted, labels)),
        ("certified and correct", metrics.accuracy(prediction, labels)),
        ("abstentions", metrics.abstention_rate(prediction)),
        ("series of the most frequent class", metrics.most_frequent_share(labels)),
    ]
    means = [
        (
            "ACR (wrong or abstained = 0)",
            metrics.average_certified_radius(prediction, radius, labels),
        ),
        ("mean radius, all predictions", metrics.mean_radius(prediction, radius)),
        (
            "mean radius, correct predictions",
            metrics.mean_radius_of_correct(prediction, radius, labels),
        ),
    ]
    curve = [
        (f"certified accuracy at r = {r:g}", float(share))
        for r, share in zip(radii, certified_accuracy, strict=True)
    ]
    num_draws = counted.settings["num_draws"]
    cost = [("forward passes a draw", float(counted.forwards.mean() / num_draws))]
    forms = ((shares, ".2%"), (means, ".4f"), (curve, ".2%"), (cost, ".2f"))
    return [(what, value, form) for rows, form in forms for what, value in rows]


if __name__ == "__main__":
    cli.run(main)

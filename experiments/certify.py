"""Certifies test series of a trained run (Algorithm 2): counts votes, turns them into radii.

    python experiments/certify.py --ensemble=mc
    python experiments/certify.py --from_counts=runs/.../counts-....npz --alpha=0.01

A killed run, started again, goes on and ends with the same files.
"""

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import cli
import jax
import numpy as np
import trained
from absl import flags
from tqdm import tqdm

from selfens_jax import certificates, data, metrics, plots, runs, smoothing
from selfens_jax.errors import UserError
from selfens_jax.streams import stream

cli.define_run_flags()
trained.define_flags()
for module in (cli, trained):
    flags.adopt_module_key_flags(module)
flags.DEFINE_integer(
    "batch_size", None, "Noised series in flight; bounds memory, changes no result."
)
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
flags.DEFINE_string("from_counts", None, "Certify saved counts again, without a model.")
FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Counts:
    """The votes of one certification, and everything they depend on."""

    indices: np.ndarray  # (N,) places in the test split
    counts: np.ndarray  # (N, K)
    labels: np.ndarray  # (N,) class indices
    settings: dict[str, Any]
    seconds: np.ndarray  # (N,) zero where unknown


def main() -> None:
    if FLAGS.paper:
        for name in ("alpha", "interval", "bound"):
            if FLAGS[name].present:
                raise UserError(f"--paper fixes the interval, bound and level; leave out --{name}")
    elif not 0 < FLAGS.alpha < 1:
        raise UserError(f"--alpha must be between 0 and 1, not {FLAGS.alpha}")
    if FLAGS.from_counts is not None:
        path = Path(FLAGS.from_counts)
        counted, folder, name = read_counts(path), path.parent, path.stem.removeprefix("counts-")
    else:
        counted, folder = count()
        name = counts_name(counted)
        write_counts(folder / f"counts-{name}.npz", counted)
    report(counted, certify(counted), folder, name)


# Counting


def count() -> tuple[Counts, Path]:
    """Counts the votes of the run that the flags name, going on where an earlier call stopped."""
    run, config = trained.find_run()
    if config["sigma"] == 0:
        raise UserError(f"the run {run} was trained with sigma 0: without noise there is no radius")
    dataset = trained.load_data(run, config)
    chosen = runs.evenly_spaced(FLAGS.num_examples, len(dataset.x_test))
    if FLAGS.num_draws < 1:
        raise UserError(f"--num_draws must be at least 1, not {FLAGS.num_draws}")

    predict, classifier = trained.load_classifier(run, config, dataset)
    noise_seed = config["seed"] if FLAGS.noise_seed is None else FLAGS.noise_seed
    versions = runs.versions()
    settings = {
        **classifier,
        "data": config["data"],
        "sigma": config["sigma"],
        "num_draws": FLAGS.num_draws,
        "noise_seed": noise_seed,
        "platform": jax.devices()[0].platform,
        "versions": {name: versions[name] for name in ("selfens_jax", "jax")},
    }
    file = run / f"votes-{short(settings)}.tsv"
    votes = runs.open_votes(file, settings, dataset.num_classes)
    todo = np.array([i for i in chosen if i not in votes], int)
    batch_size = FLAGS.batch_size or smoothing.default_batch_size()
    per_call = max(1, batch_size // FLAGS.num_draws)
    show = Running(dataset, settings["sigma"], {i: votes[i].counts for i in chosen if i in votes})
    with tqdm(
        total=len(chosen), initial=len(chosen) - len(todo), unit="ex", desc="certifying"
    ) as bar:
        for start in range(0, len(todo), per_call):
            some = todo[start : start + per_call]
            began = time.monotonic()
            counts = smoothing.count_votes(
                predict,
                dataset.x_test[some],
                sigma=settings["sigma"],
                num_draws=FLAGS.num_draws,
                key=stream(noise_seed, "certification"),
                batch_size=batch_size,
                indices=some,
            )
            each = (time.monotonic() - began) / len(some)
            new = [runs.Votes(row, each) for row in counts]
            runs.append_votes(file, some, new)
            votes.update(zip(some.tolist(), new, strict=True))
            bar.set_postfix_str(show.add(some, counts))
            bar.update(len(some))
    return Counts(
        indices=chosen,
        counts=np.stack([votes[i].counts for i in chosen]),
        labels=dataset.y_test[chosen].astype(np.int64),
        settings=settings,
        seconds=np.array([votes[i].seconds for i in chosen]),
    ), run


class Running:
    """The certified accuracy so far, for the progress line."""

    def __init__(self, dataset: data.Dataset, sigma: float, known: dict[int, np.ndarray]) -> None:
        self.labels, self.sigma, self.certified, self.total = dataset.y_test, sigma, 0, 0
        if known:
            self.add(np.array(list(known)), np.stack(list(known.values())))

    def add(self, indices: np.ndarray, counts: np.ndarray) -> str:
        alpha = certificates.PAPER_ALPHA if FLAGS.paper else FLAGS.alpha
        certified = certificates.certify_counts(counts, self.sigma, alpha)
        self.certified += int((certified.prediction == self.labels[indices]).sum())
        self.total += len(indices)
        return f"certified and correct {self.certified / self.total:.1%}"


# Files


def short(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def counts_name(counted: Counts) -> str:
    settings = counted.settings
    size = f"m{settings['num_masks']}-" if settings["ensemble"] in ("mb", "mc") else ""
    return (
        f"n{settings['num_draws']}-{size}{len(counted.indices)}ex-"
        f"{short([settings, counted.indices.tolist()])}"
    )


def write_counts(path: Path, counted: Counts) -> None:
    runs.write_npz(
        path,
        indices=counted.indices,
        counts=counted.counts,
        labels=counted.labels,
        settings=np.array(json.dumps(counted.settings, sort_keys=True)),
    )


def read_counts(path: Path) -> Counts:
    arrays = runs.read_npz(path, ["indices", "counts", "labels", "settings"])
    try:
        settings = json.loads(str(arrays.pop("settings")))
        shape = (len(arrays["indices"]), len(settings["data"]["classes"]))
        whole = arrays["counts"].shape == shape and arrays["labels"].shape == shape[:1]
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

    classes = source["classes"]
    abstain = "abstain" if "-1" in classes else "-1"
    names = [*classes, abstain]  # a prediction of -1 picks the last
    rows = [["idx", "label", "predict", "radius", "correct", "time"]]
    rows += [
        [
            str(index),
            classes[label],
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
            "abstain": abstain,
            "counts": f"counts-{name}.npz",
            "settings": settings,
            # JSON has no NaN (no correct prediction) and no infinity (Sison-Glaz): as text.
            "summary": {
                what: value if np.isfinite(value) else str(value) for what, value, _ in table
            },
        },
    )
    title = (
        f"{source['name']}, {settings['model']}, {settings['ensemble']}, "
        f"sigma {settings['sigma']:g}, {len(counted.indices)} examples"
    )
    curve = {f"n = {settings['num_draws']}": (certified.radius, correct)}
    runs.write_bytes(
        folder / f"{stem}.png", plots.certified_accuracy_curve(curve, title, note=note)
    )

    print(title)
    print(f"  {certified.statement}")
    print(f"  series: {cli.provenance(source)}; radii are L2 norms in their units")
    for what, value, form in table:
        print(f"  {what:<44} {value:{form}}")
    print(f"  written to {folder / stem}.tsv (.json, .png)")


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
    forms = ((shares, ".2%"), (means, ".4f"), (curve, ".2%"))
    return [(what, value, form) for rows, form in forms for what, value in rows]


if __name__ == "__main__":
    cli.run(main)

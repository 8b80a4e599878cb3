"""How much a self-ensemble depends on which masks were drawn, and whether designs depend less.

    python experiments/studies/mask_designs.py --run_dir=runs/CBF/lstm_fcn/mc/sigma=0.8/seed=0 \
        --dataset=CBF --num_examples=40 --num_draws=100 --results_dir=results-masks

Of one run of train.py and its data set. Twenty sets of ten masks are drawn from twenty seeds, for
each design of `masks.DESIGNS`; the first m masks of a set make a self-ensemble. All sets are given
the same noise, so that they differ by their masks alone. A further design, `selected`, needs no
masks of its own: of 50 sets of independent masks it takes the one with the best score on noisy
training series.

    <results_dir>/<run>/logits/      the networks' answers under each mask, a file a set
    <results_dir>/<run>/table.md     mean and spread over seeds
    <results_dir>/<run>/spread.png

A killed call, started again, goes on.
"""

import dataclasses
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import app, flags
from tqdm import tqdm

from selfens_jax import certificates, counting, data, masks, metrics, plots, runs, smoothing
from selfens_jax.ensembles import SelfEnsemble
from selfens_jax.errors import UserError
from selfens_jax.streams import stream

FLAGS = flags.FLAGS
ALPHA = 0.001
SIZES = (1, 2, 5, 10)  # m
OF_A_SET = max(SIZES)
SELECTED_FROM = 50  # sets, of which the best is taken
SELECTED_SIZE = 5  # m
SELECTIONS = 40
TRAINING_SERIES, TRAINING_DRAWS = 60, 10
RADIUS = 0.5  # sigmas, of the certified accuracy


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """Of one network under P masks, for n draws of N series.

    Attributes:
      logits: (P, N, n, K).
      labels: (N,).
    """

    logits: np.ndarray
    labels: np.ndarray

    def votes(self, chosen: Any, draws: slice = slice(None)) -> np.ndarray:
        """(N, K) of the self-ensemble of some of the masks, by some of the draws."""
        mean = self.logits[chosen][:, :, draws].mean(axis=0)
        num_classes = mean.shape[-1]
        return (mean.argmax(axis=-1)[..., None] == np.arange(num_classes)).sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Spread:
    """Of a number over mask seeds.

    Attributes:
      mean: over the seeds.
      deviation: its standard deviation over them.
      of_masks: the part of it that is not from the draws: the root of the covariance of what two
        halves of the draws, which share the masks, come to.
    """

    mean: float
    deviation: float
    of_masks: float

    def cells(self, control: "Spread", seeds: int, scale: float, digits: int) -> list[str]:
        """The mean, how much more than the control's it is, and both deviations."""
        more = ""
        if control != self:
            difference = self.mean - control.mean
            error = math.hypot(self.deviation, control.deviation) / math.sqrt(seeds)
            more = with_error(scale * difference, scale * error, digits)
        numbers = (self.mean, self.deviation, self.of_masks)
        mean, *deviations = (f"{scale * number:.{digits}f}" for number in numbers)
        return [mean, more, *deviations]

    @classmethod
    def of(cls, values: np.ndarray, halves: np.ndarray) -> "Spread":
        """values: (seeds,); halves: (2, seeds)."""
        covariance = float(np.cov(halves)[0, 1])
        return cls(float(values.mean()), float(values.std(ddof=1)), math.sqrt(max(covariance, 0.0)))


def define_flags() -> None:
    """Defined by the command alone: other commands have flags of the same names."""
    flags.DEFINE_string("run_dir", None, "A run of train.py, mb or mc.", required=True)
    flags.DEFINE_string("dataset", "CBF", "What it was trained on.")
    flags.DEFINE_string("data_dir", None, "A folder in the archive's layout: NAME/NAME_TRAIN.tsv.")
    flags.DEFINE_integer("num_examples", None, "Evenly spaced test series; all if not given.")
    flags.DEFINE_integer("num_draws", 100, "Noise draws of each.")
    flags.DEFINE_integer("num_seeds", 20, "Sets of masks of each design.")
    flags.DEFINE_string("results_dir", "results-masks", "Where answers and tables are kept.")


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]!r}")
    run = Path(FLAGS.run_dir)
    model, stacked, config = runs.load_networks(run)
    if config["ensemble"] not in ("mb", "mc"):
        raise UserError(f"the run {run} is of {config['ensemble']}, which has no masks")
    if FLAGS.num_draws < 4 or FLAGS.num_seeds < 2:
        raise UserError("--num_draws must be at least 4 and --num_seeds at least 2")
    dataset = data.load(FLAGS.dataset, FLAGS.data_dir, scaling=config["data"]["scaling"])
    if data.describe(dataset) != config["data"]:
        raise UserError(f"the run {run} was trained on other data than {dataset.name}")
    predict, _ = runs.make_classifier(model, stacked, config)
    assert isinstance(predict, SelfEnsemble)
    name = (
        f"{dataset.name}-{config['model']}-{config['ensemble']}-sigma{config['sigma']:g}-"
        f"keep{config['keep']:g}-seed{config['seed']}-{runs.digest(stacked)[:6]}"
    )
    folder = Path(FLAGS.results_dir) / name

    chosen = counting.evenly_spaced(FLAGS.num_examples, len(dataset.x_test))
    shown = counting.evenly_spaced(min(TRAINING_SERIES, len(dataset.x_train)), len(dataset.x_train))
    of_test = dataset.x_test[chosen], dataset.y_test[chosen], FLAGS.num_draws
    of_training = dataset.x_train[shown], dataset.y_train[shown], TRAINING_DRAWS
    passes = FLAGS.num_seeds * OF_A_SET * (len(masks.DESIGNS) + 1)
    with tqdm(total=passes, unit="mask", desc="answers") as bar:
        answers = {
            design: [
                answered(folder, predict, config, design, seed, "test", *of_test, bar)
                for seed in range(FLAGS.num_seeds)
            ]
            for design in masks.DESIGNS
        }
        training = [
            answered(folder, predict, config, "independent", seed, "train", *of_training, bar)
            for seed in range(FLAGS.num_seeds)
        ]
    text = "\n".join(report(answers, pooled(training), config["sigma"])) + "\n"
    runs.write_bytes(folder / "table.md", text.encode())
    title = (
        f"{dataset.name}, {config['model']}, {config['ensemble']}, sigma {config['sigma']:g}, "
        f"keep {config['keep']:g}"
    )
    runs.write_bytes(folder / "spread.png", figure(answers, config["sigma"], title))
    print(text, end="")
    print(folder)


def answered(
    folder: Path,
    predict: SelfEnsemble,
    config: dict[str, Any],
    design: str,
    seed: int,
    split: str,
    x: np.ndarray,
    labels: np.ndarray,
    num_draws: int,
    bar: Any,
) -> Answers:
    """What the network answers under the masks of a seed, now or by an earlier call."""
    drawn = np.asarray(
        masks.draw(
            config["ensemble"],
            stream(seed, "masks"),
            OF_A_SET,
            x.shape[1],
            config["keep"],
            design=design,
        )
    )
    sigma = config["sigma"]
    settings = [runs.digest(drawn), runs.digest(predict.variables), len(x), num_draws]
    file = folder / "logits" / f"{split}-{design}-{seed}-{runs.digest(settings)[:8]}.npz"
    if not file.exists():
        logits = []
        for mask in drawn:
            one = dataclasses.replace(predict, masks=jnp.asarray(mask[None]))
            key = stream(config["seed"], "certification")
            logits.append(smoothing.draw_logits(one, x, sigma=sigma, num_draws=num_draws, key=key))
            bar.update()
        runs.write_npz(file, logits=np.stack(logits))
    else:
        bar.update(OF_A_SET)
    return Answers(runs.read_npz(file, ["logits"])["logits"], labels)


def pooled(answers: list[Answers]) -> Answers:
    return Answers(np.concatenate([a.logits for a in answers]), answers[0].labels)


# What they come to


def acr(votes: np.ndarray, labels: np.ndarray) -> float:
    """ACR / sigma of votes (N, K)."""
    return float(radii(votes, labels).mean())


def certified_accuracy(votes: np.ndarray, labels: np.ndarray) -> float:
    return float((radii(votes, labels) >= RADIUS).mean())


def radii(votes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) in units of sigma, 0 where wrong or abstained."""
    certified = certificates.certify_counts(votes, 1.0, ALPHA)
    return metrics.credited_radius(certified.prediction, certified.radius, labels)


def with_error(difference: float, error: float, digits: int) -> str:
    return f"{difference:+.{digits}f} ({error:.{digits}f})"


def spread(sets: list[Answers], size: int, value: Any) -> Spread:
    """Over the sets' first masks, so many of each."""
    half = sets[0].logits.shape[2] // 2
    parts = (slice(None), slice(None, half), slice(half, 2 * half))
    values = np.array(
        [[value(s.votes(slice(size), part), s.labels) for s in sets] for part in parts]
    )
    return Spread.of(values[0], values[1:])


def report(answers: dict[str, list[Answers]], training: Answers, sigma: float) -> Iterator[str]:
    """Lines of Markdown."""
    some = answers["independent"][0]
    error = radii(some.votes(slice(SELECTED_SIZE)), some.labels).std(ddof=1)
    number, draws = some.logits.shape[1:3]
    headings = ("ACR / sigma", "more", "spread", "of masks", f"certified at {RADIUS:g} sigma (%)")
    yield f"| m | design | {' | '.join([*headings, 'more', 'spread', 'of masks'])} |"
    yield "|---" * 10 + "|"
    for size in SIZES:
        radius = {design: spread(sets, size, acr) for design, sets in answers.items()}
        share = {design: spread(sets, size, certified_accuracy) for design, sets in answers.items()}
        for design, sets in answers.items():
            cells = [
                *radius[design].cells(radius["independent"], len(sets), 1, 4),
                *share[design].cells(share["independent"], len(sets), 100, 2),
            ]
            yield f"| {size} | {design} | {' | '.join(cells)} |"
    yield ""
    yield (
        f"{len(answers['independent'])} mask seeds, {number} test series, {draws} draws, the same "
        f"for all; sigma {sigma:g}. 'more': than independent masks, with its standard error over "
        "mask seeds. 'spread': the standard deviation over mask seeds, known to "
        f"{100 / math.sqrt(2 * (len(answers['independent']) - 1)):.0f} %. 'of masks': without the "
        "part that is from the draws. The standard error of the ACR over series is "
        f"{error / math.sqrt(number):.4f}."
    )
    yield ""
    yield from complementing(answers)
    yield ""
    yield from selection(pooled(answers["independent"]), training)


def complementing(answers: dict[str, list[Answers]]) -> Iterator[str]:
    """What averaging over masks brings, whatever luck a set has with each of its masks alone."""
    yield "| m | design | ACR / sigma, less the mean of its masks alone | more |"
    yield "|---" * 4 + "|"
    gains = {design: np.array([gain(each) for each in sets]) for design, sets in answers.items()}
    control = gains["independent"]
    for place, size in enumerate(SIZES[1:], 1):
        for design, found in gains.items():
            own, other = found[:, place], control[:, place]
            error = math.hypot(own.std(ddof=1), other.std(ddof=1)) / math.sqrt(len(own))
            more = "" if found is control else with_error(own.mean() - other.mean(), error, 4)
            yield f"| {size} | {design} | {own.mean():.4f} | {more} |"


def gain(answers: Answers) -> np.ndarray:
    """For each of `SIZES`, the ACR under so many masks less the mean of theirs one by one."""
    alone = [acr(answers.votes([mask]), answers.labels) for mask in range(OF_A_SET)]
    return np.array(
        [acr(answers.votes(slice(m)), answers.labels) - np.mean(alone[:m]) for m in SIZES]
    )


def selection(test: Answers, training: Answers) -> Iterator[str]:
    """What it brings to take the best of 50 sets of independent masks by their training series."""
    random = np.random.default_rng(0)
    sets = [
        random.choice(len(test.logits), SELECTED_SIZE, replace=False)
        for _ in range(SELECTIONS * SELECTED_FROM)
    ]
    reached = np.array([acr(test.votes(s), test.labels) for s in sets])
    yield "| score on training series | correlation with the ACR | ACR / sigma | spread |"
    yield "|---" * 4 + "|"
    yield f"| none: independent masks | | {reached.mean():.4f} | {reached.std(ddof=1):.4f} |"
    for name, score in (("margin of the logits", margin), ("votes that are right", right)):
        scores = np.array([score(training, s) for s in sets])
        by_group = scores.reshape(SELECTIONS, SELECTED_FROM).argmax(axis=1)
        best = reached.reshape(SELECTIONS, SELECTED_FROM)[np.arange(SELECTIONS), by_group]
        correlation = np.corrcoef(scores, reached)[0, 1] if scores.std() else math.nan
        error = best.std(ddof=1) / math.sqrt(SELECTIONS)
        yield (
            f"| {name} | {correlation:+.2f} | {best.mean():.4f} (error {error:.4f}) | "
            f"{best.std(ddof=1):.4f} |"
        )
    yield ""
    yield (
        f"m = {SELECTED_SIZE}: {SELECTIONS} times the best of {SELECTED_FROM} sets, of a pool of "
        f"{len(test.logits)} independent masks, by {len(training.labels)} training series with "
        f"{training.logits.shape[2]} draws. That all are of one pool is left out of the errors."
    )


def margin(answers: Answers, chosen: np.ndarray) -> float:
    """Mean of the label's logit over the best other one's."""
    mean = answers.logits[chosen].mean(axis=0)
    rows = np.arange(len(mean))
    own = mean[rows, :, answers.labels]
    others = mean.copy()
    others[rows, :, answers.labels] = -np.inf
    return float((own - others.max(axis=-1)).mean())


def right(answers: Answers, chosen: np.ndarray) -> float:
    votes = answers.votes(chosen)
    return float((votes[np.arange(len(votes)), answers.labels] / votes.sum(axis=1)).mean())


def figure(answers: dict[str, list[Answers]], sigma: float, title: str) -> bytes:
    """A PNG: the ACR of every set, by the number of its masks."""
    drawn = plots.new_figure(6.4, 4.2)
    axes = drawn.subplots()
    for place, (design, sets) in enumerate(answers.items()):
        for size in SIZES:
            values = [sigma * acr(s.votes(slice(size)), s.labels) for s in sets]
            centre = SIZES.index(size) + 0.16 * (2 * place - 1)
            across = centre + np.linspace(-0.1, 0.1, len(values))
            label = design if size == SIZES[0] else None
            colour = plots.COLOURS[place]
            axes.plot(across, values, "o", markersize=3.5, alpha=0.6, color=colour, label=label)
            axes.plot([centre - 0.13, centre + 0.13], [np.mean(values)] * 2, color=colour)
    axes.set_xticks(range(len(SIZES)), [str(size) for size in SIZES])
    axes.set(xlabel="masks, m", ylabel="average certified radius", title=title)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    note = "A dot is a set of masks, a line their mean. All sets are given the same noise."
    return plots.png(drawn, title, note)


def start(arguments: list[str]) -> None:
    try:
        main(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    define_flags()
    app.run(start)

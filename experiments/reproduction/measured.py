"""What the scripts wrote into run directories, read back for tables and figures.

Only records are read, never logs; radii are computed here from the counts, both ways.
"""

import csv
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from reproduction import jobs
from reproduction.plan import NUM_MASKS, Cell, Settings, attack_settings, train
from reproduction.theory import top_two

from selfens_jax import certificates, metrics, noise, runs
from selfens_jax.counting import evenly_spaced
from selfens_jax.errors import UserError
from selfens_jax.runs import records

PAPER = Path(__file__).parents[1] / "paper"
ALPHA = 0.001  # the paper's beta


@dataclasses.dataclass(frozen=True, eq=False)
class Certified:
    """One certified run: its counts, and the certificates that follow from them both ways."""

    counts: np.ndarray  # (N, K)
    labels: np.ndarray  # (N,)
    exact: certificates.Certificates  # valid at ALPHA
    published: certificates.Certificates  # the paper's procedure, not valid

    @property
    def correct(self) -> np.ndarray:
        """(N,) whether an example is certified and its class is the label."""
        return self.exact.prediction == self.labels

    @property
    def accuracy(self) -> float:
        """Of the most voted class: the paper's, which never abstains."""
        return metrics.accuracy(self.published.prediction, self.labels)

    @property
    def certified_accuracy(self) -> float:
        return metrics.accuracy(self.exact.prediction, self.labels)

    @property
    def published_radius(self) -> float:
        """The mean radius that the paper calls ACR; see `metrics`."""
        return metrics.mean_radius(self.published.prediction, self.published.radius)

    @property
    def credited_radius(self) -> np.ndarray:
        """(N,) valid radii, 0 where the class is not the label; their mean is the ACR."""
        return metrics.credited_radius(self.exact.prediction, self.exact.radius, self.labels)

    @property
    def acr(self) -> float:
        """The field's ACR of the valid certificates."""
        return metrics.average_certified_radius(
            self.exact.prediction, self.exact.radius, self.labels
        )


def certified(
    results_dir: Path, cell: Cell, settings: Settings, num_masks: int = NUM_MASKS
) -> Certified | None:
    """The certification of a cell under the settings; None if it was not measured."""
    wanted = {"num_draws": settings.num_draws, "noise_seed": cell.seed}
    if cell.masked:
        wanted |= {"num_masks": num_masks, "keep": cell.keep, "mask_seed": cell.seed}
    found = []
    for file in (results_dir / cell.run).glob("counts-*.npz"):
        counted = records.read_counts(file)
        chosen = evenly_spaced(settings.num_examples, counted.settings["data"]["num_test"])
        if (
            is_as_published(counted.settings)
            and np.array_equal(counted.indices, chosen)
            and not runs.differences(counted.settings, wanted)
        ):
            found.append((file.stat().st_mtime, file.name, counted))
    if not found:
        return None
    # Counted on another platform or version, a run has several: the last is what ours are.
    *_, counted = max(found, key=lambda latest: latest[:2])
    counts, sigma = counted.counts, counted.settings["sigma"]
    return Certified(
        counts=counts,
        labels=counted.labels,
        exact=certificates.certify_counts(
            counts, sigma, ALPHA, given_up=noise.given_up(counted.settings)
        ),
        published=certificates.certify_counts_as_published(counts, sigma),
    )


def training_seconds(results_dir: Path, cell: Cell, settings: Settings) -> float | None:
    """What the training of a cell took; None if it is not finished, or was not trained alone."""
    run, job_id, outcomes = results_dir / cell.run, train(cell, settings).id, jobs.read(results_dir)
    if job_id in outcomes and "--sigmas=" in outcomes[job_id].command:
        return None
    # Results that are handed on without their networks still have the list of jobs.
    done = jobs.is_done(job_id, outcomes, results_dir)
    return runs.read_training_time(run) if done or runs.is_finished(run) else None


def hardware(results_dir: Path, cells: Iterable[Cell]) -> str:
    """What the runs of the cells were trained on."""
    versions = [config["versions"] for config in configurations(results_dir, cells)]
    return ", ".join(sorted({f"{v['device']} ({v['machine']})" for v in versions}))


def sources(results_dir: Path, cells: Iterable[Cell]) -> str:
    """Where the series of the cells came from, in a sentence."""
    described = [config["data"] for config in configurations(results_dir, cells)]
    generated = sorted({data["name"] for data in described if data["source"] == "generated"})
    archive: list[str] = sorted({data["source"] for data in described} - {"generated"})
    origins = {"directory": "files in the archive's layout", "tslearn": "the UCR archive"}
    text = f" Series from {', '.join(origins.get(a, a) for a in archive)}." if archive else ""
    return text + (f" GENERATED, not the archive's: {', '.join(generated)}." if generated else "")


def configurations(results_dir: Path, cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """What the cells' runs that exist were asked for."""
    files = [results_dir / cell.run / "config.json" for cell in cells]
    return [runs.read_json(file) for file in files if file.exists()]


@dataclasses.dataclass(frozen=True, eq=False)
class Margins:
    """What margins.py wrote: N examples under n draws; A is the most voted class, B the next."""

    indices: np.ndarray  # (N,) in the test split
    score: np.ndarray  # (N, n) c_A
    margin: np.ndarray  # (N, n) c_A - c_B
    p_a: np.ndarray  # (N,) A's share of the votes
    checks: list[dict[str, Any]]  # the theory check of each example; only the index without masks


def margins(results_dir: Path, cell: Cell, settings: Settings) -> Margins | None:
    """The margins of a cell under the settings; None if they were not measured."""
    file = latest(results_dir, cell, f"margins-n{settings.num_draws}-*.json", {})
    if file is None:
        return None
    arrays = runs.read_npz(file.with_suffix(".npz"), ["indices", "logits"])
    rows = []
    for logits in arrays["logits"].astype(np.float64):
        top, second = top_two(logits)
        share = np.mean(logits.argmax(axis=1) == top)
        rows.append((logits[:, top], logits[:, top] - logits[:, second], share))
    score, margin, p_a = (np.stack(values) for values in zip(*rows, strict=True))
    return Margins(arrays["indices"], score, margin, p_a, runs.read_json(file)["examples"])


def attack_success(
    results_dir: Path, cell: Cell, settings: Settings
) -> dict[float, tuple[float, float]]:
    """epsilon -> attack success rates over initially correct and over all series; {} if unknown."""
    number = "*" if settings.attacked is None else settings.attacked
    wanted = attack_settings(cell, settings)
    pattern = f"attack-{wanted['target']}-{number}ex-*.json"
    file = latest(results_dir, cell, pattern, wanted)
    if file is None:
        return {}
    record = runs.read_json(file)
    if (
        settings.attacked is None
        and record["num_examples"] != record["settings"]["data"]["num_test"]
    ):
        return {}
    return attack_rates(record)


def is_as_published(settings: dict[str, Any]) -> bool:
    """Whether a record is of the paper's classifier and series, in float32."""
    others = {"consensus", "hidden_as", "mask_design", "series"} & settings.keys()
    return not others and settings.get("precision", "float32") == "float32"


def latest(results_dir: Path, cell: Cell, pattern: str, wanted: dict[str, Any]) -> Path | None:
    """The newest record of a run that is the paper's and as wanted, or None.

    Args:
      pattern: what its name is like.
      wanted: of its settings.
    """
    files = []
    for file in (results_dir / cell.run).glob(pattern):
        found = runs.read_json(file).get("settings", {})
        if is_as_published(found) and not runs.differences(found, wanted):
            files.append(file)
    return max(files, key=lambda file: (file.stat().st_mtime, file.name)) if files else None


# The paper's numbers


def paper_rows(file: str) -> list[dict[str, str]]:
    with (PAPER / file).open(newline="") as lines:
        return list(csv.DictReader(lines))


def paper_table3() -> dict[tuple[str, float, str, str], tuple[float, float]]:
    """(dataset, sigma, model, ensemble) -> (accuracy, the paper's ACR)."""
    return {
        (row["dataset"], float(row["sigma"]), row["model"], row["ensemble"]): (
            float(row["accuracy_percent"]) / 100,
            float(row["acr"]),
        )
        for row in paper_rows("table3.csv")
    }


def attack_rates(record: dict[str, Any]) -> dict[float, tuple[float, float]]:
    """epsilon -> attack success rates over initially correct and over all series, of a record."""
    try:
        return {
            float(row["epsilon"]): (
                float(row["wrong_of_initially_correct"]),
                float(row["wrong_of_all"]),
            )
            for row in record["attacks"]
        }
    except (KeyError, TypeError, ValueError):
        raise UserError("an attack-*.json is damaged or was not written by attack.py") from None

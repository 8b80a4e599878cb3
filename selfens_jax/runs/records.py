"""What commands write about a run, and read back: counts, certificates, decisions.

Tables have the columns of Cohen et al.'s tools, `idx label predict radius correct time`, beside a
.json that says what they rest on.
"""

import csv
import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfens_jax import certificates, sequential
from selfens_jax.bursts import Bursts
from selfens_jax.certificates import ABSTAIN, Certificates
from selfens_jax.coverage import Coverage
from selfens_jax.errors import UserError
from selfens_jax.runs.files import read_npz, write_bytes, write_json, write_npz

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
DECISION_COLUMNS = ("idx", "label", "predict", "decision", "draws", "forwards", "correct", "time")
BURST_COLUMNS = ("idx", "label", "burst", "predict", "certified", "lacks", "radius", "correct")
BURST_COLUMNS += ("time",)  # `lacks` and `radius` where there are any
DECISION_NAMES = {
    sequential.CERTIFIED: "certified",
    sequential.REJECTED: "rejected",
    sequential.OPEN: "undecided",
}
Summary = Sequence[tuple[str, float, str]]  # what, its value, the value's format


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """The votes of one certification, and everything they depend on.

    Attributes:
      indices: (N,) of the examples in their split or file.
      counts: (N, K) votes.
      labels: (N,) class indices, -1 where unknown.
      forwards: (N,) forward passes of a network.
      settings: what the votes depend on.
      seconds: (N,) that counting took; zero where unknown.
      series_sha256: (N,) which series these are, as `data.series_digest` begins; None in files of
        earlier versions.
    """

    indices: np.ndarray
    counts: np.ndarray
    labels: np.ndarray
    forwards: np.ndarray
    settings: dict[str, Any]
    seconds: np.ndarray
    series_sha256: np.ndarray | None = None

    @property
    def name(self) -> str:
        """What files of these counts are called, without prefix and suffix."""
        masked = self.settings["ensemble"] in ("mb", "mc")
        size = f"m{self.settings['num_masks']}-" if masked else ""
        identity = short_id([self.settings, self.indices.tolist()])
        return f"n{self.settings['num_draws']}-{size}{len(self.indices)}ex-{identity}"


def write_counts(folder: Path, counted: Counts) -> Path:
    path = folder / f"counts-{counted.name}.npz"
    write_npz(
        path,
        indices=counted.indices,
        counts=counted.counts,
        labels=counted.labels,
        forwards=counted.forwards,
        settings=np.array(json.dumps(counted.settings, sort_keys=True)),
        **({} if counted.series_sha256 is None else {"series_sha256": counted.series_sha256}),
    )
    return path


def read_counts(path: Path) -> Counts:
    """The counts of a counts-*.npz.

    Raises:
      UserError: if the file is damaged, or no such file.
    """
    arrays = read_npz(
        path, ["indices", "counts", "labels", "forwards", "settings"], optional=["series_sha256"]
    )
    settings: dict[str, Any] = {}
    try:
        settings = json.loads(str(arrays.pop("settings")))
        described = settings["data"]
        shape = (len(arrays["indices"]), len(described["classes"]))
        intact = arrays["counts"].shape == shape and arrays["labels"].shape == shape[:1]
        intact &= arrays["forwards"].shape == shape[:1]
        intact &= arrays.get("series_sha256", arrays["labels"]).shape == shape[:1]
        intact &= bool((arrays["counts"].sum(axis=1) == settings["num_draws"]).all())
        intact &= bool(np.isin(arrays["labels"], range(-1, shape[1])).all())
        intact &= {"sigma", "model", "ensemble"} <= settings.keys()
        intact &= {"name", "source", "scaling", "num_test"} <= described.keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise UserError(f"{path} is damaged or was not written by certify.py")
    return Counts(settings=settings, seconds=np.zeros(len(arrays["indices"])), **arrays)


def write_certificates(
    folder: Path,
    stem: str,
    counted: Counts,
    certified: Certificates,
    summary: Summary,
    counts_file: str,
    covered: Sequence[Coverage] = (),
    alpha_total: float | None = None,
) -> None:
    """Writes <stem>.tsv, a row an example, and <stem>.json, what the certificates rest on.

    Args:
      folder, stem: where, and the name without suffix.
      counted, certified: the votes and what they certify.
      summary: what it comes to.
      counts_file: the name of the file of votes.
      covered: what each radius covers, for (N,) examples; none where their series are not at hand.
      alpha_total: what alpha was divided from, if it was.
    """
    names, described = class_names(counted.settings["data"]), counted.settings["data"]
    rows = [
        [
            str(index),
            names[label] if label >= 0 else "",
            names[prediction],
            certificates.format_radius(radius),
            str(int(prediction == label)) if label >= 0 else "",
            seconds_text(seconds),
        ]
        for index, label, prediction, radius, seconds in zip(
            counted.indices,
            counted.labels,
            certified.prediction,
            certified.radius,
            counted.seconds,
            strict=True,
        )
    ]
    write_bytes(folder / f"{stem}.tsv", table_text([COLUMNS, *rows]))
    write_json(
        folder / f"{stem}.json",
        {
            "statement": certified.statement,
            "valid": certified.valid,
            "alpha": certified.alpha,
            **({} if alpha_total is None else {"alpha_total": alpha_total}),
            "interval": certified.interval,
            "bound": certified.bound,
            "radius_units": radius_units(described),
            "num_examples": len(counted.indices),
            "abstain": names[ABSTAIN],
            "counts": counts_file,
            "settings": counted.settings,
            "summary": finite_or_text(summary),
            **_hashes(counted.series_sha256),
            **({"covered": _columns(covered)} if covered else {}),
        },
    )


def _columns(covered: Sequence[Coverage]) -> dict[str, list[float | str]]:
    """What radii cover (`coverage`), a list for each kind of change, in the order of the table."""
    rows = [found.numbers().items() for found in covered]
    columns: dict[str, list[float | str]] = {}
    for name, value in itertools.chain.from_iterable(rows):
        columns.setdefault(name, []).append(value if math.isfinite(value) else str(value))
    return columns


def read_certificates(path: Path) -> dict[str, np.ndarray]:
    """The columns of a certificates-*.tsv: idx int, radius float, the others text.

    Raises:
      UserError: if the file cannot be read as one.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        if tuple(rows[0]) != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
            raise ValueError("it lacks the columns of certificates")
        columns = dict(zip(COLUMNS, map(np.array, zip(*rows[1:], strict=True)), strict=True))
        index, radius = columns["idx"].astype(int), columns["radius"].astype(float)
    except (OSError, ValueError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be read as certificates: {reason}") from None
    return columns | {"idx": index, "radius": radius}


@dataclasses.dataclass(frozen=True, eq=False)
class Decisions:
    """What examples came to at one target radius.

    Attributes:
      indices, labels, forwards, settings, seconds, series_sha256: as in `Counts`.
      candidate: (N,) the class in question.
      successes, tested: (N,) fresh draws that voted for it, and all.
      decision: (N,) of `sequential`.
    """

    indices: np.ndarray
    labels: np.ndarray
    forwards: np.ndarray
    candidate: np.ndarray
    successes: np.ndarray
    tested: np.ndarray
    decision: np.ndarray
    settings: dict[str, Any]
    seconds: np.ndarray
    series_sha256: np.ndarray

    @property
    def draws(self) -> np.ndarray:
        """All draws, those that chose the candidate included."""
        return self.settings["batches"][0] + self.tested

    @property
    def prediction(self) -> np.ndarray:
        """The class where it is certified, else ABSTAIN."""
        return np.where(self.decision == sequential.CERTIFIED, self.candidate, ABSTAIN)

    @property
    def stem(self) -> str:
        """What its files are called, without suffix."""
        identity = short_id([self.settings, self.indices.tolist()])
        radius, number = self.settings["target_radius"], len(self.indices)
        return f"target-r{radius:g}-{number}ex-{identity}"

    @property
    def statement(self) -> str:
        radius, alpha = self.settings["target_radius"], self.settings["alpha"]
        return (
            f"a class marked certified holds for every change with L2 norm up to {radius:g}, each "
            f"with probability at least {1 - alpha:g} (anytime-valid test on fresh draws)"
        )


def write_decisions(folder: Path, decided: Decisions, summary: Summary) -> None:
    """Writes target-*.tsv, a row an example, and target-*.json, what the decisions rest on."""
    described = decided.settings["data"]
    names, prediction, draws = class_names(described), decided.prediction, decided.draws
    rows = [
        [
            str(decided.indices[i]),
            names[label] if label >= 0 else "",
            names[prediction[i]],
            DECISION_NAMES[decided.decision[i]],
            str(draws[i]),
            str(decided.forwards[i]),
            str(int(prediction[i] == label)) if label >= 0 else "",
            seconds_text(decided.seconds[i]),
        ]
        for i, label in enumerate(decided.labels.tolist())
    ]
    write_bytes(folder / f"{decided.stem}.tsv", table_text([DECISION_COLUMNS, *rows]))
    write_json(
        folder / f"{decided.stem}.json",
        {
            "statement": decided.statement,
            "valid": True,
            "alpha": decided.settings["alpha"],
            "radius_units": radius_units(described),
            "num_examples": len(decided.indices),
            "abstain": names[ABSTAIN],
            "settings": decided.settings,
            "summary": {what: float(value) for what, value, _ in summary},
            **_hashes(decided.series_sha256),
        },
    )


@dataclasses.dataclass(frozen=True, eq=False)
class BurstResults:
    """The examples of a certification against bursts; its certificates are `bursts.Bursts`.

    Attributes:
      indices, labels, settings, seconds, series_sha256: as in `Counts`.
    """

    indices: np.ndarray
    labels: np.ndarray
    settings: dict[str, Any]
    seconds: np.ndarray
    series_sha256: np.ndarray

    def stem(self, alpha: float | None) -> str:
        """What the files are called, without suffix; alpha: with noise."""
        identity = short_id([self.settings, self.indices.tolist()])
        asked = self.settings["bursts"]
        lengths = "-".join(map(str, asked)) if len(asked) <= 6 else f"{asked[0]}to{asked[-1]}"
        noisy = "" if alpha is None else f"-n{self.settings['num_draws']}-alpha{alpha:g}"
        return f"bursts-b{lengths}-{len(self.indices)}ex-{identity}{noisy}"


def write_bursts(
    folder: Path,
    results: BurstResults,
    found: Sequence[Bursts],
    summary: Summary,
    alpha: float | None = None,
) -> None:
    """Writes bursts-*.tsv, a row for each example and burst length, and what it rests on, *.json.

    Args:
      folder: where.
      results, found: the examples, and their certificates for each length.
      summary: what they come to.
      alpha: with noise; then rows have a radius. Where series lack values, rows say which.
    """
    described, stem = results.settings["data"], results.stem(alpha)
    names, lacking = class_names(described), any(each.lacks.any() for each in found)
    rows = []
    for i, label in enumerate(results.labels.tolist()):
        for each in found:
            prediction, certified = each.prediction[i], bool(each.certified[i])
            rows.append(
                [
                    str(results.indices[i]),
                    names[label] if label >= 0 else "",
                    str(each.windows.burst),
                    names[prediction],
                    str(int(certified)),
                    *([str(int(each.lacks[i]))] if lacking else []),
                    *([] if each.radius is None else [certificates.format_radius(each.radius[i])]),
                    str(int(certified and prediction == label)) if label >= 0 else "",
                    seconds_text(results.seconds[i]),
                ]
            )
    present = {"radius": alpha is not None, "lacks": lacking}
    columns = [name for name in BURST_COLUMNS if present.get(name, True)]
    write_bytes(folder / f"{stem}.tsv", table_text([columns, *rows]))
    write_json(
        folder / f"{stem}.json",
        {
            "statement": [each.statement for each in found],
            "valid": True,
            **({} if alpha is None else {"alpha": alpha, "radius_units": radius_units(described)}),
            "windows": [dataclasses.asdict(each.windows) for each in found],
            "num_examples": len(results.indices),
            "abstain": names[ABSTAIN],
            "settings": results.settings,
            "summary": finite_or_text(summary),
            **_hashes(results.series_sha256),
        },
    )


def _hashes(series_sha256: np.ndarray | None) -> dict[str, list[str]]:
    """Which series a record's rows speak of, in their order."""
    return {} if series_sha256 is None else {"series_sha256": series_sha256.tolist()}


def class_names(described: Mapping[str, Any]) -> list[str]:
    """The classes of a record's data, and last, where a prediction of -1 finds it, abstention."""
    classes = described["classes"]
    names = ("-1", "abstain", *(f"abstain_{number}" for number in range(len(classes))))
    return [*classes, next(name for name in names if name not in classes)]


def radius_units(described: Mapping[str, Any]) -> str:
    if units := described.get("units"):
        return f"L2 norm, of series whose channels were divided by {', '.join(map(repr, units))}"
    return f"L2 norm, in the units of the series (scaling: {described['scaling']})"


def short_id(settings: Any) -> str:
    """Ten hexadecimal digits that tell settings apart, in names of files."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def finite_or_text(summary: Summary) -> dict[str, float | str]:
    """A summary for JSON, which has no NaN (no correct prediction) and no infinity (Sison-Glaz)."""
    return {what: value if np.isfinite(value) else str(value) for what, value, _ in summary}


def table_text(rows: Sequence[Sequence[str]]) -> bytes:
    """Rows of cells as tab-separated lines."""
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def seconds_text(seconds: float) -> str:
    """H:MM:SS.ffffff, the form of the `time` column in Cohen et al.'s files."""
    full = math.floor(seconds)
    micros = int((seconds - full) * 1e6)
    return f"{full // 3600}:{full // 60 % 60:02d}:{full % 60:02d}.{micros:06d}"

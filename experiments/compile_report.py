"""Compiles the library's programs for a TPU or GPU that is not there, and says what came of it.

    pip install ".[compile-tpu]"      or      pip install ".[compile-gpu]"
    python experiments/compile_report.py --target=v5e --what=certify --models=lstm_fcn
        [--lengths=128] [--precision=float32,bfloat16] [--num_devices=4] [--networks=5]
        [--output=FILE.csv] [--baseline=FILE.csv]

Each row is of one turn of a program's loop: a block of draws under all masks, a step of training or
of an attack. Temporary memory, kernels and collectives are the compiler's; so are a TPU's cycles,
which are its estimate and leave out what it has none for. On a GPU, megabytes are those that the
kernels read and write, and the time is a lower bound: all of it at the full rate of memory or
arithmetic. None of it is a measurement. Compiling takes seconds to minutes a row.
"""

import csv
import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common import cli

from absl import flags
from compilation import programs, targets
from compilation.programs import Case, Row

from selfens_jax import models, runs
from selfens_jax.blocks import PRECISIONS
from selfens_jax.errors import UserError

FLAGS = flags.FLAGS

KEY = ("target", "what", "model", "length", "precision", "ensemble", "num_members", "networks",
       "devices", "draws")  # fmt: skip
COLUMNS = {  # of the table: heading, format
    "compile_seconds": ("compile s", ".0f"),
    "temporary_mb": ("temp MB", ".0f"),
    "kernels": ("kernels", "d"),
    "moved_mb": ("moved MB", ".0f"),
    "collectives": ("collectives", "d"),
    "megacycles": ("Mcycles", ".2f"),
    "milliseconds": ("ms", ".2f"),
    "share": ("of peak", ".0%"),
}


def define_flags() -> None:
    """Defined by the command alone: other commands have flags of the same names."""
    flags.DEFINE_list("target", ["v5e"], f"Devices: any of {', '.join(targets.TARGETS)}.")
    flags.DEFINE_list("what", ["certify"], f"Programs: any of {', '.join(programs.WHAT)}.")
    flags.DEFINE_list("models", ["lstm_fcn"], f"Architectures: any of {', '.join(models.NAMES)}.")
    flags.DEFINE_list("lengths", ["128"], "Time steps of the series.")
    flags.DEFINE_list("precision", ["float32"], f"Of products: any of {', '.join(PRECISIONS)}.")
    flags.DEFINE_enum(
        "ensemble", "mc", ["single", "de", "mb", "mc"], "What is certified or attacked."
    )
    flags.DEFINE_integer("num_masks", 5, "Masks, or members of a deep ensemble.")
    flags.DEFINE_integer("networks", 1, "Networks that are trained side by side.")
    flags.DEFINE_integer("num_devices", 1, "Devices that blocks are spread over, up to 4.")
    flags.DEFINE_integer("draws_per_block", None, "Draws of a block; the library's if not given.")
    cli.define_path("output", None, "A CSV file for the rows, written as they come.")
    cli.define_path(
        "baseline", None, "A CSV file of earlier rows, which the new ones are compared to."
    )
    flags.DEFINE_bool("compilation_cache", False, "Keep compiled programs; hides compile times.")


def main() -> None:
    cases = make_cases()
    targets.prepare()
    before = {} if FLAGS.baseline is None else read_rows(Path(FLAGS.baseline))
    rows: list[Row] = []
    print(line("", [heading for heading, _ in COLUMNS.values()]))
    for number, case in enumerate(cases, 1):
        cli.say(f"compiling {number} of {len(cases)}: {titled(case)}")
        row = programs.compile_case(case)
        rows.append(row)
        print(shown(row), flush=True)
        if old := before.get(key_of(dataclasses.asdict(row))):
            print(compared(row, old), flush=True)
        elif FLAGS.baseline is not None:
            print("  not in the baseline", flush=True)
        if FLAGS.output is not None:
            write_rows(Path(FLAGS.output), rows)
    print("Compiled, not run: cycles are the compiler's estimate, a GPU's ms a lower bound.")


def make_cases() -> list[Case]:
    """What the flags ask for.

    Raises:
      UserError: for a value that is none of those there are.
    """
    known = {"target": targets.TARGETS, "what": programs.WHAT, "models": models.NAMES,
             "precision": PRECISIONS}  # fmt: skip
    for name, values in known.items():
        given: list[str] = FLAGS[name].value or []
        if not given:
            raise UserError(f"--{name} is empty")
        for value in given:
            if value not in values:
                raise UserError(f"--{name}: unknown {value!r}; choose from {', '.join(values)}")
    lengths = [checked_length(text) for text in FLAGS.lengths]
    limits = {"num_masks": 100, "networks": 1000, "num_devices": 4, "draws_per_block": 100_000}
    for name, limit in limits.items():
        value = FLAGS[name].value
        if value is not None and not 1 <= value <= limit:
            raise UserError(f"--{name} must be from 1 to {limit}, not {value}")
    if FLAGS.num_devices > 1 and FLAGS.what != ["certify"]:
        raise UserError("--num_devices: only --what=certify is spread over devices")
    if "attack" in FLAGS.what and FLAGS.precision != ["float32"]:
        raise UserError("--precision: attacks are in float32; leave it out for --what=attack")
    if FLAGS.networks > 1 and "train" not in FLAGS.what:
        raise UserError("--networks: only --what=train has networks side by side")
    each = (FLAGS.target, FLAGS.what, FLAGS.models, lengths, FLAGS.precision)
    return [
        Case(
            *words,
            ensemble=FLAGS.ensemble,
            num_members=1 if FLAGS.ensemble == "single" else FLAGS.num_masks,
            networks=FLAGS.networks if words[1] == "train" else 1,
            devices=FLAGS.num_devices,
            draws=FLAGS.draws_per_block,
        )
        for words in itertools.product(*each)
    ]


def checked_length(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 8 <= int(text) <= 100_000:
        raise UserError(f"--lengths: {text!r} is no number of time steps from 8 to 100000")
    return int(text)


def titled(case: Case) -> str:
    words = [case.target, case.what, case.model, str(case.length), case.precision]
    words += [case.ensemble] if case.ensemble != "mc" else []
    words += [f"x{case.networks}"] if case.networks > 1 else []
    words += [f"{case.devices} devices"] if case.devices > 1 else []
    return " ".join(words)


def shown(row: Row) -> str:
    cells = [cell(getattr(row, name), form) for name, (_, form) in COLUMNS.items()]
    return line(titled(row), cells)


def cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def compared(row: Row, old: dict[str, str]) -> str:
    """New divided by old, under each figure that both have."""
    cells = []
    for name in COLUMNS:
        new, was = getattr(row, name), float(old[name] or "nan")
        cells.append("" if new is None or not was > 0 else f"x {new / was:.2f}")
    return line("  against the baseline", cells)


def line(title: str, cells: Iterable[str]) -> str:
    widths = [max(len(heading), 8) for heading, _ in COLUMNS.values()]
    aligned = (f"{text:>{width}}" for text, width in zip(cells, widths, strict=True))
    return f"{title:<44}{'  '.join(aligned)}"


def key_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in KEY)


def write_rows(path: Path, rows: list[Row]) -> None:
    names = [field.name for field in dataclasses.fields(Row)]
    runs.write_csv(path, names, map(in_six_digits, rows))


def in_six_digits(row: Row) -> dict[str, Any]:
    values = dataclasses.asdict(row)
    return {n: f"{v:.6g}" if isinstance(v, float) else v for n, v in values.items()}


def read_rows(path: Path) -> dict[tuple[str, ...], dict[str, str]]:
    """Rows by what they are of.

    Raises:
      UserError: if the file is none that --output writes.
    """
    names = [field.name for field in dataclasses.fields(Row)]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        if reader.fieldnames != names:
            raise ValueError
        for row in rows:
            [float(row[name]) for name in COLUMNS if row[name]]
    except (ValueError, TypeError, csv.Error):
        raise UserError(f"--baseline: {path} is no table that --output writes") from None
    return {key_of(row): row for row in rows}


if __name__ == "__main__":
    define_flags()
    cli.run(main)

"""certify.py --target_radius: its flags, what it checks before the work, and what it prints.

The statement and its proof are in `selfens_jax.sequential`.
"""

from pathlib import Path
from typing import Any

from common import cli, trained

import numpy as np
from absl import flags

from selfens_jax import backend, blocks, counting, metrics, noise, sequential
from selfens_jax.errors import UserError
from selfens_jax.runs import records

FLAGS = flags.FLAGS
FIXED_DRAWS = 1000  # what the cost is compared with


def define_flags() -> None:
    flags.DEFINE_float(
        "target_radius", None, "Decide only whether this radius is certified, with few draws."
    )
    flags.DEFINE_integer(
        "max_draws", 2000, "With --target_radius: draws after which an example stays undecided."
    )
    flags.DEFINE_float(
        "alpha_futility", 0.05, "With --target_radius: probability of giving up an example wrongly."
    )


def check_budget(config: dict[str, Any]) -> tuple[int, ...]:
    """The schedule of draws.

    Raises:
      UserError: for a budget with which nothing could be certified on a run of this config.
    """
    block = blocks.default_draws_per_block(config["data"]["length"])
    edges = sequential.batches(block, block, max_draws=FLAGS.max_draws, block=block)
    try:
        given_up = noise.given_up({**config, **trained.grid_setting(config["sigma"])})
        p0 = sequential.certified_share(FLAGS.target_radius, config["sigma"], given_up)
        sequential.check_budget(edges, p0, FLAGS.alpha)
    except UserError as error:
        raise UserError(
            f"--target_radius={FLAGS.target_radius:g} --max_draws={FLAGS.max_draws}: {error}"
        ) from None
    return edges


def default_batch_size(config: dict[str, Any]) -> int:
    """On a CPU one block a call, whose one program serves every batch of draws."""
    if backend.on_cpu():
        return blocks.default_draws_per_block(config["data"]["length"])
    return blocks.default_batch_size()


def beside_the_bar(seen: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in seen.items())


def summary(decided: records.Decisions, num_members: int) -> list[tuple[str, float, str]]:
    """What the decisions come to: (what, value, its format)."""
    labels, draws, forwards = decided.labels, decided.draws, decided.forwards
    fixed = FIXED_DRAWS * num_members
    certified = decided.prediction == labels
    table, names = [], records.DECISION_NAMES
    if (labels >= 0).all():
        table = [
            (f"certified accuracy at r = {decided.settings['target_radius']:g}", certified, ".2%"),
            ("series of the most frequent class", metrics.most_frequent_share(labels), ".2%"),
        ]
    table += [
        *[(name, decided.decision == which, ".2%") for which, name in names.items()],
        ("draws an example, mean", draws, ".1f"),
        ("draws an example, median", np.median(draws), ".0f"),
        ("forward passes an example, mean", forwards, ".1f"),
        (
            f"n = {FIXED_DRAWS} with every member ({fixed}), times as many",
            fixed / forwards.mean(),
            ".1f",
        ),
    ]
    return [(what, float(np.mean(values)), form) for what, values, form in table]


def write(decided: records.Decisions, folder: Path, num_members: int) -> None:
    """Writes the decisions and their record; prints what they come to."""
    table = summary(decided, num_members)
    records.write_decisions(folder, decided, table)
    cli.print_summary(
        counting.title(decided.settings, len(decided.indices)),
        decided.statement,
        decided.settings,
        table,
        f"{folder / decided.stem}.tsv (.json)",
    )

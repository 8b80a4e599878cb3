"""Flags of counting, and the processes and devices that share it."""

from typing import Any

from common import cli

import jax
from absl import flags

from selfens_jax import blocks
from selfens_jax.counting import Share
from selfens_jax.errors import UserError

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The flags of counting, beside `cli.define_run_flags` and `trained.define_flags`."""
    flags.DEFINE_integer(
        "batch_size", None, "Noised series in flight; bounds memory, changes no result."
    )
    flags.DEFINE_integer(
        "consensus", None, "Ask all masks (members) only where this many first ones disagree."
    )
    flags.DEFINE_enum(
        "precision",
        "float32",
        blocks.PRECISIONS,
        "Of products on an accelerator; the classifier at this precision is what is certified.",
    )
    flags.DEFINE_integer("num_processes", None, "Processes that share the examples.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0; 0 merges.")
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0: they are one jax.distributed program."
    )
    flags.DEFINE_bool(
        "distributed", False, "Let JAX find out processes and coordinator: TPU pods, Slurm."
    )
    flags.DEFINE_integer(
        "wait", 600, "Seconds without news after which process 0 gives the others up."
    )


def start() -> Share:
    """Joins the other processes; this one's share. Before JAX is used.

    Raises:
      UserError: if the flags do not fit together, or the coordinator cannot be reached.
    """
    number, this = FLAGS.num_processes, FLAGS.process_id
    if (number is None) != (this is None):
        raise UserError("--num_processes and --process_id go together")
    if FLAGS.coordinator is not None and number is None:
        raise UserError("--coordinator needs --num_processes and --process_id")
    if number is not None and number < 1:
        raise UserError(f"--num_processes must be at least 1, not {number}")
    if number is not None and not 0 <= this < number:
        raise UserError(f"--process_id must be from 0 to {number - 1}, not {this}")
    if FLAGS.distributed or FLAGS.coordinator is not None:
        try:
            jax.distributed.initialize(FLAGS.coordinator, number, this)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"the processes did not come together: {reason}") from None
        number, this = jax.process_count(), jax.process_index()
    together: dict[str, Any] = {} if number is None else {"process": this, "number": number}
    return Share(**together, wait=FLAGS.wait, say=cli.say)

"""A run directory: everything that one trained network, or ensemble, is and has been asked.

    runs/<dataset>/<model>/<ensemble>/sigma=<s>/seed=<k>/
      config.json              what was asked for, the data, the versions
      progress/<epoch>/        resumable training states, until training has finished; the sha256 of
                               their files is in <epoch>.json
      checkpoint/              the final variables, members stacked (orbax)
      checkpoint.json          their sha256, that of their files, and of the history
      history.csv              loss, accuracy and learning rate of every epoch
      training_time.json       seconds that training took, over all its parts
      margins-<id>.npz, .json  logits of a few series under noise, and the theory check on them
      masks-<id>.npz           the masks of a self-ensemble
      votes-<id>.tsv           votes counted so far, one line an example, appended; with several
                               processes one file for each
      decisions-<id>.tsv       the same for decisions at one target radius
      counts-<id>.npz          the counts of one finished command
      certificates-<id>.tsv    its certificates, with a .json that says what they rest on
      certificates-<id>.png    its certified-accuracy curve
      bursts-<id>.tsv          classes under pairs of windows, or votes, found so far
      bursts-b<...>-<id>.tsv   certificates against bursts, with a .json and a .png
      attack-<id>/             finished pieces of an attack, until all are
      attack-<id>.npz          the series that it found, with a .json and a .png

Files appear whole or not at all, except the votes, whose last line may be torn and is dropped.
Damage is noticed by checksums: of every record and line, of weights, masks and states. Nothing here
is ever unpickled.
"""

from selfens_jax.runs.files import (
    read_json,
    read_npz,
    write_bytes,
    write_csv,
    write_json,
    write_npz,
)
from selfens_jax.runs.logs import Entry, append_log, open_log, read_log
from selfens_jax.runs.provenance import device_name, differences, digest, versions
from selfens_jax.runs.run import (
    directory,
    is_begun,
    is_finished,
    load_classifier,
    load_networks,
    load_progress,
    load_tree,
    make_classifier,
    read_config,
    read_history,
    read_training_time,
    save_networks,
    save_progress,
    save_tree,
    write_history,
    write_training_time,
)

__all__ = [
    "Entry",
    "append_log",
    "device_name",
    "differences",
    "digest",
    "directory",
    "is_begun",
    "is_finished",
    "load_classifier",
    "load_networks",
    "load_progress",
    "load_tree",
    "make_classifier",
    "open_log",
    "read_config",
    "read_history",
    "read_json",
    "read_log",
    "read_npz",
    "read_training_time",
    "save_networks",
    "save_progress",
    "save_tree",
    "versions",
    "write_bytes",
    "write_csv",
    "write_history",
    "write_json",
    "write_npz",
    "write_training_time",
]

"""The run directory of a trained network, or ensemble: saved, loaded, gone on with."""

import contextlib
import csv
import hashlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from orbax.checkpoint import v1 as ocp

from selfens_jax import masks, models
from selfens_jax.coverage import check_units
from selfens_jax.ensembles import DeepEnsemble, SelfEnsemble, deep_ensemble, self_ensemble
from selfens_jax.errors import UserError
from selfens_jax.runs.files import read_json, read_npz, write_csv, write_json, write_npz
from selfens_jax.runs.provenance import digest
from selfens_jax.streams import stream

HISTORY_FIELDS: tuple[str, ...] = ("epoch", "member", "loss", "accuracy", "learning_rate")


def directory(
    root: str | Path, dataset: str, model: str, ensemble: str, sigma: float, seed: int
) -> Path:
    """Where the run of these settings lives, absolute."""
    return Path(root).absolute() / dataset / model / ensemble / f"sigma={sigma:g}" / f"seed={seed}"


def read_config(run: Path) -> dict[str, Any]:
    """What a run's config.json says of it.

    Raises:
      UserError: if it is damaged.
    """
    config = read_json(run / "config.json")
    try:
        described = config["data"]
        known = {"ensemble", "keep", "seed"} <= config.keys() and {
            "name",
            "sha256",
        } <= described.keys()
        known &= config["model"] in models.NAMES and len(described["classes"]) >= 2
        known &= 0 <= config["sigma"] < math.inf
        sizes = (described["length"], described["num_channels"], config["num_members"])
        known &= all(isinstance(size, int) and size >= 1 for size in sizes)
        units = check_units(described.get("units", ()), described["num_channels"])
        saved = config.get("classifier", {})
        known &= saved.get("mask_design", "independent") in masks.DESIGNS
        known &= config.get("hidden_as", "zero") in masks.HIDDEN_AS
        known &= bool(units) == (described.get("scaling") == "channel")
    except (AttributeError, KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise UserError(
            f"{run / 'config.json'} is damaged or was not written by train.py; train again with "
            "--overwrite"
        )
    return config


def save_tree(path: Path, tree: Any) -> None:
    """Saves a tree of arrays with orbax; the directory appears whole or not at all.

    Raises:
      OSError: if the disk is full, or the folder cannot be written to.
    """
    if path.exists():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _literal(path) as name:
            ocp.save(name, tree)
    except Exception as error:  # what the operating system refused comes without a type of its own
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None


def load_tree(path: Path, like: Any) -> Any:
    """Loads a tree with the structure, shapes and types of `like` (arrays or jax.eval_shape's).

    Raises:
      UserError: if the checkpoint is damaged or holds something else.
    """
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like
    )
    try:
        with _literal(path) as name:
            loaded = ocp.load(name, abstract)
    except Exception as error:
        # Orbax's errors for damaged or foreign checkpoints have no common type.
        reason = str(error).strip().split("\n")[0].split(" [tensorstore")[0] or type(error).__name__
        raise UserError(
            f"the checkpoint {path} cannot be read ({reason}); train again with --overwrite"
        ) from error
    # Orbax binds arrays to one device, and JAX refuses them beside those spread over several.
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), loaded)


@contextlib.contextmanager
def _literal(path: Path) -> Iterator[str]:
    """The path under a name that Orbax takes as it is: *, ?, [ and \\ make patterns to it."""
    if not set("*?[]\\") & set(str(path)):
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "run"
        link.symlink_to(path.parent.absolute(), target_is_directory=True)
        yield str(link / path.name)


def load_networks(run: Path) -> tuple[nn.Module, Any, dict[str, Any]]:
    """The architecture of a finished run, its members' variables stacked, and its configuration.

    `models.unstack(variables)` gives each member's; `single`, `mb` and `mc` have one.

    Raises:
      UserError: if the run is incomplete or damaged.
    """
    config = read_config(run)
    described = config["data"]
    model = models.create(config["model"], len(described["classes"]))
    hidden_as = config.get("hidden_as", "zero")
    x = masks.blank(described["length"], described["num_channels"], hidden_as)
    one = dict(jax.eval_shape(model.init, jax.random.key(0), x))
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((config["num_members"], *leaf.shape), leaf.dtype), one
    )
    file = run / "checkpoint.json"  # which older runs lack
    known = read_json(file) if file.exists() else {}
    _refuse_damaged(run / "checkpoint", known)
    variables = load_tree(run.absolute() / "checkpoint", like)
    if file.exists() and known.get("sha256") != digest(variables):
        raise UserError(
            f"the checkpoint {run / 'checkpoint'} holds other numbers than were trained: it is "
            "damaged; train again with --overwrite"
        )
    return model, variables, config


def load_classifier(
    run: Path,
    *,
    num_masks: int = 5,
    mask_seed: int | None = None,
    mask_design: str = "independent",
    masks_folder: Path | None = None,
) -> tuple[SelfEnsemble | DeepEnsemble, dict[str, Any]]:
    """The ensemble that a finished run makes, and the settings that say which it is.

    The masks of `mb` and `mc` are drawn from their seed, kept in the run, and compared with what
    is kept there.

    Args:
      num_masks: m, for `mb` and `mc`.
      mask_seed: of the masks; the run's seed if None.
      mask_design: one of `masks.DESIGNS`, for `mb` and `mc`.
      masks_folder: where masks that the run lacks are kept, if not in the run.

    Raises:
      UserError: if the run is incomplete or damaged, or holds other masks, or has none to be of
        a design.
    """
    model, stacked, config = load_networks(run)
    predict, identity = make_classifier(model, stacked, config, num_masks, mask_seed, mask_design)
    if isinstance(predict, SelfEnsemble) and config["ensemble"] in ("mb", "mc"):
        design = "" if mask_design == "independent" else f"-{mask_design}"
        file = run / f"masks-m{num_masks}-seed{identity['mask_seed']}{design}.npz"
        if not file.exists() and masks_folder is not None:  # for the results of several runs
            file = masks_folder / f"masks-{identity['masks_sha256'][:10]}.npz"
        keep_masks(file, np.asarray(predict.masks), identity)
    return predict, identity


def keep_masks(file: Path, drawn: np.ndarray, identity: dict[str, Any]) -> None:
    """Writes the masks that a seed gave, or compares them with those that the file holds.

    Raises:
      UserError: if it holds others.
    """
    if not file.exists():
        write_npz(file, masks=drawn.astype(np.uint8))
    stored = read_npz(file, ["masks"])["masks"].astype(np.float32)
    if digest(stored) != identity["masks_sha256"]:
        which = f"{identity['mask_design']} masks" if "mask_design" in identity else "masks"
        raise UserError(
            f"{file} holds other {which} than seed {identity['mask_seed']} gives; move it away to "
            "use these"
        )


def make_classifier(
    model: nn.Module,
    stacked: Any,
    config: dict[str, Any],
    num_masks: int = 5,
    mask_seed: int | None = None,
    mask_design: str = "independent",
) -> tuple[SelfEnsemble | DeepEnsemble, dict[str, Any]]:
    """The ensemble that trained networks make, and the settings that say which it is.

    Args:
      model, stacked, config: from `load_networks`; of config its model, ensemble, num_members,
        keep, seed, hidden_as if any, and the data's length.
      num_masks, mask_seed, mask_design: as in `load_classifier`.

    Raises:
      UserError: for a mask_design of an ensemble without masks.
    """
    masks.check_design(mask_design, config["ensemble"])
    members, ensemble = config["num_members"], config["ensemble"]
    known = {"model": config["model"], "ensemble": ensemble, "weights_sha256": digest(stacked)}
    if ensemble == "de":
        return deep_ensemble(model, stacked), {**known, "num_members": members}
    (variables,) = models.unstack(stacked)
    seed: int = config["seed"] if mask_seed is None else mask_seed
    keep, hidden_as = config["keep"], config.get("hidden_as", "zero")
    if ensemble not in ("mb", "mc"):  # `mw` has masks in training alone
        ensemble, num_masks, keep = "single", 1, 1.0
    key, length = stream(seed, "masks"), config["data"]["length"]
    drawn = np.asarray(masks.draw(ensemble, key, num_masks, length, keep, design=mask_design))
    designed = {} if mask_design == "independent" else {"mask_design": mask_design}
    if hidden_as != "zero":
        designed["hidden_as"] = hidden_as
    identity = {
        **designed,
        "num_masks": num_masks,
        "keep": keep,
        "mask_seed": seed,
        "masks_sha256": digest(drawn),
    }
    return self_ensemble(model, variables, drawn, hidden_as), {**known, **identity}


def save_progress(run: Path, epoch: int, states: Any, history: Iterable[dict[str, float]]) -> None:
    """Saves resumable training states; the latest complete ones always stay on disk."""
    # History first: rows beyond the saved states are dropped on resumption, missing ones are lost.
    history = list(history)
    write_history(run, history)
    folder = run / "progress" / str(epoch)
    saving = folder.with_name(f"{epoch}.saving")  # until its hashes are there too
    save_tree(saving, states)
    check = {"history_sha256": digest(history), "files": _hashes(saving)}
    write_json(run / "progress" / f"{epoch}.json", check)
    shutil.rmtree(folder, ignore_errors=True)
    saving.rename(folder)
    for older in _epochs(run):
        if older < epoch:
            shutil.rmtree(run / "progress" / str(older))
            (run / "progress" / f"{older}.json").unlink(missing_ok=True)


def load_progress(run: Path, like: Any) -> tuple[int, Any, list[dict[str, float]]] | None:
    """(epoch, states, history) of the latest saved progress; None if there is none.

    Raises:
      UserError: if it is damaged.
    """
    epochs = _epochs(run)
    if not epochs:
        return None
    epoch, folder = epochs[-1], run / "progress"
    check = folder / f"{epoch}.json"  # which those of earlier versions lack
    known = read_json(check) if check.exists() else {}
    _refuse_damaged(folder / str(epoch), known)
    states = load_tree(folder / str(epoch), like)
    history = [row for row in read_history(run) if row["epoch"] <= epoch]
    if {row["epoch"] for row in history} != set(range(1, epoch + 1)):
        raise UserError(
            f"{run / 'history.csv'} is damaged (an epoch is missing); train again with --overwrite"
        )
    if known.get("history_sha256", digest(history)) != digest(history):
        raise UserError(f"{run / 'history.csv'} is damaged; train again with --overwrite")
    return epoch, states, history


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def _refuse_damaged(folder: Path, known: dict[str, Any]) -> None:
    """Raises UserError if a file is not what `_hashes` found; Orbax would read what it finds."""
    for name, sha256 in known.get("files", {}).items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{file} is missing; train again with --overwrite")
        if _sha256(file) != sha256:
            raise UserError(f"{file} is damaged; train again with --overwrite")


def save_networks(run: Path, variables: Any, history: Iterable[dict[str, float]]) -> None:
    """Saves the final variables, which is what makes a run finished, and reads them back.

    Raises:
      UserError: if they cannot be read back as they are; the run then stays unfinished, with its
        progress.
    """
    write_history(run, history)
    saving = run / "checkpoint.saving"  # until it is known to be right, and its hashes are there
    save_tree(saving, variables)
    written = digest(variables)
    try:
        same = digest(load_tree(saving, variables)) == written
        reason = "the checkpoint holds other numbers than were written"
    except UserError as error:
        same, reason = False, str(error.__cause__ or error).strip().split("\n")[0]
    if not same:
        shutil.rmtree(saving, ignore_errors=True)
        raise UserError(
            f"{run}: the trained network cannot be read back ({reason}); choose another --runs_dir"
        )
    write_json(
        run / "checkpoint.json",
        {
            "sha256": written,
            "history_sha256": _sha256(run / "history.csv"),
            "files": _hashes(saving),
        },
    )
    shutil.rmtree(run / "checkpoint", ignore_errors=True)
    saving.rename(run / "checkpoint")
    shutil.rmtree(run / "progress", ignore_errors=True)


def is_finished(run: Path) -> bool:
    return (run / "checkpoint").is_dir()


def is_begun(run: Path) -> bool:
    """Whether something has been trained: the run is finished, or has progress."""
    return is_finished(run) or bool(_epochs(run))


def write_history(run: Path, history: Iterable[dict[str, float]]) -> None:
    write_csv(run / "history.csv", HISTORY_FIELDS, history)


def read_history(run: Path) -> list[dict[str, float]]:
    """The rows that `write_history` wrote.

    Raises:
      UserError: if they cannot be read, or if the run is finished and these are others than it was
        finished with.
    """
    check, file = run / "checkpoint.json", run / "history.csv"
    finished = is_finished(run) and check.exists()  # those of earlier versions lack the file
    known = read_json(check).get("history_sha256") if finished else None
    try:
        content = file.read_bytes()
        rows = [
            {
                name: int(value) if name in ("epoch", "member") else float(value)
                for name, value in row.items()
            }
            for row in csv.DictReader(content.decode().splitlines())
        ]
        if any(row.keys() != set(HISTORY_FIELDS) for row in rows):
            raise ValueError("its columns are others")
        if known and hashlib.sha256(content).hexdigest() != known:
            raise ValueError("the training ended with another one")
    except (OSError, TypeError, ValueError, csv.Error) as error:
        reason = (getattr(error, "strerror", None) or str(error)).partition("\n")[0]
        raise UserError(
            f"{file} is damaged ({reason}); train again with --overwrite, or fit again"
        ) from None
    return rows


def write_training_time(run: Path, seconds: float) -> None:
    """Records the seconds of training so far; to be written before the progress they led to."""
    write_json(run / "training_time.json", {"seconds": seconds})


def read_training_time(run: Path) -> float | None:
    """Seconds of training, over all parts of one that was killed; None if they were not kept."""
    file = run / "training_time.json"
    return float(read_json(file)["seconds"]) if file.exists() else None


def _epochs(run: Path) -> list[int]:
    # Orbax writes to a directory with a longer name and renames it: a bare number is complete.
    progress = run / "progress"
    names = [entry.name for entry in progress.iterdir()] if progress.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())

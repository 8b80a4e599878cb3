"""A fitted classifier in a folder: JSON, an Orbax checkpoint and masks, as a run of train.py."""

import dataclasses
import os
import pathlib
import tempfile
from typing import Any, NoReturn

import numpy as np

from selfens_jax import masks, runs, training
from selfens_jax.data.splits import Split, check_scaling
from selfens_jax.errors import UserError, check_whole
from selfens_jax.fit_arguments import plain, train_config
from selfens_jax.preparation import Preparation


@dataclasses.dataclass(frozen=True, eq=False)
class Saved:
    """What a folder holds.

    Attributes:
      config: as a run's config.json.
      variables: the weights, members stacked.
      history: rows of `training.train`.
      labels: (K,) the user's own, in the order of the network's outputs.
      num_masks: m.
      mask_design: as in `runs.load_classifier`.
    """

    config: dict[str, Any]
    variables: Any
    history: training.Rows
    labels: np.ndarray
    num_masks: int
    mask_design: str


def write(folder: pathlib.Path, saved: Saved) -> None:
    """Writes a new folder, which appears whole or not at all.

    Raises:
      UserError: if there is something of this name.
    """
    if os.path.lexists(folder):
        raise UserError(f"{folder} is there already: choose another path, or remove it")
    dtype = saved.labels.dtype
    own = {
        "num_masks": int(saved.num_masks),
        **({} if saved.mask_design == "independent" else {"mask_design": saved.mask_design}),
        "classes": plain(saved.labels),
        "dtype": "T" if dtype.kind == "T" else dtype.str,  # NumPy's own name of T is not read back
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as beside:
        whole = pathlib.Path(beside) / "saved"
        runs.write_json(whole / "config.json", {**saved.config, "classifier": own})
        runs.save_networks(whole, saved.variables, saved.history)
        # Keeps its masks there.
        runs.load_classifier(whole, num_masks=saved.num_masks, mask_design=saved.mask_design)
        whole.rename(folder)


def read(folder: pathlib.Path) -> Saved:
    """What `write` wrote, or a run of train.py, whose labels are text. Writes nothing there.

    Raises:
      UserError: if there is neither, or it is unfinished, damaged or without noise.
    """
    if not (folder / "config.json").exists() or not runs.is_finished(folder):
        raise UserError(f"{folder} holds no trained classifier: no config.json and checkpoint")
    _, variables, config = runs.load_networks(folder)
    if config["sigma"] == 0:
        raise UserError(f"{folder} was trained with sigma 0: without noise there is no radius")
    own = config.pop("classifier", {"num_masks": 5})
    described = config["data"]
    try:
        known = [field.name for field in dataclasses.fields(training.TrainConfig)]
        train_config({name: config[name] for name in known if name in config})
        Preparation(described.get("unequal", "refuse"), described.get("missing", "refuse"))
        check_scaling(described["scaling"])
        num_masks = check_whole("num_masks", own["num_masks"], 1)
        mask_design = own.get("mask_design", "independent")
        masks.check_design(mask_design, config["ensemble"])
        labels = np.array(own.get("classes", described["classes"]), own.get("dtype", str))
        if Split("", None).check_labels(labels, len(labels)) != described["classes"]:
            raise UserError("its labels are not the classes of its data")
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        _refuse_damaged(folder / "config.json", error)
    history = runs.read_history(folder)
    with tempfile.TemporaryDirectory() as elsewhere:  # for masks that the folder lacks
        runs.load_classifier(
            folder,
            num_masks=num_masks,
            mask_design=mask_design,
            masks_folder=pathlib.Path(elsewhere),
        )
    return Saved(config, variables, history, labels, num_masks, mask_design)


def _refuse_damaged(file: pathlib.Path, error: Exception) -> NoReturn:
    reason = str(error).partition("\n")[0]
    raise UserError(f"{file} is damaged ({reason}): fit again, or train again") from None

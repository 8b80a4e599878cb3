"""A run directory: everything that one trained network, or ensemble, is and has been asked.

    runs/<dataset>/<model>/<ensemble>/sigma=<s>/seed=<k>/
      config.json              what was asked for, the data, the versions
      progress/<epoch>/        resumable training states, until training has finished
      checkpoint/              the final variables, members stacked (orbax)
      checkpoint.json          their sha256
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
      attack-<id>/             finished pieces of an attack, until all are
      attack-<id>.npz          the series that it found, with a .json and a .png

Files appear whole or not at all, except the votes, whose last line may be torn and is dropped.
Nothing here is ever unpickled.
"""

import contextlib
import csv
import dataclasses
import hashlib
import importlib.metadata
import io
import json
import math
import os
import pathlib
import platform
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from orbax.checkpoint import v1 as ocp

from selfens_jax import models
from selfens_jax.errors import UserError

Path = pathlib.Path
HISTORY_FIELDS = ("epoch", "member", "loss", "accuracy", "learning_rate")


def directory(
    root: str | Path, dataset: str, model: str, ensemble: str, sigma: float, seed: int
) -> Path:
    """Where the run of these settings lives, absolute."""
    return Path(root).absolute() / dataset / model / ensemble / f"sigma={sigma:g}" / f"seed={seed}"


def versions() -> dict[str, str]:
    """The versions and the device that a result came from."""
    packages = (
        "selfens_jax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
        "scipy",
    )
    found = {name: importlib.metadata.version(name) for name in packages}
    return {
        "python": platform.python_version(),
        **found,
        "platform": jax.devices()[0].platform,
        "device": device_name(),
        "machine": platform.machine(),
    }


def device_name() -> str:
    """The accelerator, or the processor with the number of cores that this process may use."""
    kind = jax.devices()[0].device_kind
    if jax.default_backend() != "cpu":
        return kind
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        info = ""
    found = re.search(r"^model name\s*: (.*)$", info, re.MULTILINE)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return (
        f"{found[1] if found else platform.processor() or kind}, {cores} core{'s' * (cores != 1)}"
    )


def digest(value: Any) -> str:
    """sha256 of a tree of arrays (names, shapes, types and bits) or of a value that JSON holds."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        sha.update(jax.tree_util.keystr(path).encode())
        if isinstance(leaf, np.ndarray | jax.Array):
            array = np.ascontiguousarray(leaf)
            sha.update(f"{array.dtype.str}{array.shape}".encode())
            sha.update(array.tobytes())
        else:
            sha.update(json.dumps(leaf).encode())
    return sha.hexdigest()


def differences(found: dict[str, Any], asked: dict[str, Any]) -> str:
    """Where a run's record differs from what is asked now, in words; empty if nowhere.

    Only the keys of `asked` count. Of the data, it is the content that must agree.
    """
    words = [
        f"{key} is {found.get(key)!r}, not {value!r}"
        for key, value in asked.items()
        if key != "data" and found.get(key) != value
    ]
    old, new = found.get("data", {}), asked.get("data", {})
    if "data" in asked and old.get("sha256") != new["sha256"]:
        words.append(
            f"its data are other data ({old.get('name')} from {old.get('source')}, scaling "
            f"{old.get('scaling')}, sha256 {str(old.get('sha256'))[:12]}), not {new['name']} from "
            f"{new['source']}, scaling {new['scaling']}, sha256 {new['sha256'][:12]}"
        )
    return "; ".join(words)


# Whole files


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be read ({reason}); train again with --overwrite") from None


def read_config(run: Path) -> dict[str, Any]:
    """What a run's config.json says of it.

    Raises:
      UserError: if it is damaged.
    """
    config = read_json(run / "config.json")
    try:
        source = config["data"]
        known = {"ensemble", "keep", "seed"} <= config.keys() and {
            "name",
            "sha256",
        } <= source.keys()
        known &= config["model"] in models.NAMES and len(source["classes"]) >= 2
        known &= 0 <= config["sigma"] < math.inf
        sizes = (source["length"], source["num_channels"], config["num_members"])
        known &= all(isinstance(size, int) and size >= 1 for size in sizes)
    except (AttributeError, KeyError, TypeError):
        known = False
    if not known:
        raise UserError(
            f"{run / 'config.json'} is damaged or was not written by train.py; train again with "
            "--overwrite"
        )
    return config


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def read_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The named arrays of a .npz file, never unpickling.

    Raises:
      UserError: if the file is missing or damaged or lacks one of them.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except KeyError as error:
        raise UserError(f"{path} lacks the array {error}; it is not a file of this kind") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} cannot be read: {reason}; move it away if it is damaged") from None


# Training


def save_tree(path: Path, tree: Any) -> None:
    """Saves a tree of arrays with orbax; the directory appears whole or not at all."""
    if path.exists():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _literal(path) as name:
        ocp.save(name, tree)


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
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"the checkpoint {path} cannot be read ({reason}); train again with --overwrite"
        ) from error
    # Orbax binds arrays to one device, and JAX refuses them beside those spread over several.
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), loaded)


@contextlib.contextmanager
def _literal(path: Path) -> Iterator[Path]:
    """The path under a name that Orbax takes as it is: *, ?, [ and \\ make patterns to it."""
    if not set("*?[]\\") & set(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "run"
        link.symlink_to(path.parent.absolute(), target_is_directory=True)
        yield link / path.name


def load_networks(run: Path) -> tuple[nn.Module, Any, dict[str, Any]]:
    """The architecture of a finished run, its members' variables stacked, and its configuration.

    `models.unstack(variables)` gives each member's; `single`, `mb` and `mc` have one.

    Raises:
      UserError: if the run is incomplete or damaged.
    """
    config = read_config(run)
    source = config["data"]
    model = models.create(config["model"], len(source["classes"]))
    x = jnp.zeros((1, source["length"], source["num_channels"]))
    one = dict(jax.eval_shape(model.init, jax.random.key(0), x))
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((config["num_members"], *leaf.shape), leaf.dtype), one
    )
    variables = load_tree(run.absolute() / "checkpoint", like)
    file = run / "checkpoint.json"  # which older runs lack
    if file.exists() and read_json(file) != {"sha256": digest(variables)}:
        raise UserError(
            f"the checkpoint {run / 'checkpoint'} holds other numbers than were trained: it is "
            "damaged; train again with --overwrite"
        )
    return model, variables, config


def save_progress(run: Path, epoch: int, states: Any, history: Iterable[dict[str, float]]) -> None:
    """Saves resumable training states; the latest complete ones always stay on disk."""
    # History first: rows beyond the saved states are dropped on resumption, missing ones are lost.
    write_history(run, history)
    save_tree(run / "progress" / str(epoch), states)
    for older in _epochs(run):
        if older < epoch:
            shutil.rmtree(run / "progress" / str(older))


def load_progress(run: Path, like: Any) -> tuple[int, Any, list[dict[str, float]]] | None:
    """(epoch, states, history) of the latest saved progress; None if there is none."""
    epochs = _epochs(run)
    if not epochs:
        return None
    states = load_tree(run / "progress" / str(epochs[-1]), like)
    return epochs[-1], states, [row for row in read_history(run) if row["epoch"] <= epochs[-1]]


def finish(run: Path, variables: Any, history: Iterable[dict[str, float]]) -> None:
    """Saves the final variables, which is what makes a run finished, and reads them back.

    Raises:
      UserError: if they cannot be read back as they are; the run then stays unfinished, with its
        progress.
    """
    write_history(run, history)
    save_tree(run / "checkpoint", variables)
    written = digest(variables)
    try:
        same = digest(load_tree(run / "checkpoint", variables)) == written
        reason = "the checkpoint holds other numbers than were written"
    except UserError as error:
        same, reason = False, str(error.__cause__ or error).strip().split("\n")[0]
    if not same:
        shutil.rmtree(run / "checkpoint", ignore_errors=True)
        raise UserError(
            f"{run}: the trained network cannot be read back ({reason}); choose another --runs_dir"
        )
    write_json(run / "checkpoint.json", {"sha256": written})
    shutil.rmtree(run / "progress", ignore_errors=True)


def is_finished(run: Path) -> bool:
    return (run / "checkpoint").is_dir()


def is_begun(run: Path) -> bool:
    """Whether something has been trained: the run is finished, or has progress."""
    return is_finished(run) or bool(_epochs(run))


def write_history(run: Path, history: Iterable[dict[str, float]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY_FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_bytes(run / "history.csv", text.getvalue().encode())


def read_history(run: Path) -> list[dict[str, float]]:
    with (run / "history.csv").open() as file:
        return [
            {
                name: int(value) if name in ("epoch", "member") else float(value)
                for name, value in row.items()
            }
            for row in csv.DictReader(file)
        ]


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


# Certification


@dataclasses.dataclass(frozen=True)
class Entry:
    """What one example came to, as whole numbers, and the seconds that took."""

    values: tuple[int, ...]
    seconds: float


def read_log(
    path: Path, settings: dict[str, Any], whole: Callable[[tuple[int, ...]], bool]
) -> dict[int, Entry]:
    """The entries of a log, by example; a last line that is still being written does not count.

    The first line is the settings, every further line one example's entry.

    Raises:
      UserError: if the file is of other settings, or a line is damaged or not `whole`.
    """
    lines = _whole_lines(path).decode(errors="replace").splitlines()
    if not lines or lines[0] != _header(settings):
        raise UserError(f"{path} is of other settings; move it away to begin again")
    entries: dict[int, Entry] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            index, seconds, *values = line.split("\t")
            example, entry = int(index), Entry(tuple(map(int, values)), float(seconds))
            if not whole(entry.values):
                raise ValueError
        except ValueError:
            raise UserError(f"{path} is damaged in line {number}; move it away") from None
        # Two processes may have counted an example: the same votes, in other seconds.
        if entries.setdefault(example, entry).values != entry.values:
            raise UserError(
                f"{path} has example {index} twice, differently (line {number}); move it away"
            )
    return entries


def open_log(
    path: Path, settings: dict[str, Any], whole: Callable[[tuple[int, ...]], bool]
) -> dict[int, Entry]:
    """`read_log` of a file to append to: made if there is none, and a torn last line is cut off."""
    if not path.exists():
        write_bytes(path, (_header(settings) + "\n").encode())
        return {}
    entries = read_log(path, settings, whole)
    with path.open("rb+") as file:
        file.truncate(len(_whole_lines(path)))
    return entries


def append_log(path: Path, entries: Mapping[int, Entry]) -> None:
    """Adds lines to an opened log, on disk when this returns."""
    lines = [
        "\t".join([str(index), f"{entry.seconds:.4f}", *map(str, entry.values)]) + "\n"
        for index, entry in entries.items()
    ]
    with path.open("r+") as file:  # not "a", which would make a log without its first line
        file.seek(0, os.SEEK_END)
        file.write("".join(lines))
        file.flush()
        os.fsync(file.fileno())


def _header(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def evenly_spaced(num_examples: int | None, total: int) -> np.ndarray:
    """`num_examples` of 0..total-1, evenly spaced from 0; all if None.

    Raises:
      UserError: if there are not that many, or none are asked for.
    """
    if num_examples is None:
        return np.arange(total)
    if not 1 <= num_examples <= total:
        raise UserError(f"num_examples must be between 1 and {total}, not {num_examples}")
    return np.arange(num_examples) * total // num_examples


def file_text(values: Sequence[Sequence[str]]) -> bytes:
    """Rows of cells as tab-separated lines."""
    return "".join("\t".join(row) + "\n" for row in values).encode()


def seconds_text(seconds: float) -> str:
    """H:MM:SS.ffffff, the form of the `time` column in Cohen et al.'s files."""
    whole = math.floor(seconds)
    micros = int((seconds - whole) * 1e6)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}.{micros:06d}"

"""What the scripts share: flags, progress, and how they end."""

import contextlib
import errno
import functools
import io
import itertools
import logging as python_logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

try:
    import jax
except ValueError as error:  # a variable of the environment that JAX cannot read
    sys.exit(f"error: {error}")
from absl import app, flags, logging

from selfens_jax import backend, data, masks, models, objectives, paths, preparation, training
from selfens_jax.data import names
from selfens_jax.errors import UserError

PREPARING = ("scaling", "unequal", "missing", "channels_first")
SIGMA_FOR_BURSTS = 0.1  # certificates against bursts need no noise; a little helps training
EFFECTIVE_IDS = os.access in os.supports_effective_ids
HELD = contextlib.ExitStack()  # locks, until the script ends
_DEFAULTS = training.TrainConfig()
# JAX's own defaults, whatever the environment says: other values are other noise or networks, or
# refuse what is done here on purpose.
_SETTINGS = {
    "jax_enable_x64": False,
    "jax_threefry_partitionable": True,
    "jax_numpy_rank_promotion": "allow",
    "jax_numpy_dtype_promotion": "standard",
    "jax_transfer_guard": "allow",
}


def define_run_flags() -> None:
    """The flags that name a run: the same words and defaults in every script."""
    flags.DEFINE_string(
        "dataset", "CBF", "A name of the UCR archive, or a .npz with X_train y_train X_test y_test."
    )
    define_path("data_dir", None, "A folder in the archive's layout: NAME/NAME_TRAIN.tsv.")
    flags.DEFINE_enum(
        "scaling",
        "none",
        data.SCALINGS,
        "Rescaling before any noise: channel, each channel divided by its deviation over the "
        "training series; z_score, each series by itself.",
    )
    flags.DEFINE_enum(
        "unequal",
        "refuse",
        preparation.UNEQUAL,
        "Series of unequal lengths: zeros at the end, cut, or linear interpolation.",
    )
    flags.DEFINE_enum(
        "missing",
        "refuse",
        preparation.MISSING,
        "Missing values: zero, the last one observed, or linear interpolation; hide: they stay "
        "unknown, for certify.py --burst --series.",
    )
    flags.DEFINE_bool("channels_first", False, "Whether X of a .npz is (series, channels, time).")
    flags.DEFINE_enum("model", "inception_time", list(models.NAMES), "The architecture.")
    flags.DEFINE_enum(
        "ensemble",
        _DEFAULTS.ensemble,
        masks.ENSEMBLES,
        "single: one network; de: several networks; mb, mc: one network under binomial or "
        "continuous masks; mw: one network trained with windows hidden, for certify.py --burst.",
    )
    flags.DEFINE_float(
        "sigma",
        _DEFAULTS.sigma,
        "Standard deviation of the noise, in the units of the series; 0.1 if not given for mw.",
    )
    flags.DEFINE_float("keep", _DEFAULTS.keep, "Share of the time steps that a mask keeps.")
    flags.DEFINE_enum(
        "objective",
        _DEFAULTS.objective,
        list(objectives.OBJECTIVES),
        "What training lowers: the paper's loss of one view of each series, or another of two.",
    )
    flags.DEFINE_float(
        "average",
        None,
        "Decay of an exponential average of the weights, as 0.999; the last weights if not given.",
    )
    flags.DEFINE_enum(
        "hidden_as",
        _DEFAULTS.hidden_as,
        masks.HIDDEN_AS,
        "What the network is shown of hidden steps (mb, mc): zeros; the last value before; zeros, "
        "with the rest scaled up; zeros, with the mask as one more channel.",
    )
    flags.DEFINE_integer("seed", 0, "Fixes everything random.")
    define_path("runs_dir", "runs", "Where runs are kept.")
    flags.DEFINE_bool(
        "compilation_cache", True, "Keep compiled programs in a per-user folder for the next time."
    )


def define_path(name: str, default: str | None, help_text: str) -> None:
    """A flag that is a path, with ~ for the home directory."""
    flags.DEFINE(_PathParser(), name, default, help_text)


class _PathParser(flags.ArgumentParser):
    def parse(self, argument: str) -> str:
        return str(paths.expand(argument))

    def flag_type(self) -> str:
        return "path"


def define_time_limit(meaning: str) -> None:
    flags.DEFINE_float("time_limit", None, meaning)
    flags.register_validator(
        "time_limit",
        lambda minutes: minutes is None or minutes > 0,  # nor is NaN
        message="must be more than 0 minutes",
    )


def define_several() -> None:
    """Flags that name several runs at once, read by `every_run`."""
    flags.DEFINE_list("sigmas", [], "Several, instead of --sigma.")
    flags.DEFINE_list("seeds", [], "Several, instead of --seed; with --sigmas, every pair.")


def every_run() -> list[tuple[float, int]]:
    """Every sigma with every seed that the flags name.

    Raises:
      UserError: if --sigma and --sigmas, or --seed and --seeds, are both given, are no numbers, or
        two sigmas are too near for folders of their own.
    """
    asked = flags.FLAGS
    sigmas = numbers(asked, "sigmas", float, 0) or (asked.sigma,)
    seeds = listed_seeds(asked) or (asked.seed,)
    for one in ("sigma", "seed"):
        if asked[one].present and asked[f"{one}s"].present:
            raise UserError(f"--{one} and --{one}s: give one of them")
    for one, other in itertools.combinations(sigmas, 2):
        if f"{one:g}" == f"{other:g}":  # as runs are named
            raise UserError(
                f"--sigmas: the runs of {one!r} and {other!r} would share the folder "
                f"sigma={one:g}: leave one of them out"
            )
    return list(itertools.product(sigmas, seeds))


def listed_seeds(flag_values: flags.FlagValues) -> tuple[int, ...]:
    """Those of --seeds, as `numbers`."""
    return numbers(flag_values, "seeds", int, 0, 2**32)


def numbers(
    flag_values: flags.FlagValues,
    name: str,
    convert: Callable[[str], Any],
    least: float,
    below: float = float("inf"),
) -> tuple[Any, ...]:
    """The values of a list flag as numbers, each once; () only if the flag was not given.

    Args:
      flag_values: all flags.
      name: of this one.
      convert: int or float.
      least, below: the smallest number allowed, and the first that is too large.

    Raises:
      UserError: if one of them is no number, or out of that range.
    """
    texts, present = getattr(flag_values, name), flag_values[name].present
    try:
        values = tuple(dict.fromkeys(convert(text) for text in texts or ()))
    except ValueError:
        values = ()
    if (present and not values) or not all(least <= value < below for value in values):
        end = f" and below {below}" if below < float("inf") else ""
        raise UserError(
            f"--{name} must be numbers of at least {least:g}{end}, separated by commas, not "
            f"{','.join(texts)!r}"
        )
    return values


def load_data(
    flag_values: flags.FlagValues, report: bool = True, recorded: dict[str, Any] | None = None
) -> data.Dataset:
    """The data set of the flags; what it is goes to standard error in one line.

    Args:
      flag_values: all flags.
      report: whether to print that line.
      recorded: a run's data, which stand for flags that were not given.

    Raises:
      UserError: if there are no such data, or they are no data set.
    """
    asked: dict[str, Any] = {name: getattr(flag_values, name) for name in PREPARING}
    for name in PREPARING:
        if not flag_values[name].present:
            asked[name] = (recorded or {}).get(name, asked[name])
    name = flag_values.dataset
    if recorded and not flag_values["dataset"].present:
        name = recorded["name"]
        if recorded["source"] == "file":
            raise UserError(f"the run was trained on a file, {name}: give it, as --dataset=PATH")
        if recorded["source"] == "arrays":
            raise UserError("the run was trained on arrays: give them in a file, as --dataset=PATH")
        if recorded["source"] == "directory" and flag_values.data_dir is None:
            raise UserError(f"the run was trained on {name} of a folder: give it, as --data_dir")
    with _said_warnings():
        dataset = data.load(name, flag_values.data_dir, **asked)
    if report:
        say(
            f"{dataset.name} ({dataset.source}): {len(dataset.x_train)} training and "
            f"{len(dataset.x_test)} test series, {dataset.length} time steps, "
            f"{dataset.num_channels} channel{'s' * (dataset.num_channels > 1)}, "
            f"{dataset.num_classes} classes, scaling {dataset.scaling}"
        )
    return dataset


def load_new_series(
    flag_values: flags.FlagValues, described: dict[str, Any]
) -> tuple[data.Series, dict[str, Any]]:
    """The series of --series and how they were prepared, as records have it.

    Args:
      flag_values: all flags; those of preparation that were not given are the run's.
      described: the run's data, as `data.describe` has them.

    Raises:
      UserError: if the flags contradict the run, or there are no such series.
    """
    for name in ("dataset", "data_dir"):
        if flag_values[name].present and flag_values["run_dir"].present:
            raise UserError(f"--series has the series, --run_dir the rest; leave out --{name}")
    if flag_values["scaling"].present and flag_values.scaling != described["scaling"]:
        raise UserError(
            f"the run was trained with scaling {described['scaling']}, which --series gets too; "
            "leave out --scaling"
        )
    defaults = {"unequal": "refuse", "missing": "refuse", "channels_first": False}
    asked = {
        name: getattr(flag_values, name)
        if flag_values[name].present
        else described.get(name, defaults[name])
        for name in defaults
    }
    as_trained = asked["channels_first"] and not flag_values["channels_first"].present
    if as_trained and flag_values.series.lower().endswith(names.TEXT_ENDINGS):
        as_trained = asked["channels_first"] = False  # which only a .npz can be
    try:
        with _said_warnings():
            series = data.load_series(
                flag_values.series,
                length=described["length"],
                num_channels=described["num_channels"],
                classes=described["classes"],
                scaling=described["scaling"],
                units=described.get("units", ()),
                labelled=flag_values.labelled,
                **asked,
            )
    except UserError as error:
        if not (as_trained and "channels_first" in str(error)):
            raise
        raise UserError(f"{error} (it is the run's: --nochannels_first leaves it out)") from None
    return series, {name: value for name, value in asked.items() if value != defaults[name]}


@contextlib.contextmanager
def _said_warnings() -> Iterator[None]:
    """What the data are warned of goes to standard error, a line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if warning.category is UserWarning:
            say(f"warning: {warning.message}")


def provenance(settings: dict[str, Any]) -> str:
    """A line on the series that settings speak of, and how they were prepared."""
    described = settings["data"]
    own = settings.get("series")
    if own is None:
        own, origin = described, described["source"]
        origin = "GENERATED, not the archive's" if origin == "generated" else origin
        line = f"{described['name']} ({origin})"
    else:
        line = f"{own['name']}, new to the run on {described['name']}"
    line += f", scaling {described['scaling']}"
    if "unequal" in own:
        line += f", unequal lengths: {own['unequal']} to {described['length']} time steps"
    if "missing" in own:
        line += f", missing values: {own['missing']}"
    return line + ", channels first in the file" * ("channels_first" in own)


def print_summary(
    title: str,
    statement: str,
    settings: dict[str, Any],
    table: Sequence[tuple[str, float, str]],
    written: str,
    radii: bool = True,
) -> None:
    """Prints what certificates come to.

    Args:
      title, statement: its first two lines.
      settings: what the certificates depend on.
      table: (what, value, format of the value) of each further line.
      written: the files.
      radii: whether there are any.
    """
    print(title)
    print(f"  {statement}")
    if "noise_seed" in settings and "grid" not in settings:
        print("  noise: in float32, for which this is not proven whatever the classifier is")
    units = settings["data"].get("units")
    said = "L2 norms in their units"
    if units:
        said = f"L2 norms of series divided by {', '.join(f'{u:.3g}' for u in units)} (by channel)"
    print(f"  series: {provenance(settings)}" + f"; radii are {said}" * radii)
    for what, value, form in table:
        print(f"  {what:<44} {value:{form}}")
    print(f"  written to {written}")


def check_precision() -> None:
    """Raises UserError for a --precision that the devices here do not have."""
    precision = flags.FLAGS.precision
    if precision != "float32" and backend.on_cpu():
        raise UserError(f"--precision={precision}: a CPU computes in float32; leave it out")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run(main: Callable[[], None]) -> None:
    """Runs a script; a user's mistake ends it with one line and status 1, without a traceback."""

    @functools.wraps(main)
    def guarded(arguments: list[str]) -> int | None:
        if len(arguments) > 1:
            say(f"error: unexpected argument {arguments[1]!r}; flags look like --name=value")
            return 1
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.FATAL)  # Orbax narrates, errors that are told here too
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # how batch systems end a job
        python_logging.getLogger("matplotlib").setLevel(python_logging.ERROR)  # a missing home
        for stream in (sys.stdout, sys.stderr):  # a name may be more than the terminal can show
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        for name, value in _SETTINGS.items():
            jax.config.update(name, value)
        if "ensemble" in flags.FLAGS and flags.FLAGS.ensemble == "mw":
            flags.FLAGS.set_default("sigma", SIGMA_FOR_BURSTS)
        try:
            if flags.FLAGS.compilation_cache:
                _keep_compiled_programs()
            with HELD:
                main()
        except UserError as error:
            say(f"error: {_of_flags(error)}")
            return 1
        except BrokenPipeError:  # whoever read the output has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            say(f"error: {_of_files(error)}")
            return 1
        except (RuntimeError, AssertionError):
            missing = _missing_devices()
            if not missing:
                raise
            say(f"error: {missing}")
            return 1
        except KeyboardInterrupt:
            say("interrupted; the same command goes on from here")
            return 130
        return 0

    def parse(arguments: list[str]) -> list[str]:
        try:
            return flags.FLAGS(arguments)
        except flags.Error as error:
            say(f"error: {' '.join(str(error).split())}")
            sys.exit(1)
        except SystemExit:  # absl has shown help, and would call that a failure
            sys.exit(0)

    app.run(guarded, flags_parser=_with_help(parse))


def _of_flags(error: UserError) -> str:
    """Its text, which names a flag as one where the library names the value that it set."""
    text = str(error)
    name = text.split(" must be ")[0]
    return f"--{text}" if name in flags.FLAGS else text


def _with_help(parse: Callable[[list[str]], list[str]]) -> Callable[[list[str]], list[str]]:
    def parse_or_help(arguments: list[str]) -> list[str]:
        app.define_help_flags()
        for module, defined in flags.FLAGS.flags_by_module_dict().items():
            if module.startswith("common."):  # else --help would show the script's own alone
                for flag in defined:
                    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
        return parse(arguments)

    return parse_or_help


def _keep_compiled_programs() -> None:
    """Lets JAX keep programs in the user's cache, unless its own variable names a folder."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    try:
        cache = Path.home() / ".cache" / "selfens_jax" / "xla"
        cache.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return  # no home, or a read-only one, costs compile time, nothing else
    if os.access(cache, os.W_OK | os.X_OK):
        jax.config.update("jax_compilation_cache_dir", str(cache))
        _drop_torn_programs(cache)


def _drop_torn_programs(cache: Path) -> None:
    """Deletes programs that JAX cannot read, which it then keeps anew.

    A command that was killed as it kept one, or had a full disk, leaves a part of it. JAX would
    warn of that in every later command, and compile the program again and again.
    """
    shown = warnings.showwarning

    def show(message: Any, *others: Any, **more: Any) -> None:
        pattern = r"Error (?:read|writ)ing persistent compilation cache entry for '(\w+)'"
        torn = re.match(pattern, str(message))
        if torn is None:
            shown(message, *others, **more)
            return
        with contextlib.suppress(OSError):
            for entry in cache.glob(f"{torn[1]}-*"):
                entry.unlink(missing_ok=True)

    warnings.showwarning = show


def _of_files(error: OSError) -> str:
    """What the operating system refused, in a line."""
    reason = error.strerror or str(error)
    if error.filename is None:
        return f"{reason}: is the current folder still there?"
    remedy, path = "", Path(os.fsdecode(error.filename))
    nearest = next((place for place in (path, *path.parents) if os.path.exists(place)), None)
    if isinstance(error, NotADirectoryError):
        return f"{path}: {nearest} is not a folder"
    # What is there was to be read; what is not, in a folder that cannot be entered, was either.
    right = os.R_OK if nearest == path else os.X_OK
    if nearest is not None and not os.access(nearest, right, effective_ids=EFFECTIVE_IDS):
        remedy = f"; {nearest} must be readable by who runs this"
    elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
        known = [name for name in ("output_dir", "runs_dir", "results_dir") if name in flags.FLAGS]
        remedy = f"; --{known[0]} writes elsewhere" if known else ""
    return f"{path}: {reason}{remedy}"


def _missing_devices() -> str:
    """That JAX has no device, in a line; empty if it has."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition(": ")[2].partition(" (")[0].strip(". \n")
        reason = f" ({' '.join(reason.split())})" if reason else ""
        if asked:
            return (
                f"JAX_PLATFORMS={asked} names a device that JAX cannot use here{reason}; unset "
                "it, or install JAX for that device"
            )
        return f"JAX finds no device{reason}; look at the environment's variables JAX_*"
    return ""

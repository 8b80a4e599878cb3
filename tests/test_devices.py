"""Every script on 2, 3 and 8 devices: the results of one, from a run that is loaded from disk."""

import json
import shutil

import jax
import numpy as np
import pytest
from test_scripts import RUN, call, make_npz, without_time

from selfens_jax import models, runs, smoothing

OWN = ("--dataset=own.npz", "--model=lstm_fcn", "--sigma=0.5")
# 130 draws are blocks that neither 2 nor 3 nor 8 devices share evenly.
CERTIFY = (*OWN, "--num_draws=130", "--num_masks=3", "--num_examples=5")
COMMANDS = {
    "certify": ("certify", *CERTIFY),
    "consensus": ("certify", *CERTIFY, "--consensus=2"),
    "target_radius": ("certify", *OWN, "--num_masks=3", "--num_examples=5", "--target_radius=0.2"),
    "deep ensemble": ("certify", *CERTIFY[:-2], "--num_examples=3", "--ensemble=de"),
    "attack": (
        *("attack", *CERTIFY, "--num_examples=3", "--attack_draws=2", "--steps=2"),
        "--epsilons=0.5,2",
    ),
    "margins": ("margins", *OWN, "--num_draws=40", "--num_examples=2", "--num_random_masks=2"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, a deep ensemble, and what the commands print and write on one device."""
    folder = tmp_path_factory.mktemp("devices")
    make_npz(folder / "own.npz")
    on_devices(1, folder, "train", *OWN, "--epochs=3")
    on_devices(1, folder, "train", *OWN, "--epochs=3", "--ensemble=de", "--num_members=2")
    printed = {name: on_devices(1, folder, *words) for name, words in COMMANDS.items()}
    return folder, printed, results(folder), arrays_of(folder)


def on_devices(number, folder, script, *arguments):
    quick_to_compile = "--xla_backend_optimization_level=0"
    flags = f"--xla_force_host_platform_device_count={number} {quick_to_compile}"
    return call(folder, script, *arguments, XLA_FLAGS=flags).stdout.replace(str(folder), "")


def results(folder):
    """What the commands wrote, by name; tables without their times."""
    found = {}
    for path in (folder / "runs").rglob("*"):
        if path.name.startswith(("certificates-", "target-")) and path.suffix == ".tsv":
            found[path.name] = without_time(path)
        elif path.name.startswith("margins-") and path.suffix == ".npz":
            continue  # its logits are in `arrays_of`
        elif path.name.startswith("margins-"):
            # How a CPU cuts up a product depends on its number of threads, which the number of
            # its devices sets, and so does the last bit of what comes of it.
            numbers = json.loads(path.read_text(), parse_float=lambda text: round(float(text), 4))
            found[path.name] = json.dumps(numbers | {"crc32": ""})  # of all bits
        elif path.name.startswith(("counts-", "target-", "certificates-")):
            found[path.name] = path.read_bytes()
    return found


def arrays_of(folder):
    """The arrays of the one attack and of the margins."""
    found = {}
    for kind in ("attack", "margins"):
        (file,) = (folder / "runs").rglob(f"{kind}-*.npz")
        with np.load(file) as arrays:
            found |= {f"{kind} {name}": array for name, array in arrays.items()}
    return found


@pytest.mark.parametrize(
    "number", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(8, marks=pytest.mark.slow)]
)
def test_all_scripts_give_the_results_of_one_device(trained, tmp_path, number):
    source, printed, expected, arrays = trained
    assert len(expected) == 3 * 4 + 2 + 1
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    for path in [*(tmp_path / "runs").rglob("*-*")]:
        if path.is_file() and "checkpoint" not in path.parts:
            path.unlink()
    for name, words in COMMANDS.items():
        assert on_devices(number, tmp_path, *words) == printed[name], name
    assert results(tmp_path) == expected
    found = arrays_of(tmp_path)
    assert found.keys() == arrays.keys()
    for name, array in found.items():  # the last bits of logits and gradients depend on threads
        if name in ("attack adversarial", "margins logits"):
            np.testing.assert_allclose(array, arrays[name], atol=1e-4)
        else:
            np.testing.assert_array_equal(array, arrays[name])


def test_training_goes_on_and_ends_alike(trained, tmp_path):
    source, *_ = trained
    make_npz(tmp_path / "own.npz")
    whole = (source / RUN / "history.csv").read_text()
    on_devices(3, tmp_path, "train", *OWN, "--epochs=3")
    assert (tmp_path / RUN / "history.csv").read_text() == whole


@pytest.mark.slow
def test_a_reproduction_counts_what_one_device_counts(tmp_path):
    """reproduce.py on generated series would need the network; its jobs are the scripts above."""
    rng = np.random.default_rng(0)
    archive = tmp_path / "archive" / "CBF"
    archive.mkdir(parents=True)
    for split in ("TRAIN", "TEST"):
        y = rng.permutation(np.arange(12) % 3 + 1)
        series = rng.normal(size=(12, 24)) + y[:, None]
        rows = ["\t".join([str(label), *map(str, x)]) for label, x in zip(y, series, strict=True)]
        (archive / f"CBF_{split}.tsv").write_text("\n".join(rows))
    words = ("--what=table3", "--profile=smoke", "--data_dir=archive", "--ensembles=single,mc")
    words += ("--sigmas=0.4", "--num_draws=50", "--num_examples=3", "--epochs=2")
    printed = {}
    for number in (1, 3):
        folder = f"results-{number}"
        done = on_devices(number, tmp_path, "reproduce", *words, f"--results_dir={folder}")
        printed[number] = done.replace(folder, "results")
    assert printed[1] == printed[3]
    assert "CBF" in printed[1]
    for path in (tmp_path / "results-1").rglob("counts-*.npz"):
        other = tmp_path / "results-3" / path.relative_to(tmp_path / "results-1")
        assert other.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("bound_to", [0, 1, None])
def test_weights_may_be_bound_to_any_device(trained, bound_to):
    """As users load them: by `runs.load_networks`, from NumPy, or put on a device of their own."""
    source, *_ = trained
    model, stacked, _ = runs.load_networks(source / RUN)
    (variables,) = models.unstack(stacked)
    x = np.random.default_rng(0).normal(size=(2, 16, 1))
    masks = np.ones((2, 16))
    expected = None
    for devices in (1, 2, 3, 8):
        here = variables
        if bound_to is not None:
            here = jax.device_put(variables, jax.devices()[bound_to])
        predict = smoothing.self_ensemble(model, here, masks)
        mesh = None
        if devices > 1:
            automatic = (jax.sharding.AxisType.Auto,)
            mesh = jax.make_mesh(
                (devices,), ("x",), axis_types=automatic, devices=jax.devices()[:devices]
            )
        counts = smoothing.count_votes(
            predict, x, sigma=0.5, num_draws=50, key=jax.random.key(0), mesh=mesh
        )
        expected = counts if expected is None else expected
        np.testing.assert_array_equal(counts, expected)


def test_loaded_networks_are_bound_to_no_device(trained):
    source, *_ = trained
    _, stacked, config = runs.load_networks(source / RUN)
    assert json.dumps(config)
    for leaf in jax.tree.leaves(stacked):
        assert isinstance(leaf, jax.Array)
        assert not leaf.committed

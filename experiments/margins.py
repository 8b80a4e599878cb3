"""Draws the margins of a few test series under noise, for Figure 3 and the theory check.

    python experiments/margins.py --ensemble=mc

Writes margins-<id>.npz (logits of the ensemble for each draw) and .json (the check, for mb and mc)
into the run directory. A killed command, started again, goes on and ends with the same files.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import cli, trained

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from reproduction import theory
from tqdm import tqdm

from selfens_jax import counting, data, locks, masks, noise, runs, smoothing
from selfens_jax.errors import UserError
from selfens_jax.streams import stream

cli.define_run_flags()
trained.define_flags()
flags.FLAGS.set_default("num_examples", 5)
flags.DEFINE_integer("num_random_masks", 100, "Masks drawn to measure variances over masks.")
flags.DEFINE_list(
    "ensemble_sizes", ["1", "2", "5", "10", "20"], "Numbers of masks that the theory is held to."
)
FLAGS = flags.FLAGS


def main() -> None:
    if FLAGS.num_draws < 4:
        raise UserError(f"--num_draws must be at least 4, not {FLAGS.num_draws}")
    if FLAGS.num_random_masks < 2:
        raise UserError(f"--num_random_masks must be at least 2, not {FLAGS.num_random_masks}")
    sizes = cli.numbers(FLAGS, "ensemble_sizes", int, 1)
    run, config = trained.find_run(noisy=True)
    dataset = trained.load_data(run, config)
    chosen = counting.evenly_spaced(FLAGS.num_examples, len(dataset.x_test))
    predict, classifier = trained.load_classifier(run)
    if "mask_design" in classifier:
        raise UserError(
            "margins.py checks a theory of independent masks; give --mask_design=independent, or "
            "leave it out"
        )
    settings = {
        **trained.shared_settings(config, classifier, trained.noise_seed(config)),
        "num_draws": FLAGS.num_draws,
        "indices": chosen.tolist(),
        "num_random_masks": FLAGS.num_random_masks,
        **({"ensemble_sizes": sizes} if FLAGS["ensemble_sizes"].present else {}),
    }
    name = f"margins-n{FLAGS.num_draws}-{runs.digest(settings)[:10]}"
    folder = trained.output_folder(run)
    file = folder / f"{name}.npz"
    if file.with_suffix(".json").exists():
        cli.say("it is there already:")
    else:
        with locks.held(folder / f".{name}.lock", f"the drawing of {file}"):
            measure(config, dataset, predict, settings, chosen, sizes, file)
    print(file)


def measure(
    config: dict[str, Any],
    dataset: data.Dataset,
    predict: smoothing.Predict,
    settings: dict[str, Any],
    chosen: np.ndarray,
    sizes: Sequence[int],
    file: Path,
) -> None:
    """Draws logits, one file a pass, checks the theory on them, and writes both."""
    pieces = file.with_suffix("")  # a file for each pass
    masked = config["ensemble"] in ("mb", "mc")
    passes = 1 + masked * (1 + FLAGS.num_random_masks)
    done = len(list(pieces.glob("*.npz")))
    with tqdm(total=passes, initial=done, unit="pass", desc="drawing") as bar:

        def draw(name: str, of: smoothing.Predict) -> np.ndarray:
            piece = pieces / f"{name}.npz"
            if not piece.exists():
                drawn = smoothing.draw_logits(
                    of,
                    dataset.x_test[chosen],
                    sigma=settings["sigma"],
                    num_draws=FLAGS.num_draws,
                    key=stream(settings["noise_seed"], "certification"),
                    indices=chosen,
                    **noise.arguments(settings),
                )
                runs.write_npz(piece, logits=drawn)
                bar.update()
            return runs.read_npz(piece, ["logits"])["logits"]

        logits = draw("ensemble", predict)
        examples = [{"index": int(index)} for index in chosen]
        if masked and isinstance(predict, smoothing.SelfEnsemble):
            parts = draw_parts(predict, config, dataset.x_test[chosen], draw)
            for example, noisy, noisy_masked, clean, clean_masked in zip(
                examples, *parts, strict=True
            ):
                example |= check(noisy, noisy_masked, clean, clean_masked, sizes)
    runs.write_npz(
        file,
        indices=chosen,
        labels=dataset.y_test[chosen].astype(np.int64),
        logits=logits,
        settings=np.array(json.dumps(settings, sort_keys=True)),
    )
    runs.write_json(file.with_suffix(".json"), {"settings": settings, "examples": examples})
    shutil.rmtree(pieces)


def draw_parts(
    predict: smoothing.SelfEnsemble,
    config: dict[str, Any],
    x: np.ndarray,
    draw: Callable[[str, smoothing.Predict], np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Logits of the network under single masks, all with the same noise; N examples, P masks.

    Args:
      predict: whose network it is.
      config: of the run.
      x: (N, T, C) series.
      draw: the logits (N, n, K) of a classifier under noise, kept under a name.

    Returns:
      With noise, without a mask (N, n, K) and under each mask (N, n, P, K); without noise, without
      a mask (N, K) and under each mask (N, P, K).
    """
    length = x.shape[1]
    key = stream(config["seed"] if FLAGS.mask_seed is None else FLAGS.mask_seed, "masks")
    chosen = masks.draw(config["ensemble"], key, FLAGS.num_random_masks, length, config["keep"])
    without_noise = jax.jit(smoothing.mean_logits)

    def under(name: str, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        one = dataclasses.replace(predict, masks=jnp.asarray(mask[None]))
        return draw(name, one), np.asarray(without_noise(one, x))

    noisy, clean = under("no-mask", np.ones(length, np.float32))
    pairs = (under(f"mask-{i}", mask) for i, mask in enumerate(np.asarray(chosen)))
    noisy_masked, clean_masked = zip(*pairs, strict=True)
    return noisy, np.stack(noisy_masked, axis=2), clean, np.stack(clean_masked, axis=1)


def check(
    noisy: np.ndarray,
    noisy_masked: np.ndarray,
    clean: np.ndarray,
    clean_masked: np.ndarray,
    sizes: Sequence[int],
) -> dict[str, Any]:
    """Lemma 4.2 and Theorem 4.3 for one example: predictions from half of its draws, and what the
    other half shows. Variances are of the margin of A over B.

    Args:
      sizes: numbers of masks.
      others: one example's of what `draw_parts` returns.
    """
    half = len(noisy) // 2
    top, second = theory.top_two(noisy_masked[:half].mean(axis=1))
    b = second - (second > top)  # the index of B among the other classes
    z_noisy, z_masked = theory.of_class(noisy, top), theory.of_class(noisy_masked, top)
    z_clean, z_clean_masked = theory.of_class(clean, top), theory.of_class(clean_masked, top)
    estimated = theory.components(z_masked[:half], z_clean_masked)
    ensembles = []
    for m in sizes:
        if m > FLAGS.num_random_masks:
            continue
        seen = theory.measure(z_masked[half:], m)
        redrawn = None if seen.masks_redrawn is None else float(seen.masks_redrawn[b])
        ensembles.append(
            {
                "num_masks": m,
                "predicted_fixed": float(estimated.variance(m, masks_redrawn=False)[b]),
                "measured_fixed": float(seen.masks_fixed[b]),
                "predicted_redrawn": float(estimated.variance(m, masks_redrawn=True)[b]),
                "measured_redrawn": redrawn,
                "predicted_p_a": estimated.top_probability(m),
                "measured_p_a": seen.top_probability,
            }
        )
    return {
        "top": top,
        "second": second,
        "mean_plain": float(z_clean[b]),
        "mean_masked": float(z_clean_masked[:, b].mean()),
        "mean_noisy": float(estimated.mean[b]),
        "clean_variance": float(estimated.clean[b]),
        "perturbation_variance": float(estimated.perturbation[b]),
        "unmasked_variance": float(z_noisy[:half, b].var(ddof=1)),
        "correlation": float(estimated.correlation[b]),
        "ensembles": ensembles,
    }


if __name__ == "__main__":
    cli.run(main)

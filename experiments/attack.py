"""Attacks test series of a trained run with PGD-L2 and says how often it gives way.

    python experiments/attack.py --sigma=0.4 --ensemble=mc --epsilons=0.25,0.5,0.75,1.0
    python experiments/attack.py --sigma=0 --ensemble=single       # the paper's "benign" network

A killed attack, started again, goes on and ends with the same files.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from common import cli, trained

import numpy as np
from absl import flags
from tqdm import tqdm

from selfens_jax import (
    attacks,
    blocks,
    counting,
    data,
    locks,
    metrics,
    noise,
    plots,
    runs,
    smoothing,
)
from selfens_jax.errors import UserError
from selfens_jax.runs import records
from selfens_jax.streams import stream

cli.define_run_flags()
trained.define_flags()
flags.DEFINE_list(
    "epsilons",
    ["0.25", "0.5", "0.75", "1.0"],
    "Largest L2 norms of a perturbation, in the units of the series.",
)
flags.DEFINE_integer("steps", 40, "Gradient steps from each start.")
flags.DEFINE_integer("restarts", 1, "Random starts of each attack.")
# Fresh at every step, 16 draws are 640 over the 40 steps, while a step costs what 16 draws cost.
flags.DEFINE_integer(
    "attack_draws", 16, "Noise draws for each gradient, if the target is smoothed."
)
flags.DEFINE_enum(
    "target",
    None,
    ["smoothed", "mean_logits"],
    "What is attacked and judged: the most voted class under noise, or the (mean) logits without "
    "noise. smoothed if not given, mean_logits for a run of sigma 0.",
)
flags.DEFINE_enum(
    "precision",
    "float32",
    blocks.PRECISIONS,
    "Of the votes by which a smoothed target is judged, on an accelerator; as certify.py's.",
)
FLAGS = flags.FLAGS


def main() -> None:
    epsilons = check_flags()
    run, config = trained.find_run()
    target = FLAGS.target or ("smoothed" if config["sigma"] > 0 else "mean_logits")
    if target == "smoothed" and config["sigma"] == 0:
        raise UserError(
            f"the run {run} was trained with sigma 0, so there is no smoothed classifier; "
            "--target=mean_logits attacks it"
        )
    dataset = trained.load_data(run, config)
    chosen = counting.evenly_spaced(FLAGS.num_examples, len(dataset.x_test))
    if (dataset.y_test[chosen] < 0).any():
        raise UserError(f"{dataset.name}: an attack needs to know the labels of the test series")
    predict, classifier = trained.load_classifier(run)
    draws = {"attack_draws": FLAGS.attack_draws, "num_draws": FLAGS.num_draws}
    if FLAGS.precision != "float32":
        if target == "mean_logits":
            raise UserError(f"--precision={FLAGS.precision} is of votes; mean_logits has none")
        draws["precision"] = FLAGS.precision
    settings = {
        **trained.shared_settings(config, classifier, trained.noise_seed(config)),
        "target": target,
        "epsilons": epsilons,
        "steps": FLAGS.steps,
        "restarts": FLAGS.restarts,
        **(draws if target == "smoothed" else {}),
    }
    name = f"attack-{target}-{len(chosen)}ex-{runs.digest([settings, chosen])[:10]}"
    folder = trained.output_folder(run)
    file, pieces = folder / f"{name}.npz", folder / name
    if not file.exists():
        with locks.held(folder / f".{name}.lock", f"the attack {file}"):
            arrays = attack(predict, settings, dataset, chosen, pieces)
            runs.write_npz(file, **arrays, settings=np.array(json.dumps(settings, sort_keys=True)))
            shutil.rmtree(pieces, ignore_errors=True)
    names = ("original", "adversarial", "epsilons", "labels", "before", "after", "indices")
    report(settings, runs.read_npz(file, names), file)


def check_flags() -> list[float]:
    """The values of --epsilons in increasing order, after a look at the other numbers."""
    for name in ("steps", "restarts", "attack_draws", "num_draws"):
        if (value := getattr(FLAGS, name)) < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")
    cli.check_precision()
    try:
        epsilons = sorted({float(text) for text in FLAGS.epsilons})
    except ValueError:
        epsilons = []
    if not epsilons or not all(0 <= epsilon < 1e30 for epsilon in epsilons):
        raise UserError(
            f"--epsilons must be numbers >= 0, such as 0.25,0.5, not {','.join(FLAGS.epsilons)!r}"
        )
    return epsilons


# Attacking


def attack(
    predict: smoothing.Predict,
    settings: dict[str, Any],
    dataset: data.Dataset,
    chosen: np.ndarray,
    pieces: Path,
) -> dict[str, np.ndarray]:
    """Attacks the chosen test series, going on where an earlier call stopped.

    A file in `pieces` holds the examples of one call at one epsilon; at epsilon 0 they are the
    series themselves, and their predictions those before any attack.
    """
    size = attacks.EXAMPLES_PER_CALL
    chunks = [chosen[first : first + size] for first in range(0, len(chosen), size)]
    levels = sorted({0.0, *settings["epsilons"]})
    files = {(e, c[0]): pieces / f"epsilon={e}-{c[0]}.npz" for e in levels for c in chunks}
    done = sum(len(chunk) for e in levels for chunk in chunks if files[e, chunk[0]].exists())
    found: dict[float, list[dict[str, np.ndarray]]] = {epsilon: [] for epsilon in levels}
    with tqdm(total=len(levels) * len(chosen), initial=done, unit="ex", desc="attacking") as bar:
        for epsilon in levels:
            seen, wrong = 0, 0
            for chunk in chunks:
                file = files[epsilon, chunk[0]]
                if not file.exists():
                    runs.write_npz(file, **attack_chunk(predict, settings, dataset, chunk, epsilon))
                    bar.update(len(chunk))
                piece = runs.read_npz(file, ["moved", "prediction"])
                found[epsilon].append(piece)
                seen += len(chunk)
                wrong += int((piece["prediction"] != dataset.y_test[chunk]).sum())
                bar.set_postfix_str(f"epsilon {epsilon:g}: {wrong / seen:.1%} wrong")

    def joined(name: str, epsilon: float) -> np.ndarray:
        return np.concatenate([piece[name] for piece in found[epsilon]])

    return {
        "original": dataset.x_test[chosen],
        "adversarial": np.stack([joined("moved", epsilon) for epsilon in settings["epsilons"]]),
        "epsilons": np.array(settings["epsilons"]),
        "labels": dataset.y_test[chosen].astype(np.int64),
        "before": joined("prediction", 0.0),
        "after": np.stack([joined("prediction", epsilon) for epsilon in settings["epsilons"]]),
        "indices": chosen,
    }


def attack_chunk(
    predict: smoothing.Predict,
    settings: dict[str, Any],
    dataset: data.Dataset,
    chunk: np.ndarray,
    epsilon: float,
) -> dict[str, np.ndarray]:
    """The arrays of a piece: what the attack made of the series, and what they are taken for."""
    smoothed = settings["target"] == "smoothed"
    moved = attacks.pgd_l2(
        predict,
        dataset.x_test[chunk],
        dataset.y_test[chunk],
        epsilon=epsilon,
        key=stream(settings["noise_seed"], "attack"),
        sigma=settings["sigma"] if smoothed else 0.0,
        num_draws=settings["attack_draws"] if smoothed else 1,
        steps=settings["steps"],
        restarts=settings["restarts"],
        indices=chunk,
    )
    if smoothed:
        # The noise of certify.py, which no attack has seen; the same before and after.
        counts = smoothing.count_votes(
            predict,
            moved,
            sigma=settings["sigma"],
            num_draws=settings["num_draws"],
            key=stream(settings["noise_seed"], "certification"),
            indices=chunk,
            precision=settings.get("precision", "float32"),
            **noise.arguments(settings),
        )
        prediction = counts.argmax(axis=1)
    else:
        prediction = attacks.prediction(predict, moved)
    return {"moved": moved, "prediction": prediction}


# Files


def report(settings: dict[str, Any], arrays: dict[str, np.ndarray], file: Path) -> None:
    """Writes the record and the figure of an attack; prints what it comes to."""
    described, labels, before = settings["data"], arrays["labels"], arrays["before"]
    changes = arrays["adversarial"].astype(np.float64) - arrays["original"]
    norms = np.sqrt((changes**2).sum(axis=(2, 3)))  # (E, N)
    rows = []
    for epsilon, after, norm in zip(arrays["epsilons"], arrays["after"], norms, strict=True):
        all_wrong, correct_wrong = attacks.success_rates(before, after, labels)
        rows.append((float(epsilon), all_wrong, correct_wrong, float(norm.mean())))
    clean_accuracy = metrics.accuracy(before, labels)
    if settings["target"] == "smoothed":
        judged = f"most voted class of n = {settings['num_draws']} draws that no attack saw"
        judged += f", in {settings['precision']}" if "precision" in settings else ""
    else:
        judged = "class of the highest (mean) logit, without noise"
    title = (
        f"{described['name']}, {settings['model']}, {counting.ensemble_of(settings)}, "
        f"sigma {settings['sigma']:g}, PGD-L2 on {settings['target']}"
    )
    note = f"prediction: {judged}; series: {cli.provenance(settings)}"
    shown = draw(file.with_suffix(".png"), settings, arrays, norms, title, note)
    runs.write_json(
        file.with_suffix(".json"),
        {
            "prediction": judged,
            "epsilon_units": records.radius_units(described),
            "num_examples": len(labels),
            "clean_accuracy": clean_accuracy,
            "attacks": [
                {
                    "epsilon": epsilon,
                    "wrong_of_all": all_wrong,
                    # JSON has no NaN (no example was right): as text.
                    "wrong_of_initially_correct": correct_wrong
                    if correct_wrong >= 0
                    else str(correct_wrong),
                    "mean_norm": norm,
                }
                for epsilon, all_wrong, correct_wrong, norm in rows
            ],
            "example_shown": int(shown),
            "series": file.name,
            "settings": settings,
        },
    )

    print(f"{title}, {len(labels)} examples")
    print(f"  prediction: {judged}")
    print(f"  series: {cli.provenance(settings)}; epsilon and norms are L2, in their units")
    print(f"  {'accuracy before the attack':<30} {clean_accuracy:.2%}")
    heads = ("epsilon", "wrong, of all", "of initially correct", "mean L2 norm")
    print("  " + "".join(f"{head:>22}" for head in heads))
    for epsilon, all_wrong, correct_wrong, norm in rows:
        print(f"  {epsilon:>22g}{all_wrong:>22.2%}{correct_wrong:>22.2%}{norm:>22.4f}")
    print(f"  written to {file} (.json, .png)")


def draw(
    path: Path,
    settings: dict[str, Any],
    arrays: dict[str, np.ndarray],
    norms: np.ndarray,
    title: str,
    note: str,
) -> int:
    """Draws the first example that the largest epsilon fools, else the first; its index."""
    labels, classes = arrays["labels"], settings["data"]["classes"]
    fooled = (arrays["before"] == labels) & (arrays["after"][-1] != labels)
    row = int(fooled.argmax())  # 0 if there is none
    headings = {
        f"epsilon {epsilon}: L2 norm {norm:.4g}, taken for {classes[prediction]}": series
        for epsilon, norm, prediction, series in zip(
            arrays["epsilons"],
            norms[:, row],
            arrays["after"][:, row],
            arrays["adversarial"][:, row],
            strict=True,
        )
    }
    index = arrays["indices"][row]
    title = f"{title}\ntest series {index}, of class {classes[labels[row]]}"
    runs.write_bytes(path, plots.perturbations(arrays["original"][row], headings, title, note))
    return index


if __name__ == "__main__":
    cli.run(main)

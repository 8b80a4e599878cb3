"""Does the suite notice a fault? One at a time is put into a copy of the project: tests must fail.

    python tests/mutations.py [--list] [--only=NAME] [--whole]

A fault is killed if pytest, run on the copy, ends with a failed test (an import error or a broken
fixture does not count). The tests named are a few that should notice, first the one that says why
the fault matters: naming them keeps a run short. With --whole, a fault that these do not kill meets
all other tests too, for minutes. Each row says which it met. All must pass on a copy without a
fault. A fault is kept as the text that it replaces, so a change of the sources can make it stale;
`test_mutations.py` notices that at once. `campaign.py` makes simple faults by itself.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[1]
COPIED = ("selfens_jax", "experiments", "examples", "tests", "docs", "pyproject.toml", "mkdocs.yml")
COPIED += ("README.md", "BUILD_NOTES.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff")
# Two that compare the sources with texts of their own, and so notice any change; and the notebook,
# which imports the package that is installed, not the copy.
LEFT_OUT = ("test_mutations.py", "test_campaign.py", "test_colab.py")
SOUND_LIMIT = 3600.0  # seconds for tests without a fault
TIMED_OUT = 124  # the status that stands for a run that was stopped, as of `timeout`
RUNNING: set[subprocess.Popen] = set()  # which an interrupted campaign must stop
NO_TESTS = 5  # pytest's status where all files of tests skip themselves


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A fault: in `file`, `old`, which stands there exactly once, becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, root: pathlib.Path) -> None:
        path = root / self.file
        path.write_text(self.mutated(path.read_text()))

    def mutated(self, source: str) -> str:
        if source.count(self.old) != 1:
            raise ValueError(f"{self.name}: its text is in {self.file} {source.count(self.old)}x")
        return source.replace(self.old, self.new)


CERTIFICATES = "selfens_jax/certificates.py"
SMOOTHING = "selfens_jax/smoothing.py"
TRAINING = "selfens_jax/training.py"
METRICS = "selfens_jax/metrics.py"
LOGS = "selfens_jax/runs/logs.py"
RECORDS = "selfens_jax/runs/records.py"
RUN = "selfens_jax/runs/run.py"
BLOCKS = "selfens_jax/blocks.py"
CERTIFICATION = "selfens_jax/certification.py"
ENSEMBLES = "selfens_jax/ensembles.py"
CONVOLUTION = "selfens_jax/models/convolution.py"
CERTIFY = "experiments/certify.py"
COUNTING = "selfens_jax/counting.py"
TRAINED = "experiments/common/trained.py"
ATTACK = "experiments/attack.py"
MARGINS = "experiments/margins.py"
TRAIN = "experiments/train.py"
SEQUENTIAL = "selfens_jax/sequential.py"

ENUMERATION = (
    "test_soundness.py::test_the_default_is_false_at_most_alpha_by_enumeration[{alpha}-60-2]"
)
EXACT_BOUND = "test_certificates.py::test_default_is_the_exact_binomial_bound_at_half_alpha"
FALSE_RATE = "test_end_to_end_soundness.py::test_no_more_than_alpha_of_the_certificates_are_false"
DISTRIBUTION = "test_end_to_end_soundness.py::test_votes_have_the_probability_of_the_closed_form"
CONSENSUS = "test_consensus.py::test_counts_are_those_of_evaluating_every_member"
MEAN = """\
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.logits(x).mean(axis=0)
"""
SHARED_MASKS = "test_smoothing.py::test_every_row_and_draw_meets_the_same_masks"
MEAN_LOGITS = "test_smoothing.py::test_the_vote_is_the_class_of_the_mean_logits"
COUNTED = "test_recomputed.py::test_votes_are_those_of_single_draws"
CERTIFICATES_OF_COUNTS = "test_recomputed.py::test_certificates_are_those_of_the_counts"
STEPS_BY_HAND = "test_recomputed.py::test_a_training_is_that_of_single_steps"
DECIDED = "test_recomputed_decisions.py::test_decisions_are_those_of_single_draws"
CLIMBED = "test_recomputed_attack.py::test_the_series_are_those_of_single_steps"
ATTACK_SHOWN = "test_recomputed_attack.py::test_the_record_and_the_figure_are_of_the_series"
MARGINS_CHECKED = "test_recomputed_margins.py::test_the_check_is_that_of_the_formulas"
HAIR = "test_recomputed_rounding.py::test_evidence_a_hair_above_alpha_decides_nothing"

MUTATIONS = (
    # From counts to certificates
    Mutation(
        "alpha instead of alpha/2",
        CERTIFICATES,
        "counts.sum(axis=-1), alpha / 2)",
        "counts.sum(axis=-1), alpha)",
        (ENUMERATION.format(alpha=0.05), EXACT_BOUND),
    ),
    Mutation(
        "alpha fixed at 0.05",
        CERTIFICATES,
        "counts.sum(axis=-1), alpha / 2)",
        "counts.sum(axis=-1), 0.05 / 2)",
        (ENUMERATION.format(alpha=0.001), EXACT_BOUND),
    ),
    Mutation(
        "upper instead of lower bound",
        CERTIFICATES,
        "bound = special.betaincinv(k, totals - k + 1, level) * (1 - _MARGIN)",
        "bound = 1 - special.betaincinv(np.maximum(totals - k, 1e-9), k + 1, level)",
        (ENUMERATION.format(alpha=0.05), EXACT_BOUND),
    ),
    Mutation(
        "no abstention",
        CERTIFICATES,
        "    certified = p_a > p_b\n    radius = (cohen_radius",
        "    certified = np.ones(p_a.shape, bool)\n    radius = (cohen_radius",
        (FALSE_RATE, "test_certificates.py::test_a_tie_for_the_top_abstains"),
    ),
    Mutation(
        "p_A and p_B swapped where the Renyi bound is called",
        CERTIFICATES,
        'radius = (cohen_radius if bound == "cohen" else renyi_radius)(p_a, p_b, sigma)',
        'radius = cohen_radius(p_a, p_b, sigma) if bound == "cohen" else '
        "renyi_radius(p_b, p_a, sigma)",
        ("test_certificates.py::test_the_other_options_put_the_intervals_into_the_bounds",),
    ),
    Mutation(
        "p_A and p_B swapped in the Renyi bound's condition",
        CERTIFICATES,
        "certified = p_a > p_b\n    pairs",
        "certified = p_b > p_a\n    pairs",
        ("test_certificates.py::test_bounds_give_no_radius_unless_p_a_exceeds_p_b",),
    ),
    Mutation(
        "bounds not rounded down",
        CERTIFICATES,
        "_MARGIN = 1e-12",
        "_MARGIN = -1e-12",
        (
            "test_soundness.py::test_the_binomial_bound_is_rounded_down[0.25-1000]",
            "test_soundness.py::test_cohens_bound_is_rounded_down",
        ),
    ),
    Mutation(
        "radius rounded to nearest",
        CERTIFICATES,
        "rounding=decimal.ROUND_FLOOR",
        "rounding=decimal.ROUND_HALF_EVEN",
        (
            "test_soundness.py::test_radii_and_what_is_written_never_exceed_the_exact_radius",
            "test_certificates.py::test_format_radius_rounds_down_exactly",
        ),
    ),
    Mutation(
        "radius rounded to nearest in the file",
        RECORDS,
        "certificates.format_radius(radius),",
        'f"{radius:.6f}",',
        ("test_faults.py::test_radii_in_the_file_are_rounded_down",),
    ),
    Mutation(
        "ACR counts wrong predictions",
        METRICS,
        "np.where(_correct(prediction, labels), _radius(radius, prediction), 0.0)",
        "_radius(radius, prediction)",
        ("test_metrics.py::test_the_three_means",),
    ),
    # From the classifier to counts
    Mutation(
        "fresh masks for every row",
        ENSEMBLES,
        "masked = self.masks[members, None, :, None] * x[None]\n",
        "tiled = jnp.tile(self.masks[members, None], (1, len(x), 1))\n"
        "        masked = x * jax.random.permutation(\n"
        "            jax.random.key(0), tiled, axis=2, independent=True\n"
        "        )[..., None]\n",
        (SHARED_MASKS,),
    ),
    Mutation(
        "fresh masks for every size of batch",
        ENSEMBLES,
        "masked = self.masks[members, None, :, None] * x[None]\n",
        "fresh = jax.random.permutation(jax.random.key(len(x)), self.masks, axis=1)\n"
        "        masked = fresh[members, None, :, None] * x\n",
        (SHARED_MASKS,),
    ),
    Mutation(
        "fresh masks for every batch",
        COUNTING,
        "smoothing.count_votes(self.predict, **arguments)",
        "smoothing.count_votes(\n"
        "                dataclasses.replace(\n"
        "                    self.predict,\n"
        "                    masks=jax.numpy.roll(self.predict.masks, int(examples[0]), 1),\n"
        "                ),\n"
        "                **arguments,\n"
        "            )",
        ("test_faults.py::test_votes_resumed_in_other_batches_are_the_same",),
    ),
    Mutation(
        "noise not multiplied by sigma",
        CERTIFICATION,
        "block.series[None] + block.sigma * noise",
        "block.series[None] + noise",
        (DISTRIBUTION,),
    ),
    Mutation(
        "noise not multiplied by sigma in training",
        TRAINING,
        "x + noise.sigma * jax.random.normal",
        "x + jax.random.normal",
        ("test_training.py::test_noise_is_gaussian_and_fresh_for_every_step_series_and_channel",),
    ),
    Mutation(
        "mask applied before the noise",
        CERTIFICATION,
        "    logits = mean_logits(block.predict, noised(block))\n",
        "    predict = block.predict\n"
        "    if hasattr(predict, 'masks'):\n"
        "        inputs = predict.masks[:, None, :, None] * block.series\n"
        "        inputs += noised(block) - block.series\n"
        "        logits = jax.vmap(\n"
        "            lambda v: predict.model.apply(predict.variables, v, train=False)\n"
        "        )(inputs).mean(axis=0)\n"
        "    else:\n"
        "        logits = mean_logits(predict, noised(block))\n",
        ("test_smoothing.py::test_masks_cover_the_noise_and_share_it",),
    ),
    Mutation(
        "mask applied before the noise in training",
        TRAINING,
        "return mask[:, :, None] * noisy",
        "return mask[:, :, None] * x + (noisy - x)",
        ("test_training.py::test_masks_hide_the_noise_too",),
    ),
    Mutation(
        "noise reused by every second draw",
        CERTIFICATION,
        "jax.random.fold_in, example_key))(block.draws)",
        "jax.random.fold_in, example_key))(block.draws // 2)",
        (DISTRIBUTION,),
    ),
    Mutation(
        "noise reused by every block of draws",
        CERTIFICATION,
        "jax.random.fold_in, example_key))(block.draws)",
        "jax.random.fold_in, example_key))(block.draws % blocks.default_draws_per_block())",
        ("test_faults.py::test_every_block_of_draws_and_every_example_has_noise_of_its_own",),
    ),
    Mutation(
        "noise reused by every example",
        CERTIFICATION,
        "example_key = jax.random.fold_in(block.key, block.index)",
        "example_key = jax.random.fold_in(block.key, 0 * block.index)",
        (DISTRIBUTION,),
    ),
    Mutation(
        "votes of the masks averaged instead of their logits",
        ENSEMBLES,
        "self.variables, v))(masked)\n\n" + MEAN,
        "self.variables, v))(masked)\n\n"
        + MEAN.replace("self.logits(x)", "jax.nn.one_hot(self.logits(x).argmax(-1), 3)"),
        (MEAN_LOGITS,),
    ),
    Mutation(
        "every mask has a vote of its own",
        CERTIFICATION,
        "    logits = mean_logits(block.predict, noised(block))\n",
        "    if hasattr(block.predict, 'masks'):\n"
        "        return sum(tally(block, each) for each in block.predict.logits(noised(block)))\n"
        "    logits = mean_logits(block.predict, noised(block))\n",
        (MEAN_LOGITS,),
    ),
    Mutation(
        "softmax before the mean over masks",
        ENSEMBLES,
        "self.variables, v))(masked)\n\n" + MEAN,
        "self.variables, v))(masked)\n\n"
        + MEAN.replace("self.logits(x)", "jax.nn.softmax(self.logits(x))"),
        (MEAN_LOGITS,),
    ),
    Mutation(
        "softmax before the mean over members",
        ENSEMBLES,
        "for variables in chosen])\n\n" + MEAN,
        "for variables in chosen])\n\n"
        + MEAN.replace("self.logits(x)", "jax.nn.softmax(self.logits(x))"),
        (MEAN_LOGITS,),
    ),
    Mutation(
        "partial last block counted with its padding",
        CERTIFICATION,
        "counted = among & block.is_draw() & ~jnp.isnan",
        "counted = among & ~jnp.isnan",
        (
            "test_faults.py::test_every_block_of_draws_and_every_example_has_noise_of_its_own",
            "test_smoothing.py::test_first_draws_are_the_same_whatever_follows",
        ),
    ),
    Mutation(
        "BatchNorm in training mode",
        ENSEMBLES,
        "lambda v: models.evaluate(self.model, self.variables, v)",
        "lambda v: self.model.apply(\n"
        '            self.variables, v, train=True, mutable=["batch_stats"]\n'
        "        )[0]",
        ("test_smoothing.py::test_batch_norm_does_not_see_the_batch",),
    ),
    Mutation(
        "BatchNorm in training mode in a deep ensemble",
        ENSEMBLES,
        "[models.evaluate(self.model, variables, x) for variables in chosen]",
        '[self.model.apply(variables, x, train=True, mutable=["batch_stats"])[0]\n'
        "                  for variables in chosen]",
        ("test_smoothing.py::test_deep_ensemble_is_the_mean_of_its_members",),
    ),
    # Consensus
    Mutation(
        "an undecided draw counted by its first masks",
        SMOOTHING,
        "    return tally(block, first_sum, agreed), ~agreed & block.is_draw(), first_sum\n",
        "    return tally(block, first_sum), ~agreed & False, first_sum\n",
        (CONSENSUS,),
    ),
    Mutation(
        "the first masks' logits of another draw",
        BLOCKS,
        "gathered[block, : len(part)] = values[part]",
        "gathered[block, : len(part)] = values[part[::-1]]",
        (CONSENSUS,),
    ),
    Mutation(
        "the noise of another draw",
        BLOCKS,
        "draws[block, : len(part)] = draw[part]",
        "draws[block, : len(part)] = 1 + draw[part]",
        (CONSENSUS,),
    ),
    # Convolutions and runs side by side
    Mutation(
        "a fast convolution one step off for kernels of even length",
        CONVOLUTION,
        "(length - 1) // 2",
        "length // 2",
        ("test_convolution.py::test_it_is_the_convolution",),
    ),
    Mutation(
        "even steps of the series where the next are due",
        CONVOLUTION,
        "x[:, 2::2]",
        "x[:, 0:-2:2]",
        ("test_convolution.py::test_it_is_the_convolution",),
    ),
    Mutation(
        "runs side by side with the first one's randomness",
        TRAINING,
        'for each in t.noise("training"))',
        'for each in trainers[0].noise("training"))',
        ("test_training.py::test_runs_side_by_side_are_each_themselves",),
    ),
    # Files of votes
    Mutation(
        "resumed counts added twice",
        COUNTING,
        "    return entries\n\n\ndef evenly",
        "    again = [i for i in chosen.tolist() if i not in todo]\n"
        "    for i in again:\n"
        "        values = tuple(2 * value for value in entries[i].values)\n"
        "        entries[i] = Entry(values, 0.0)\n"
        "    return entries\n\n\ndef evenly",
        ("test_faults.py::test_votes_resumed_in_other_batches_are_the_same",),
    ),
    Mutation(
        "an example written twice has its votes added",
        LOGS,
        "if entries.setdefault(example, entry).values != entry.values:\n"
        "            raise UserError(\n"
        '                f"{path} has example {index} twice, differently (line {number}); '
        'move it away"\n'
        "            )",
        "if example in entries:\n"
        "            values = map(sum, zip(entry.values, entries[example].values, strict=True))\n"
        "            entry = Entry(tuple(values), 0.0)\n"
        "        entries[example] = entry",
        ("test_runs.py::test_damaged_votes_are_refused",),
    ),
    # The scripts: which value is handed to which function
    Mutation(
        "sigma rounded to the nearest float32",
        BLOCKS,
        "sigma=round_up(sigma),",
        "sigma=np.float32(sigma),",
        ("test_recomputed_rounding.py::test_the_noise_is_that_of_the_next_float32_above_sigma",),
    ),
    Mutation(
        "a draw void only if all its logits are NaN",
        CERTIFICATION,
        "~jnp.isnan(logits).any(axis=-1)",
        "~jnp.isnan(logits).all(axis=-1)",
        ("test_recomputed_rounding.py::test_a_draw_with_one_nan_logit_is_no_vote",),
    ),
    Mutation(
        "the margin of evidence on the wrong side",
        SEQUENTIAL,
        '"greater") >= _MARGIN - math.log(alpha)',
        '"greater") >= -_MARGIN - math.log(alpha)',
        (HAIR,),
    ),
    Mutation(
        "the margin of evidence for giving up on the wrong side",
        SEQUENTIAL,
        '"less") >= _MARGIN - math.log(alpha_futility)',
        '"less") >= -_MARGIN - math.log(alpha_futility)',
        (HAIR,),
    ),
    Mutation(
        "the draws that chose the class are tested",
        SEQUENTIAL,
        "count(still_open, start, stop - start)",
        "count(still_open, start - edges[0], stop - start)",
        (DECIDED,),
    ),
    Mutation(
        "the class chosen by the draws that are tested first",
        SEQUENTIAL,
        "selection, cost = count(np.arange(num_examples), 0, edges[0])",
        "selection, cost = count(np.arange(num_examples), edges[0], edges[0])",
        (DECIDED,),
    ),
    Mutation(
        "the two levels of error swapped",
        COUNTING,
        "            alpha,\n            alpha_futility,\n        )\n",
        "            alpha_futility,\n            alpha,\n        )\n",
        (DECIDED,),
    ),
    Mutation(
        "decisions resumed at another level",
        COUNTING,
        '        folder / f"decisions-{short_id(settings)}",\n        settings,\n',
        "        folder / f\"decisions-{short_id({**settings, 'alpha': 0})}\",\n"
        '        {**settings, "alpha": 0},\n',
        ("test_recomputed_decisions.py::test_another_level_is_another_log", DECIDED),
    ),
    Mutation(
        "the share of votes that noise of sigma 1 would need",
        COUNTING,
        'sequential.certified_share(radius, settings["sigma"])',
        "sequential.certified_share(radius, 1.0)",
        (DECIDED,),
    ),
    Mutation(
        "forward passes of the last batch alone",
        SEQUENTIAL,
        "cost[still_open] += more",
        "cost[still_open] = more",
        (DECIDED,),
    ),
    Mutation(
        "the draws that chose the class not reported",
        RECORDS,
        'return self.settings["batches"][0] + self.tested',
        "return self.tested",
        (DECIDED,),
    ),
    Mutation(
        "decisions beside the labels of the first series",
        COUNTING,
        "job.labels[job.chosen].astype(np.int64),\n        forwards=forwards,",
        "job.labels[: len(job.chosen)].astype(np.int64),\n        forwards=forwards,",
        (DECIDED,),
    ),
    Mutation(
        "certificates beside the labels of the first series",
        COUNTING,
        "        labels=job.labels[job.chosen].astype(np.int64),\n        forwards=values",
        "        labels=job.labels[: len(job.chosen)].astype(np.int64),\n        forwards=values",
        (COUNTED,),
    ),
    Mutation(
        "the first series instead of evenly spaced ones",
        CERTIFY,
        "chosen = counting.evenly_spaced(FLAGS.num_examples, len(dataset.x_test))",
        "chosen = np.arange(FLAGS.num_examples or len(dataset.x_test))",
        (COUNTED,),
    ),
    Mutation(
        "--alpha not used",
        CERTIFY,
        "(counts, sigma, FLAGS.alpha, FLAGS.interval, FLAGS.bound)",
        "(counts, sigma, interval=FLAGS.interval, bound=FLAGS.bound)",
        (CERTIFICATES_OF_COUNTS,),
    ),
    Mutation(
        "--bound not used",
        CERTIFY,
        "(counts, sigma, FLAGS.alpha, FLAGS.interval, FLAGS.bound)",
        "(counts, sigma, FLAGS.alpha, FLAGS.interval)",
        (CERTIFICATES_OF_COUNTS,),
    ),
    Mutation(
        "radii for the sigma of the flags, not of the counts",
        CERTIFY,
        'certify_votes(counted.counts, counted.settings["sigma"])',
        "certify_votes(counted.counts, FLAGS.sigma)",
        (CERTIFICATES_OF_COUNTS,),
    ),
    Mutation(
        "the summary's radii for the sigma of the flags",
        CERTIFY,
        'np.array([0.25, 0.5, 1.0, 1.5, 2.0]) * counted.settings["sigma"]',
        "np.array([0.25, 0.5, 1.0, 1.5, 2.0]) * FLAGS.sigma",
        (CERTIFICATES_OF_COUNTS,),
    ),
    Mutation(
        "labels and predictions swapped in the table",
        RECORDS,
        '            names[label] if label >= 0 else "",\n            names[prediction],\n',
        '            names[prediction],\n            names[label] if label >= 0 else "",\n',
        (CERTIFICATES_OF_COUNTS,),
    ),
    Mutation(
        "the accuracy beside the bar is of the first series",
        CERTIFY,
        "prediction == self.job.labels[examples]",
        "prediction == self.job.labels[: len(examples)]",
        (CERTIFICATES_OF_COUNTS,),
    ),
    Mutation(
        "votes under the noise of attacks",
        COUNTING,
        'stream(self.settings["noise_seed"], "certification")',
        'stream(self.settings["noise_seed"], "attack")',
        (COUNTED,),
    ),
    Mutation(
        "an undecided draw costs its first members twice",
        COUNTING,
        "asked_all * (self.num_members - first)",
        "asked_all * self.num_members",
        (COUNTED, DECIDED),
    ),
    Mutation(
        "--noise_seed not used",
        TRAINED,
        'return config["seed"] if FLAGS.noise_seed is None else FLAGS.noise_seed',
        'return config["seed"]',
        (COUNTED,),
    ),
    Mutation(
        "masks of the run's seed",
        RUN,
        'stream(seed, "masks")',
        'stream(config["seed"], "masks")',
        (COUNTED,),
    ),
    Mutation(
        "masks that keep the usual share",
        RUN,
        "key, num_masks, length, keep)",
        "key, num_masks, length, 0.9)",
        (COUNTED,),
    ),
    Mutation(
        "the attack knows the noise it is judged under",
        ATTACK,
        'key=stream(settings["noise_seed"], "attack")',
        'key=stream(settings["noise_seed"], "certification")',
        (CLIMBED,),
    ),
    Mutation(
        "attacked series judged under the noise of other examples",
        ATTACK,
        "            indices=chunk,\n        )\n        prediction",
        "            indices=np.arange(len(chunk)),\n        )\n        prediction",
        (CLIMBED,),
    ),
    Mutation(
        "attacked series judged under noise that the attack has seen",
        ATTACK,
        'key=stream(settings["noise_seed"], "certification")',
        'key=stream(settings["noise_seed"], "attack")',
        (CLIMBED,),
    ),
    Mutation(
        "noise in the attack on logits without noise",
        ATTACK,
        'sigma=settings["sigma"] if smoothed else 0.0',
        'sigma=settings["sigma"]',
        (CLIMBED,),
    ),
    Mutation(
        "the attack moves away from the classes of the first series",
        ATTACK,
        "dataset.y_test[chunk],\n        epsilon=epsilon,",
        "dataset.y_test[: len(chunk)],\n        epsilon=epsilon,",
        (CLIMBED,),
    ),
    Mutation(
        "--restarts not used",
        ATTACK,
        '        restarts=settings["restarts"],\n',
        "",
        (CLIMBED,),
    ),
    Mutation(
        "the attack's gradients from as many draws as judge it",
        ATTACK,
        'num_draws=settings["attack_draws"] if smoothed else 1',
        'num_draws=settings["num_draws"] if smoothed else 1',
        (CLIMBED,),
    ),
    Mutation(
        "the smallest attack's predictions as those before any",
        ATTACK,
        '"before": joined("prediction", 0.0)',
        '"before": joined("prediction", settings["epsilons"][0])',
        (CLIMBED,),
    ),
    Mutation(
        "the example shown is one that the smallest epsilon fools",
        ATTACK,
        '(arrays["after"][-1] != labels)',
        '(arrays["after"][0] != labels)',
        (ATTACK_SHOWN,),
    ),
    Mutation(
        "margins under the noise of other examples",
        MARGINS,
        "                    indices=chosen,\n",
        "                    indices=np.arange(len(chosen)),\n",
        ("test_recomputed_margins.py::test_the_logits_are_those_of_single_draws",),
    ),
    Mutation(
        "the variance theory judged on the draws it was fitted to",
        MARGINS,
        "theory.measure(z_masked[half:], m)",
        "theory.measure(z_masked[:half], m)",
        (MARGINS_CHECKED,),
    ),
    Mutation(
        "random masks of the run's seed",
        MARGINS,
        'config["seed"] if FLAGS.mask_seed is None else FLAGS.mask_seed',
        'config["seed"]',
        (MARGINS_CHECKED,),
    ),
    Mutation(
        "the margin over another class than the second",
        MARGINS,
        "b = second - (second > top)",
        "b = second - (second < top)",
        (MARGINS_CHECKED,),
    ),
    Mutation(
        "the ensemble of all random masks left out",
        MARGINS,
        "if m > FLAGS.num_random_masks:",
        "if m >= FLAGS.num_random_masks:",
        (MARGINS_CHECKED,),
    ),
    Mutation(
        "--class_weights not used in training",
        TRAIN,
        "            class_weights=FLAGS.class_weights,\n",
        "",
        ("test_recomputed.py::test_the_record_of_a_training_says_what_was_asked", STEPS_BY_HAND),
    ),
    Mutation(
        "networks finished with the statistics of the test series",
        TRAIN,
        "training.recalibrated(run.trainer, x, run.states)",
        "training.recalibrated(run.trainer, np.resize(dataset.x_test, x.shape), run.states)",
        (STEPS_BY_HAND,),
    ),
)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Tests that a fault meets, and how long they may take; `tests` may be empty."""

    name: str  # "named" or "whole"
    tests: tuple[str, ...]
    limit: float


def copy_project(folder: pathlib.Path, source: pathlib.Path = ROOT) -> pathlib.Path:
    """Copies what the tests need. The archive, which some look for beside it, is linked.

    Also beside it is the home of what runs in the copy, so that a fault cannot harm the user's, or
    another fault's, caches. Only programs that JAX compiled, which it tells apart, are shared.
    """
    root = folder / "project"
    root.mkdir(parents=True)
    for name in COPIED:
        if (source / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source / name, root / name, ignore=ignored)
        elif (source / name).exists():
            shutil.copy(source / name, root / name)
    if (shared := source.parent / "shared").is_dir():
        (folder / "shared").symlink_to(shared.resolve(), target_is_directory=True)
    compiled, scripts = folder.parent / "compiled", folder / "home" / ".cache" / "selfens_jax"
    compiled.mkdir(exist_ok=True)
    scripts.mkdir(parents=True)
    (scripts / "xla").symlink_to(compiled, target_is_directory=True)
    return root


def run_python(root: pathlib.Path, *arguments: str, limit: float) -> subprocess.CompletedProcess:
    """Python in the copy at `root`, whose package goes before any installed one."""
    home, scratch = root.parent / "home", root.parent.parent
    environment = {
        **os.environ,
        "HOME": str(home),
        "XDG_DATA_HOME": str(home / "data"),
        "MPLCONFIGDIR": str(scratch / "matplotlib"),
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_COMPILATION_CACHE_DIR": str(scratch / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    # Files, not pipes: a script that a stopped test left behind would hold a pipe open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        RUNNING.add(process)
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = TIMED_OUT
        finally:
            RUNNING.discard(process)
            stop(process)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, status, out.read(), err.read())


def stop(process: subprocess.Popen) -> None:
    """Ends a process of `run_python`, and the scripts that its tests started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def stop_all() -> None:
    for process in tuple(RUNNING):
        stop(process)


def run_tests(
    root: pathlib.Path, tests: Sequence[str], limit: float = SOUND_LIMIT
) -> subprocess.CompletedProcess:
    find = "import importlib.util as u; print(u.find_spec('selfens_jax').origin)"
    where = run_python(root, "-c", find, limit=limit)
    if where.stdout.strip() != str(root / "selfens_jax" / "__init__.py"):
        raise RuntimeError(f"the copy is not what is imported: {where.stdout} {where.stderr}")
    paths = [f"tests/{test}" for test in tests]
    quiet = ("--exitfirst", "--quiet", "--tb=line", "-n", "0", "-p", "no:cacheprovider")
    return run_python(root, "-m", "pytest", *quiet, *paths, limit=limit)


def run_stages(
    root: pathlib.Path, stages: Sequence[Stage]
) -> tuple[subprocess.CompletedProcess, Stage]:
    """The first run that does not pass, else the last, and its stage."""
    for stage in stages:
        done = run_tests(root, stage.tests, stage.limit)
        if done.returncode not in (0, NO_TESTS):
            break
    return done, stage


def time_limit(sound: float) -> float:
    """Seconds that tests may take which take `sound` without a fault."""
    return 3 * sound + 60


def test_files(root: pathlib.Path) -> tuple[str, ...]:
    """The files of all tests that can judge a copy."""
    names = sorted(path.name for path in (root / "tests").glob("test_*.py"))
    return tuple(name for name in names if name not in LEFT_OUT)


def killer(done: subprocess.CompletedProcess) -> str | None:
    """The first failed test of a pytest run; None if none failed, whatever else went wrong."""
    failed = re.search(r"^FAILED tests/(.+?)(?: - .*)?$", done.stdout, flags=re.MULTILINE)
    return failed[1] if done.returncode == 1 and failed else None


def main(arguments: list[str] | None = None) -> int:
    """Puts in the faults chosen. With --whole, those that the named tests let pass meet the rest.

    Each row says which tests a fault met: "named", or "whole" if all others too.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="name the faults and stop")
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--whole", action="store_true", help="all other tests after the named ones")
    options = parser.parse_args(arguments)
    chosen = [mutation for mutation in MUTATIONS if options.only in mutation.name]
    if options.list or not chosen:
        print("\n".join(mutation.name for mutation in MUTATIONS))
        return 0 if options.list else 2

    killed = 0
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name).resolve()
        sound = copy_project(scratch / "sound")
        named = tuple(dict.fromkeys(test for mutation in chosen for test in mutation.tests))
        limits = []
        for tests in (named, test_files(sound)) if options.whole else (named,):
            began = time.monotonic()
            done = run_tests(sound, tests)
            if done.returncode != 0:
                print(done.stdout, done.stderr, "the tests fail without any fault", sep="\n")
                return 1
            seconds = time.monotonic() - began
            limits.append(time_limit(seconds))
            what = f"{len(tests)} named tests pass" if tests is named else "all tests pass"
            print(f"{what} without a fault, {seconds:.0f} s\n")
        print("| fault | file | killed by | tests | seconds |\n|---|---|---|---|---|", flush=True)
        for number, mutation in enumerate(chosen):
            began = time.monotonic()
            root = copy_project(scratch / str(number), sound)
            mutation.apply(root)
            stages = [Stage("named", mutation.tests, limits[0])]
            stages += [Stage("whole", test_files(root), limit) for limit in limits[1:]]
            done, stage = run_stages(root, stages)
            test = killer(done)
            killed += test is not None
            row = (mutation.name, mutation.file, test or "**survived**", stage.name)
            print(f"| {' | '.join(row)} | {time.monotonic() - began:.0f} |", flush=True)
            if test is None:
                print(f"{done.stdout[-2000:]}{done.stderr[-2000:]}", file=sys.stderr)
            shutil.rmtree(root.parent)
    print(f"\nkilled {killed} of {len(chosen)}")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())

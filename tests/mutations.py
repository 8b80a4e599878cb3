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
LEFT_OUT = ("test_mutations.py", "test_campaign.py", "test_reached.py", "test_colab.py")
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
BACKEND = "selfens_jax/backend.py"
BLOCKS = "selfens_jax/blocks.py"
MODELS = "selfens_jax/models/__init__.py"
CERTIFICATION = "selfens_jax/certification.py"
NOISE = "selfens_jax/noise.py"
ENSEMBLES = "selfens_jax/ensembles.py"
CONVOLUTION = "selfens_jax/models/convolution.py"
CERTIFY = "experiments/certify.py"
SUMMARIES = "experiments/common/summaries.py"
COUNTING = "selfens_jax/counting.py"
TRAINED = "experiments/common/trained.py"
ATTACK = "experiments/attack.py"
MARGINS = "experiments/margins.py"
TRAIN = "experiments/train.py"
SEQUENTIAL = "selfens_jax/sequential.py"
COVERAGE = "selfens_jax/coverage.py"
EXACT = "selfens_jax/exact.py"
BURSTS = "selfens_jax/bursts.py"
DOUBLE_MASKING = "experiments/common/double_masking.py"
SPLITS = "selfens_jax/data/splits.py"
MASKS = "selfens_jax/masks.py"
OBJECTIVES = "selfens_jax/objectives.py"

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
MARGINS_DRAWN = "test_recomputed_margins.py::test_the_logits_are_those_of_single_draws"
GRID_RATE = (
    "test_grid_soundness.py::"
    "test_no_more_than_alpha_of_the_certificates_between_grid_points_are_false"
)
GRID_DECISIONS = GRID_RATE.replace("certificates", "decisions")
GIVEN_UP = "test_grid_soundness.py::test_radii_and_probabilities_are_less_by_what_is_given_up"
KNOWING = "test_grid_soundness.py::test_on_a_grid_a_classifier_is_certified_as_what_it_is_there"
THRESHOLDS = "test_noise.py::test_thresholds_are_the_tails_of_a_gaussian"
COUNTED_INTEGERS = "test_noise.py::test_integers_count_the_thresholds_above_a_number"
GRID_SAMPLES = "test_noise.py::test_samples_have_the_distribution"
GRID_SHOWN = "test_noise.py::test_a_classifier_is_shown_the_nearest_grid_point_and_its_noise"
GRID_OPTIONS = "test_noise_options.py::test_each_grid_is_recorded_and_has_a_log_of_its_own"
MARGINS_CHECKED = "test_recomputed_margins.py::test_the_check_is_that_of_the_formulas"
EVERY_BURST = "test_bursts.py::test_every_burst_lies_in_a_window"
RULE = "test_bursts.py::test_the_answer_is_that_of_the_definition"
EXHAUSTIVE = "test_bursts.py::test_no_burst_changes_a_certified_answer"
GAPS = "test_bursts.py::test_a_gap_in_one_window_is_certified_whatever_it_hid"
PAIRS_AGREE = "test_bursts.py::test_what_is_certified_is_what_the_pairs_agree_on"
BURST_CELLS = "test_burst_scripts.py::test_every_cell_and_line"
BURST_NOISE = "test_burst_scripts.py::test_with_noise"
OWN_UNITS = "test_channel_units.py::test_what_certify_says_is_in_own_units"
CLASS_WEIGHTS_IN_ALL = "test_objectives.py::test_the_loss_of_a_step_has_class_weights_in_all_terms"
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
        "masked = masking.hide(x[None], self.masks[members, None], self.hidden_as)\n",
        "tiled = jnp.tile(self.masks[members, None], (1, len(x), 1))\n"
        "        masked = x * jax.random.permutation(\n"
        "            jax.random.key(0), tiled, axis=2, independent=True\n"
        "        )[..., None]\n",
        (SHARED_MASKS,),
    ),
    Mutation(
        "fresh masks for every size of batch",
        ENSEMBLES,
        "masked = masking.hide(x[None], self.masks[members, None], self.hidden_as)\n",
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
        NOISE,
        "high, low = thresholds(sigma / grid)",
        "high, low = thresholds(1 / grid)",
        (DISTRIBUTION,),
    ),
    Mutation(
        "noise in float32 not multiplied by sigma",
        NOISE,
        "return self.sigma * normal",
        "return normal",
        (
            "test_smoothing.py::test_noise_is_gaussian_with_deviation_sigma_and_never_repeats"
            "[float32]",
        ),
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
        "return masks.hide(noisy, mask, step.hidden_as)",
        "return masks.hide(x, mask, step.hidden_as) + (noisy - x)",
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
        "jax.random.fold_in, example_key))(block.draws % blocks.default_draws_per_block(128))",
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
        "reshape(*masked.shape[:2], -1)\n\n" + MEAN,
        "reshape(*masked.shape[:2], -1)\n\n"
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
        "reshape(*masked.shape[:2], -1)\n\n" + MEAN,
        "reshape(*masked.shape[:2], -1)\n\n"
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
    # The grid of the noise, and what it takes off certificates
    Mutation(
        "rounding to the grid not taken off radii",
        CERTIFICATES,
        "np.nextafter(radius - given_up.rounding, -np.inf)",
        "np.nextafter(radius, -np.inf)",
        (GRID_RATE, GIVEN_UP),
    ),
    Mutation(
        "the deviation from a Gaussian not taken off p_A",
        CERTIFICATES,
        "p_a = np.maximum(p_a - given_up.deviation, 0)\n        p_b = 1 - p_a",
        "p_b = 1 - p_a",
        (GIVEN_UP,),
    ),
    Mutation(
        "the deviation from a Gaussian not added to p_B",
        CERTIFICATES,
        "p_b = np.minimum(p_b + given_up.deviation, 1)",
        "p_b = np.minimum(p_b, 1)",
        (GIVEN_UP,),
    ),
    Mutation(
        "half of the rounding taken off",
        NOISE,
        "grid * math.sqrt(num_values) * (1 + 1e-15)",
        "grid / 2 * math.sqrt(num_values) * (1 + 1e-15)",
        (
            "test_grid_soundness.py::test_rounding_is_q_times_the_root_of_the_number_of_values",
            GRID_RATE,
        ),
    ),
    Mutation(
        "the deviation of one value for all",
        NOISE,
        "return 1.01 * num_values * one",
        "return 1.01 * one",
        ("test_noise.py::test_the_total_variation_is_what_deviation_bounds",),
    ),
    Mutation(
        "the deviation without the rounding of Phi",
        NOISE,
        "* 5 / 3 + 2) * 2.0**-49",
        "* 5 / 3 + 2) * 2.0**-63",
        ("test_noise.py::test_the_total_variation_is_what_deviation_bounds",),
    ),
    Mutation(
        "series not rounded to the grid",
        NOISE,
        "return made, on_grid(given, grid)",
        "return made, x",
        (KNOWING, GRID_SHOWN),
    ),
    Mutation(
        "series rounded to float32 before the grid",
        BLOCKS,
        "np.asarray(given, np.float64), x)",
        "x.astype(np.float64), x)",
        ("test_noise.py::test_series_go_to_the_grid_directly_not_by_way_of_float32",),
    ),
    Mutation(
        "thresholds of the next integer",
        NOISE,
        "-(np.arange(number) + 0.5) / ratio",
        "-(np.arange(number) + 1.5) / ratio",
        (THRESHOLDS, GRID_SAMPLES),
    ),
    Mutation(
        "thresholds of rounding down",
        NOISE,
        "-(np.arange(number) + 0.5) / ratio",
        "-(np.arange(number) + 1.0) / ratio",
        (GRID_SAMPLES,),
    ),
    Mutation(
        "the sign's bit used for the magnitude",
        NOISE,
        "first & jnp.uint32(2**31 - 1), second",
        "first >> 1, second",
        (GRID_SAMPLES, COUNTED_INTEGERS),
    ),
    Mutation(
        "the low words not looked at",
        NOISE,
        "(place < count) & (high[at] == u_high) & (low[at] <= u_low)",
        "(place < count) & (high[at] == u_high)",
        (COUNTED_INTEGERS,),
    ),
    Mutation(
        "an accelerator does not look at the low words",
        NOISE,
        "| ((high[at] == u_high) & (low[at] <= u_low))",
        "| (high[at] == u_high)",
        (COUNTED_INTEGERS,),
    ),
    Mutation(
        "an accelerator counts a number as below a threshold that it equals",
        NOISE,
        "| ((high[at] == u_high) & (low[at] <= u_low))",
        "| ((high[at] == u_high) & (low[at] < u_low))",
        (COUNTED_INTEGERS,),
    ),
    Mutation(
        "an accelerator's bisection starts one bit too low",
        NOISE,
        "reversed(range(len(high).bit_length()))",
        "reversed(range(len(high).bit_length() - 1))",
        (COUNTED_INTEGERS,),
    ),
    Mutation(
        "a number counted as below a threshold that it equals",
        NOISE,
        "(place < count) & (high[at] == u_high) & (low[at] <= u_low)",
        "(place < count) & (high[at] == u_high) & (low[at] < u_low)",
        (COUNTED_INTEGERS,),
    ),
    Mutation(
        "a grid too fine for the noise of large series",
        NOISE,
        "+ REACH * sigma\n",
        "+ 0 * sigma\n",
        ("test_noise.py::test_rounding_commutes_with_a_shift_by_a_grid_point",),
    ),
    Mutation(
        "the usual grid whatever --grid says",
        TRAINED,
        '{"grid": noise.check_grid(FLAGS.grid, sigma, np.zeros(0))}',
        '{"grid": noise.default_grid(sigma)}',
        (GRID_OPTIONS,),
    ),
    Mutation(
        "--grid recorded and not handed on",
        NOISE,
        '{"noise": "grid", "grid": settings["grid"]}',
        '{"noise": "grid"}',
        (GRID_OPTIONS, COUNTED),
    ),
    Mutation(
        "--noise=float32 recorded as if it were on the grid",
        TRAINED,
        'FLAGS.noise == "float32" or sigma == 0',
        "sigma == 0",
        (GRID_OPTIONS,),
    ),
    Mutation(
        "what the grid takes forgotten in decisions",
        COUNTING,
        'settings["sigma"], noise.given_up(settings))',
        'settings["sigma"])',
        (GRID_DECISIONS,),
    ),
    Mutation(
        "what the grid takes forgotten by certify.py",
        CERTIFY,
        "*asked, noise.given_up(settings))",
        "*asked)",
        (CERTIFICATES_OF_COUNTS,),
    ),
    Mutation(
        "what the grid takes forgotten by certify",
        CERTIFICATION,
        "interval, bound, given_up)",
        "interval, bound)",
        ("test_grid_soundness.py::test_certify_gives_up_what_counts_do",),
    ),
    Mutation(
        "the rounding forgotten in the share that certifies",
        SEQUENTIAL,
        "radius + given_up.rounding",
        "radius",
        (GRID_DECISIONS,),
    ),
    Mutation(
        "attacked series judged under other noise than certify.py's",
        ATTACK,
        "            **noise.arguments(settings),\n",
        "",
        (CLIMBED,),
    ),
    Mutation(
        "margins under other noise than certify.py's",
        MARGINS,
        "                    **noise.arguments(settings),\n",
        "",
        (MARGINS_DRAWN,),
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
        "-(-length // 2), (length - 1) // 2",
        "-(-length // 2), length // 2",
        ("test_convolution.py::test_it_is_the_convolution",),
    ),
    Mutation(
        "kernels of an accelerator filled up a step off",
        CONVOLUTION,
        "before = (length - 1) // 2 - (len(kernel) - 1) // 2",
        "before = (length - len(kernel)) // 2",
        ("test_backend.py::test_convolutions_and_their_gradients_are_the_same",),
    ),
    Mutation(
        "an accelerator's masks in the rows of other series",
        ENSEMBLES,
        ".reshape(*masked.shape[:2], -1)",
        ".reshape(x.shape[0], -1, masked.shape[0]).T",
        ("test_backend.py::test_ensembles_have_the_same_logits",),
    ),
    Mutation(
        "an accelerator computes one block too few",
        BLOCKS,
        "jax.lax.fori_loop(0, number, put, zeros)",
        "jax.lax.fori_loop(1, number, put, zeros)",
        ("test_backend.py::test_counts_are_those_of_a_cpu",),
    ),
    Mutation(
        "an accelerator computes all that a call could hold",
        BLOCKS,
        "jax.lax.fori_loop(0, number, put, zeros)",
        "jax.lax.fori_loop(0, len(each[0]), put, zeros)",
        ("test_backend.py::test_only_the_blocks_there_are_are_computed",),
    ),
    Mutation(
        "results of several devices read in another order",
        BLOCKS,
        "blocks % devices * (per_call // devices) + blocks // devices",
        "blocks",
        ("test_backend.py::test_counts_are_those_of_a_cpu",),
    ),
    Mutation(
        "tensors of bfloat16 on the other accelerator",
        BACKEND,
        'kind() == "gpu" and precision',
        'kind() == "tpu" and precision',
        ("test_backend.py::test_in_bfloat16_a_gpu_has_no_other_tensors_to_multiply",),
    ),
    Mutation(
        "series are not rounded to bfloat16",
        MODELS,
        "x.astype(jnp.bfloat16), **evaluation",
        "x, **evaluation",
        ("test_backend.py::test_in_bfloat16_a_gpu_has_no_other_tensors_to_multiply",),
    ),
    Mutation(
        "weights rounded in every block of draws",
        BLOCKS,
        "ensembles.rounded(predict), noise",
        "predict, noise",
        ("test_backend.py::test_weights_are_rounded_once_before_the_blocks",),
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
        NOISE,
        "jnp.asarray(round_up(sigma))",
        "jnp.float32(sigma)",
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
        'sequential.certified_share(radius, settings["sigma"], noise.given_up(settings))',
        "sequential.certified_share(radius, 1.0, noise.given_up(settings))",
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
        "chosen = counting.evenly_spaced(FLAGS.num_examples, len(x))",
        "chosen = np.arange(FLAGS.num_examples or len(x))",
        (COUNTED,),
    ),
    Mutation(
        "--alpha not used",
        CERTIFY,
        "asked = (alpha, FLAGS.interval, FLAGS.bound)",
        "asked = (0.001, FLAGS.interval, FLAGS.bound)",
        (CERTIFICATES_OF_COUNTS,),
    ),
    Mutation(
        "--bound not used",
        CERTIFY,
        "asked = (alpha, FLAGS.interval, FLAGS.bound)",
        'asked = (alpha, FLAGS.interval, "cohen")',
        (CERTIFICATES_OF_COUNTS,),
    ),
    Mutation(
        "radii for the sigma of the flags, not of the counts",
        CERTIFY,
        'sigma = settings["sigma"]\n    if FLAGS.paper:',
        "sigma = FLAGS.sigma\n    if FLAGS.paper:",
        (CERTIFICATES_OF_COUNTS,),
    ),
    Mutation(
        "the summary's radii for the sigma of the flags",
        SUMMARIES,
        'np.array([0.25, 0.5, 1.0, 1.5, 2.0]) * counted.settings["sigma"]',
        "np.array([0.25, 0.5, 1.0, 1.5, 2.0]) * cli.flags.FLAGS.sigma",
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
        "labels = self.job.labels[examples]",
        "labels = self.job.labels[: len(examples)]",
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
        "key, num_masks, length, keep, design",
        "key, num_masks, length, 0.9, design",
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
        "            indices=chunk,\n            precision",
        "            indices=np.arange(len(chunk)),\n            precision",
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
        (MARGINS_DRAWN,),
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
        "consistency without class weights",
        OBJECTIVES,
        "    more = jnp.average(agreement * divergence + certainty * entropy, weights=weights)",
        "    more = jnp.average(agreement * divergence + certainty * entropy)",
        ("test_objectives.py::test_consistency_by_hand", CLASS_WEIGHTS_IN_ALL),
    ),
    Mutation(
        "mixed series without class weights",
        OBJECTIVES,
        "jnp.average(jnp.where(right, divergence, 0.0), weights=weights)",
        "jnp.average(jnp.where(right, divergence, 0.0))",
        ("test_objectives.py::test_smoothmix_by_hand", CLASS_WEIGHTS_IN_ALL),
    ),
    Mutation(
        "the divergence the wrong way round",
        OBJECTIVES,
        "    divergence = (p * (log_p - log_p_i)).sum(axis=-1).mean(axis=0)",
        "    divergence = (jnp.exp(log_p_i) * (log_p_i - log_p)).sum(axis=-1).mean(axis=0)",
        (
            "test_objectives.py::test_the_divergence_is_from_the_mean",
            "test_objectives.py::test_consistency_by_hand",
        ),
    ),
    Mutation(
        "the second view has the noise of the first",
        TRAINING,
        "noise_key = noise_key if shares_noise else own_key",
        "noise_key = noise_key",
        ("test_objectives.py::test_views_have_noise_of_their_own",),
    ),
    Mutation(
        "the second view has the mask's key of the first",
        TRAINING,
        "jax.random.fold_in(noise.key, 1 + view))",
        "jax.random.fold_in(noise.key, view))",
        ("test_objectives.py::test_keys_of_views_are_none_of_those_before",),
    ),
    Mutation(
        "the average is not corrected for its beginning",
        TRAINING,
        "lambda leaf: leaf / known",
        "lambda leaf: leaf",
        ("test_objectives.py::test_the_average_is_that_of_all_steps",),
    ),
    Mutation(
        "another objective is taken for the default",
        TRAINED,
        "runs.differences(training.completed(config), asked)",
        'runs.differences({**config, "objective": asked.get("objective")}, asked)',
        ("test_objectives.py::test_it_is_not_taken_for_the_default_or_another",),
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
    # What a radius covers, and all series at once
    Mutation(
        "a root rounded to the nearest float",
        EXACT,
        "return nearest if Fraction(nearest) <= root else math.nextafter(nearest, 0)",
        "return nearest",
        ("test_coverage.py::test_a_size_is_the_supremum[offset]",),
    ),
    Mutation(
        "a norm of the radius is covered",
        EXACT,
        "return math.ceil(bound) - 1",
        "return math.floor(bound)",
        ("test_coverage.py::test_a_change_whose_norm_is_the_radius_is_not_covered",),
    ),
    Mutation(
        "numbers rounded to the nearest where they are shown",
        EXACT,
        "context = decimal.Context(prec=digits, rounding=rounding)",
        "context = decimal.Context(prec=digits)",
        ("test_coverage.py::test_decimals_are_rounded_to_the_side_that_is_asked",),
    ),
    Mutation(
        "squares are of values, not of whole numbers of a unit",
        EXACT,
        "* 2**places",
        "* 2 ** (places * 0)",
        ("test_coverage.py::test_whole_numbers_are_the_values_in_their_unit",),
    ),
    Mutation(
        "an offset of one channel only",
        COVERAGE,
        "        offset=limit(radius, x.size),",
        "        offset=limit(radius, steps),",
        ("test_coverage.py::test_a_size_is_the_supremum[offset]",),
    ),
    Mutation(
        "a gain error about the mean of the series",
        COVERAGE,
        "gain=limit(radius, (whole**2).sum() * unit**2)",
        "gain=limit(radius, ((whole - whole.mean()) ** 2).sum() * unit**2)",
        ("test_coverage.py::test_a_size_is_the_supremum[gain]",),
    ),
    Mutation(
        "a sinusoid of the usual phase",
        COVERAGE,
        "return (steps + Fraction(min(ratio, steps))) / 2",
        "return Fraction(steps, 2)",
        ("test_coverage.py::test_a_sinusoid_of_the_worst_phase_reaches_the_radius[0.1]",),
    ),
    Mutation(
        "the phase of a sinusoid in floating point",
        COVERAGE,
        "        turns = steps * turn\n",
        "        turns = Fraction(steps * float(2 * Fraction(frequency)) % 1)\n",
        ("test_coverage.py::test_a_sinusoid_of_the_worst_phase_reaches_the_radius[123456.7]",),
    ),
    Mutation(
        "a sinusoid on one channel",
        COVERAGE,
        "limit(radius, channels * sinusoid_squares(steps, frequency))",
        "limit(radius, sinusoid_squares(steps, frequency))",
        ("test_coverage.py::test_a_sinusoid_of_the_worst_phase_reaches_the_radius[0.25]",),
    ),
    Mutation(
        "a drift that ends a step later",
        COVERAGE,
        "whole = Fraction(steps * (2 * steps - 1), 6 * (steps - 1))",
        "whole = Fraction((steps - 1) * (2 * steps - 1), 6 * steps)",
        ("test_coverage.py::test_a_size_is_the_supremum[drift]",),
    ),
    Mutation(
        "rounding moves by a whole step",
        COVERAGE,
        "Fraction(x.size, 4)",
        "Fraction(x.size)",
        ("test_coverage.py::test_a_size_is_the_supremum[quantisation]",),
    ),
    Mutation(
        "samples are replaced by the nearer limit",
        COVERAGE,
        "_replaced(np.maximum((whole",
        "_replaced(np.minimum((whole",
        ("test_coverage.py::test_a_count_is_the_largest[replaced]",),
    ),
    Mutation(
        "the cheapest samples are replaced",
        COVERAGE,
        "worst_first = np.sort(squares, axis=None)[::-1]",
        "worst_first = np.sort(squares, axis=None)",
        ("test_coverage.py::test_a_count_is_the_largest[replaced]",),
    ),
    Mutation(
        "series come late, but not early",
        COVERAGE,
        "moved = (delayed(whole, steps) - whole, delayed(whole, -steps) - whole)",
        "moved = (delayed(whole, steps) - whole,)",
        ("test_coverage.py::test_a_count_is_the_largest[delay]",),
    ),
    Mutation(
        "the last delay that fits, whatever lies before",
        COVERAGE,
        "    return next((steps - 1 for steps in range(1, length) if not fits(steps)), length - 1)",
        "    return max((steps for steps in range(1, length) if fits(steps)), default=0)",
        ("test_coverage.py::test_delays_are_looked_at_one_by_one",),
    ),
    Mutation(
        "values come round from the other edge",
        COVERAGE,
        "x[np.clip(np.arange(len(x)) - steps, 0, len(x) - 1)]",
        "x[(np.arange(len(x)) - steps) % len(x)]",
        ("test_coverage.py::test_late_and_early_hold_the_edges",),
    ),
    Mutation(
        "the gentlest run of steps is dropped",
        COVERAGE,
        "(sums[run:] - sums[:-run]).max() > budget",
        "(sums[run:] - sums[:-run]).min() > budget",
        ("test_coverage.py::test_a_count_is_the_largest[dropout]",),
    ),
    Mutation(
        "an abstention covers what changes nothing",
        COVERAGE,
        "math.inf if math.isinf(radius) else largest_below((Fraction(radius) / unit) ** 2)",
        "math.inf if math.isinf(radius) else max(0, largest_below((Fraction(radius) / unit) ** 2))",
        ("test_coverage.py::test_without_a_radius_nothing_is_covered",),
    ),
    Mutation(
        "limits are told to the nearest",
        COVERAGE,
        "least, most = shown(low, digits, UP), shown(high, digits)",
        "least, most = shown(low, digits), shown(high, digits)",
        ("test_coverage.py::test_no_number_that_is_told_is_too_much",),
    ),
    Mutation(
        "one more certificate may be false than is said",
        METRICS,
        "special.betainc(q + 1, num_series - q, alpha)",
        "special.betainc(q + 2, num_series - q - 1, alpha)",
        ("test_metrics.py::test_few_certificates_are_false_at_once_by_enumeration",),
    ),
    Mutation(
        "alpha of each certificate is that of all",
        METRICS,
        "return float(context.divide(total, num_series))",
        "return float(total)",
        ("test_metrics.py::test_what_each_may_fail_with_sums_to_what_all_may",),
    ),
    Mutation(
        "false certificates are taken from those that abstain",
        METRICS,
        "return max(number - most_false(num_series, alpha, rho), 0) / num_series",
        "return min(number, num_series - most_false(num_series, alpha, rho)) / num_series",
        ("test_metrics.py::test_the_share_that_is_true_is_what_the_false_ones_leave",),
    ),
    Mutation(
        "what every radius covers is that of the first series",
        CERTIFY,
        "covered = [coverage.cover(radius, x, units=units) for radius, x in rows]",
        "covered = [coverage.cover(radius, series[0], units=units) for radius, _ in rows]",
        ("test_covered_scripts.py::test_the_record_has_what_every_radius_covers",),
    ),
    Mutation(
        "alpha_total is not divided",
        CERTIFY,
        "return metrics.alpha_of_each(FLAGS.alpha_total, num_examples)",
        "return FLAGS.alpha_total",
        ("test_covered_scripts.py::test_alpha_total_is_shared_by_all_series",),
    ),
    Mutation(
        "the largest radius is told as the median",
        SUMMARIES,
        "[(len(certified) - 1) // 2]",
        "[-1]",
        ("test_covered_scripts.py::test_what_the_median_radius_covers_is_printed",),
    ),
    Mutation(
        "a radius that is not certified covers as others do",
        CERTIFY,
        "if series is not None and certified.valid:",
        "if series is not None:",
        ("test_covered_scripts.py::test_certificates_that_do_not_hold_cover_nothing",),
    ),
    Mutation(
        "the share that is true is told of certificates that do not hold",
        SUMMARIES,
        "        if not certified.valid:\n            return []\n",
        "",
        ("test_covered_scripts.py::test_certificates_that_do_not_hold_cover_nothing",),
    ),
    # Bursts
    Mutation(
        "windows one step too short",
        BURSTS,
        "return self.burst + self.stride - 1",
        "return self.burst + self.stride - 2",
        (EVERY_BURST, EXHAUSTIVE),
    ),
    Mutation(
        "no window at the end",
        BURSTS,
        "return np.unique([*range(0, last, self.stride), last])",
        "return np.unique([*range(0, last + 1, self.stride)])",
        (EVERY_BURST, EXHAUSTIVE),
    ),
    Mutation(
        "a pair hides one window only",
        BURSTS,
        "return ~(self.hidden[i] | self.hidden[j])",
        "return ~self.hidden[i]",
        (PAIRS_AGREE,),
    ),
    Mutation(
        "certified by single windows",
        BURSTS,
        "        return _is_one_class(classes)\n",
        "        return _is_one_class(classes.diagonal())\n",
        (EXHAUSTIVE, PAIRS_AGREE),
    ),
    Mutation(
        "NaN can be certified",
        BURSTS,
        "return bool((classes == classes.flat[0]).all() and classes.flat[0] != NO_CLASS)",
        "return bool((classes == classes.flat[0]).all())",
        ("test_bursts.py::test_nan_is_no_class",),
    ),
    Mutation(
        "the rule takes the majority",
        BURSTS,
        "    for window in np.flatnonzero(alone != majority):\n",
        "    for window in np.flatnonzero(alone == NO_CLASS - 1):\n",
        (RULE, EXHAUSTIVE),
    ),
    Mutation(
        "the rule takes any window that contradicts",
        BURSTS,
        "if (classes[window] == alone[window]).all():",
        "if (classes[window] == alone[window]).any():",
        (RULE, EXHAUSTIVE),
    ),
    Mutation(
        "a burst is multiplied, not replaced",
        BURSTS,
        "known = np.isfinite(x.astype(np.float32))",
        "known = np.isfinite(x.astype(np.float32)) | True",
        (EXHAUSTIVE,),
    ),
    Mutation(
        "a gap need not lie in one window",
        BURSTS,
        "covering = (windows.hidden | ~lacking[row]).all(axis=1) if lacks[row] else None",
        "covering = (windows.hidden & lacking[row]).any(axis=1) if lacks[row] else None",
        (GAPS,),
    ),
    Mutation(
        "every pair at level alpha",
        BURSTS,
        "certify_counts(counts, sigma, alpha / pairs, given_up=given_up)",
        "certify_counts(counts, sigma, alpha, given_up=given_up)",
        ("test_bursts.py::test_certificates_of_pairs_share_alpha", BURST_NOISE),
    ),
    Mutation(
        "the radius of the first pair",
        BURSTS,
        "radius = found.radius.min(axis=1)",
        "radius = found.radius[:, 0]",
        ("test_bursts.py::test_certificates_of_pairs_share_alpha",),
    ),
    Mutation(
        "pairs of windows without noise",
        BURSTS,
        "    series = noised(block)\n",
        "    series = block.series + 0 * noised(block)\n",
        ("test_bursts.py::test_votes_of_a_pair_are_those_of_its_masked_network",),
    ),
    Mutation(
        "bursts of series that scale themselves",
        BURSTS,
        'if scaling == "z_score":',
        'if scaling == "z-score":',
        ("test_burst_scripts.py::test_series_scaled_by_themselves_are_not_certified",),
    ),
    Mutation(
        "the stride that was asked for is left out",
        DOUBLE_MASKING,
        'bursts.windows(described["length"], burst, FLAGS.stride)',
        'bursts.windows(described["length"], burst, None)',
        (BURST_CELLS,),
    ),
    Mutation(
        "radii beside bursts ignore the grid",
        DOUBLE_MASKING,
        "given_up = noise.given_up(settings)",
        "given_up = noise.given_up({**settings, 'grid': settings['grid'] / 2**20})",
        (BURST_NOISE,),
    ),
    Mutation(
        "training hides one window of two",
        MASKS,
        "return ~((after >= 0) & (after < window)).any(axis=0)",
        "return ~((after >= 0) & (after < window))[0]",
        ("test_masks.py::test_two_windows_are_independent",),
    ),
    Mutation(
        "balanced binomial masks of all rounds from one key",
        MASKS,
        "keys = jax.vmap(partial(jax.random.fold_in, key))(rounds)",
        "keys = jax.vmap(partial(jax.random.fold_in, key))(0 * rounds)",
        ("test_masks.py::test_a_balanced_binomial_mask_is_a_binomial_mask",),
    ),
    Mutation(
        "balanced continuous masks that do not look at those before",
        MASKS,
        "return times + best, 1 - best",
        "return times, 1 - best",
        (
            "test_masks.py::test_balanced_continuous_masks_are_continuous_and_hide_steps_more_evenly[0.9-6-3]",
        ),
    ),
    Mutation(
        "independent masks recorded as balanced",
        "selfens_jax/runs/run.py",
        "num_masks, length, keep, design=mask_design))",
        "num_masks, length, keep))",
        (
            "test_scripts.py::test_other_masks_and_noise_are_other_results",
            "test_classifier.py::test_another_design_of_masks_needs_no_training",
        ),
    ),
    Mutation(
        "the design of a saved classifier's masks forgotten",
        "experiments/common/trained.py",
        "else saved.get(name, FLAGS[name].value)",
        'else saved.get(name if name == "num_masks" else "", FLAGS[name].value)',
        ("test_classifier.py::test_certify_py_takes_a_saved_folder",),
    ),
    # Trainings side by side, and at which precision an attack is judged
    Mutation(
        "trainings of other settings beside a training",
        "experiments/reproduction/jobs.py",
        "return job.script, job.folder, rest",
        "return job.script, job.folder, {}",
        ("test_reproduce.py::test_trainings_of_one_command_are_every_pair_of_sigmas_and_seeds",),
    ),
    Mutation(
        "pairs of sigma and seed trained that are done",
        "experiments/reproduction/jobs.py",
        "if all((sigma, seed) in pairs for sigma in sigmas)",
        "if any((sigma, seed) in pairs for sigma in sigmas)",
        ("test_reproduce.py::test_trainings_of_one_command_are_every_pair_of_sigmas_and_seeds",),
    ),
    Mutation(
        "runs certified before they are trained",
        "experiments/reproduction/jobs.py",
        "other.id not in alone and is_ready(other)",
        "other.id not in alone",
        ("test_reproduce.py::test_trainings_side_by_side_are_jobs_of_their_own",),
    ),
    Mutation(
        "an accelerator shows the batch of the first of some steps in all",
        "selfens_jax/training.py",
        "numbers = state.step + jnp.arange(together)",
        "numbers = state.step + 0 * jnp.arange(together)",
        ("test_training.py::test_an_accelerator_scans_to_the_same_parameters",),
    ),
    Mutation(
        "the last network of a deep ensemble taken for single",
        "experiments/train.py",
        "lambda leaf: leaf[:1], variables",
        "lambda leaf: leaf[-1:], variables",
        ("test_scripts.py::test_a_single_network_is_the_first_of_a_deep_ensemble",),
    ),
    Mutation(
        "a network taken from a deep ensemble that was trained otherwise",
        "experiments/train.py",
        'if key not in ("ensemble", "num_members")}',
        'if key == "seed"}',
        ("test_scripts.py::test_a_single_network_is_the_first_of_a_deep_ensemble",),
    ),
    Mutation(
        "a network taken from a deep ensemble of another objective",
        "experiments/train.py",
        "own = training.completed(asked)",
        "own = asked",
        ("test_scripts.py::test_a_deep_ensemble_of_another_objective_is_not_taken",),
    ),
    Mutation(
        "votes that an earlier call counted compared as if they were of this one",
        "experiments/accelerator_run.py",
        "shutil.rmtree(results / step.name, ignore_errors=True)",
        "pass",
        (
            "test_accelerator_run.py::test_a_second_call_counts_again_and_keeps_the_lines_of_other_steps",
        ),
    ),
    Mutation(
        "a network whose training is timed taken from a deep ensemble",
        "experiments/reproduction/plan.py",
        'if job.script == "train" and job.id not in apart]',
        'if job.script == "train"]',
        ("test_reproduce.py::test_single_networks_are_taken_from_deep_ensembles",),
    ),
    Mutation(
        "an accelerator's MACNN without its last attention",
        "selfens_jax/models/macnn.py",
        "attention[:, None, :], mean * attention",
        "attention[:, None, :], mean",
        ("test_backend.py::test_an_attention_block_knows_its_mean",),
    ),
    Mutation(
        "several runs certified, each as the first",
        TRAINED,
        "[find_run(noisy, own) for own",
        "[find_run(noisy, cli.every_run()[0]) for _",
        ("test_scripts.py::test_several_runs_certified_at_once_are_each_what_they_are_alone",),
    ),
    Mutation(
        "one family-wise error for each of several runs",
        CERTIFY,
        'if FLAGS["sigmas"].present or FLAGS["seeds"].present:',
        'if FLAGS["sigmas"].present:',
        ("test_scripts.py::test_several_runs_are_all_there_before_one_is_certified",),
    ),
    Mutation(
        "attacks judged at another precision than the certificates",
        ATTACK,
        'precision=settings.get("precision", "float32"),',
        'precision="float32",',
        ("test_attack_script.py::test_an_attack_is_judged_at_the_precision_of_the_certificates",),
    ),
    # What is shown of hidden steps
    Mutation(
        "a value after the hidden steps where one before is kept",
        "selfens_jax/masks.py",
        "last = jax.lax.cummax(steps, axis=mask.ndim - 1)",
        "last = jax.lax.cummax(steps, axis=mask.ndim - 1, reverse=True)",
        ("test_hidden_steps.py::test_hidden_steps_are_shown_as_said",),
    ),
    Mutation(
        "a hidden value shown where all are hidden",
        "selfens_jax/masks.py",
        "return jnp.take_along_axis(shown, source",
        "return jnp.take_along_axis(x, source",
        ("test_hidden_steps.py::test_nothing_is_shown_of_the_values_of_hidden_steps",),
    ),
    Mutation(
        "an ensemble of a run that hides otherwise than in training",
        "selfens_jax/runs/run.py",
        "return self_ensemble(model, variables, drawn, hidden_as)",
        "return self_ensemble(model, variables, drawn)",
        ("test_hidden_steps.py::test_votes_are_those_of_what_is_shown",),
    ),
    Mutation(
        "hidden_as not handed on by train.py",
        "experiments/train.py",
        "            hidden_as=FLAGS.hidden_as,\n",
        "",
        ("test_hidden_steps.py::test_votes_are_those_of_what_is_shown",),
    ),
    Mutation(
        "hidden_as not handed on to the step",
        "selfens_jax/training.py",
        "hidden_as=config.hidden_as,",
        'hidden_as="zero",',
        ("test_hidden_steps.py::test_training_and_its_statistics_are_of_what_is_shown",),
    ),
    # Channels in units of their own
    Mutation(
        "units from the test split",
        "selfens_jax/data/datasets.py",
        'units = channel_units(part) if scaling == "channel" else ()',
        'units = channel_units(parts[1]) if scaling == "channel" else ()',
        ("test_channel_units.py::test_units_are_deviations_of_the_training_split",),
    ),
    Mutation(
        "what is printed is in the units of the noise",
        SUMMARIES,
        'own = coverage.channel_radii(radius, settings["data"].get("units", ()))',
        'own = np.full(len(settings["data"].get("units", ())), radius)',
        (OWN_UNITS,),
    ),
    Mutation(
        "coverage forgets the units",
        CERTIFY,
        "covered = [coverage.cover(radius, x, units=units) for radius, x in rows]",
        "covered = [coverage.cover(radius, x) for radius, x in rows]",
        (OWN_UNITS,),
    ),
    Mutation(
        "a network that cannot be read back is said to be trained",
        "selfens_jax/runs/run.py",
        "same, reason = False, str(error.__cause__ or error)",
        "same, reason = True, str(error.__cause__ or error)",
        ("test_environment.py::test_a_network_that_cannot_be_read_back_is_not_said_to_be_trained",),
    ),
    Mutation(
        "one array of finite numbers is enough",
        "selfens_jax/training.py",
        "jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf",
        "jnp.any(jnp.array([jnp.isfinite(leaf).all() for leaf",
        ("test_training.py::test_one_number_that_is_not_finite_is_enough",),
    ),
    Mutation(
        "processes with a coordinator do not come together",
        "experiments/common/processes.py",
        "if FLAGS.distributed or FLAGS.coordinator is not None:",
        "if FLAGS.distributed and FLAGS.coordinator is not None:",
        ("test_processes.py::test_processes_come_together_if_asked",),
    ),
    Mutation(
        "counts of draws that are lost are read",
        "selfens_jax/runs/records.py",
        'intact &= bool((arrays["counts"].sum(axis=1) == settings["num_draws"]).all())',
        'intact &= bool((arrays["counts"].sum(axis=1) <= settings["num_draws"]).all())',
        ("test_runs.py::test_counts_that_are_damaged_are_refused",),
    ),
    Mutation(
        "scores of float32 are shifted",
        "selfens_jax/classifiers.py",
        "if scores.itemsize > 4 and scores.ndim == 2:",
        "if scores.itemsize >= 4 and scores.ndim == 2:",
        ("test_any_classifier.py::test_scores_of_float32_are_handed_on_as_they_are",),
    ),
    Mutation(
        "the share of votes is of all series together",
        "experiments/studies/objectives.py",
        "share = counts[rows, labels] / counts.sum(axis=1)",
        "share = counts[rows, labels] / counts.sum()",
        ("test_objectives_study.py::test_a_cell_has_the_votes_of_its_latest_certification",),
    ),
    Mutation(
        "one missing run of several is named alone",
        "experiments/common/trained.py",
        "every = [(sigma, seed)] if own is None else cli.every_run()",
        "every = [(sigma, seed)]",
        ("test_scripts.py::test_several_runs_are_all_there_before_one_is_certified",),
    ),
    Mutation(
        "new series are scaled by nothing",
        "selfens_jax/data/new_series.py",
        'return split.to_float32(part, described["scaling"], described.get("units", ()))',
        'return split.to_float32(part, described["scaling"], [1.0] * len(described["units"]))',
        ("test_channel_units.py::test_new_series_and_the_classifier_use_the_constants_of_the_run",),
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


def run_python(
    root: pathlib.Path, *arguments: str, limit: float, **variables: str
) -> subprocess.CompletedProcess:
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
        **variables,
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

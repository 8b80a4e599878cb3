"""Nominal against true coverage of every way to turn counts into a certificate, as Markdown.

    python experiments/studies/interval_coverage.py

For every vector of counts of n draws over K classes the library certifies once; the rate of false
certificates under class probabilities p is then a finite sum, without sampling error. A certificate
is false if its class is not the most likely one or its radius exceeds the largest that holds for
every classifier with these p (Cohen's bound at the true p). The worst p is the worst one found over
a grid and over the points just below which a radius becomes too large: a lower bound of the worst.
No model, no accelerator; under two minutes on one core.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import app, flags
from scipy import special, stats

from selfens_jax import certificates

FLAGS = flags.FLAGS
flags.DEFINE_multi_integer("num_draws", [100, 1000], "Numbers of draws n in the first table.")
flags.DEFINE_multi_integer("num_classes", [2, 3], "Numbers of classes K (2 or 3) in the table.")
flags.DEFINE_multi_float("alpha", [0.05, 0.001], "Nominal failure probabilities.")

TOP_COUNTS = (1000, 999, 990, 900, 600)
TOP_PROBABILITIES = (0.501, 0.51, 0.55, 0.6, 0.9, 0.99, 0.9934, 0.999, 0.9999)


Certify = Callable[[np.ndarray], certificates.Certificates]


def procedures(alpha: float) -> dict[str, Certify]:
    """Name -> function of counts (rows, K) that returns Certificates at sigma 1."""

    def certify(counts: np.ndarray, **options: Any) -> certificates.Certificates:
        return certificates.certify_counts(counts, 1.0, **options)

    return {
        "Clopper-Pearson at alpha/2 (default)": lambda c: certify(c, alpha=alpha),
        # certify_counts halves alpha, so twice alpha is the variant at level alpha.
        "Clopper-Pearson at alpha": lambda c: certify(c, alpha=2 * alpha),
        "Goodman": lambda c: certify(c, alpha=alpha, interval="goodman"),
        "Sison-Glaz": lambda c: certify(c, alpha=alpha, interval="sison_glaz"),
        "as published": lambda c: certificates.certify_counts_as_published(c, 1.0),
    }


def count_vectors(n: int, num_classes: int) -> np.ndarray:
    """All (rows, K) nonnegative integer vectors that sum to n."""
    if num_classes == 2:
        return np.stack([np.arange(n + 1), n - np.arange(n + 1)], axis=-1)
    first, second = np.indices((n + 1, n + 1)).reshape(2, -1)
    keep = first + second <= n
    return np.stack([first, second, n - first - second], axis=-1)[keep]


def certify_all(certify: Certify, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, radius) of every row; certifies each sorted row once."""
    order = np.argsort(-counts, axis=-1, kind="stable")
    ranked = np.take_along_axis(counts, order, axis=-1)
    _, first, inverse = np.unique(
        ranked[:, 0] * (counts.sum(axis=-1) + 1) + ranked[:, 1],
        return_index=True,
        return_inverse=True,
    )
    result = certify(ranked[first])
    prediction = np.where(result.prediction[inverse] >= 0, order[:, 0], certificates.ABSTAIN)
    return prediction, result.radius[inverse]


def candidate_probabilities(radii: np.ndarray, num_classes: int) -> np.ndarray:
    """(points, K) probabilities: a grid, and points just below which one of `radii` is false."""
    claims = special.ndtr(np.unique(radii[np.isfinite(radii)]))
    claims = claims[:: max(1, len(claims) // (400 if num_classes == 2 else 40))]
    decades = 10.0 ** -np.arange(2, 7)
    tops = np.concatenate([0.5 + decades, claims - 1e-9, 1 - decades])
    tops = tops[(tops > 0.5) & (tops < 1)]
    if num_classes == 2:
        return np.stack([tops, 1 - tops], axis=-1)
    rest = 1 - tops
    splits = [np.stack([tops, rest * (1 - share), rest * share], -1) for share in (0, 0.1, 0.5)]
    second = np.arange(0.251, 0.5, 0.016)
    plateau = [(a, b, 1 - a - b) for a in second + 1e-4 for b in second if a > b >= 1 - a - b]
    return np.concatenate([*splits, plateau])


def false_rate(prediction: np.ndarray, radius: np.ndarray, p: np.ndarray, pmf: np.ndarray) -> float:
    """Probability, under p (K,), of the rows of counts whose certificate is false."""
    z = special.ndtri(p)
    best_other = np.array([np.delete(z, c).max() for c in range(len(p))])
    true_radius = np.maximum((z - best_other) / 2, 0)
    false = (radius > true_radius[prediction]) | (p[prediction] < p.max())
    return float(pmf[false & (prediction >= 0)].sum())


def coverage_rows(n: int, num_classes: int, alpha: float) -> list[str]:
    counts = count_vectors(n, num_classes)
    log_ways = special.gammaln(n + 1) - special.gammaln(counts + 1).sum(axis=-1)
    found = {name: certify_all(run, counts) for name, run in procedures(alpha).items()}
    worst: dict[str, tuple[float, tuple[float, ...]]] = {name: (0.0, ()) for name in found}
    points = candidate_probabilities(np.concatenate([r for _, r in found.values()]), num_classes)
    for p in points:
        pmf = np.exp(log_ways + special.xlogy(counts, p).sum(axis=-1))
        for name, (prediction, radius) in found.items():
            worst[name] = max(worst[name], (false_rate(prediction, radius, p, pmf), tuple(p)))
    return [
        f"| {n} | {num_classes} | {name} | {alpha:g} | {rate:.2g} | "
        f"{', '.join(f'{q:.6g}' for q in p)} | {'yes' if rate <= alpha else 'no'} |"
        for name, (rate, p) in worst.items()
    ]


def rate_rows(alpha: float) -> list[str]:
    counts = count_vectors(1000, 2)
    rows = []
    for name, run in procedures(alpha).items():
        found = certify_all(run, counts)
        rates = [
            false_rate(*found, np.array([p, 1 - p]), stats.binom.pmf(counts[:, 0], 1000, p))
            for p in TOP_PROBABILITIES
        ]
        cells = " | ".join(f"{rate:.2g}" if rate > 1e-9 else "< 1e-9" for rate in rates)
        rows.append(f"| {name} | {alpha:g} | {cells} |")
    return rows


def radius_rows(alpha: float) -> list[str]:
    counts = np.stack([TOP_COUNTS, 1000 - np.array(TOP_COUNTS)], axis=-1)
    rows = []
    for name, run in procedures(alpha).items():
        radii = [certificates.format_radius(r, digits=3) for r in run(counts).radius]
        rows.append(f"| {name} | {alpha:g} | {' | '.join(radii)} |")
    return rows


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]!r}")
    print("Worst rate of false certificates found; `as published` ignores the nominal alpha.\n")
    print("| n | K | procedure | nominal alpha | worst false rate | at p | at most alpha |")
    print("|---|---|---|---|---|---|---|")
    for num_classes in FLAGS.num_classes:
        for n in FLAGS.num_draws:
            for alpha in FLAGS.alpha:
                print("\n".join(coverage_rows(n, num_classes, alpha)), flush=True)
    print("\nRate of false certificates by p_A, two classes, n = 1000.\n")
    print_by_alpha(rate_rows, [f"p_A = {p}" for p in TOP_PROBABILITIES])
    print("\nRadius at sigma 1 for the same counts, two classes, n = 1000.\n")
    print_by_alpha(radius_rows, [f"{k}/1000" for k in TOP_COUNTS])


def print_by_alpha(rows: Callable[[float], list[str]], columns: Sequence[str]) -> None:
    print("| procedure | nominal alpha | " + " | ".join(columns) + " |")
    print("|---|---|" + "---|" * len(columns))
    for alpha in FLAGS.alpha:
        print("\n".join(rows(alpha)))


if __name__ == "__main__":
    app.run(main)

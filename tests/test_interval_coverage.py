"""The study of intervals: a small table of it, its rates worked out again."""

import forked
import numpy as np
import pytest
from scipy import special, stats
from test_scripts import ROOT

N, ALPHA = 30, 0.05
ASKED = (f"--num_draws={N}", "--num_classes=2", f"--alpha={ALPHA}")
EXACT = "Clopper-Pearson at alpha/2 (default)"


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """The rows of each table that it prints."""
    script = ROOT / "experiments" / "studies" / "interval_coverage.py"
    done = forked.run(script, ASKED, tmp_path_factory.mktemp("study"))
    assert done.returncode == 0, done.stderr
    parts = done.stdout.split("\n\n")[1::2]
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()[2:]]
        for part in parts
    ]


def false_rate(p: float, n: int, alpha: float) -> float:
    """Of Clopper and Pearson's interval at alpha / 2, for two classes: the sum over all counts."""
    rate = 0.0
    for k in range(n + 1):
        top = max(k, n - k)
        low = stats.beta.ppf(alpha / 2, top, n - top + 1)
        if low <= 0.5:
            continue  # it abstains
        right = (k > n - k) == (p > 0.5)
        if not right or special.ndtri(low) > abs(special.ndtri(p)):
            rate += stats.binom.pmf(k, n, p)
    return rate


def test_the_worst_rates_are_those_of_all_counts(tables):
    worst = {row[2]: row for row in tables[0]}
    n, classes, _, alpha, rate, places, holds = worst[EXACT]
    assert (n, classes, alpha, holds) == ("30", "2", "0.05", "yes")
    # A rate jumps where a radius becomes too large, which six digits cannot tell from just below.
    p = float(places.split(",")[0])
    near = max(false_rate(p + step, N, ALPHA) for step in (-2e-6, 0, 2e-6))
    assert float(rate) == pytest.approx(near, rel=0.03)
    grid = [false_rate(p, N, ALPHA) for p in np.linspace(0.501, 0.999, 50)]
    assert max(grid) <= float(rate) * 1.01 <= ALPHA
    assert worst["as published"][-1] == "no"
    assert float(worst["as published"][4]) > ALPHA


def test_rates_and_radii_of_a_thousand_draws(tables):
    by_name = {row[0]: row[2:] for row in tables[1]}
    for p, shown in zip((0.501, 0.51, 0.55, 0.6, 0.9), by_name[EXACT], strict=False):
        rate = 0.0 if shown.startswith("<") else float(shown)
        assert rate == pytest.approx(false_rate(p, 1000, ALPHA), rel=0.05, abs=1e-9)
    radii = {row[0]: row[2:] for row in tables[2]}[EXACT]
    for top, shown in zip((1000, 999, 990, 900, 600), radii, strict=True):
        low = stats.beta.ppf(ALPHA / 2, top, 1000 - top + 1)
        assert float(shown) == pytest.approx(special.ndtri(low), abs=0.0011)  # shown rounded down

"""What captions of tables, figures and the report say of what was measured, and how."""

from pathlib import Path

from reproduction.measured import sources
from reproduction.plan import Grid, Settings

NOT_MEASURED = "not measured"


def described(results_dir: Path, grid: Grid, settings: Settings, what: str | None = None) -> str:
    """The settings that a caption ends with; `what` was measured, by default certificates."""
    if what is None:
        what = f"{series(settings.num_examples)}, n = {settings.num_draws}, "
    seeds = f"seed{'s' * (len(grid.seeds) > 1)} {', '.join(map(str, grid.seeds))}"
    return f"{what}{settings.trained}, {seeds}.{sources(results_dir, grid.cells())}"


def series(number: int | None) -> str:
    return f"{'all' if number is None else number} test series"

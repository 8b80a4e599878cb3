"""One self-contained HTML file of all tables and figures: no network, no script."""

import base64
import html
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from reproduction import jobs
from reproduction.captions import NOT_MEASURED, series
from reproduction.figures import Drawing
from reproduction.plan import Settings
from reproduction.tables import Table

from selfens_jax import plots, runs

STYLE = """
:root { color-scheme: light dark; --line: #d0d0d0; --soft: #666; --back: #fff; --text: #1a1a1a; }
@media (prefers-color-scheme: dark) {
  :root { --line: #444; --soft: #aaa; --back: #181818; --text: #e6e6e6; }
}
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; background: var(--back);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.8rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.3rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: bottom; }
.number { text-align: right; }
td.number { white-space: nowrap; }
.open { color: var(--soft); font-style: italic; }
.caption, footer { color: var(--soft); font-size: 0.9rem; }
summary { margin: 0.6rem 0; cursor: pointer; }
nav a { margin-right: 1rem; }
img { max-width: 100%; background: #fff; border-radius: 4px; }
"""


def write(results_dir: Path, settings: Settings, items: Sequence[Table | Drawing]) -> Path:
    """Writes <results_dir>/report.html of these tables and figures; its path."""
    outcomes = jobs.read(results_dir)
    drawn = [item for item in items if isinstance(item, Table) or item.figure is not None]
    parts = [*map(section, drawn), not_drawn(items), jobs_section(outcomes)]
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Self-ensembles: the paper reproduced</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Self-ensembles for certified time-series classification: the paper reproduced</h1>
<p>Tables 1 to 4 and Figures 2 to 6 of Dong et al., CIKM 2024, doi 10.1145/3627673.3679748, and a
check of its Section 4. Where it applies: the paper's number, ours by the paper's
procedure, and ours with a valid certificate.</p>
{facts(settings, outcomes)}
{contents(drawn)}
{"".join(parts)}
</body>
</html>
"""
    file = results_dir / "report.html"
    runs.write_bytes(file, page.encode())
    return file


def facts(settings: Settings, outcomes: jobs.Outcomes) -> str:
    """Settings, machines, dates."""
    done = [outcome for outcome in outcomes.values() if outcome.status == jobs.DONE]
    dates = [outcome.date[:10] for outcome in done]
    states = Counter(outcome.status for outcome in outcomes.values())
    lines = {
        "settings": f"{settings.trained}, n = {settings.num_draws} draws, "
        f"{series(settings.num_examples)}",
        "jobs": ", ".join(f"{number} {state}" for state, number in states.items()),
        "hardware": ", ".join(sorted({f"{o.device} on {o.host}" for o in done})),
        "dates": " to ".join(dict.fromkeys((min(dates), max(dates)))) if dates else "",
    }
    rows = "".join(
        f"<tr><th>{name}</th><td>{html.escape(text or 'none')}</td></tr>"
        for name, text in lines.items()
    )
    return f"<table>{rows}</table>"


def contents(items: Sequence[Table | Drawing]) -> str:
    """Links to the sections."""
    links = (f'<a href="#{item.name}">{html.escape(item.title)}</a><br>' for item in items)
    return f"<nav>{' '.join(links)}</nav>"


def section(item: Table | Drawing) -> str:
    body = table(item) if isinstance(item, Table) else drawing(item)
    return (
        f'<section id="{item.name}"><h2>{html.escape(item.title)}</h2>{body}'
        f'<p class="caption">{html.escape(item.caption)}</p></section>\n'
    )


def table(item: Table) -> str:
    """The rows that were measured; those that lack a number can be unfolded."""
    complete, lacking = [], []
    for values, texts in zip(item.rows, item.texts(), strict=True):
        (lacking if None in values else complete).append(texts)
    text = rows_of(item, complete) if complete else ""
    if lacking:
        how_many = f"{len(lacking)} row{'s' * (len(lacking) > 1)} {NOT_MEASURED}"
        text += f'<details><summary class="open">{how_many}</summary>'
        text += f"{rows_of(item, lacking)}</details>"
    return text


def rows_of(item: Table, rows: Sequence[Sequence[str]]) -> str:
    def cell(tag: str, text: str, number: bool) -> str:
        kinds = ["number"] * number + ["open"] * (text == NOT_MEASURED)
        kind = f' class="{" ".join(kinds)}"' if kinds else ""
        return f"<{tag}{kind}>{html.escape(text)}</{tag}>"

    def row(tag: str, texts: Sequence[str]) -> str:
        cells = (
            cell(tag, text, bool(column.form))
            for text, column in zip(texts, item.columns, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>\n"

    head = row("th", [column.heading for column in item.columns])
    body = "".join(row("td", texts) for texts in rows)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def drawing(item: Drawing) -> str:
    assert item.figure is not None  # `not_drawn` names the others
    picture = base64.b64encode(plots.svg(item.figure, item.title)).decode()
    alt = html.escape(item.title)
    return f'<img alt="{alt}" src="data:image/svg+xml;base64,{picture}">'


def not_drawn(items: Sequence[Table | Drawing]) -> str:
    """The figures of which nothing has been measured."""
    titles = [i.title for i in items if isinstance(i, Drawing) and i.figure is None]
    if not titles:
        return ""
    lines = "".join(f"<li>{html.escape(title)}</li>" for title in titles)
    head = f"{len(titles)} figure{'s' * (len(titles) > 1)} {NOT_MEASURED}"
    return f'<details><summary class="open">{head}</summary><ul class="open">{lines}</ul></details>'


def jobs_section(outcomes: jobs.Outcomes) -> str:
    """The jobs that have not come to their end, and why."""
    rows = "".join(
        f"<tr><td>{html.escape(o.id)}</td><td>{o.status}</td><td>{html.escape(o.message)}</td></tr>"
        for o in outcomes.values()
        if o.status != jobs.DONE
    )
    if not rows:
        return ""
    return f'<h2>Jobs not done</h2><div class="scroll"><table>{rows}</table></div>\n'

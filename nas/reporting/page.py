"""The page of a report: one HTML text with everything in it, no script, nothing fetched. No torch here.

All text from run folders goes through `text`, which escapes it. The page is well-formed XML as well, which tests make use of.
"""

import json
from collections.abc import Sequence
from html import escape

from nas.reporting.architecture_picture import WIDTH, architecture_picture
from nas.reporting.charts import Panel, chart
from nas.reporting.curves import compared_panels, panels
from nas.reporting.facts import (
    KIND_NAMES,
    answer_table,
    commands,
    config_rows,
    differing_rows,
    environment_rows,
    layer_table,
    result_rows,
    round_table,
)
from nas.reporting.heatmap import heat_map, histories, marks
from nas.reporting.runs import Run
from nas.reporting.style import STYLE
from nas.reporting.svg import Figure, printable

NARROW = 340  # pixels: of a network's picture on a phone, and side by side
MOST_NETWORKS = 12  # of a query's answers, that are drawn
NOTHING_FETCHED = "default-src 'none'; style-src 'unsafe-inline'"
Named = Sequence[tuple[str, Run]]


def page(runs: Sequence[Run]) -> str:
    """The whole page.

    Args:
        runs: at least one; several are compared first.
    """
    named = list(zip(run_names(runs), runs, strict=True))
    several = len(runs) > 1
    title = f"Report on {len(runs)} runs" if several else f"{named[0][0]}: {KIND_NAMES[runs[0].kind]}"
    policy = f'<meta http-equiv="Content-Security-Policy" content="{NOTHING_FETCHED}"/>'
    body = [f"<header><h1>{text(title)}</h1></header>"]
    if several:
        links = [("comparison", "Comparison"), *((f"run-{n}", name) for n, (name, _) in enumerate(named, start=1))]
        items = "".join(f'<li><a href="#{anchor}">{text(name)}</a></li>' for anchor, name in links)
        body.append(f'<nav aria-label="Parts of this page"><ul>{items}</ul></nav>')
    sections = [_comparison(named)] if several else []
    sections += [_run(name, run, number, several=several) for number, (name, run) in enumerate(named, start=1)]
    body.append(f'<main id="main">{"".join(sections)}</main>')
    body.append("<footer><p>Written by <code>nas report</code>; everything on this page is in it.</p></footer>")
    return (
        '<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" lang="en"><head><meta charset="utf-8"/>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"/>{policy}'
        f'<meta name="color-scheme" content="light dark"/><title>{text(title)}</title><style>{STYLE}</style></head>'
        f'<body><a class="jump" href="#main">To the content</a>{"".join(body)}</body></html>\n'
    )


def run_names(runs: Sequence[Run]) -> list[str]:
    """What runs are called on the page: their folders' names, the whole paths where two are alike."""
    names = [run.name for run in runs]
    return [run.name if names.count(run.name) == 1 else str(run.path) for run in runs]


def text(value: object) -> str:
    """Any text, as the page shows it and takes it in attributes."""
    return escape(printable(value), quote=True)


def _comparison(named: Named) -> str:
    """Results side by side, what differs in the settings, curves in common charts, networks beside one another."""
    names = [name for name, _ in named]
    results = [dict(result_rows(run)) for _, run in named]
    labels = dict.fromkeys(label for rows in results for label in rows)
    lines = [(label, *(rows.get(label, "") for rows in results)) for label in labels]
    parts = [_table("Results", ["", *names], lines)]
    differing = differing_rows([run for _, run in named])
    if differing:
        lines = [(name, *values) for name, values in differing]
        parts.append(_folded("Settings that differ", _table("Settings that differ", ["", *names], lines)))
    parts += _charts("Curves side by side", compared_panels(named), 3)
    drawn = [(name, run) for name, run in named if run.architecture is not None]
    if len(drawn) > 1:
        figures = "".join(_figure(_picture(run, width=NARROW), name) for name, run in drawn)
        parts += [_heading("Networks side by side", 3), f'<div class="pictures">{figures}</div>']
    return f'<section id="comparison" aria-label="Comparison"><h2>Comparison</h2>{"".join(parts)}</section>'


def _run(name: str, run: Run, number: int, *, several: bool) -> str:
    """Everything about one run, below its name where there are several, which is the page's title otherwise."""
    parts, level = ([f"<h2>{text(name)}</h2>"], 3) if several else ([], 2)
    if not run.ended:
        parts.append('<p class="note">This run has not ended; what is shown is its state so far.</p>')
    parts.append(_table("Result", ["", "value"], result_rows(run), hidden_head=True))
    if run.candidates:
        parts.append(_table("Rounds", *round_table(run)))
    if len(run.answers) > 1:
        parts.append(_table("Answers", *answer_table(run)))
    if run.answers:
        head = tuple(run.answers[0])
        lines = [tuple(line.values()) for line in run.answers]
        parts.append(_folded("Variables of every answer", _table("Variables", head, lines)))
    parts += _networks(run, level)
    parts += _charts("Curves", panels(run), level)
    parts += _alpha(run, level)
    rows = config_rows(run)
    if rows:
        parts += [_heading("Configuration", level), _table("Settings", ["", "value"], rows, hidden_head=True)]
        whole = f'<pre tabindex="0">{_lines(json.dumps(dict(run.config), indent=2))}</pre>'
        parts.append(_folded("All of it, as recorded", whole))
    if run.versions:
        table = _table("Versions", ["", "value"], environment_rows(run), hidden_head=True)
        parts += [_heading("Environment", level), table]
    parts += _commands(run, level)
    label = f' aria-label="{text(name)}"'
    return f'<section id="run-{number}"{label}>{"".join(parts)}</section>'


def _networks(run: Run, level: int) -> list[str]:
    """Pictures, wide and narrow: style shows the one that fits; and the blocks as a table."""
    if run.architecture is not None:
        wide, narrow = _picture(run), _picture(run, width=NARROW)
        both = f'<div class="wide">{wide.inline()}</div><div class="narrow">{narrow.inline()}</div>'
        table = _table("Blocks", *layer_table(run.architecture, run.resolution))
        return [_heading("Network", level), f"<figure>{both}</figure>", _folded("Its blocks as a table", table)]
    shown = list(run.networks.items())[:MOST_NETWORKS]
    figures = [
        _figure(architecture_picture(network, width=NARROW), f"answer {number}") for number, network in shown
    ]  # fmt: skip
    together = f'<div class="pictures">{"".join(figures)}</div>'
    return [_heading("Networks", level), together] if figures else []


def _picture(run: Run, width: float = WIDTH) -> Figure:
    assert run.architecture is not None
    return architecture_picture(run.architecture, resolution=run.resolution, width=width)


def _charts(title: str, shown: Sequence[Panel], level: int) -> list[str]:
    """A figure a panel, as many side by side as there is room for."""
    if not shown:
        return []
    figures = "".join(_figure(chart([panel], panel.title, f"{panel.title} by {panel.x_label}")) for panel in shown)
    return [_heading(title, level), f'<div class="charts">{figures}</div>']


def _alpha(run: Run, level: int) -> list[str]:
    """A figure a variable."""
    variables = histories(run.alpha, run.choices)
    if not variables:
        return []
    figures = "".join(
        _figure(heat_map([variable], f"alpha of {variable.name}", explained=False)) for variable in variables
    )
    words = "softmax(alpha) of every variable by epoch: the fuller the colour, the likelier the option; in bold"
    return [_heading("Alpha", level), f"<p>{words} {marks(variables)}.</p>", f'<div class="maps">{figures}</div>']


def _commands(run: Run, level: int) -> list[str]:
    made = commands(run)
    parts = [_heading("Commands", level)]
    if not run.command and run.kind != "query":
        parts.append("<p>This run was not started on the command line; its configuration above says all of it.</p>")
    parts += [f'<p>{text(what)}</p><pre tabindex="0">{text(line)}</pre>' for what, line in made]
    return parts if len(parts) > 1 else []


def _heading(words: str, level: int) -> str:
    return f"<h{level}>{text(words)}</h{level}>"


def _figure(drawing: Figure, caption: str = "") -> str:
    words = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f"<figure>{drawing.inline()}{words}</figure>"


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def _table(caption: str, head: Sequence[str], lines: Sequence[Sequence[str]], *, hidden_head: bool = False) -> str:
    """A table whose first column names its rows; where it does not fit, it can be scrolled, with the keyboard too."""
    kind = ' class="unseen"' if hidden_head else ""
    columns = "".join(f'<th scope="col">{text(cell) or "what"}</th>' for cell in head)
    rows = "".join(
        f'<tr><th scope="row">{text(first)}</th>{"".join(f"<td>{text(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in lines
    )
    label = text(caption)
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0"><table><caption>{label}</caption>'
        f"<thead{kind}><tr>{columns}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _lines(many: str) -> str:
    """Text of several lines."""
    return "\n".join(text(line) for line in many.split("\n"))

"""The report of a probe: one self-contained HTML page, the same bytes for the same result."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from tiaft_plugin.page import page, shown
from tiaft_plugin.probes.cells import MISSING, Row, Scores, count
from tiaft_plugin.probes.glossary import BASELINES, words_of
from tiaft_plugin.probes.interface import Result
from tiaft_plugin.probes.report_sections import View, comparison, sections
from tiaft_plugin.probes.report_tables import (
    MOST_ROWS,
    facts_table,
    leak_table,
    overall_table,
    permuted_table,
)
from tiaft_plugin.probes.settings import COLOUR

_STYLE = """
body { max-width: 80em }
th { background: #f3f3f3; vertical-align: bottom } td { font-variant-numeric: tabular-nums }
h2 { margin-top: 2em; border-bottom: 1px solid #ccc } figure { margin: 1em 0 }
.answer { font-size: 1.25em; border-left: 4px solid #0072b2; padding: .2em .8em }
.scores .new td { border-top: 2px solid #888 } .scores th { max-width: 11em }
.facts td { text-align: left; overflow-wrap: anywhere; vertical-align: top }
.facts td:first-child { min-width: 14em } dt { font-weight: bold } figcaption { color: #444 }
.legend span { margin-right: 1.2em; overflow-wrap: anywhere } .legend svg { vertical-align: -2px }
.pair { display: flex; flex-wrap: wrap; gap: 1em } .pair > * { flex: 1 1 24em; margin: .5em 0 }
.pair > div { flex: 0 1 auto; max-width: 100% } p, h1, h2, h3 { overflow-wrap: anywhere }
.scores { font-size: .85em } .scores td { max-width: 22em; overflow-wrap: break-word }
.scores td, .scores th { padding: .25em .45em }
* { print-color-adjust: exact; -webkit-print-color-adjust: exact }
@media print { body { font-size: 10px; max-width: none; margin: 0 } .scroll { overflow: visible }
figure, tr, dd { break-inside: avoid } h2, h3, dt { break-after: avoid } }
"""


def build_report(result: Result) -> str:
    """Return the page of a run or of a comparison; what a result lacks is left out of it.

    The order: the answer, warnings, the main table, comparisons, the paper's figures 2 to 6 drawn
    from this result, baselines, and all that is needed to check or repeat it.
    """
    summary = result.summary
    baselines = list(summary.get("baselines") or ())
    colour = [{**row, "features": COLOUR} for row in baselines if row.get("baseline") == COLOUR]
    view = View(result, Scores.of([*summary.get("scores", ()), *colour]))
    probe = summary.get("probe", {})
    title = str(probe.get("title") or probe.get("name") or "Probe")
    parts = [
        f"<h1>{shown(title)}</h1>",
        f'<p class="answer">{shown(summary.get("answer") or "No answer was given.")}</p>',
        _asked(view),
        *(
            f'<p class="warning"><b>Warning:</b> {shown(text)}</p>'
            for text in summary.get("warnings", ())
        ),
        _overall(view),
        comparison(view, single=False),
        *sections(view),
        _baselines(view, baselines),
        *_facts(summary),
        _glossary(view.kind),
    ]
    return page(f"tiaft probe: {title}", parts, _STYLE)


def _asked(view: View) -> str:
    data, protocol = view.summary.get("data", {}), view.summary.get("protocol", {})
    rows, groups = data.get("rows"), data.get("groups")
    text = f"Feature sets: {', '.join(view.scores.asked) or MISSING}. {count(rows)} {view.units}"
    if groups != rows:
        text += f" in {count(groups)} groups (patients or slides)"
    text += f"; {protocol.get('folds', MISSING)}-fold cross-validation"
    text += f", repeated {protocol.get('repeats', MISSING)} times"
    if protocol.get("grouped") is False and groups != rows:
        text += ", with ungrouped folds: rows of one group stand in training and test"
    elif groups != rows:
        text += ", no group in training and test at once"
    return f"<p>{shown(text)}.</p>"


def _overall(view: View) -> str:
    counted = "genes" if view.kind == "numbers" else view.units
    table = overall_table(view.scores, counted)
    return f"<h2>Result</h2>{table}" if table else ""


def _baselines(view: View, rows: list[Row]) -> str:
    """Return a part for each baseline: what it is, in words, and its table."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[str(row.get("baseline"))].append(row)
    parts = ["<h2>Baselines</h2>"] if found else []
    for name, lines in found.items():
        words = BASELINES.get(name, "")
        if len(lines) > MOST_ROWS and name != COLOUR:
            words += f" The first {MOST_ROWS} of {count(len(lines))} lines; summary.json has all."
        drawn = ""
        if name != COLOUR:  # whose values stand beside the feature sets'
            build = leak_table if name == "leak control" else permuted_table
            drawn = build(lines[:MOST_ROWS], view.target)
        parts.append(f"<h3>{shown(name)}</h3><p>{shown(words)}</p>{drawn}")
    return "".join(parts)


def _facts(summary: Mapping[str, Any]) -> list[str]:
    """Return all that is recorded: data, settings, hashes and versions."""
    recorded = {
        "Data": summary.get("data", {}),
        "Probe and protocol": {
            "probe": summary.get("probe", {}),
            "protocol": summary.get("protocol", {}),
        },
        "Inputs and their hashes": summary.get("inputs", {}),
        "Versions": summary.get("versions", {}),
    }
    return [
        f"<h2>{heading}</h2>{facts_table(facts)}" for heading, facts in recorded.items() if facts
    ]


def _glossary(kind: str) -> str:
    words = "".join(
        f"<dt>{shown(word)}</dt><dd>{shown(meaning)}</dd>"
        for word, meaning in words_of(kind).items()
    )
    return f"<h2>How to read this</h2><dl>{words}</dl>"

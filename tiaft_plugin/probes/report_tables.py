"""The tables of a probe's report: a line a score, what is missing as a dash."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tiaft_plugin.page import shown, table
from tiaft_plugin.probes.cells import (
    MISSING,
    Row,
    Scores,
    count,
    decimals,
    interval,
    metric_key,
    metric_name,
    p_value,
    reading,
    with_interval,
)
from tiaft_plugin.probes.glossary import CLUSTER_P, FOLDS_P, INTERVAL, NOISE, PAPER_P

MOST_ROWS = 50  # of genes or classes in a table or figure; the other files have all


def table_of(columns: Mapping[str, Sequence[str]]) -> str:
    """Return a table of its columns; those that have nothing in any row are left out."""
    used = {
        name: cells for name, cells in columns.items() if any(c not in ("", MISSING) for c in cells)
    }
    rows = zip(*used.values(), strict=True)
    return f'<div class="scroll">{table(list(used), rows, "scores")}</div>'


def overall_table(scores: Scores, counted: str) -> str:
    """A line a metric and feature set, so that sets stand beneath each other; "" without any."""
    keys = [
        (metric, variant, name)
        for metric in scores.metrics(overall=True)
        for variant in scores.variants
        for name in scores.sets
        if scores.get(name, "", metric, variant)
    ]
    rows = [scores.get(name, "", metric, variant) for metric, variant, name in keys]
    columns = {
        "metric": [metric_name(metric) for metric, _, _ in keys],
        "variant": [variant for _, variant, _ in keys],
        "feature set": [name for _, _, name in keys],
        "value": [decimals(row.get("value")) for row in rows],
        INTERVAL: [interval(row) for row in rows],
        NOISE: [decimals(row.get("split_sd")) for row in rows],
        "prevalence": [
            decimals(scores.prevalence(name, "", metric, variant)) for metric, variant, name in keys
        ],
        counted: [count(row.get("n")) for row in rows],
    }
    return table_of(columns) if rows else ""


def target_table(
    scores: Scores,
    targets: Sequence[str],
    heading: str,
    counted: str,
    last: Mapping[str, Mapping[tuple[str, str, str], str]] | None = None,
) -> str:
    """A line for each class or gene, variant and feature set; columns for each metric.

    `last` are columns more, each by target, variant and feature set.
    """
    keys = [
        (target, variant, name)
        for target in targets
        for variant in scores.variants
        for name in scores.sets
    ]
    columns: dict[str, list[str]] = {
        heading: [target for target, _, _ in keys],
        "variant": [variant for _, variant, _ in keys],
        "feature set": [name for _, _, name in keys],
    }
    counts = {"positive": [MISSING] * len(keys), "n": [MISSING] * len(keys)}
    for metric in scores.metrics(overall=False):
        rows = [scores.get(name, target, metric, variant) for target, variant, name in keys]
        label = metric_name(metric)
        columns |= {
            f"{label} ({INTERVAL})": [with_interval(row) for row in rows],
            f"{label}: {NOISE}": [decimals(row.get("split_sd")) for row in rows],
            f"{label}: p": [p_value(row.get("p")) for row in rows],
            f"{label}: q": [p_value(row.get("q")) for row in rows],
        }
        if metric == "auprc":
            columns["prevalence"] = [
                decimals(scores.prevalence(name, target, metric, variant))
                for target, variant, name in keys
            ]
        for name, before in counts.items():
            cells = [count(row.get(name)) for row in rows]
            counts[name] = [b if c == MISSING else c for c, b in zip(cells, before, strict=True)]
    columns |= {"positive": counts["positive"], counted: counts["n"]}
    for name, more in (last or {}).items():
        columns[name] = [more.get(key, MISSING) for key in keys]
    return table_of(columns)


def comparison_table(rows: Sequence[Row], scores: Scores, heading: str) -> str:
    """A line a comparison: the difference, its interval, what it says, and the p values."""
    return table_of(
        {
            heading: [str(row.get("target") or "") for row in rows],
            "variant": [str(row.get("variant") or "") for row in rows],
            "metric": [metric_name(row.get("metric")) for row in rows],
            "difference": [f"{row.get('b')} − {row.get('a')}" for row in rows],
            "value": [decimals(row.get("difference"), sign=True) for row in rows],
            INTERVAL: [interval(row, sign=True) for row in rows],
            "reading": [reading(row) for row in rows],
            "prevalence": [_prevalence(row, scores) for row in rows],
            CLUSTER_P: [p_value(row.get("p_bootstrap")) for row in rows],
            FOLDS_P: [p_value(row.get("p_corrected")) for row in rows],
            PAPER_P: [p_value(row.get("p_paper")) for row in rows],
        }
    )


def _prevalence(row: Row, scores: Scores) -> str:
    """Return what stands beside each AUPRC; all feature sets have the same rows."""
    target, variant = str(row.get("target") or ""), str(row.get("variant") or "")
    name, metric = str(row.get("a")), metric_key(row.get("metric"))
    return decimals(scores.prevalence(name, target, metric, variant))


def permuted_table(rows: Sequence[Row], heading: str) -> str:
    """A line a feature set: true labels against labels dealt out at random."""
    return table_of(
        _named(rows, heading)
        | {
            "with the true labels": [decimals(row.get("observed")) for row in rows],
            "with permuted labels (mean)": [decimals(row.get("value")) for row in rows],
            "95 % of the draws": [interval(row) for row in rows],
            "p": [p_value(row.get("p")) for row in rows],
            "draws": [count(row.get("draws")) for row in rows],
        }
    )


def leak_table(rows: Sequence[Row], heading: str) -> str:
    """A line a feature set and way to make folds: what labels that mean nothing reach."""
    return table_of(
        _named(rows, heading)
        | {
            "folds": [str(row.get("folds") or "") for row in rows],
            "mean of the draws": [decimals(row.get("value")) for row in rows],
            "lowest to highest": [interval(row) for row in rows],
            "chance": [decimals(row.get("chance")) for row in rows],
            "draws": [count(row.get("draws")) for row in rows],
        }
    )


def _named(rows: Sequence[Row], heading: str) -> dict[str, list[str]]:
    return {
        "feature set": [str(row.get("features") or "") for row in rows],
        heading: [str(row.get("target") or "") for row in rows],
        "variant": [str(row.get("variant") or "") for row in rows],
        "metric": [metric_name(row.get("metric")) for row in rows],
    }


def facts_table(facts: Mapping[str, Any]) -> str:
    """Return whatever is recorded, a line each, facts within facts by their path."""
    body = "".join(f"<tr><td>{shown(a)}</td><td>{shown(b)}</td></tr>" for a, b in _flat(facts))
    return f'<table class="facts">{body}</table>' if body else ""


def _flat(facts: Any, path: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(facts, Mapping):
        items = [(str(name).replace("_", " "), value) for name, value in facts.items()]
    elif isinstance(facts, list | tuple) and any(isinstance(f, Mapping | list) for f in facts):
        items = [(str(place), value) for place, value in enumerate(facts, start=1)]
    else:
        yield path, _fact(facts)
        return
    for name, value in items[:MOST_ROWS]:
        yield from _flat(value, f"{path} · {name}" if path else name)
    if len(items) > MOST_ROWS:
        yield path, f"… and {count(len(items) - MOST_ROWS)} more: summary.json has all"
    if not items and path:
        yield path, MISSING


def _fact(value: Any) -> str:
    if isinstance(value, list | tuple):
        more = f", … and {count(len(value) - MOST_ROWS)} more" if len(value) > MOST_ROWS else ""
        return ", ".join(_fact(item) for item in value[:MOST_ROWS]) + more or MISSING
    return MISSING if value is None or value == "" else str(value)

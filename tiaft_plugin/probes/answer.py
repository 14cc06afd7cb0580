"""The answer in one sentence or two, for who reads nothing else."""

import math
from collections.abc import Mapping
from typing import Any


def answer(summary: Mapping[str, Any]) -> str:
    """Return what a summary says: how good, against which baseline, and better than which set."""
    kind = summary["probe"]["kind"]
    how = {"classes": _classes, "numbers": _numbers, "binary": _binary}
    return how[kind](summary)


def _classes(summary: Mapping[str, Any]) -> str:
    parts = [_value(row) for row in _rows(summary["scores"], metric="accuracy", target="")]
    colour = _rows(summary["baselines"], baseline="colour", metric="accuracy", target="")
    text = f"Accuracy: {'; '.join(parts)}"
    text += f"; colour alone {colour[0]['value']:.3f}." if colour else "."
    for row in _rows(summary["comparisons"], metric="accuracy", target=""):
        text += f" {_difference(row)}"
    return text


def _numbers(summary: Mapping[str, Any]) -> str:
    genes = summary["genes"]
    tested, alpha = genes["tested"], genes["alpha"]
    parts = [
        f"{count} with {name}" for name, count in genes["significant"].items() if name != "colour"
    ]
    text = f"Of {tested} genes, {'; '.join(parts)} are predicted significantly (q < {alpha:g})."
    for name, better in genes["better"].items():
        if genes["selected"]:
            share = better / genes["selected"]
            reference = summary["protocol"]["reference"]
            text += (
                f" {name} predicts {better} of the {genes['selected']} significant ones "
                f"({share:.0%}) better than {reference}."
            )
    return text


def _binary(summary: Mapping[str, Any]) -> str:
    names = summary["data"]["names"]
    rows = _rows(summary["scores"], metric="AUROC")
    variant = rows[0]["variant"]
    above = {
        name: [
            r["target"]
            for r in rows
            if r["features"] == name
            and r["variant"] == variant
            and _has_interval(r)
            and r["low"] > 0.5
        ]
        for name in summary["inputs"]["features"]
    }
    parts = [f"{len(found)} of {len(names)} with {name}" for name, found in above.items()]
    text = f"AUROC above 0.5 with its whole 95 % interval: {'; '.join(parts)}"
    text += f" ({variant})." if variant else "."
    compared = _rows(summary["comparisons"], metric="AUROC", variant=variant)
    for name in dict.fromkeys(row["b"] for row in compared):
        own = [row for row in compared if row["b"] == name]
        better = sum(_has_interval(row) and row["low"] > 0 for row in own)
        worse = sum(_has_interval(row) and row["high"] < 0 for row in own)
        text += (
            f" Against {own[0]['a']}, {name} is better in {better} and worse in {worse}; "
            "in the others the interval of the difference holds 0 (not corrected for the number "
            "of genes)."
        )
    return text


def _rows(rows: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _value(row: Mapping[str, Any]) -> str:
    return f"{row['features']} {row['value']:.3f} (95 % interval {_span(row)})"


def _span(row: Mapping[str, Any]) -> str:
    return "–".join(_number(row[end]) for end in ("low", "high")) if _has_interval(row) else "none"


def _has_interval(row: Mapping[str, Any]) -> bool:
    ends = (row["low"], row["high"])
    return all(end is not None and math.isfinite(end) for end in ends)


def _difference(row: Mapping[str, Any]) -> str:
    low, high = row["low"], row["high"]
    there = _has_interval(row)
    clear = there and (low > 0 or high < 0)
    what = "better" if row["difference"] > 0 else "worse"
    span = f"95 % interval {low:+.3f} to {high:+.3f}" if there else "no interval"
    span = f"mean over folds; {span}"
    if clear:
        return f"{row['b']} is {what} than {row['a']} by {abs(row['difference']):.3f} ({span})."
    return (
        f"{row['b']} and {row['a']} differ by {row['difference']:+.3f} ({span}): "
        "no difference that these data show."
    )


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Return what the command line prints: warnings, main results, baselines, the answer."""
    found = [f"warning: {text}" for text in summary["warnings"]]
    found += ["", *_table(summary), "", summary["answer"]]
    return found


_MAIN = {
    "classes": ("accuracy", "balanced accuracy", "macro F1", "AUROC", "AUPRC"),
    "numbers": ("median_r", "share_significant"),
    "binary": ("AUROC", "AUPRC"),
}


def _table(summary: Mapping[str, Any]) -> list[str]:
    kind = summary["probe"]["kind"]
    rows = [("features", "of", "metric", "value", "95 % interval", "split noise")]
    for row in (*summary["scores"], *_rows(summary["baselines"], baseline="colour")):
        if row["metric"] in _MAIN[kind] and (kind == "binary" or not row["target"]):
            of = " ".join(filter(None, (row["target"], row["variant"])))
            span = _span(row) if _has_interval(row) else ""
            metric = row["metric"].replace("_", " ")
            if metric == "AUPRC" and "prevalence" in row:
                metric += f" (prevalence {row['prevalence']:.2f})"
            noise = "" if row["split_sd"] is None else f"{row['split_sd']:.3f}"
            rows.append((row["features"], of, metric, _number(row["value"]), span, noise))
    for row in _rows(summary["baselines"], baseline="labels permuted"):
        of = " ".join(filter(None, (row["target"], row["variant"])))
        metric = f"{row['metric'].replace('_', ' ')}, labels permuted (p = {row['p']:.3g})"
        rows.append((row["features"], of, metric, _number(row["value"]), _span(row), ""))
    for row in _rows(summary["baselines"], baseline="leak control"):
        metric = f"leak control, {row['folds']} folds (chance {row['chance']:g})"
        rows.append((row["features"], "", metric, _number(row["value"]), _span(row), ""))
    keep = [c for c in range(6) if any(row[c] for row in rows[1:])]
    widths = [max(len(row[c]) for row in rows) for c in keep]
    return [
        "  ".join(row[c].ljust(w) for c, w in zip(keep, widths, strict=True)).rstrip()
        for row in rows
    ]


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3f}"

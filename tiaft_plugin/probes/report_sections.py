"""What a probe's report shows of each kind of target: the paper's figures, and their tables."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tiaft_plugin.page import confusion_table, shown
from tiaft_plugin.probes import figures
from tiaft_plugin.probes.cells import (
    MISSING,
    Row,
    Scores,
    count,
    decimals,
    gene_scores,
    is_yes,
    number,
    share,
    with_interval,
)
from tiaft_plugin.probes.interface import Result
from tiaft_plugin.probes.report_tables import (
    MOST_ROWS,
    comparison_table,
    table_of,
    target_table,
)
from tiaft_plugin.probes.settings import COLOUR

# Of the paper's figure 5.
PAPER_GENES = ("CD274", "CD3G", "TNFRSF9", "FGF7", "CYTIP", "RAC2", "RHBDF2", "CD53", "SH2D1A")


@dataclass(frozen=True)
class View:
    """A result as the page shows it: `scores` are the summary's, with colour as one more set."""

    result: Result
    scores: Scores

    @property
    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` holds."""
        return self.result.summary

    @property
    def kind(self) -> str:
        """What is predicted: classes, numbers or binary."""
        return str(self.summary.get("probe", {}).get("kind", ""))

    @property
    def units(self) -> str:
        """What rows are: "tiles" or "patients"."""
        return f"{self.summary.get('probe', {}).get('unit', 'row')}s"

    @property
    def target(self) -> str:
        """What is predicted one by one."""
        return "class" if self.kind == "classes" else "gene"

    @property
    def names(self) -> list[str]:
        """The classes or genes, in the order of the predictions' columns."""
        return [str(name) for name in self.summary.get("data", {}).get("names", ())]


def comparison(view: View, single: bool) -> str:
    """Compare feature sets over everything, or (`single`) class by class or gene by gene."""
    rows = [
        row for row in view.summary.get("comparisons") or () if bool(row.get("target")) == single
    ]
    if not rows:
        return ""
    drawn = comparison_table(rows[:MOST_ROWS], view.scores, view.target)
    if not single:
        return f"<h2>Comparison</h2>{drawn}"
    more = f" The first {MOST_ROWS} of {count(len(rows))} lines; summary.json has all."
    return (
        f"<h2>Comparison of each {view.target}</h2><p>Among many, some differences stand out by "
        f"chance: these intervals and p values are not corrected for their number."
        f"{more if len(rows) > MOST_ROWS else ''}</p>{drawn}"
    )


def sections(view: View) -> list[str]:
    """Return what belongs to the result's kind."""
    kinds = {"classes": _classes, "numbers": _numbers, "binary": _binary}
    return kinds[view.kind](view) if view.kind in kinds else []


def _classes(view: View) -> list[str]:
    scores, parts = view.scores, []
    if any(scores.get(name, "", "accuracy") for name in scores.asked):
        drawn = figures.draw_overall(scores, _repeats(view.result.rows, "accuracy"), "accuracy")
        colour = with_interval(scores.get(COLOUR, "", "accuracy"))
        parts += [
            "<h2>Overall accuracy (the paper's figure 2)</h2>",
            _figure(
                drawn,
                scores.asked,
                "Mark and line: predictions averaged over repeats, with their 95 % interval. Small "
                "points: each repeat on its own; how far they spread is split noise, not the "
                "uncertainty of the result. "
                + (f"Colour alone (not drawn): {colour}." if colour != MISSING else ""),
            ),
        ]
    targets = scores.targets[:MOST_ROWS]
    if targets and "accuracy" in scores.metrics(overall=False):
        drawn = figures.draw_forest(scores, targets, ["accuracy"])
        parts += [
            "<h2>Accuracy of each class (the paper's figure 3)</h2>",
            _first(scores.targets),
            _figure(
                drawn,
                scores.sets,
                f"Of the {view.units} that are truly of a class, the share that is recognised, "
                "with its 95 % interval.",
            ),
            target_table(scores, targets, view.target, view.units),
        ]
    return [*parts, comparison(view, single=True), _confusions(view)]


def _confusions(view: View) -> str:
    matrices = view.summary.get("confusion") or {}
    if not matrices or not view.names:
        return ""
    shares = "".join(
        f"<div><h3>{shown(name)}</h3>{confusion_table(view.names, matrix, view.units)}</div>"
        for name, matrix in matrices.items()
    )
    return (
        "<h2>Confusion matrix</h2><p>True classes in rows, predicted ones in columns.</p>"
        f'<div class="pair">{shares}</div>'
    )


def _repeats(rows: Iterable[Row], metric: str) -> dict[str, list[float]]:
    """Return each set's overall metric in each repeat: the mean over folds, by their test rows."""
    folds: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if not row.get("target") and math.isfinite(number(row.get(metric))):
            weight = number(row.get("n"))
            folds[str(row.get("features")), str(row.get("repeat"))].append(
                (number(row.get(metric)), weight if weight > 0 else 1.0)
            )
    found: dict[str, list[float]] = defaultdict(list)
    for (name, _), values in folds.items():
        metrics, weights = zip(*values, strict=True)
        found[name].append(float(np.average(metrics, weights=weights)))
    return found


def _numbers(view: View) -> list[str]:
    genes = gene_scores(view.result.rows)
    chosen = [
        gene
        for gene in genes.targets
        if any(is_yes(genes.get(name, gene, "r").get("selected")) for name in genes.sets)
    ]
    others = sorted(set(genes.targets) - set(chosen))
    parts = [_selected(view, genes, len(chosen))]
    pairs = [(str(row.get("a")), str(row.get("b"))) for row in view.summary.get("comparisons", ())]
    for a, b in dict.fromkeys(pairs):
        if {a, b} <= set(genes.sets):
            parts.append(_difference(genes, a, b, chosen, others))
    best = _best(genes)
    parts.append(_observed(view, genes, best))
    if best:
        which = f"The {MOST_ROWS} best" if len(best) > MOST_ROWS else "All"
        marks = {
            (gene, "", name): "yes" if gene in set(chosen) else "no"
            for gene in best[:MOST_ROWS]
            for name in genes.sets
        }
        parts += [
            "<h2>Genes</h2>",
            f"<p>{which} of {count(len(best))} genes, by their best correlation with any feature "
            "set; results.csv has every gene.</p>",
            target_table(genes, best[:MOST_ROWS], "gene", view.units, {"selected": marks}),
        ]
    return [*parts, comparison(view, single=True)]


def _best(genes: Scores) -> list[str]:
    """Return all genes, sorted by their best correlation with any feature set."""

    def worst_last(gene: str) -> tuple[float, str]:
        values = [genes.value(name, gene, "r") for name in genes.asked]
        return -max([value for value in values if math.isfinite(value)] or [-math.inf]), gene

    return sorted(genes.targets, key=worst_last)


def _selected(view: View, genes: Scores, chosen: int) -> str:
    """How many genes are predicted at all, by which set, and which set predicts them better."""
    facts = view.summary.get("genes") or {}
    if not facts:
        return ""
    whole, selected = len(genes.targets), int(facts.get("selected", chosen))
    alpha, reference = facts.get("alpha"), view.summary.get("protocol", {}).get("reference", "")
    columns = {"feature set": genes.sets}
    for heading, name, of in (
        (f"significant: q < {alpha} (Benjamini–Hochberg)", "significant", whole),
        (f"p < {alpha}, not corrected for the number of genes", "significant_unadjusted", whole),
        (f"selected genes predicted better than by {reference}", "better", selected),
    ):
        numbers = facts.get(name, {})
        columns[heading] = [
            share(int(numbers[each]), of) if each in numbers else MISSING for each in genes.sets
        ]
    by = facts.get("selected_by")
    whose = "those significant with any feature set" if by == "union" else f"by the q of {by}"
    return (
        "<h2>Genes that are predicted</h2>"
        f"<p>Selected: {count(selected)} genes, {shown(whose)}.</p>" + table_of(columns)
    )


def _difference(genes: Scores, a: str, b: str, chosen: Sequence[str], others: Sequence[str]) -> str:
    wins = {a: 0, b: 0, "": 0}
    for gene in chosen:
        difference = genes.value(b, gene, "r") - genes.value(a, gene, "r")
        if math.isfinite(difference):
            wins["" if difference == 0 else b if difference > 0 else a] += 1
    compared = sum(wins.values())
    drawn = figures.draw_difference(genes, a, b, chosen, others)
    looks = figures.looks_of(genes.sets)
    ties = f"; {wins['']} equal" if wins[""] else ""
    return (
        f"<h2>{shown(b)} against {shown(a)}, gene by gene (the paper's figure 4)</h2>"
        f"<p>Of the selected genes, {shown(b)} predicts {share(wins[b], compared)} better, "
        f"{shown(a)} {share(wins[a], compared)}{ties}.</p>"
        f"<figure>{figures.legend({name: looks[name] for name in (a, b)})}{drawn}<figcaption>"
        "Colour: the set that is better. Left: the difference in correlation of each selected "
        "gene. Right: both correlations; genes above the dashed line are better predicted by the "
        "set on the vertical axis. Small grey points: genes that were not selected.</figcaption>"
        "</figure>"
    )


def _observed(view: View, genes: Scores, best: Sequence[str]) -> str:
    arrays, names = view.result.predictions, view.names
    sets = [name for name in genes.asked if f"average/{name}/0/0" in arrays]
    wanted = [gene for gene in PAPER_GENES if gene in names]
    chosen = (wanted + [gene for gene in best if gene in names and gene not in wanted])[:9]
    if "observed" not in arrays or not sets or not chosen:
        return ""
    columns = [names.index(gene) for gene in chosen]
    observed = np.asarray(arrays["observed"], float)[:, columns]
    predicted = {
        name: np.asarray(arrays[f"average/{name}/0/0"], float)[:, columns] for name in sets
    }
    ends = [
        _ends([values[:, place] for values in predicted.values()]) for place in range(len(chosen))
    ]
    looks, panels = figures.looks_of(genes.sets), []
    for name in sets:
        titles = [
            f"{figures.short(gene, 14)}, r = {decimals(genes.value(name, gene, 'r'))}"
            for gene in chosen
        ]
        drawn = figures.draw_observed(observed, predicted[name], titles, ends, looks[name])
        panels.append(f"<figure><figcaption>{shown(name)}</figcaption>{drawn}</figure>")
    which = "the genes of the paper's figure" if wanted else "the best predicted genes"
    filled = ", then the best predicted ones" if wanted and len(wanted) < len(chosen) else ""
    return (
        f"<h2>Observed and predicted values (the paper's figure 5)</h2><p>A point is a patient; "
        f"predictions are averaged over repeats. Shown: {which}{filled}.</p>"
        f'<div class="pair">{"".join(panels)}</div>'
    )


def _ends(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return where an axis begins and ends that holds all `values`."""
    joined = np.concatenate(values)
    known = joined[np.isfinite(joined)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


def _binary(view: View) -> list[str]:
    scores = view.scores
    metrics = [m for m in ("auroc", "auprc") if m in scores.metrics(overall=False)]
    targets = scores.targets[:MOST_ROWS]
    if not targets or not metrics:
        return [comparison(view, single=True)]
    parts = ["<h2>Each gene (the paper's figure 6)</h2>", _first(scores.targets)]
    for variant in scores.variants:
        drawn = figures.draw_forest(scores, targets, metrics, variant)
        caption = (
            "Marks and lines: value and 95 % interval. Black lines: what guessing reaches, 0.5 for "
            "AUROC and the gene's prevalence for AUPRC."
        )
        parts.append(f"<h3>{shown(variant)}</h3>" if variant else "")
        parts.append(_figure(drawn, scores.sets, caption, "guessing"))
    empty = {"empty models": _empty(view)}
    parts.append(target_table(scores, targets, view.target, view.units, empty))
    return [*parts, comparison(view, single=True)]


def _empty(view: View) -> dict[tuple[str, str, str], str]:
    """Return how many models found nothing, by gene, variant and feature set."""
    return {
        (str(gene), str(variant), str(name)): f"{count(found[0])} of {count(found[1])}"
        for name, of_set in (view.summary.get("empty_models") or {}).items()
        for gene, of_gene in of_set.items()
        for variant, found in of_gene.items()
    }


def _first(targets: Sequence[str]) -> str:
    if len(targets) <= MOST_ROWS:
        return ""
    return f"<p>The first {MOST_ROWS} of {count(len(targets))}; summary.json has all.</p>"


def _figure(drawn: str, sets: Sequence[str], caption: str, line: str = "") -> str:
    key = figures.legend(figures.looks_of(sets), line=line)
    return f"<figure>{key}{drawn}<figcaption>{shown(caption)}</figcaption></figure>"

"""Correlations of many numbers at once: one row a gene, and what the genes say together."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tiaft_plugin.probes.crossval import Problem
from tiaft_plugin.probes.measured import Trace, split_sd
from tiaft_plugin.probes.metrics import correlations
from tiaft_plugin.probes.settings import COLOUR, Analysis, Settings
from tiaft_plugin.probes.statistics import (
    Difference,
    benjamini_hochberg,
    cluster_weights,
    interval,
    paired_bootstrap,
    paper_t,
    permutation_p,
    training_means,
)

PERMUTATIONS = 9999  # of the observed values; no p is below 1 / 10,000


def analyse_numbers(
    genes: tuple[str, ...], problem: Problem, traces: Mapping[str, Trace], settings: Settings
) -> Analysis:
    """Return a row a set and gene; over all genes, medians and how many are predicted better.

    r is Pearson's, of observed values and predictions averaged over repeats, less what a model
    predicts that knows only the mean of its training part. A gene is significant where its p,
    adjusted by Benjamini and Hochberg, is below `alpha`; `select` says by whose p. (The paper,
    section 4, took p < 0.05, not adjusted.)
    """
    found, sets = Analysis(), list(traces)
    weights = cluster_weights(problem.groups, settings.draws, settings.seed)
    # Without the mean of the training part: it is the lower, the higher the row left out is.
    means = training_means(problem.targets, problem.folds)
    average = {name: traces[name].average - means for name in sets}
    r = {name: correlations(average[name], problem.targets) for name in sets}
    draws = {name: correlations(average[name], problem.targets, weights) for name in sets}
    repeats = {name: np.array(list(traces[name].repeats.values())).T for name in sets}
    p = {
        name: permutation_p(
            average[name],
            problem.targets,
            problem.groups,
            problem.count,
            draws=PERMUTATIONS,
            seed=settings.seed,
        )
        for name in sets
    }
    q = {name: benjamini_hochberg(p[name]) for name in sets}
    asked = [name for name in sets if name != COLOUR]
    choosers = asked if settings.select == "union" else [settings.select]
    chosen = np.any([q[name] < settings.alpha for name in choosers], axis=0)
    for name in sets:
        lows, highs = interval(draws[name], problem.clusters, problem.count)
        against = None
        if name not in (settings.reference, COLOUR):
            value = r[name] - r[settings.reference]
            drawn = draws[name] - draws[settings.reference]
            against = paired_bootstrap(value, drawn, problem.clusters, problem.count)
        columns = {
            "r": r[name].tolist(),
            "low": lows.tolist(),
            "high": highs.tolist(),
            "split_sd": [split_sd(one) for one in repeats[name].T],
            "p": p[name].tolist(),
            "q": q[name].tolist(),
            "selected": chosen.tolist(),
            **_against_reference(against, len(genes)),
        }
        found.rows += _gene_rows(name, genes, len(problem.rows), columns)
        found.scores += _overall(name, r, q, draws, repeats, problem, settings.alpha)
    better: dict[str, int] = {}
    for b in asked:
        if b != settings.reference:
            better[b] = int((r[b] > r[settings.reference])[chosen].sum())
            found.comparisons += _compare(b, r, draws, repeats, chosen, problem, settings.reference)
    found.extra["genes"] = {
        "alpha": settings.alpha,
        "selected_by": settings.select,
        "significant": {name: int((q[name] < settings.alpha).sum()) for name in sets},
        "significant_unadjusted": {name: int((p[name] < settings.alpha).sum()) for name in sets},
        "tested": len(genes),
        "permutations": PERMUTATIONS,
        "selected": int(chosen.sum()),
        "better": better,
    }
    return found


def _gene_rows(
    name: str, genes: tuple[str, ...], n: int, columns: Mapping[str, list]
) -> list[dict[str, Any]]:
    """Return a row a gene; `columns` hold a value a gene each."""
    lines = zip(*columns.values(), strict=True)
    return [
        {"features": name, "target": gene, "n": n, **dict(zip(columns, line, strict=True))}
        for gene, line in zip(genes, lines, strict=True)
    ]


def _against_reference(test: Difference | None, count: int) -> dict[str, list]:
    names = ("difference", "difference_low", "difference_high", "difference_p")
    if test is None:
        return {name: [None] * count for name in names}
    return {name: values.tolist() for name, values in zip(names, test, strict=True)}


def _overall(
    name: str, r: dict, q: dict, draws: dict, repeats: dict, problem: Problem, alpha: float
) -> list[dict[str, Any]]:
    low, high = interval(np.median(draws[name], axis=1), problem.clusters, problem.count)
    return [
        {
            "features": name,
            "target": "",
            "variant": "",
            "metric": "median_r",
            "value": float(np.median(r[name])),
            "low": float(low),
            "high": float(high),
            "split_sd": split_sd(np.median(repeats[name], axis=1)),
            "n": r[name].size,
        },
        {
            "features": name,
            "target": "",
            "variant": "",
            "metric": "share_significant",
            "value": float((q[name] < alpha).mean()),
            "low": None,
            "high": None,
            "split_sd": None,
            "n": r[name].size,
        },
    ]


def _compare(
    b: str, r: dict, draws: dict, repeats: dict, chosen: np.ndarray, problem: Problem, a: str
) -> list[dict[str, Any]]:
    """Compare the medians, over all genes and over the significant ones."""
    rows = []
    for metric, genes in (("median_r", np.ones_like(chosen)), ("median_r_significant", chosen)):
        if not genes.any():
            continue

        def median(values: dict, genes: np.ndarray = genes) -> np.ndarray:
            return np.median(values[b][..., genes], -1) - np.median(values[a][..., genes], -1)

        value = float(median(r))
        test = paired_bootstrap(value, median(draws), problem.clusters, problem.count)
        rows.append(
            {
                "a": a,
                "b": b,
                "target": "",
                "variant": "",
                "metric": metric,
                "difference": value,
                "low": float(test.low),
                "high": float(test.high),
                "p_bootstrap": None,  # no test of medians over genes is known to hold here
                "p_corrected": None,
                "p_paper": float(paper_t(median(repeats)).p),
            }
        )
    return rows

"""What ``summary.json`` holds (docs/formats.md): tables, baselines, warnings, inputs, settings."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from tiaft_plugin.plugins import Registered
from tiaft_plugin.probes.answer import answer
from tiaft_plugin.probes.baselines import can_leak
from tiaft_plugin.probes.crossval import Problem
from tiaft_plugin.probes.folds import sha256_of_folds
from tiaft_plugin.probes.interface import Experiment
from tiaft_plugin.probes.settings import COLOUR, Analysis, Settings
from tiaft_plugin.probes.statistics import permuted_p
from tiaft_plugin.tiles.words import some

RARE = 10  # rows: two in each of five folds
FEW_GROUPS = 20  # with fewer, a bootstrap of groups gives intervals that are too narrow
_STATISTIC = {"classes": "balanced accuracy", "numbers": "mean_r", "binary": "AUROC"}
Controls = Mapping[tuple, np.ndarray]  # (set, problem, draw, what) -> the statistic


def summarise(
    registered: Registered,
    experiment: Experiment,
    problems: list[Problem],
    settings: Settings,
    analysis: Analysis,
    controls: Controls,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Return the summary of a run."""
    probe = registered.thing
    variants = tuple(getattr(probe, "variants", ())) or ("",)
    colour = [row for row in analysis.scores if row["features"] == COLOUR]
    rows = [{"baseline": COLOUR, **row} for row in colour]
    rows += _permuted(experiment, problems, variants, settings, controls)
    rows += _leaks(experiment, controls)
    summary = {
        "schema": "tiaft-probe",
        "version": 1,
        "probe": {
            "name": registered.name,
            "title": getattr(probe, "title", registered.name),
            "kind": experiment.kind,
            "unit": experiment.unit,
            "plugin": registered.plugin,
            "variants": list(variants),
            "settings": dict(probe.settings),
        },
        "answer": "",
        "data": _data(experiment, problems),
        "protocol": {
            **asdict(settings),
            "stratified": experiment.kind != "numbers",
            "folds_sha256": sha256_of_folds(np.hstack([problem.folds for problem in problems])),
        },
        "inputs": {
            "features": experiment.sources.get("features", {}),
            "labels": experiment.sources.get("labels", {}),
        },
        "versions": dict(versions),
        "warnings": _warnings(experiment, problems, settings, rows)
        + _empty(analysis.extra.get("empty_models", {})),
        "scores": [row for row in analysis.scores if row["features"] != COLOUR],
        "comparisons": analysis.comparisons,
        "baselines": rows,
    }
    summary |= analysis.extra
    summary["answer"] = answer(summary)
    return summary


def _data(experiment: Experiment, problems: list[Problem]) -> dict[str, Any]:
    values = experiment.values
    counts: dict[str, Any] = {}
    if experiment.kind == "classes":
        counts = {name: int((values == name).sum()) for name in experiment.names}
    elif experiment.kind == "binary":
        counts = {problem.name: int(problem.targets.sum()) for problem in problems}
    return {
        "rows": len(experiment.keys),
        "groups": len(np.unique(experiment.groups)),
        "grouped": experiment.grouped,
        "unit": experiment.unit,
        "names": list(experiment.names),
        "counts": counts,
        "notes": list(experiment.notes),
    }


def _permuted(
    experiment: Experiment,
    problems: list[Problem],
    variants: tuple[str, ...],
    settings: Settings,
    controls: Controls,
) -> list[dict[str, Any]]:
    """One row a set, gene and variant: where the true labels rank among the permuted ones."""
    if not settings.permutations:
        return []
    rows = []
    for name in experiment.features:
        for p, problem in enumerate(problems):
            drawn = np.array(
                [controls[name, p, j, "permuted"] for j in range(settings.permutations + 1)]
            )
            if experiment.kind == "numbers":  # of all genes; a median would not see a few good ones
                drawn = drawn.mean(axis=1, keepdims=True)
            for column in range(drawn.shape[1]):
                observed, permuted = drawn[0, column], drawn[1:, column]
                low, high = np.percentile(permuted, (2.5, 97.5))
                rows.append(
                    {
                        "baseline": "labels permuted",
                        "features": name,
                        "target": problem.name,
                        "variant": variants[column] if experiment.kind == "binary" else "",
                        "metric": _STATISTIC[experiment.kind],
                        "value": float(permuted.mean()),
                        "low": float(low),
                        "high": float(high),
                        "observed": float(observed),
                        "draws": settings.permutations,
                        "p": float(permuted_p(observed, permuted)),
                    }
                )
    return rows


def _leaks(experiment: Experiment, controls: Controls) -> list[dict[str, Any]]:
    """One row a set and way to make folds: what a random label of each group reaches."""
    rows, numbers = [], experiment.kind == "numbers"
    for name in experiment.features:
        for folds in ("grouped", "ungrouped"):
            drawn = [
                float(value.ravel()[0])
                for (of, _, _, what), value in controls.items()
                if of == name and what == f"leak_{folds}"
            ]
            if drawn:
                rows.append(
                    {
                        "baseline": "leak control",
                        "features": name,
                        "target": "",
                        "variant": "",
                        "metric": "r" if numbers else _STATISTIC[experiment.kind],
                        "value": float(np.mean(drawn)),
                        "low": float(np.min(drawn)),
                        "high": float(np.max(drawn)),
                        "draws": len(drawn),
                        "chance": 0.0 if numbers else 0.5,
                        "folds": folds,
                    }
                )
    return rows


def _warnings(
    experiment: Experiment, problems: list[Problem], settings: Settings, rows: list[dict]
) -> list[str]:
    found = list(experiment.notes)
    groups = len(np.unique(experiment.groups))
    if not settings.grouped and groups < len(experiment.keys):
        found.append(
            "Folds are of rows, as in the paper, not of patients or slides: rows of one patient or "
            "slide stand on both sides of a fold, and results are too good. The leak control tells "
            "how much folds of rows can gain by that."
        )
    if groups == 1:
        found.append(
            "All rows are of one patient or slide: nothing is known of others, and results have no "
            "interval."
        )
    elif groups < FEW_GROUPS:
        found.append(
            f"There are only {groups} groups (patients or slides): intervals and p values from so "
            "few are rough, and rather too narrow than too wide."
        )
    if not settings.permutations:
        found.append("The labels were not permuted: nothing says what chance reaches here.")
    if not settings.leak_control and can_leak(problems[0]):
        found.append(
            "The leak control was left out: nothing says whether labels of groups that mean "
            "nothing are predicted here."
        )
    if experiment.colour is None:
        found.append(
            "The features bring no colour, so the colour-only baseline is missing: `tiaft extract` "
            "and `tiaft features` write it beside the features."
        )
    for problem in problems:
        found += _untrained(problem)
    found += _rare(problems)
    return found + _doubts(rows, settings.alpha)


def _rare(problems: list[Problem]) -> list[str]:
    """Name the genes of which hardly any patient has one of the two outcomes."""
    counts = [(p.name, np.bincount(p.targets, minlength=2)) for p in problems if p.kind == "binary"]
    rare = [f"{name} ({int(count.min())})" for name, count in counts if count.min() < RARE]
    if not rare:
        return []
    return [
        f"Fewer than {RARE} rows have one of the two outcomes: {some(rare)}. What is measured on "
        "so few says little."
    ]


def _empty(empty: Mapping[str, Mapping[str, Mapping[str, list[int]]]]) -> list[str]:
    """Name the genes of which more than a quarter of the models keep no feature."""
    often = [
        f"{gene} with {name}{f' ({variant})' if variant else ''} {blank} of {total}"
        for name, genes in empty.items()
        if name != COLOUR
        for gene, variants in genes.items()
        for variant, (blank, total) in variants.items()
        if 4 * blank > total
    ]
    if not often:
        return []
    return [
        f"Many models keep no feature and rank nobody: {some(often)}. Intervals of such results "
        "are rough, and rather too narrow."
    ]


def _doubts(rows: list[dict], alpha: float) -> list[str]:
    """Return what baselines say against a result."""
    found = []
    for row in rows:
        of = row["features"]
        if row["baseline"] == "labels permuted" and row["p"] > alpha:
            what = f" for {row['target']}" if row["target"] else ""
            which = f" ({row['variant']})" if row["variant"] else ""
            found.append(f"{of}{what}{which}: permuted labels do as well (p = {row['p']:.2g}).")
        leaks = row["baseline"] == "leak control" and row["folds"] == "grouped"
        if leaks and row["low"] > row["chance"]:
            found.append(
                f"{of}: random labels of groups are predicted better than chance by folds of whole "
                f"groups ({row['metric']} {row['low']:.2f} or more): does one patient or slide "
                "stand under two names?"
            )
    return found


def _untrained(problem: Problem) -> list[str]:
    """Name the classes that some training part lacks, or some test part."""
    if problem.kind == "numbers":
        return []
    codes = np.unique(problem.targets)
    untrained: Counter[int] = Counter()
    untested: Counter[int] = Counter()
    for folds in problem.folds:
        for fold in range(int(folds.max()) + 1):
            test = folds == fold
            untrained.update(set(codes.tolist()) - set(problem.targets[~test].tolist()))
            untested.update(set(codes.tolist()) - set(problem.targets[test].tolist()))
    total = problem.folds.shape[0] * problem.count
    name = (
        (lambda code: problem.classes[code])
        if problem.classes
        else (lambda c: f"{problem.name}={c}")
    )
    sentences = []
    if untrained:
        listed = some([f"{name(c)} ({n} of {total})" for c, n in sorted(untrained.items())])
        then = (
            "such rows cannot be predicted right, and count as wrong"
            if problem.classes
            else "nothing can be learnt, and all rows get one score"
        )
        sentences.append(f"Missing from the training part of some folds: {listed}. There {then}.")
    if untested:
        listed = some([f"{name(c)} ({n} of {total})" for c, n in sorted(untested.items())])
        sentences.append(
            f"Missing from the test part of some folds: {listed}. What is measured fold by fold "
            "leaves these folds out; the main results pool all folds."
        )
    return sentences

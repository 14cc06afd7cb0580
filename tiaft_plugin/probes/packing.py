"""The arrays of ``predictions.npz``: enough to measure and compare feature sets anew."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tiaft_plugin.probes.crossval import Problem
from tiaft_plugin.probes.interface import Experiment
from tiaft_plugin.probes.measured import Key, Trace

Traces = dict[tuple[str, int, int], Trace]  # of a set, a problem and a variant


def pack(experiment: Experiment, problems: list[Problem], traces: Traces) -> dict[str, np.ndarray]:
    """Return the arrays: docs/formats.md describes them."""
    arrays = {
        "keys": experiment.keys,
        "groups": experiment.groups,
        "observed": experiment.values,
        "names": np.array(experiment.names),
    }
    for p, problem in enumerate(problems):
        arrays[f"folds/{p}"] = problem.folds
    for (name, p, v), kept in traces.items():
        at = f"{name}/{p}/{v}"
        arrays[f"average/{at}"] = kept.average
        arrays[f"repeats/{at}"] = np.array(list(kept.repeats.values()))
        if kept.folds:
            arrays[f"by_fold/{at}"] = np.array(list(kept.folds.values()))
        arrays[f"metrics/{at}"] = np.array([list(key) for key in kept.repeats])
    return arrays


def unpack(
    arrays: Mapping[str, np.ndarray], summary: Mapping[str, Any]
) -> tuple[list[Problem], Traces]:
    """Return what `pack` was given, of arrays that were read."""
    kind, names = summary["probe"]["kind"], tuple(arrays["names"].tolist())
    observed, groups = arrays["observed"], arrays["groups"]
    problems = []
    for p in range(sum(name.startswith("folds/") for name in arrays)):
        rows = np.arange(len(observed))
        targets, classes, gene = observed, names, ""
        if kind == "classes":
            targets = np.array([names.index(label) for label in observed.tolist()])
        elif kind == "binary":
            rows, gene = np.flatnonzero(np.isfinite(observed[:, p])), names[p]
            targets = observed[rows, p].astype(np.int64)
        if kind != "classes":
            classes = ()
        folds = arrays[f"folds/{p}"]
        problems.append(Problem(gene, kind, rows, targets, groups[rows], folds, classes))
    traces: Traces = {}
    for name in arrays:
        what, _, at = name.partition("/")
        if what == "average":
            of, p_text, v_text = at.rsplit("/", 2)
            keys: list[Key] = [(row[0], row[1]) for row in arrays[f"metrics/{at}"].tolist()]
            repeats = dict(zip(keys, arrays[f"repeats/{at}"], strict=True))
            by_fold = arrays.get(f"by_fold/{at}")
            folds_of = dict(zip(keys, by_fold, strict=True)) if by_fold is not None else {}
            traces[of, int(p_text), int(v_text)] = Trace(arrays[name], repeats, folds_of)
    return problems, traces

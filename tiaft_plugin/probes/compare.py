"""Compare the feature sets of several runs, where all were split alike."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import locked, refuse_unwritable
from tiaft_plugin.probes.analysis import analyse
from tiaft_plugin.probes.answer import answer
from tiaft_plugin.probes.interface import Result
from tiaft_plugin.probes.outputs import read_result, refuse_results, write_result
from tiaft_plugin.probes.packing import unpack
from tiaft_plugin.probes.settings import COLOUR, Settings


def compare_runs(
    runs: Sequence[Path | str],
    out: Path | str | None = None,
    *,
    reference: str | None = None,
    overwrite: bool = False,
) -> Result:
    """Compare the feature sets of finished runs (folders); write the result as `run_probe` does.

    All must be of the same probe, rows, labels and folds: paired statistics need that. Sets keep
    their names, or get their folder's before it where two runs use one name. Raises TiaftError.
    """
    paths = [Path(run) for run in runs]
    if len(paths) < 2:
        raise TiaftError("compare needs the folders of two runs or more")
    results = [read_result(path) for path in paths]
    for path, result in zip(paths[1:], results[1:], strict=True):
        _check_alike(paths[0], results[0], path, result)
    result = _joined(paths, results, reference)
    if out is not None:
        out = Path(out)
        refuse_unwritable(out)
        with locked(out, wait=False):
            if not overwrite:
                refuse_results(out)
            write_result(out, result, {"compared": [str(path) for path in paths]})
    return result


def _check_alike(a: Path, one: Result, b: Path, other: Result) -> None:
    """Raise TiaftError, which says what differs, unless two runs can be compared."""
    different = []
    if one.summary["probe"] != other.summary["probe"]:
        different.append("the probe or its settings")
    for array, what in (("keys", "the rows"), ("groups", "the groups"), ("observed", "the labels")):
        if not _same(one.predictions.get(array), other.predictions.get(array)):
            different.append(what)
    for name, what in (("folds_sha256", "the folds"), ("draws", "the bootstrap's draws")):
        if one.summary["protocol"][name] != other.summary["protocol"][name]:
            different.append(what)
    if different:
        raise TiaftError(
            f"{a} and {b} cannot be compared: they differ in {', '.join(different)}; run the probe "
            "with the same labels, seed, --folds and --repeats on both feature sets"
        )


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None or a.shape != b.shape:
        return False
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def _joined(paths: list[Path], results: list[Result], reference: str | None) -> Result:
    names = _names(paths, results)
    arrays = _arrays(names, results)
    first = results[0].summary
    settings = _settings(names, first["protocol"], reference)
    problems, traces = unpack(arrays, first)
    # Colour comes last, as in the runs themselves.
    ordered = dict(sorted(traces.items(), key=lambda item: item[0][0] == COLOUR))
    genes_or_classes = tuple(arrays["names"].tolist())
    variants = tuple(first["probe"]["variants"])
    with threadpool_limits(1):  # sums over several threads differ in their last bits
        analysis = analyse(genes_or_classes, problems, ordered, settings, variants)
    summary = first | {
        "protocol": first["protocol"] | {"reference": settings.reference, "select": "union"},
        "inputs": {
            "features": _merged(names, [r.summary["inputs"]["features"] for r in results]),
            "labels": first["inputs"]["labels"],
        },
        "warnings": _warnings(results),
        "scores": [row for row in analysis.scores if row["features"] != COLOUR],
        "comparisons": analysis.comparisons,
        "baselines": _baselines(names, results),
    }
    summary |= analysis.extra
    if "empty_models" in first:
        summary["empty_models"] = _merged(names, [r.summary["empty_models"] for r in results])
    summary["answer"] = answer(summary)
    return Result(summary, analysis.rows, arrays)


def _settings(
    names: list[dict[str, str]], protocol: Mapping[str, Any], reference: str | None
) -> Settings:
    """Return the first run's settings; genes are selected by any set."""
    known = [new for own in names for new in own.values() if new != COLOUR]
    chosen = reference or known[0]
    if chosen not in known:
        raise TiaftError(
            f"--reference {chosen}: there is no such set; there are {', '.join(known)}"
        )
    known_then = [field.name for field in fields(Settings) if field.name in protocol]
    own = {name: protocol[name] for name in known_then}
    return Settings(**own | {"reference": chosen, "select": "union"})


def _arrays(names: list[dict[str, str]], results: list[Result]) -> dict[str, np.ndarray]:
    """Return all runs' predictions under the sets' new names; colour's are the first's."""
    arrays: dict[str, np.ndarray] = {}
    for own, result in zip(names, results, strict=True):
        for at, array in result.predictions.items():
            what, _, rest = at.partition("/")
            if what in ("average", "repeats", "by_fold", "metrics"):
                name, *place = rest.rsplit("/", 2)
                at = "/".join([what, own[name], *place])
            arrays.setdefault(at, array)
    return arrays


def _warnings(results: list[Result]) -> list[str]:
    found = list(dict.fromkeys(text for r in results for text in r.summary["warnings"]))
    if any(result.summary["versions"] != results[0].summary["versions"] for result in results):
        found.append(
            "The runs were made with different versions of libraries, which may add to the "
            "differences; the versions below are the first run's."
        )
    return found


def _names(paths: list[Path], results: list[Result]) -> list[dict[str, str]]:
    """Return, for each run, the new name of each set: its own where no other run uses it."""
    own = [list(result.summary["inputs"]["features"]) for result in results]
    every = [name for names in own for name in names]
    renamed = []
    for path, names in zip(paths, own, strict=True):
        new = {
            name: name if every.count(name) == 1 else f"{path.resolve().name}:{name}"
            for name in names
        }
        renamed.append(new | {COLOUR: COLOUR})
    taken = [new for own_names in renamed for new in own_names.values() if new != COLOUR]
    twice = sorted({name for name in taken if taken.count(name) > 1})
    if twice:
        raise TiaftError(f"two runs give the set {twice[0]!r}: rename one of their folders")
    return renamed


def _merged(names: list[dict[str, str]], parts: list[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for own, part in zip(names, parts, strict=True):
        merged |= {own[name]: about for name, about in part.items()}
    return merged


def _baselines(names: list[dict[str, str]], results: list[Result]) -> list[dict[str, Any]]:
    """Return all runs' baselines; colour's are the first run's, since all have the same rows."""
    rows: list[dict[str, Any]] = []
    for own, result in zip(names, results, strict=True):
        seen = any(row["baseline"] == COLOUR for row in rows)
        rows += [
            row | {"features": own[row["features"]]}
            for row in result.summary["baselines"]
            if not (seen and row["baseline"] == COLOUR)
        ]
    return rows

"""What a study's cells say together: means over repeats, intervals, and which network is enough."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_extensions.truncation.study.grid import Variant
from tiaft_extensions.truncation.study.measures import MEAN, METRICS, Scores
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_csv
from tiaft_plugin.probes.statistics import cluster_weights

FEWEST_GROUPS = 10  # slides or patients; of fewer, a bootstrap of them says nothing
MOST_WEIGHTS = 2_000_000  # of a bootstrap, so that large sets do not take hours
VARIANT = ("strategy", "backbone", "cut", "init")
CELL_COLUMNS = (
    *VARIANT, "percent", "repeat", "train_tiles", "epochs", "kept_epoch", "set", "class", *METRICS
)  # fmt: skip
SUMMARY_COLUMNS = (
    *VARIANT, "percent", "repeats", "set", "class", "metric", "mean", "sd", "low", "high"
)  # fmt: skip
MODEL_COLUMNS = (
    *VARIANT, "width", "parameters", "gmacs", "tiles_per_second", "val_auprc", "val_auprc_se",
    "auroc", "auprc", "within_one_se", "chosen",
)  # fmt: skip
Found = Mapping[str, Any]  # of a cell, as its file has it


@dataclass(frozen=True)
class Choice:
    """The smallest variant within one standard error of the best, by AUPRC on validation tiles.

    `least` is what is enough: the best mean minus its standard error over repeats.
    """

    best: Variant
    chosen: Variant
    least: float
    enough: tuple[Variant, ...]


def variant_of(found: Found) -> Variant:
    """Return the variant of a cell."""
    return Variant(*(found[name] for name in VARIANT))


def grouped(cells: Iterable[Found]) -> dict[tuple[Variant, float], list[Found]]:
    """Return the cells of each variant and percentage, by repeat."""
    groups: dict[tuple[Variant, float], list[Found]] = {}
    for found in cells:
        groups.setdefault((variant_of(found), found["percent"]), []).append(found)
    return {key: sorted(each, key=lambda f: f["repeat"]) for key, each in groups.items()}


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of a mean over repeats; NaN of a single one."""
    if len(values) < 2:
        return math.nan
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def choose(cells: Iterable[Found], parameters: Mapping[Variant, int]) -> Choice:
    """Return the choice among cells that were trained on the largest percentage there is.

    The test tiles have no say. With one repeat the standard error is not known, and the best is
    chosen. Raises TiaftError where validation tiles can rank nothing.
    """
    groups = grouped(cells)
    most = max(percent for _, percent in groups)
    scores = {
        variant: [found["sets"]["val"][MEAN]["auprc"] for found in each]
        for (variant, percent), each in groups.items()
        if percent == most
    }
    means = {v: float(np.mean(each)) for v, each in scores.items() if np.isfinite(each).all()}
    if not means:
        raise TiaftError(
            "no class has validation tiles both with and without it: hold out others with "
            "--val-groups, or a share with --val-share"
        )
    best = max(means, key=lambda v: (means[v], -parameters[v]))
    error = standard_error(scores[best])
    least = means[best] - (error if math.isfinite(error) else 0.0)
    enough = sorted((v for v in means if means[v] >= least), key=lambda v: parameters[v])
    smallest = [v for v in enough if parameters[v] == parameters[enough[0]]]
    return Choice(best, max(smallest, key=lambda v: means[v]), least, tuple(enough))


def bootstrap_weights(groups: Sequence[str | None], count: int, seed: int) -> np.ndarray:
    """Return (B, N) draws of slides or patients, or of tiles where these are too few or unknown."""
    named = [group for group in groups if group is not None]
    whole = len(set(named)) >= FEWEST_GROUPS and len(named) == count
    units = np.array(named) if whole else np.arange(count)
    draws = int(np.clip(MOST_WEIGHTS // max(1, count), 200, 1000))
    return cluster_weights(units, draws, [seed, 6])


def summary_rows(
    cells: Iterable[Found],
    scores: Mapping[tuple[Variant, float], Sequence[Scores]],
    weights: np.ndarray,
    name: str,
) -> list[dict[str, Any]]:
    """Return a row for each variant, percentage, class and metric on the set called `name`.

    ``sd`` is over repeats (other training tiles, weights and order). ``low`` and ``high`` hold 95 %
    of a bootstrap of the held-out tiles, of the mean over repeats; `scores` has those of each.
    """
    rows = []
    for (variant, percent), each in grouped(cells).items():
        drawn = _intervals(scores[variant, percent], weights)
        for target in each[0]["sets"][name]:
            for metric in METRICS:
                values = [found["sets"][name][target][metric] for found in each]
                low, high = drawn.get((metric, target), (math.nan, math.nan))
                rows.append({
                    **{part: getattr(variant, part) for part in VARIANT},
                    "percent": percent, "repeats": len(each), "set": name, "class": target,
                    "metric": metric, "mean": float(np.mean(values)),
                    "sd": float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
                    "low": low, "high": high,
                })  # fmt: skip
    return rows


def _intervals(
    scores: Sequence[Scores], weights: np.ndarray
) -> dict[tuple[str, str], tuple[float, float]]:
    found = {}
    for metric in ("auroc", "auprc"):
        draws = [each.draws(metric.upper(), weights) for each in scores]
        for target in draws[0]:
            mean = np.mean([each[target] for each in draws], axis=0)
            if np.isfinite(mean).any():
                low, high = np.nanquantile(mean, (0.025, 0.975))
                found[metric, target] = (float(low), float(high))
    return found


def cell_rows(cells: Iterable[Found]) -> list[dict[str, Any]]:
    """Return a row for each cell, held-out set and class; the mean has no class's name."""
    return [
        {**{k: found[k] for k in CELL_COLUMNS if k in found}, "set": name, "class": target, **each}
        for found in cells
        for name, targets in found["sets"].items()
        for target, each in targets.items()
    ]


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as a table, atomically; numbers with six digits, and nothing for NaN."""
    write_csv(path, columns, ([_plain(row.get(name, "")) for name in columns] for row in rows))


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value

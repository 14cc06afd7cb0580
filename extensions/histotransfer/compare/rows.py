"""The lines of the table: what each encoder is, what it costs, and what its features are worth."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tiaft_extensions.histotransfer.compare.costs import Cost
from tiaft_extensions.histotransfer.compare.encoders import Encoder
from tiaft_extensions.histotransfer.compare.stores import Stored
from tiaft_plugin.probes.interface import Result
from tiaft_plugin.probes.settings import COLOUR

METRICS = ("AUROC", "AUPRC", "balanced accuracy")
MAIN = METRICS[0]
COLOUR_ONLY = "colour only"


@dataclass(frozen=True)
class Value:
    """A value with its 95 % interval; NaN for what is not known."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, row: Mapping[str, Any], name: str = "value") -> "Value":
        """Take a row of a probe's summary."""
        cells = (row.get(key) for key in (name, "low", "high"))
        return cls(*(math.nan if cell is None else float(cell) for cell in cells))


@dataclass(frozen=True)
class Row:
    """An encoder in the table. `difference` is to the reference's AUROC, by the probe's pairs."""

    encoder: Encoder
    stored: Stored | None
    cost: Cost
    metrics: Mapping[str, Value]
    mean_pooling: Value
    difference: Value
    p: float = math.nan

    @property
    def auroc(self) -> Value:
        """What rows are sorted by, and figures show."""
        return self.metrics[MAIN]


def make_rows(
    encoders: Sequence[Encoder],
    stores: Mapping[str, Stored],
    costs: Mapping[str, Cost],
    result: Result,
    sort: str = "auroc",
) -> list[Row]:
    """Return a row for each encoder, sorted, and one for colour alone at the end if it is known."""
    summary = result.summary
    scores = {(r["features"], r["metric"]): r for r in summary["scores"] if not r["target"]}
    differences = {
        r["b"]: r for r in summary["comparisons"] if r["metric"] == MAIN and not r["target"]
    }

    def row(encoder: Encoder, found: Mapping[tuple[str, str], Any]) -> Row:
        name = encoder.name
        compared = differences.get(name, {})
        return Row(
            encoder,
            stores.get(name),
            costs.get(name, Cost()),
            {metric: Value.of(found.get((name, metric), {})) for metric in METRICS},
            Value.of(found.get((f"{name} (mean pooling)", MAIN), {})),
            Value.of(compared, "difference"),
            float(compared.get("p_bootstrap", math.nan)),
        )

    rows = _sorted([row(encoder, scores) for encoder in encoders], sort)
    colour = {
        (COLOUR_ONLY, r["metric"]): r
        for r in summary["baselines"]
        if r["baseline"] == COLOUR and not r["target"]
    }
    return [*rows, row(Encoder(COLOUR_ONLY, "", "", ""), colour)] if colour else rows


def _sorted(rows: list[Row], sort: str) -> list[Row]:
    """Sort the best or the smallest first; what is not known comes last."""
    if sort == "auroc":
        return sorted(rows, key=lambda row: (math.isnan(row.auroc.value), -row.auroc.value))
    if sort == "given":
        return rows
    cost = {row.encoder.name: getattr(row.cost, sort) for row in rows}
    return sorted(rows, key=lambda row: cost[row.encoder.name] or math.inf)


def as_cells(row: Row) -> dict[str, Any]:
    """Return a row as comparison.csv has it; NaN and None are empty there."""
    encoder, stored = row.encoder, row.stored
    cells: dict[str, Any] = {
        "encoder": encoder.name,
        "backbone": encoder.backbone,
        "cut": encoder.cut,
        "weights": encoder.weights,
        "features": stored.width if stored else None,
        **asdict(row.cost),
        "tiles_per_second": stored.tiles_per_second if stored else None,
        "tile_size_px": stored.tile_size if stored else None,
        "um_per_px": stored.mpp if stored else None,
        "tiles": stored.tiles if stored else None,
        "model_sha256": stored.sha256 if stored else None,
    }
    named = {**row.metrics, "mean pooling AUROC": row.mean_pooling, "difference": row.difference}
    for name, value in named.items():
        short = name.lower().replace(" ", "_")
        cells |= {short: value.value, f"{short}_low": value.low, f"{short}_high": value.high}
    return cells | {"difference_p": row.p}

"""Tiles and their manifest, as `tiles/listing.py` reads it."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.files import write_csv
from tiaft_plugin.progress import progress
from tiaft_plugin.qupath.pulling.asked import How, Pulled
from tiaft_plugin.qupath.pulling.cut import Tile, cut_tiles, write_tiles
from tiaft_plugin.qupath.pulling.labels import folder_names
from tiaft_plugin.qupath.pulling.slide_plan import SlidePlan
from tiaft_plugin.tiles.listing import MANIFEST

ABOUT = "pull.json"  # how the tiles were made; what a folder of them is known by
COLUMNS = (
    "file", "label", "group", "mpp", "slide", "annotation", "x", "y", "width", "height", "coverage",
)  # fmt: skip
CORRECTED = ("predicted", "predicted_probability", "label_probability")


def write_tile_files(folder: Path, plans: Sequence[SlidePlan], how: How) -> list[Pulled]:
    """Write all tiles, manifest and ``pull.json`` into a folder; return each slide's result.

    A slide that cannot be read has none of its tiles there. Raises Stopped where no tile is left.
    """
    names = folder_names(label for plan in plans for label in plan.pulled.counts)
    for name in names.values():
        (folder / name).mkdir()
    rows: list[list[object]] = []
    results = []
    with progress(sum(len(plan.tiles) for plan in plans), "Cutting tiles", wanted=None) as bar:
        for plan in plans:
            files = [f"{names[tile.label]}/{_name(plan, tile)}.png" for tile in plan.tiles]
            try:
                rows += _cut(folder, plan, files, bar)
                results.append(plan.pulled)
            except TiaftError as error:
                for file in files:
                    (folder / file).unlink(missing_ok=True)
                results.append(Pulled(plan.pulled.slide, reason=str(error)))
    if not rows:
        raise Stopped("; ".join(f"{result.slide}: {result.reason}" for result in results))
    for name in names.values():
        if not any((folder / name).iterdir()):  # its only slide failed
            (folder / name).rmdir()
    columns = [*COLUMNS, *(CORRECTED if how.corrections_of else ())]
    write_csv(folder / MANIFEST, columns, (row[: len(columns)] for row in rows))
    about = json.dumps(_about(plans, results, how), indent=2, ensure_ascii=False)
    (folder / ABOUT).write_text(about + "\n", encoding="utf-8")
    return results


def _cut(folder: Path, plan: SlidePlan, files: Sequence[str], bar: Any) -> list[list[object]]:
    """Write a slide's tiles; return their rows of the manifest."""
    cut = cut_tiles(plan.slide.open(), plan.tiles, plan.extent.size, plan.extent.mpp)
    rows = []
    written = write_tiles(cut, [folder / file for file in files])
    for tile, file in zip(written, files, strict=True):
        rows.append(_row(plan, tile, file))
        bar.update()
    return rows


def _row(plan: SlidePlan, tile: Tile, file: str) -> list[object]:
    x, y = (tile.x, tile.y) * plan.scale
    width, height = plan.extent.size * plan.scale
    row: list[object] = [
        file, tile.label, plan.slide.group, f"{plan.extent.mpp:g}", plan.slide.path.name,
        tile.annotation, *(f"{value:.2f}" for value in (x, y, width, height)),
        f"{tile.coverage:.4f}",
    ]  # fmt: skip
    was = tile.correction
    if was is None:
        return [*row, "", "", ""]
    return [*row, was.predicted, _text(was.predicted_probability), _text(was.label_probability)]


def _name(plan: SlidePlan, tile: Tile) -> str:
    """Return a tile's name: that of its slide, and its corner in baseline pixels."""
    x, y = (math.floor(value + 0.5) for value in (tile.x, tile.y) * plan.scale)
    return f"{plan.slide.stem}_{x}_{y}"


def _text(probability: float | None) -> str:
    return "" if probability is None else f"{probability:.6g}"


def _about(plans: Sequence[SlidePlan], results: Sequence[Pulled], how: How) -> dict[str, Any]:
    extent = plans[0].extent
    return {
        "tile_size": extent.size,
        "mpp": extent.mpp,
        "stride": how.stride or extent.size,
        "min_coverage": how.min_coverage,
        "renamed": dict(how.labels.renamed),
        "classes": None if how.labels.wanted is None else sorted(how.labels.wanted),
        "corrections_of": how.corrections_of,
        "slides": [
            {
                "slide": result.slide,
                "tiles": dict(result.counts),
                "corrected": result.corrected,
                "overlaps": [
                    {"upper": a.id, "lower": b.id, "um2": round(area * extent.mpp**2, 2)}
                    for a, b, area in plan.planned.overlaps
                ],
                "without_tile": {area.id: reason for area, reason in plan.planned.without},
                "notes": list(result.notes),
                "failed": result.reason,
            }
            for plan, result in zip(plans, results, strict=True)
        ],
    }

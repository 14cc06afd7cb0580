"""What a pull will cut out of each slide, and what people are to know of it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import shapely

from tiaft_plugin.qupath.pulling.asked import How, Pulled
from tiaft_plugin.qupath.pulling.corrections import (
    Correction,
    Extent,
    agreed_extent,
    extent_of,
    extent_of_grid,
    probability_of,
)
from tiaft_plugin.qupath.pulling.cut import Area, Planned, Tile, place_corrections, plan_tiles
from tiaft_plugin.qupath.pulling.drawn_slides import DrawnSlide
from tiaft_plugin.qupath.pulling.labels import Labels

_ENLARGED = 1.02  # as TIAToolbox's engines warn


@dataclass(frozen=True)
class SlidePlan:
    """The tiles to cut out of a slide, corrected ones first, and what came of its annotations."""

    slide: DrawnSlide
    extent: Extent
    tiles: Sequence[Tile]
    planned: Planned
    pulled: Pulled

    @property
    def scale(self) -> np.ndarray:
        """What makes baseline pixels, x and y, of pixels at the tiles' µm/px, (2,) float64."""
        return self.extent.mpp / np.asarray(self.slide.mpp)


def plan_slides(slides: Sequence[DrawnSlide], how: How) -> list[SlidePlan]:
    """Plan the tiles of all slides, which have one size. Raises TiaftError where it is unknown."""
    if not slides:
        return []
    corrections = [_corrections(slide, how.labels) for slide in slides]
    sides = [
        (extent_of(each, slide.mpp), slide.mpp[0])
        for slide, some in zip(slides, corrections, strict=True)
        for each in some
    ]
    size, mpp = how.tile_size, how.mpp
    if size is None and mpp is None and (same := _as_predicted(slides)):
        size, mpp = same.size, same.mpp
    baseline_mpp = sides[0][1] if sides else slides[0].mpp[0]
    extent = agreed_extent([side for side, _ in sides], baseline_mpp, size, mpp)
    pairs = zip(slides, corrections, strict=True)
    return [_plan(slide, some, extent, how) for slide, some in pairs]


def _as_predicted(slides: Sequence[DrawnSlide]) -> Extent | None:
    """Return the extent of the tiles that were corrected, as their model read them."""
    grids = Counter(region.mark.grid for slide in slides for region in slide.changed if region.mark)
    return extent_of_grid(grids.most_common(1)[0][0]) if grids else None


def _corrections(slide: DrawnSlide, labels: Labels) -> list[Correction]:
    found = []
    for region in slide.changed:
        name = region.class_name or ""
        label = labels.label_of(name)
        if label is None or region.mark is None:
            continue
        given, numbers = region.mark.given, region.measurements
        found.append(
            Correction(
                region.id or "",
                region.geometry.bounds,
                label,
                given,
                probability_of(numbers, given) if given else None,
                probability_of(numbers, label, name),
            )
        )
    return found


def _plan(
    slide: DrawnSlide, corrections: Sequence[Correction], extent: Extent, how: How
) -> SlidePlan:
    scale = extent.mpp / np.asarray(slide.mpp)
    fitting = [each for each in corrections if extent.fits(extent_of(each, slide.mpp))]
    corrected, torn = place_corrections(fitting, scale)
    planned = plan_tiles(
        _areas(slide, how.labels),
        slide.size,
        scale,
        extent.size,
        how.stride or extent.size,
        how.min_coverage,
        [shapely.box(*tile.correction.bounds) for tile in corrected if tile.correction],
    )
    tiles = [*corrected, *planned.tiles]
    counts = dict(sorted(Counter(tile.label for tile in tiles).items()))
    notes = [
        *slide.notes,
        *_notes_of_labels(slide, how.labels),
        *torn,
        *_notes_of_extent(slide, len(corrections) - len(fitting), extent),
        *_notes_of_plan(planned, extent.mpp),
    ]
    pulled = Pulled(slide.path.name, counts, len(corrected), notes)
    return SlidePlan(slide, extent, tiles, planned, pulled)


def _areas(slide: DrawnSlide, labels: Labels) -> list[Area]:
    named = [(region, region.class_name or "") for region in slide.annotations]
    return [
        Area(region.id or "", region.geometry, labels.label_of(name))
        for region, name in named
        if labels.lies_on_top(name)
    ]


def _notes_of_labels(slide: DrawnSlide, labels: Labels) -> Iterator[str]:
    drawn = (region.class_name or "" for region in (*slide.annotations, *slide.changed))
    for name, count in Counter(drawn).items():
        if labels.label_of(name) is None:
            yield f"{count} of class {name}: not wanted as a label"


def _notes_of_extent(slide: DrawnSlide, misfits: int, extent: Extent) -> Iterator[str]:
    if misfits:
        yield (
            f"{misfits} corrected tiles left out: they are not {extent.size * extent.mpp:.4g} µm "
            f"wide, as tiles of {extent.size} px at {extent.mpp:g} µm/px are"
        )
    if max(slide.mpp) > _ENLARGED * extent.mpp:
        yield (
            f"the slide is coarser ({max(slide.mpp):.4g} µm/px) than its tiles are to be "
            f"({extent.mpp:g} µm/px): they are enlarged"
        )


def _notes_of_plan(planned: Planned, mpp: float) -> Iterator[str]:
    for upper, lower, pixels in planned.overlaps:
        yield (
            f"{_named(upper)} lies over {_named(lower)}, {pixels * mpp**2:.3g} µm²: the smaller "
            "one counts there"
        )
    for area, reason in planned.without:
        yield f"{_named(area)} gave no tile: {reason}"


def _named(area: Area) -> str:
    return f"{area.id} ({area.label or 'no label'})"

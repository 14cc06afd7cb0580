"""Regions that people drew in QuPath, read from its GeoJSON, and masks made of them."""

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import shapely
from shapely import MultiPolygon, Polygon

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.names import path_class

_HAIR = 0.02  # mask pixels
FAR = 2.0**31  # no slide has a pixel beyond this
GEOMETRIES = {
    "Point", "MultiPoint", "LineString", "MultiLineString",
    "Polygon", "MultiPolygon", "GeometryCollection",
}  # fmt: skip


@dataclass(frozen=True)
class Region:
    """One area in baseline pixels, always valid, with its class and name where it has any.

    `object_type` is QuPath's ("annotation", "tile", …); `repaired` says what was wrong with the
    geometry as the file has it, and is empty where nothing was.
    """

    geometry: Polygon | MultiPolygon
    class_name: str | None = None
    object_type: str = "annotation"
    name: str | None = None
    repaired: str = ""


@dataclass(frozen=True)
class Regions:
    """What a file has: regions, and for each object that gives none the reason, in one line."""

    found: list[Region]
    skipped: list[str]

    def __iter__(self) -> Iterator[Region]:
        return iter(self.found)


class _UnusableError(Exception):
    """An object that is no region; the message is its reason."""


def read_regions(
    path: Path | str,
    classes: Collection[str] | None = None,
    slide_size: tuple[int, int] | None = None,
) -> Regions:
    """Read the areas in a GeoJSON file: a FeatureCollection, Features, or bare geometries.

    With `classes`, only objects of these classes ("Tumor: Positive" for derived ones). With
    `slide_size` (width, height in baseline pixels), regions that lie outside it are skipped. One
    bad object rejects no other: it is skipped with its reason, or repaired where it crosses itself.

    Raises TiaftError where the file is no GeoJSON, lacks one of `classes`, or has no region.
    """
    path = Path(path)
    wanted = None if classes is None else {": ".join(path_class(name)) for name in classes}
    found, skipped, seen = [], [], set()
    for number, feature in enumerate(_features(_read_json(path), path), start=1):
        try:
            properties = _properties(feature)
            class_name = _class_name(properties.get("classification"))
            seen.add(class_name)
            if wanted is None or class_name in wanted:
                found.append(_region(feature, properties, class_name, slide_size))
        except _UnusableError as reason:
            skipped.append(f"object {number}: {reason}")
    if wanted is not None and not wanted <= seen:
        raise TiaftError(
            f"{path} has no object of class {', '.join(sorted(wanted - seen))}; it has "
            f"{', '.join(sorted(str(name) for name in seen)) or 'no objects'}"
        )
    if not found:
        reasons = "; ".join(skipped[:3]) or "it is empty"
        raise TiaftError(f"{path} has no region: {reasons}; draw areas in QuPath and export them")
    return Regions(found, skipped)


def regions_to_mask(
    regions: Iterable[Region], slide_size: tuple[int, int], mask_size: tuple[int, int]
) -> np.ndarray:
    """Return a mask of a slide, bool (mask height, mask width), True in the regions.

    Sizes are (width, height): the slide's in baseline pixels. Every mask pixel that a border
    crosses counts as inside, so that no region, however thin, is lost; holes stay open. Raises
    TiaftError where no region lies on the slide.
    """
    regions = list(regions)
    canvas = np.zeros(mask_size[::-1], dtype=np.uint8)
    scale = np.divide(mask_size, slide_size)
    for region in regions:
        shape = _on_slide(region.geometry, slide_size)
        # A border that runs exactly between two mask pixels must not take in the outer one.
        inner = shape.buffer(-_HAIR / scale.max(), join_style="mitre")
        for polygon in _polygons(inner if not inner.is_empty else shape):
            _draw(canvas, polygon, scale)
    if not canvas.any():
        raise TiaftError(
            f"none of {len(regions)} regions lies on the slide ({slide_size[0]} × {slide_size[1]} "
            "pixels): were they drawn on another one?"
        )
    return canvas.astype(bool)


def _draw(canvas: np.ndarray, polygon: Polygon, scale: np.ndarray) -> None:
    rings = [shapely.get_coordinates(ring) for ring in (polygon.exterior, *polygon.interiors)]
    # OpenCV counts from the centre of the first pixel, here in steps of 1/256 pixel. What lies on
    # the far border, half a pixel after the last centre, still belongs to the last pixel.
    last = np.array(canvas.shape[::-1]) * 256 - 129
    steps = [np.rint((ring * scale - 0.5) * 256).clip(max=last).astype(np.int32) for ring in rings]
    cv2.fillPoly(canvas, steps, 1, shift=8)
    inside = shapely.get_coordinates(polygon.representative_point())[0] * scale
    x, y = np.minimum(inside.astype(int), np.array(canvas.shape[::-1]) - 1)
    canvas[y, x] = 1


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise TiaftError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise TiaftError(
            f"{path} is no JSON ({error}): export it from QuPath as GeoJSON, uncompressed"
        ) from error


def _features(content: Any, path: Path) -> Iterator[Any]:
    """Yield each object in the file's order, QuPath's ``childObjects`` after their parent."""
    if not isinstance(content, list) and _type_of(content) not in {
        "FeatureCollection", "Feature", *GEOMETRIES
    }:  # fmt: skip
        raise TiaftError(f"{path} is no GeoJSON: export the regions from QuPath as GeoJSON")
    waiting = [content]
    while waiting:
        thing = waiting.pop()
        members = thing if isinstance(thing, list) else None
        if _type_of(thing) == "FeatureCollection":
            members = thing.get("features")
            if not isinstance(members, list):
                raise TiaftError(f"{path} is no GeoJSON: a FeatureCollection without features")
        elif _type_of(thing) in GEOMETRIES:
            yield {"type": "Feature", "geometry": thing}
        elif members is None:
            yield thing
            members = _children(thing)
        waiting.extend(reversed(members or []))


def _children(feature: Any) -> list:
    properties = feature.get("properties") if isinstance(feature, dict) else None
    children = properties.get("childObjects") if isinstance(properties, dict) else None
    return children if isinstance(children, list) else []


def _type_of(thing: Any) -> str | None:
    kind = thing.get("type") if isinstance(thing, dict) else None
    return kind if isinstance(kind, str) else None


def _properties(feature: Any) -> dict:
    if _type_of(feature) != "Feature":
        raise _UnusableError("it is no GeoJSON Feature")
    properties = feature.get("properties") or {}
    if not isinstance(properties, dict):
        raise _UnusableError("its properties are no object")
    return properties


def _class_name(classification: Any) -> str | None:
    """Return a class as QuPath shows it, from the text or object that QuPath writes."""
    if isinstance(classification, dict):
        classification = classification.get("names") or classification.get("name")
    if isinstance(classification, str):
        classification = classification.split(":")
    if not isinstance(classification, list):
        return None
    return ": ".join(str(name).strip() for name in classification) or None


def _region(
    feature: dict, properties: dict, class_name: str | None, slide_size: tuple[int, int] | None
) -> Region:
    if properties.get("isMissing") is True:
        raise _UnusableError("it is a TMA core marked as missing")
    geometry, repaired = _area(feature.get("geometry"))
    if slide_size is not None and not _on_slide(geometry, slide_size).area:
        raise _UnusableError(f"it lies outside the slide, {slide_size[0]} × {slide_size[1]} pixels")
    name, kind = properties.get("name"), properties.get("objectType")
    return Region(
        geometry,
        class_name,
        kind if isinstance(kind, str) else "annotation",  # as QuPath takes it
        name if isinstance(name, str) else None,
        repaired,
    )


def _area(geometry: Any) -> tuple[Polygon | MultiPolygon, str]:
    """Return a geometry's valid area, and what was wrong with it before."""
    drawn = list(_drawn_polygons(geometry))
    try:
        area = drawn[0] if len(drawn) == 1 else MultiPolygon(drawn)
        repaired = "" if area.is_valid else shapely.is_valid_reason(area)
        if repaired:
            area = shapely.union_all(list(_polygons(shapely.make_valid(area))))
    except shapely.errors.GEOSException as error:
        raise _UnusableError(f"its geometry cannot be repaired: {error}") from error
    if not area.area:
        raise _UnusableError("it encloses no area")
    return area, repaired


def _drawn_polygons(geometry: Any) -> Iterator[Polygon]:
    """Yield the polygons of a GeoJSON geometry as they are, valid or not."""
    waiting, polygons = [geometry], 0
    while waiting:
        part = waiting.pop()
        kind = _type_of(part)
        if kind not in GEOMETRIES:
            raise _UnusableError(f"it has no geometry that GeoJSON knows ({kind})")
        if kind == "GeometryCollection":
            members = part.get("geometries")
            waiting.extend(reversed(members if isinstance(members, list) else []))
        elif kind in ("Polygon", "MultiPolygon"):
            coordinates = part.get("coordinates")
            for rings in [coordinates] if kind == "Polygon" else _listed(coordinates):
                polygons += 1
                yield _polygon(rings)
    if not polygons:
        raise _UnusableError(f"it encloses no area ({_type_of(geometry)})")


def _polygon(rings: Any) -> Polygon:
    shell, *holes = [_ring(ring) for ring in _listed(rings)]
    return Polygon(shell, holes)


def _ring(positions: Any) -> np.ndarray:
    """Return a ring's (n, 2) corners; a third coordinate is left out."""
    try:
        ring = np.array([position[:2] for position in _listed(positions)])
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise _UnusableError("its coordinates are not all pairs of numbers") from error
    if ring.ndim != 2 or ring.shape[1] != 2 or ring.dtype.kind not in "iuf":
        raise _UnusableError("its coordinates are not all pairs of numbers")
    if not (np.abs(ring.astype(np.float64)) < FAR).all():  # NaN is not either
        raise _UnusableError("a coordinate is no pixel of a slide")
    if len(ring) < 3:
        raise _UnusableError("a ring has fewer than three corners")
    return ring.astype(np.float64)


def _listed(thing: Any) -> list:
    if not isinstance(thing, list) or not thing:
        raise _UnusableError("its coordinates are empty or no list")
    return thing


def _on_slide(geometry: Polygon | MultiPolygon, slide_size: tuple[int, int]) -> shapely.Geometry:
    return shapely.intersection(geometry, shapely.box(0, 0, *slide_size))


def _polygons(geometry: shapely.Geometry) -> Iterator[Polygon]:
    """Yield the polygons of a geometry, leaving out the points and lines beside them."""
    for part in shapely.get_parts(geometry):
        if isinstance(part, Polygon):
            if not part.is_empty:
                yield part
        elif isinstance(part, MultiPolygon):  # inside a GeometryCollection
            yield from part.geoms

"""Regions that people drew in QuPath, read from its GeoJSON, and masks made of them."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import shapely
from shapely import MultiPolygon, Polygon

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.marks import HIDDEN, SHOWN, Mark, mark_of
from tiaft_plugin.qupath.names import path_class

_HAIR = 0.02  # mask pixels
FAR = 2.0**31  # no slide has a pixel beyond this
GEOMETRIES = {
    "Point", "MultiPoint", "LineString", "MultiLineString",
    "Polygon", "MultiPolygon", "GeometryCollection",
}  # fmt: skip
ANNOTATION = "annotation"
# QuPath's own names of kinds, and what its versions before 0.4 wrote instead.
_KINDS = {
    ANNOTATION: ANNOTATION, "PathAnnotationObject": ANNOTATION,
    "detection": "detection", "PathDetectionObject": "detection",
    "tile": "tile", "PathTileObject": "tile",
    "cell": "cell", "PathCellObject": "cell",
    "tmaCore": "tmaCore", "tma_core": "tmaCore", "TMACoreObject": "tmaCore",
    "root": "root", "PathRootObject": "root",
}  # fmt: skip


@dataclass(frozen=True)
class Region:
    """One area in baseline pixels, always valid, with its class and name where it has any.

    `object_type` is QuPath's ("annotation", "tile", …); `repaired` says what was wrong with the
    geometry as the file has it, and is empty where nothing was. `mark` is that of an object that
    tiaft made, and `measurements` its numbers by name; of others' objects they are left out.
    """

    geometry: Polygon | MultiPolygon
    class_name: str | None = None
    object_type: str = ANNOTATION
    name: str | None = None
    repaired: str = ""
    id: str | None = None
    locked: bool = False
    mark: Mark | None = None
    measurements: Mapping[str, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Skipped:
    """Why an object gives no region; `number` counts the objects of the file, from 1.

    `head` is the region it would be, without an area; None where it is no GeoJSON Feature.
    """

    number: int
    reason: str
    head: Region | None = None


@dataclass(frozen=True)
class Regions:
    """What a file has: regions, and for each object that gives none the reason, in one line."""

    found: list[Region]
    skipped: list[str]

    def __iter__(self) -> Iterator[Region]:
        return iter(self.found)


class UnusableError(Exception):
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

    def is_wanted(head: Region) -> bool:
        seen.add(head.class_name)
        return wanted is None or head.class_name in wanted

    for thing in iter_regions(path, is_wanted, slide_size):
        if isinstance(thing, Skipped):
            skipped.append(f"object {thing.number}: {thing.reason}")
        else:
            found.append(thing)
    if wanted is not None and not wanted <= seen:
        raise TiaftError(
            f"{path} has no object of class {', '.join(sorted(wanted - seen))}; it has "
            f"{', '.join(sorted(str(name) for name in seen)) or 'no objects'}"
        )
    if not found:
        reasons = "; ".join(skipped[:3]) or "it is empty"
        raise TiaftError(f"{path} has no region: {reasons}; draw areas in QuPath and export them")
    return Regions(found, skipped)


def iter_regions(
    path: Path | str,
    wanted: Callable[[Region], bool] | None = None,
    slide_size: tuple[int, int] | None = None,
) -> Iterator[Region | Skipped]:
    """Yield what each object in a GeoJSON file gives, in the file's order.

    `wanted` tells from a region without its area whether it is worth reading; what is not wanted
    is passed over. Raises TiaftError where the file is no GeoJSON.
    """
    path = Path(path)
    for number, feature in enumerate(_features(_read_json(path), path), start=1):
        head = None
        try:
            properties = _properties(feature)
            head = _head(feature, properties)
            if wanted is None or wanted(head):
                yield _region(feature, properties, head, slide_size)
        except UnusableError as reason:
            yield Skipped(number, str(reason), head)


def valid_area(shape: shapely.Geometry) -> tuple[Polygon | MultiPolygon, str]:
    """Return the valid area of a shape, and what was wrong with it before, or an empty text.

    Points and lines in a collection are left out. Raises UnusableError where no area is left.
    """
    kind = "" if isinstance(shape, Polygon | MultiPolygon) else f" ({shape.geom_type})"
    try:
        repaired = "" if shape.is_valid else shapely.is_valid_reason(shape)
        if repaired:
            shape = shapely.make_valid(shape)
        if repaired or not isinstance(shape, Polygon | MultiPolygon):
            shape = shapely.union_all(list(polygons_in(shape)))
    except shapely.errors.GEOSException as error:
        raise UnusableError(f"its geometry cannot be repaired: {error}") from error
    if not shape.area:
        raise UnusableError(f"it encloses no area{kind}")
    return shape, repaired


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
        for polygon in polygons_in(inner if not inner.is_empty else shape):
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
    if not isinstance(properties, dict):
        return []
    children = properties.get("childObjects", properties.get("children"))
    return children if isinstance(children, list) else []


def _type_of(thing: Any) -> str | None:
    kind = thing.get("type") if isinstance(thing, dict) else None
    return kind if isinstance(kind, str) else None


def _properties(feature: Any) -> dict:
    if _type_of(feature) != "Feature":
        raise UnusableError("it is no GeoJSON Feature")
    properties = feature.get("properties") or {}
    if not isinstance(properties, dict):
        raise UnusableError("its properties are no object")
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


def _head(feature: dict, properties: dict) -> Region:
    """Return a region without its area: what is known of an object before its coordinates."""
    name, uuid = properties.get("name"), feature.get("id")
    legacy = isinstance(uuid, str) and uuid in _KINDS  # 0.2 wrote the kind there
    metadata = properties.get("metadata")
    mark = None
    if isinstance(metadata, dict):
        shown, hidden = metadata.get(SHOWN), metadata.get(HIDDEN)
        mark = mark_of(*(text if isinstance(text, str) else None for text in (shown, hidden)))
    return Region(
        Polygon(),
        _class_name(properties.get("classification")),
        _kind(uuid if legacy else None, properties),
        name if isinstance(name, str) else None,
        id=uuid if isinstance(uuid, str) and uuid and not legacy else None,
        locked=properties.get("isLocked") is True,
        mark=mark,
        measurements=_numbers(properties.get("measurements")) if mark else {},
    )


def _kind(legacy: str | None, properties: dict) -> str:
    """Return what an object is; anything unknown is an annotation, as QuPath takes it."""
    for key in ("objectType", "object_type", "type"):
        if key in properties:
            kind = properties[key]
            return _KINDS.get(kind, ANNOTATION) if isinstance(kind, str) else ANNOTATION
    return _KINDS.get(legacy or "", ANNOTATION)


def _numbers(measurements: Any) -> dict[str, float]:
    """Return measurements by name, from the object that QuPath writes, or 0.3's list."""
    if isinstance(measurements, list):
        rows = [row for row in measurements if isinstance(row, dict)]
        measurements = {str(row.get("name")): row.get("value") for row in rows}
    if not isinstance(measurements, dict):
        return {}
    return {
        name: float(value)
        for name, value in measurements.items()
        if isinstance(value, float) or (type(value) is int and abs(value) < FAR)
    }


def _region(
    feature: dict, properties: dict, head: Region, slide_size: tuple[int, int] | None
) -> Region:
    if properties.get("isMissing") is True:
        raise UnusableError("it is a TMA core marked as missing")
    drawn = list(_drawn_polygons(feature.get("geometry")))
    geometry, repaired = valid_area(drawn[0] if len(drawn) == 1 else MultiPolygon(drawn))
    if slide_size is not None and not _on_slide(geometry, slide_size).area:
        raise UnusableError(f"it lies outside the slide, {slide_size[0]} × {slide_size[1]} pixels")
    return replace(head, geometry=geometry, repaired=repaired)


def _drawn_polygons(geometry: Any) -> Iterator[Polygon]:
    """Yield the polygons of a GeoJSON geometry as they are, valid or not."""
    waiting, polygons = [geometry], 0
    while waiting:
        part = waiting.pop()
        kind = _type_of(part)
        if kind not in GEOMETRIES:
            raise UnusableError(f"it has no geometry that GeoJSON knows ({kind})")
        if kind == "GeometryCollection":
            members = part.get("geometries")
            waiting.extend(reversed(members if isinstance(members, list) else []))
        elif kind in ("Polygon", "MultiPolygon"):
            coordinates = part.get("coordinates")
            for rings in [coordinates] if kind == "Polygon" else _listed(coordinates):
                polygons += 1
                yield _polygon(rings)
    if not polygons:
        raise UnusableError(f"it encloses no area ({_type_of(geometry)})")


def _polygon(rings: Any) -> Polygon:
    shell, *holes = [_ring(ring) for ring in _listed(rings)]
    return Polygon(shell, holes)


def _ring(positions: Any) -> np.ndarray:
    """Return a ring's (n, 2) corners; a third coordinate is left out."""
    try:
        ring = np.array([position[:2] for position in _listed(positions)])
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise UnusableError("its coordinates are not all pairs of numbers") from error
    if ring.ndim != 2 or ring.shape[1] != 2 or ring.dtype.kind not in "iuf":
        raise UnusableError("its coordinates are not all pairs of numbers")
    if not (np.abs(ring.astype(np.float64)) < FAR).all():  # NaN is not either
        raise UnusableError("a coordinate is no pixel of a slide")
    if len(ring) < 3:
        raise UnusableError("a ring has fewer than three corners")
    return ring.astype(np.float64)


def _listed(thing: Any) -> list:
    if not isinstance(thing, list) or not thing:
        raise UnusableError("its coordinates are empty or no list")
    return thing


def _on_slide(geometry: Polygon | MultiPolygon, slide_size: tuple[int, int]) -> shapely.Geometry:
    return shapely.intersection(geometry, shapely.box(0, 0, *slide_size))


def polygons_in(geometry: shapely.Geometry) -> Iterator[Polygon]:
    """Yield the polygons of a geometry, leaving out the points and lines beside them."""
    for part in shapely.get_parts(geometry):
        if isinstance(part, Polygon):
            if not part.is_empty:
                yield part
        elif isinstance(part, MultiPolygon):  # inside a GeometryCollection
            yield from part.geoms

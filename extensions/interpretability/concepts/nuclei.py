"""Nuclei in tiles: how many there are, how large and how long, from what a detector or QuPath drew.

Nuclei stand in the slide's baseline pixels where the tile set's manifest says from where each tile
is (`tiaft qupath pull`, `tiaft interpret tiles`), else in a file a tile, in the tile's own pixels.
"""

import csv
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import shapely

from tiaft_extensions.interpretability.concepts.measured import Concepts
from tiaft_plugin.errors import TiaftError, reason
from tiaft_plugin.qupath.regions import Skipped, iter_regions
from tiaft_plugin.tiles.listing import MANIFEST
from tiaft_plugin.tiles.tileset import TileSet
from tiaft_plugin.tiles.words import some

NAMES = ("nuclei_count", "nuclei_area", "nuclei_eccentricity")
SUFFIXES = (".geojson", ".json", ".db")


@dataclass(frozen=True)
class Place:
    """Where nuclei of a tile are looked for: a file's name, and a box (x, y, width, height) in it.

    `um_per_px` is of those pixels, or None.
    """

    stem: str
    box: tuple[float, float, float, float]
    um_per_px: float | None


def nuclei_concepts(path: Path, tiles: TileSet) -> Concepts:
    """Return ``nuclei_count``, mean ``nuclei_area`` (µm², px² where µm/px is unknown) and mean
    ``nuclei_eccentricity`` of each tile.

    A nucleus belongs to the tile that its centre lies in. `path` is a GeoJSON file or TIAToolbox's
    annotation store (.db), or a folder of such, each named as its slide or tile. Raises TiaftError.
    """
    places = _places(tiles)
    files = {place.stem: _file(path, place.stem, places) for place in places}

    @cache
    def nuclei(file: Path) -> tuple[shapely.STRtree, np.ndarray]:
        shapes = _read(file)
        return shapely.STRtree(shapely.centroid(shapes)), shapes

    values = np.full((len(places), 3), np.nan)
    for row, place in zip(values, places, strict=True):
        tree, shapes = nuclei(files[place.stem])
        x, y, width, height = place.box
        inside = tree.query(shapely.box(x, y, x + width, y + height), predicate="intersects")
        row[:] = _summary(shapes[inside], place.um_per_px)
    return Concepts(NAMES, values)


def eccentricity(shape: shapely.Geometry) -> float:
    """Return the eccentricity of the ellipse with a polygon's second moments: 0 a circle, 1 a line.

    As scikit-image's regionprops, exactly and not in pixels. NaN where there is no area.
    """
    total = area = 0.0
    moments = np.zeros((2, 2))
    centre = np.array(shape.centroid.coords[0]) if shape.area else np.zeros(2)
    for polygon in getattr(shape, "geoms", [shape]):
        if polygon.geom_type != "Polygon":
            continue
        oriented = shapely.orient_polygons(polygon)  # holes run the other way and count less
        for ring in (oriented.exterior, *oriented.interiors):
            part, size = _ring_moments(np.array(ring.coords)[:, :2] - centre)
            moments, area = moments + part, area + size
    total = np.trace(moments)
    if not area or not total:
        return float("nan")
    small, large = np.linalg.eigvalsh(moments / area)
    return float(np.sqrt(np.clip(1 - small / large, 0, 1)))


def _ring_moments(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Return ∫∫ p pᵀ and ∫∫ 1 over a closed ring (n, 2), by Green's theorem."""
    a, b = points[:-1], points[1:]
    cross = a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1]
    terms = sum(p[:, :, None] * p[:, None] for p in (a, b, a + b))
    return np.einsum("n,nij->ij", cross, terms) / 24, float(cross.sum() / 2)


def _summary(shapes: np.ndarray, um_per_px: float | None) -> tuple[float, float, float]:
    areas = shapely.area(shapes) * (um_per_px or 1.0) ** 2
    solid = areas > 0  # a detector's points are counted, but have no area
    if not solid.any():
        return len(shapes), np.nan, np.nan
    long = np.array([eccentricity(shape) for shape in shapes[solid]])
    return len(shapes), float(areas[solid].mean()), float(np.nanmean(long))


def _places(tiles: TileSet) -> list[Place]:
    rows = _manifest(tiles.root / MANIFEST)
    size = tiles.tile_size
    places = []
    for file in tiles.files:
        row = rows.get(tiles.shown(file))
        if row is None:
            places.append(Place(file.stem, (0, 0, size, size), tiles.mpp))
            continue
        try:
            x, y, width, height = (float(row[name]) for name in ("x", "y", "width", "height"))
        except ValueError as error:
            raise TiaftError(
                f"{tiles.root / MANIFEST}: {tiles.shown(file)} has no number as x, y, "
                "width or height"
            ) from error
        scale = tiles.mpp * size / width if tiles.mpp and width > 0 else None
        places.append(Place(Path(row["slide"]).stem, (x, y, width, height), scale))
    return places


def _manifest(path: Path) -> dict[str, dict[str, str]]:
    """Return a manifest's rows by file where it says from where in a slide each tile is."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"file", "slide", "x", "y", "width", "height"} <= set(reader.fieldnames or ()):
            return {}
        return {row["file"]: row for row in reader if row["slide"]}


def _file(path: Path, stem: str, places: Sequence[Place]) -> Path:
    if path.is_dir():
        for suffix in SUFFIXES:
            if (path / f"{stem}{suffix}").is_file():
                return path / f"{stem}{suffix}"
        raise TiaftError(
            f"{path} has no nuclei of {stem}: a file {stem}.geojson or {stem}.db is needed there"
        )
    if not path.is_file():
        raise TiaftError(f"{path}: no such file or folder of nuclei")
    stems = sorted({place.stem for place in places})
    if len(stems) > 1:
        raise TiaftError(
            f"{path} is one file, the tiles are of {len(stems)} slides or have a file each "
            f"({some(stems, 3)}): give a folder with a file for each"
        )
    return path


def _read(path: Path) -> np.ndarray:
    """Return the shapes in a file, (n,) of shapely's. Raises TiaftError where it cannot be read."""
    if path.suffix != ".db":
        regions = [thing for thing in iter_regions(path) if not isinstance(thing, Skipped)]
        return np.array([region.geometry for region in regions], object)
    from tiaft_plugin.engine.annotation_store import Store

    try:
        with closing(Store(path, auto_commit=False)) as store:
            return np.array([shape.geometry for shape in store.values()], object)
    except Exception as error:  # sqlite's, and TIAToolbox's own
        raise TiaftError(f"{path} is no annotation store of TIAToolbox: {reason(error)}") from error

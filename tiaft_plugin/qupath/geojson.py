"""Tile predictions as GeoJSON (RFC 7946) that QuPath opens as coloured tile objects.

What QuPath reads, from its 0.5.1, 0.6.0 and 0.7.0 sources: the type of object in
``properties.objectType`` (anything unknown becomes an annotation), a UUID in ``id``, a class with
its colour, and measurements as an object of numbers, in which NaN and infinities are strings.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from operator import add
from pathlib import Path
from uuid import UUID

import numpy as np

from tiaft_plugin.engine.predictions import Colour, TileBlock, TilePredictions, checked_blocks
from tiaft_plugin.files import write_atomically
from tiaft_plugin.qupath.measurements import measurements_of
from tiaft_plugin.qupath.names import path_classes

# Counter-clockwise where y points up, and closed: RFC 7946, section 3.1.6.
RING = "[[[{0},{1}],[{2},{1}],[{2},{3}],[{0},{3}],[{0},{1}]]]"


def write_geojson(predictions: TilePredictions, path: Path) -> None:
    """Write one Feature a line, block by block, in memory that does not grow with the tiles.

    Raises TiaftError for class names that QuPath would refuse, before anything is written.
    """
    classes = _class_texts(predictions)
    with write_atomically(path) as temporary, temporary.open("w", encoding="ascii") as file:
        file.write('{"type":"FeatureCollection",\n"tiaft":' + _origin(predictions))
        file.write(',\n"features":[')
        separator = "\n"
        for block in checked_blocks(predictions):
            for feature in _features(block, classes, predictions.classes):
                file.write(separator + feature)
                separator = ",\n"
        file.write("\n]}\n")


def _features(block: TileBlock, classes: list[str], names: tuple[str, ...]) -> Iterator[str]:
    given = [f'"classification":{text},' for text in classes]
    given.append("")  # an unclassified tile, as QuPath has it
    values = measurements_of(block, names)
    return tile_features(block.ids, block.bounds, block.labels, given, values)


def tile_features(
    ids: Iterable[UUID],
    bounds: np.ndarray,
    labels: np.ndarray,
    given: Sequence[str],
    measurements: Mapping[str, np.ndarray],
) -> Iterator[str]:
    """Yield each tile as one line of GeoJSON.

    `bounds` is (n, 4) in image pixels, `measurements` (n,) by name; `given` holds for each label
    what its tiles have among their properties, ended by a comma.
    """
    keys, rows = measurement_texts(measurements, len(bounds))
    corners = (np.round(bounds, 2) + 0.0).tolist()  # QuPath keeps hundredths; no "-0"
    tiles = zip(ids, corners, labels.tolist(), rows, strict=True)
    for uuid, corner, label, row in tiles:
        ring = RING.format(*["%.12g" % value for value in corner])  # noqa: UP031 (the fastest)
        yield (
            f'{{"type":"Feature","id":"{uuid}",'
            f'"geometry":{{"type":"Polygon","coordinates":{ring}}},'
            f'"properties":{{"objectType":"tile",{given[label]}'
            f'"measurements":{{{",".join(map(add, keys, row))}}}}}}}'
        )


def measurement_texts(
    measurements: Mapping[str, np.ndarray], count: int
) -> tuple[list[str], Iterator[tuple[str, ...]]]:
    """Return the names as JSON, each with its colon, and each object's numbers as JSON."""
    keys = [json.dumps(name) + ":" for name in measurements]
    columns = [_number_texts(np.asarray(column)) for column in measurements.values()]
    return keys, zip(*columns, strict=True) if columns else repeat((), count)


def class_text(parts: Sequence[str], colour: Colour) -> str:
    """Return a class as JSON, "name" or derived "names", as QuPath writes it itself."""
    name: dict[str, object] = {"names": parts} if len(parts) > 1 else {"name": parts[0]}
    return json.dumps(name | {"color": colour})


def _number_texts(values: np.ndarray) -> list[str]:
    """Return the shortest text that reads back to each number; others as QuPath writes them."""
    if values.dtype.kind != "f":
        values = values.astype(np.float64)
    texts = values.astype(str)
    texts[np.isnan(values)] = '"NaN"'
    texts[np.isposinf(values)] = '"Infinity"'
    texts[np.isneginf(values)] = '"-Infinity"'
    return texts.tolist()


def _class_texts(predictions: TilePredictions) -> list[str]:
    paths = path_classes(predictions.classes)
    return [class_text(parts, predictions.colour(label)) for label, parts in enumerate(paths)]


def _origin(predictions: TilePredictions) -> str:
    """Return where the tiles come from, a foreign member (RFC 7946, 6.1) that QuPath passes over.

    Of the slide only its name: a folder may name a patient.
    """
    origin = {
        "slide": predictions.slide.name,
        "slide_size": predictions.slide_size,
        "model": predictions.model,
        "model_sha256": predictions.model_sha256,
        "classes": predictions.classes,
    }
    return json.dumps(origin)

"""Tile predictions as GeoJSON (RFC 7946) that QuPath opens as coloured tile objects.

What QuPath reads, from its 0.5.1, 0.6.0 and 0.7.0 sources: the type of object in
``properties.objectType`` (anything unknown becomes an annotation), a UUID in ``id``, a class with
its colour, and measurements as an object of numbers, in which NaN and infinities are strings.
"""

import json
from collections.abc import Iterator
from operator import add
from pathlib import Path

import numpy as np

from tiaft_plugin.engine.predictions import TileBlock, TilePredictions, checked_blocks
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_atomically
from tiaft_plugin.qupath.names import measurement_name, path_classes

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
    values = _measurements(block, names)
    keys = [json.dumps(name) + ":" for name in values]
    rows = zip(*map(_number_texts, values.values()), strict=True)
    corners = (np.round(block.bounds, 2) + 0.0).tolist()  # QuPath keeps hundredths; no "-0"
    given = [f'"classification":{text},' for text in classes]
    given.append("")  # an unclassified tile, as QuPath has it
    tiles = zip(block.ids, corners, block.labels.tolist(), rows, strict=True)
    for uuid, corner, label, row in tiles:
        ring = RING.format(*["%.12g" % value for value in corner])  # noqa: UP031 (the fastest)
        yield (
            f'{{"type":"Feature","id":"{uuid}",'
            f'"geometry":{{"type":"Polygon","coordinates":{ring}}},'
            f'"properties":{{"objectType":"tile",{given[label]}'
            f'"measurements":{{{",".join(map(add, keys, row))}}}}}}}'
        )


def _measurements(block: TileBlock, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return what is measured of each tile, by name: probabilities, then what plug-ins add."""
    columns = zip(names, block.probabilities.T, strict=True)
    values = {measurement_name(name): column for name, column in columns}
    for name, column in block.measurements.items():
        if name in values:
            raise TiaftError(f"a plug-in measures {name!r}, which is a probability's name already")
        values[name] = np.asarray(column)
    return values


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
    """Return each class as JSON, "name" or derived "names", as QuPath writes it itself."""
    texts = []
    for label, parts in enumerate(path_classes(predictions.classes)):
        name: dict[str, object] = {"names": parts} if len(parts) > 1 else {"name": parts[0]}
        texts.append(json.dumps(name | {"color": predictions.colour(label)}))
    return texts


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

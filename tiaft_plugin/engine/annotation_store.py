"""Tile predictions as TIAToolbox's annotation store, for its viewer and its queries."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import shapely
from tiatoolbox.annotation.storage import Annotation, SQLiteStore

from tiaft_plugin.engine.predictions import TileBlock, TilePredictions, checked_blocks
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_atomically


def write_annotation_store(predictions: TilePredictions, path: Path) -> None:
    """Write a SQLiteStore with TIAToolbox's own properties, ``type`` and ``prob_<class>``.

    Keys are the tiles' UUIDs, geometry is in baseline pixels. Written block by block, in memory
    that does not grow with the tiles.
    """
    with write_atomically(path) as temporary, _new_store(temporary) as store:
        store.metadata["tiaft"] = {
            "slide": predictions.slide.name,
            "slide_size": list(predictions.slide_size),
            "model": predictions.model,
            "model_sha256": predictions.model_sha256,
            "classes": list(predictions.classes),
        }
        for block in checked_blocks(predictions):
            annotations = _annotations(block, predictions)
            try:
                store.append_many(annotations, map(str, block.ids))
            except sqlite3.IntegrityError as error:
                raise TiaftError(
                    f"{predictions.slide.name}: two tiles have one id; predict it again"
                ) from error


class Store(SQLiteStore):
    """TIAToolbox's store without two faults.

    TIAToolbox switches on loadable SQLite extensions, which many a Python is built without, only
    to ask for SQLite's compile options. And its destructor closes again what is closed, which
    makes an empty database where the temporary file was.
    """

    @staticmethod
    def compile_options() -> list[str]:
        """Return SQLite's compile options."""
        with closing(sqlite3.connect(":memory:")) as connection:
            return [option for (option,) in connection.execute("pragma compile_options")]

    def close(self) -> None:
        """Close the store; a second time does nothing."""
        if getattr(self, "cons", None):
            super().close()


@contextmanager
def _new_store(path: Path) -> Iterator[SQLiteStore]:
    store = Store(path, compression_level=1)
    # The file is temporary: a journal would protect nothing and could be left beside it.
    store.con.execute("PRAGMA journal_mode=OFF")
    store.con.execute("PRAGMA synchronous=OFF")
    try:
        yield store
    finally:
        store.close()


def _annotations(block: TileBlock, predictions: TilePredictions) -> Iterator[Annotation]:
    columns = _properties(block, predictions.classes)
    rows = zip(*columns.values(), strict=True)
    tiles = zip(shapely.box(*block.bounds.T), block.labels.tolist(), rows, strict=True)
    for box, label, row in tiles:
        properties = dict(zip(columns, row, strict=True))
        yield Annotation(box, properties | {"type": predictions.class_of(label)})


def _properties(block: TileBlock, classes: tuple[str, ...]) -> dict[str, list]:
    names = [f"prob_{name}" for name in classes]
    columns = dict(zip(names, block.probabilities.T.tolist(), strict=True))
    for name, values in block.measurements.items():
        if name in columns or name == "type":
            raise TiaftError(f"a plug-in measures {name!r}, a property that the store has already")
        numbers = np.asarray(values, dtype=np.float64)
        # "NaN" is no JSON: SQLite would refuse every later query that looks into properties.
        columns[name] = [value if np.isfinite(value) else None for value in numbers.tolist()]
    return columns

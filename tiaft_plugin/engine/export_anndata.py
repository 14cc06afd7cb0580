"""AnnData files (.h5ad) as anndata, scanpy, squidpy and LazySlide read them.

Written with h5py after anndata's published on-disk format (anndata 0.1.0, dataframe 0.2.0), row
block by row block; the package itself would want the whole slide in memory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tiaft_plugin.engine.export import rows_of, told
from tiaft_plugin.engine.store import Store
from tiaft_plugin.network.outputs import labels_of

_CORNERS = ("x0", "y0", "x1", "y1")


def write_anndata(store: Store, path: Path) -> None:
    """Write tiles as observations: X (N, D) float32, features or class probabilities.

    ``obs`` is named by the tiles' UUIDs and has x0, y0, x1, y1 (baseline pixels), tissue, tile_id
    (the row), library_id (the slide) and, where there are, normalised and prediction; ``obsm`` has
    spatial (centres, baseline pixels) and, where there is, colour; ``uns`` has tiaft (JSON) and
    spatial.
    """
    count, width = store.values.shape
    with h5py.File(path, "w") as file:
        _typed(file, "anndata", "0.1.0")
        for name in ("layers", "obsp", "varm", "varp", "obsm", "uns"):
            _dict(file, name)
        names = list(store.classes) or [str(number) for number in range(width)]
        _strings(_frame(file, "var", ()), "_index", names)
        _array(file, "X", (count, width), "float32")
        _array(file["obsm"], "spatial", (count, 2), "float64")
        if store.colour is not None:
            _array(file["obsm"], "colour", store.colour.shape, "float32")
        _make_obs(file, store)
        for rows, bounds, values in rows_of(store):
            _fill(file, store, rows, bounds, values)
        _say(file["uns"], store)


def _make_obs(file: h5py.File, store: Store) -> None:
    count = len(store)
    columns = {**dict.fromkeys(_CORNERS, "float64"), "tissue": "float32", "tile_id": "int64"}
    if store.normalised is not None:
        columns["normalised"] = "bool"
    labelled = store.kind == "predictions"
    obs = _frame(file, "obs", [*columns, "library_id", *(["prediction"] if labelled else [])])
    _typed(obs.create_dataset("_index", (count,), h5py.string_dtype()), "string-array", "0.2.0")
    for name, dtype in columns.items():
        _array(obs, name, (count,), dtype)
    _categorical(obs, "library_id", [_library(store)], count)
    if labelled:
        _categorical(obs, "prediction", store.classes, count)


def _fill(
    file: h5py.File, store: Store, rows: slice, bounds: np.ndarray, values: np.ndarray
) -> None:
    obs = file["obs"]
    file["X"][rows] = values
    file["obsm/spatial"][rows] = (bounds[:, :2] + bounds[:, 2:]) / 2
    if store.colour is not None:
        file["obsm/colour"][rows] = store.colour[rows]
    obs["_index"][rows] = [str(name) for name in store.tile_ids(bounds)]
    for name, column in zip(_CORNERS, bounds.T, strict=True):
        obs[name][rows] = column
    obs["tissue"][rows] = store.tissue[rows]
    obs["tile_id"][rows] = np.arange(rows.start, rows.stop)
    if store.normalised is not None:
        obs["normalised"][rows] = store.normalised[rows]
    if store.kind == "predictions":
        labels = labels_of(values, multilabel=store.multilabel)
        obs["prediction/codes"][rows] = np.where(labels < len(store.classes), labels, -1)


def _say(uns: h5py.Group, store: Store) -> None:
    """Write how the store was made, and what squidpy and scanpy want to know to draw tiles."""
    _string(uns, "tiaft", told(store))
    library = _dict(_dict(uns, "spatial"), _library(store))
    _dict(library, "images")
    diameter = np.asarray(store.facts["grid"]["tile_size"])[::-1] * store.scale
    scalefactors = _dict(library, "scalefactors")
    scalefactors["spot_diameter_fullres"] = float(diameter.mean())
    _typed(scalefactors["spot_diameter_fullres"], "numeric-scalar", "0.2.0")


def _library(store: Store) -> str:
    return store.path.stem


def _typed(what: Any, kind: str, version: str) -> Any:
    what.attrs["encoding-type"], what.attrs["encoding-version"] = kind, version
    return what


def _dict(group: h5py.Group, name: str) -> h5py.Group:
    return _typed(group.create_group(name), "dict", "0.1.0")


def _frame(group: h5py.Group, name: str, columns: Sequence[str]) -> h5py.Group:
    frame = _typed(group.create_group(name), "dataframe", "0.2.0")
    frame.attrs["_index"] = "_index"
    frame.attrs.create("column-order", list(columns), (len(columns),), h5py.string_dtype())
    return frame


def _array(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: str) -> None:
    _typed(group.create_dataset(name, shape, dtype), "array", "0.2.0")


def _strings(group: h5py.Group, name: str, texts: Sequence[str]) -> None:
    array = group.create_dataset(name, data=list(texts), dtype=h5py.string_dtype())
    _typed(array, "string-array", "0.2.0")


def _string(group: h5py.Group, name: str, text: str) -> None:
    group.create_dataset(name, data=text, dtype=h5py.string_dtype())
    _typed(group[name], "string", "0.2.0")


def _categorical(group: h5py.Group, name: str, categories: Sequence[str], count: int) -> None:
    """Make a column that is the first category everywhere, until its codes are written."""
    column = _typed(group.create_group(name), "categorical", "0.2.0")
    column.attrs["ordered"] = False
    _array(column, "codes", (count,), str(np.min_scalar_type(-len(categories))))
    _strings(column, "categories", categories)

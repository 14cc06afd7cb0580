"""AnnData's files, read with h5py: samples are rows there, genes are columns."""

from pathlib import Path
from typing import Any

import numpy as np

from tiaft_extensions.transcriptomics.expression.sheet import Sheet, Texts
from tiaft_plugin.errors import TiaftError, first_line
from tiaft_plugin.tiles.words import some

_MOST = 1_000_000_000  # numbers: 8 GB, which is what a table of samples may take, cells never fit


def read_h5ad(path: Path, layer: str = "") -> Sheet:
    """Read X, or a layer, dense or sparse, with the texts of ``obs`` and ``var``.

    Raises TiaftError for what is no AnnData of version 0.8 or later, or too large for samples.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            rows, columns = _names(path, file, "obs"), _names(path, file, "var")
            values = _matrix(path, _find(path, file, layer))
    except TiaftError:
        raise
    except Exception as error:  # h5py raises OSError, KeyError, ValueError and more
        raise TiaftError(f"{path} cannot be read as AnnData: {first_line(error)}") from error
    shape = tuple(len(next(iter(side.values()))) for side in (rows, columns))
    if values.shape != shape:
        raise TiaftError(f"{path}: X is {values.shape}, obs and var are of {shape}")
    return Sheet(path, values, rows, columns, genes_in="columns")


def _find(path: Path, file: Any, layer: str) -> Any:
    if not layer:
        return file["X"]
    if layer not in file.get("layers", {}):
        there = sorted(file.get("layers", {})) or ["none"]
        raise TiaftError(f"{path} has no layer {layer!r}: there is {some(there)}")
    return file["layers"][layer]


def _matrix(path: Path, node: Any) -> np.ndarray:
    shape = node.attrs.get("shape", getattr(node, "shape", None))
    if shape is None or len(shape) != 2:
        raise TiaftError(f"{path}: X has shape {shape}: samples × genes expected")
    if int(shape[0]) * int(shape[1]) > _MOST:
        raise TiaftError(
            f"{path}: {shape[0]} × {shape[1]} numbers are too many for a table of samples: are "
            "these single cells? Sum them by sample first"
        )
    kind = node.attrs.get("encoding-type", "array")
    if kind in ("csr_matrix", "csc_matrix"):
        from scipy import sparse

        parts = (node["data"][:], node["indices"][:], node["indptr"][:])
        make = sparse.csr_matrix if kind == "csr_matrix" else sparse.csc_matrix
        return np.asarray(make(parts, shape=tuple(shape)).toarray(), dtype=np.float64)
    return np.asarray(node[:], dtype=np.float64)


def _names(path: Path, file: Any, side: str) -> Texts:
    """Return the index of ``obs`` or ``var``, then its columns of text."""
    frame = file[side]
    if "_index" not in frame.attrs:
        raise TiaftError(
            f"{path}: {side} is not as AnnData 0.8 and later write it: read and write it anew with "
            "anndata"
        )
    index = str(frame.attrs["_index"])
    found = {}
    for name in (index, *(name for name in frame.attrs.get("column-order", ()) if name != index)):
        texts = _texts(frame[name])
        if texts is not None:
            found[side if name == index else str(name)] = texts
    return found


def _texts(node: Any) -> np.ndarray | None:
    """Return a column's texts, or None where it is of something else."""
    if node.attrs.get("encoding-type") == "categorical":
        categories = _texts(node["categories"])
        if categories is None:
            return None
        codes = np.asarray(node["codes"][:])
        return np.where(codes < 0, "", categories[codes])
    if node.attrs.get("encoding-type") != "string-array":
        return None
    return np.array([str(text).strip() for text in node.asstr()[:]], dtype=str)

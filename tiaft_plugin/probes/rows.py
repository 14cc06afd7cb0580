"""The rows of a feature file as they stand there, and the checks every feature set passes."""

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.probes.interface import FeatureTable
from tiaft_plugin.tiles.words import some


@dataclass(frozen=True)
class FeatureRows:
    """What a file holds, unchecked: `keys` (N,) text, `values` (N, D), any real numbers.

    `belongs` maps "patient", "group" and "slide" to the (N,) text that says of each row what it is
    of, "" where that is unknown, for those of the three that the file has. `unit` is "patient"
    where the file says that its rows are patients.
    """

    path: Path
    keys: np.ndarray
    values: np.ndarray
    belongs: dict[str, np.ndarray] = field(default_factory=dict)
    labels: np.ndarray | None = None
    colour: np.ndarray | None = None
    unit: str = ""
    source: dict[str, Any] = field(default_factory=dict)


def feature_table(
    path: Path | str,
    name: str,
    keys: np.ndarray,
    values: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    colour: np.ndarray | None = None,
    source: Mapping[str, Any] | None = None,
) -> FeatureTable:
    """Return a checked feature set, sorted by key; `path` is what messages name.

    `keys`, `groups` and `labels` are (N,) text, "" where a group or label is unknown; `values` is
    (N, D), `colour` (N, B). Raises TiaftError for wrong shapes, keys that are empty or stand twice,
    and features that are not finite as float32.
    """
    where = f"{path} (features {name})"
    names = as_text(where, "keys", keys)
    groups = known_text(where, "groups", groups, len(names))
    labels = known_text(where, "labels", labels, len(names))
    matrix = as_matrix(where, "features", values, len(names))
    shades = None if colour is None else as_matrix(where, "colour", colour, len(names))
    refuse_odd_keys(where, names)
    refuse_not_finite(where, "features", names, matrix)
    if shades is not None:
        refuse_not_finite(where, "colour", names, shades)
    order = np.argsort(names, kind="stable")
    return FeatureTable(
        name,
        names[order],
        matrix[order],
        None if groups is None else groups[order],
        None if labels is None else labels[order],
        None if shades is None else shades[order],
        {"models": [], "notes": [], **(source or {})},
    )


def coarsest(where: str, columns: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Return, of columns that say what rows belong to, the one in which all others lie.

    Slides lie in patients, patients in hospitals: folds that respect the coarsest respect all.
    Raises TiaftError where two columns cross.
    """
    known = {name: column for name, column in columns.items() if (column != "").any()}
    for column in known.values():
        if all(_lies_in(other, column) for other in known.values()):
            return column
    if known:
        raise TiaftError(
            f"{where}: the columns {' and '.join(known)} cross, neither lies within the other: "
            "keep the one that folds must respect"
        )
    return None


def _lies_in(fine: np.ndarray, coarse: np.ndarray) -> bool:
    both = (fine != "") & (coarse != "")
    pairs = set(zip(fine[both].tolist(), coarse[both].tolist(), strict=True))
    return len(pairs) == len({first for first, _ in pairs})


def known_text(where: str, what: str, array: Any, count: int) -> np.ndarray | None:
    """Return (N,) text, or None where nothing is known."""
    if array is None:
        return None
    texts = as_text(where, what, array)
    if len(texts) != count:
        raise TiaftError(f"{where}: {len(texts)} {what} for {count} keys")
    return texts if (texts != "").any() else None


def as_text(where: str, what: str, array: Any) -> np.ndarray:
    """Return (N,) text without the blanks around it; whole numbers are written out."""
    array = np.asarray(array)
    if array.dtype == object and all(isinstance(item, str) for item in array.flat):
        array = array.astype(str)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    if array.ndim != 1 or array.dtype.kind not in "UTiu":
        raise TiaftError(
            f"{where}: `{what}` must be one line of texts, here it has shape {array.shape} and "
            f"type {array.dtype}: save it as np.array({what}, dtype=str)"
        )
    return tidy_text(array.astype(str).tolist())


def tidy_text(texts: Iterable[str]) -> np.ndarray:
    """Return (N,) text without the blanks around it; é is one letter, also if a Mac wrote two."""
    return np.array([unicodedata.normalize("NFC", text.strip()) for text in texts], dtype=str)


def as_matrix(where: str, what: str, array: Any, count: int) -> np.ndarray:
    """Return (N, D) float32. Raises TiaftError unless there are `count` rows, and columns."""
    array = np.asarray(array)
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise TiaftError(
            f"{where}: `{what}` must be a table of numbers, a row a tile or patient and a column a "
            f"feature; here it has shape {array.shape} and type {array.dtype}"
        )
    if len(array) != count:
        raise TiaftError(f"{where}: {len(array)} rows of `{what}` for {count} keys")
    if not array.shape[0] or not array.shape[1]:
        what_lacks = "rows" if not array.shape[0] else "columns"
        raise TiaftError(f"{where} is empty: `{what}` has no {what_lacks}")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
        return np.ascontiguousarray(array, dtype=np.float32)


def refuse_odd_keys(where: str, keys: np.ndarray) -> None:
    """Raise TiaftError for keys that are empty, stand twice, or hold line breaks and the like."""
    empty = np.flatnonzero(keys == "") + 1
    if len(empty):
        raise TiaftError(f"{where}: rows without a name: {some([str(row) for row in empty])}")
    odd = [repr(str(key)) for key in keys if not key.isprintable()]
    if odd:
        raise TiaftError(f"{where}: names hold line breaks or the like: {some(odd)}")
    names, counts = np.unique(keys, return_counts=True)
    if (counts > 1).any():
        raise TiaftError(
            f"{where}: {int((counts > 1).sum())} names stand more than once: "
            f"{some([str(name) for name in names[counts > 1]])}"
        )


def refuse_not_finite(where: str, what: str, keys: np.ndarray, values: np.ndarray) -> None:
    """Raise TiaftError that names the rows with NaN, infinity or nothing in them."""
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise TiaftError(
            f"{where}: {int(bad.sum())} of {len(keys)} rows have {what} that are missing, NaN or "
            f"infinite: {some([str(key) for key in keys[bad]])}; extract them anew, or remove them"
        )

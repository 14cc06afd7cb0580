"""Scores of a slide's tiles, kept beside their store and added to what QuPath gets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from uuid import UUID

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_atomically

_IDS = "ids"


@dataclass(frozen=True)
class Kind:
    """What scores are: `suffix` is that of their file beside <slide>.zarr, made by `command`."""

    suffix: str
    command: str


GRADCAM = Kind(".gradcam.npz", "tiaft interpret gradcam")


def scores_path(store: Path, kind: Kind = GRADCAM) -> Path:
    """Return the file of a store's scores: ``<slide>.gradcam.npz`` beside ``<slide>.zarr``."""
    return store.with_suffix(kind.suffix)


def measurement_names(cls: str, layer: str = "") -> tuple[str, str]:
    """Return what the mean and the maximum of a tile's map are called in QuPath.

    `layer` is told where it is not the usual one.
    """
    where = f" at {layer}" if layer else ""
    return f"Grad-CAM++ mean{where}: {cls}", f"Grad-CAM++ max{where}: {cls}"


def keep_scores(
    store: Path, ids: Sequence[UUID], scores: Mapping[str, np.ndarray], kind: Kind = GRADCAM
) -> Path:
    """Write scores, (N,) floats by name, of a store's tiles beside it; return the file.

    Earlier scores of the same tiles under other names stay.
    """
    path, hexed = scores_path(store, kind), _hexed(ids)
    order = np.argsort(hexed)
    kept = {name: np.asarray(values, np.float32)[order] for name, values in scores.items()}
    if path.exists():
        earlier = read_scores(path, kind)
        if np.array_equal(earlier.pop(_IDS), hexed[order]):
            kept = {**earlier, **kept}
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{_IDS: hexed[order]}, **kept)  # type: ignore[arg-type]
    return path


def read_scores(path: Path, kind: Kind = GRADCAM) -> dict[str, np.ndarray]:
    """Return scores (N,) float32 by name, and the tiles' ``ids``, sorted. Raises TiaftError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        lengths = {values.shape for values in found.values()}
        if found[_IDS].dtype.kind != "S" or lengths != {(len(found[_IDS]),)}:
            raise ValueError("other columns than scores")
    except Exception as error:  # zipfile, numpy and pickle each raise their own
        raise TiaftError(f"{path} is damaged: remove it, and run `{kind.command}` again") from error
    return found


def scores_of(store: Path, ids: Sequence[UUID], kind: Kind = GRADCAM) -> dict[str, np.ndarray]:
    """Return the scores of tiles by name, (n,); none where the store has none of these tiles.

    Tiles that were never scored have NaN. Raises TiaftError for a damaged file.
    """
    path = scores_path(store, kind)
    if not path.is_file():
        return {}
    columns = _cached(path, path.stat().st_mtime_ns, kind)
    known, hexed = columns[_IDS], _hexed(ids)
    rows = np.searchsorted(known, hexed).clip(max=max(len(known) - 1, 0))
    there = known[rows] == hexed if len(known) else np.zeros(len(hexed), bool)
    if not there.any():  # another model's, of before the store was made anew
        return {}
    return {
        name: np.where(there, values[rows], np.nan)
        for name, values in columns.items()
        if name != _IDS
    }


@lru_cache(maxsize=2)  # a kind each: a store's blocks come one after another
def _cached(path: Path, changed: int, kind: Kind) -> dict[str, np.ndarray]:
    return read_scores(path, kind)


def _hexed(ids: Sequence[UUID]) -> np.ndarray:
    return np.array([uuid.hex.encode() for uuid in ids], dtype="S32")

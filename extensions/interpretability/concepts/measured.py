"""Concepts: what people see in a tile, one number each, measured in pixels or read from tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.plugins import Owned, collect
from tiaft_plugin.probes.tables import read_table
from tiaft_plugin.progress import progress
from tiaft_plugin.tiles.images import read_image
from tiaft_plugin.tiles.tileset import TileSet
from tiaft_plugin.tiles.words import some

PAPER = ("asm", "contrast", "correlation")  # figure 3's


@dataclass(frozen=True)
class Concepts:
    """What N tiles measure: `values` (N, K) float64 of K `names`; NaN where a tile has no value."""

    names: tuple[str, ...]
    values: np.ndarray

    def beside(self, other: "Concepts") -> "Concepts":
        """Return these and others. Raises TiaftError where both have a name."""
        twice = sorted(set(self.names) & set(other.names))
        if twice:
            raise TiaftError(f"two concepts are called {some(twice)}: rename one of them")
        values = np.concatenate([self.values, other.values], axis=1)
        return Concepts((*self.names, *other.names), values)


def find_concepts(names: Sequence[str]) -> dict[str, Owned]:
    """Return the measures that plug-ins registered under these names, in this order.

    Raises TiaftError for a name that nobody registered.
    """
    known = collect("register_concepts")
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"
            raise TiaftError(
                f"no concept is called {name!r}: {hint} (others come by --table or --nuclei)"
            )
    return {
        name: Owned(known[name].thing, known[name].plugin, f"concept {name}")
        for name in dict.fromkeys(names)
    }


def measure_concepts(tiles: TileSet, names: Sequence[str]) -> Concepts:
    """Measure tiles as they are in their files. Raises TiaftError, also where a measure fails."""
    measures = find_concepts(names)
    values = np.full((len(tiles), len(measures)), np.nan)
    with progress(len(tiles) if measures else 0, "Measuring concepts", wanted=None) as bar:
        for row, file in zip(values, tiles.files, strict=True):
            if measures:
                tile = read_image(file)
                row[:] = [_number(measure, tile, file) for measure in measures.values()]
            bar.update()
    return Concepts(tuple(measures), values)


def read_concepts(path: Path, tiles: TileSet) -> Concepts:
    """Read a table ``file,concept,…`` with a row a tile; files are named as in the tile set.

    An empty cell is a value that is not known; so are those of tiles without a row. Columns that a
    manifest has are no concepts. Raises TiaftError where no tile has a row, or a name stands twice.
    """

    def texts_of(columns: Sequence[str]) -> list[str]:
        if "file" not in columns:
            raise TiaftError(f"{path}: no column file; the columns are {some(list(columns))}")
        return ["file", *(name for name in ("label", "group") if name in columns)]

    table = read_table(path, texts_of)
    if not table.names:
        raise TiaftError(f"{path} has no column but {', '.join(table.texts)}: add one a concept")
    rows = {file: row for row, file in enumerate(table.texts["file"].tolist())}
    if len(rows) < len(table.numbers):
        raise TiaftError(f"{path}: a file has two rows: leave one")
    found = [rows.get(tiles.shown(file), -1) for file in tiles.files]
    if all(row < 0 for row in found):
        raise TiaftError(
            f"{path} has no row for any tile of {tiles.root}: its files are called "
            f"{some(list(rows), 1)}, the tiles {some([tiles.shown(f) for f in tiles.files], 1)}"
        )
    values = np.vstack([table.numbers, np.full(len(table.names), np.nan)])[found]
    return Concepts(table.names, np.where(np.isfinite(values), values, np.nan))


def refuse_constant(concepts: Concepts) -> None:
    """Raise TiaftError for a concept that is the same in all tiles: nothing can tell it."""
    for name, values in zip(concepts.names, concepts.values.T, strict=True):
        if not len(values) or np.ptp(values) <= 1e-12 * np.abs(values).max():
            said = f"{values[0]:g} in all {len(values)} tiles" if len(values) else "in no tile"
            raise TiaftError(f"concept {name} is {said}: there is nothing to tell; leave it out")


def _number(measure: Owned, tile: np.ndarray, file: Path) -> float:
    value = measure(tile.copy())  # a measure that writes into its tile must not reach the next
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise Stopped(f"{measure} gives {value!r} for {file}: one number is expected") from error
    return number if math.isfinite(number) else math.nan

"""A table of numbers with names around it, out of a text file, parquet or AnnData."""

import csv
import gzip
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tiaft_plugin.errors import TiaftError, first_line
from tiaft_plugin.tiles.words import some

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Texts = dict[str, np.ndarray]

SUFFIXES = (".csv", ".tsv", ".txt", ".gct", ".parquet", ".h5ad")
HEADER = "header"  # what the names in a table's first line are called
# Their columns hold names also where all of these are numbers.
NAMED = re.compile(r"(sample|patient|case|slide|barcode|entrez|gene|probe)([ _.]?(gene)?[ _.]?id)?")


@dataclass(frozen=True)
class Sheet:
    """R × C numbers, float64, NaN where there is none.

    `rows` and `columns` say what is known of each side: lists of names, (R,) or (C,) text, by what
    they are called. `genes_in` is "rows" or "columns" where the format itself says so.
    """

    path: Path
    values: np.ndarray
    rows: Texts
    columns: Texts
    genes_in: str = ""


def read_sheet(path: Path, layer: str = "") -> Sheet:
    """Read ``.csv``, ``.tsv``, ``.txt`` or ``.gct`` (also ``.gz``), ``.parquet`` or ``.h5ad``.

    Lines that begin with # come before the header. R's tables, whose header lacks the column of
    row names, are understood. `layer` is one of AnnData's, instead of X. Raises TiaftError that
    names cells which should be numbers and are none, and names that stand twice in a header.
    """
    if not path.is_file():
        raise TiaftError(f"{path}: no such file")
    kind = _kind_of(path)
    if layer and kind != ".h5ad":
        raise TiaftError(f"{path}: only AnnData (.h5ad) has layers, and {layer!r} is asked for")
    if kind == ".h5ad":
        from tiaft_extensions.transcriptomics.expression.h5ad import read_h5ad

        return read_h5ad(path, layer)
    try:
        frame = _read_parquet(path) if kind == ".parquet" else _read_text(path)
    except TiaftError:
        raise
    except Exception as error:  # pandas, pyarrow, zlib and csv each raise their own
        raise TiaftError(f"{path} cannot be read as a table: {first_line(error)}") from error
    return _divide(path, frame)


def _kind_of(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    found = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")
    if not found:
        hint = ": save the sheet as CSV UTF-8" if name.endswith((".xlsx", ".xls", ".ods")) else ""
        raise TiaftError(
            f"{path} is no expression table: {', '.join(SUFFIXES)} are read, texts also as .gz"
            f"{hint}"
        )
    return found


def _read_parquet(path: Path) -> "DataFrame":
    import pandas as pd

    frame = pd.read_parquet(path)
    frame = frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()
    frame.columns = frame.columns.astype(str)
    return frame


def _read_text(path: Path) -> "DataFrame":
    import pandas as pd

    with _opened(path) as file:
        before, first = 0, next(file, "")
        while first.startswith("#"):
            # A GCT's second line says how many rows and columns there are.
            skip = 2 if first.startswith("#1.") and ".gct" in path.name.lower() else 1
            for _ in range(skip):
                before, first = before + 1, next(file, "")
        second = next(file, "")
    if not second.strip():
        raise TiaftError(f"{path} has no rows but its header")
    separator = max("\t,;", key=first.count)
    header, row = csv.reader([first, second], delimiter=separator)
    header = [name.strip() for name in header]
    if len(row) == len(header) + 1 and not _is_name(1, header[0]):  # as R writes it
        header = ["", *header]
    if len(row) > len(header):
        raise TiaftError(f"{path}: the first row has {len(row)} cells, the header {len(header)}")
    twice = repeated(header)
    if twice:
        raise TiaftError(f"{path}: names stand more than once in the header: {some(twice)}")
    comma = separator == ";" and bool(re.search(r"\d,\d", second))
    frame = pd.read_csv(
        path,
        sep=separator,
        skiprows=before + 1,
        header=None,
        names=list(range(len(header))),
        index_col=False,
        dtype={place: str for place, name in enumerate(header) if _is_name(place, name)},
        decimal="," if comma else ".",
        float_precision="round_trip",
        low_memory=False,
        encoding="utf-8-sig",
        on_bad_lines="error",
    )
    frame.columns = pd.Index(header)
    return frame


def _opened(path: Path) -> IO[str]:
    opened: Any = gzip.open if path.name.lower().endswith(".gz") else open
    return opened(path, "rt", encoding="utf-8-sig", newline="")


def _is_name(place: int, name: str) -> bool:
    return place == 0 or NAMED.fullmatch(name.lower()) is not None


def repeated(names: Iterable[str]) -> list[str]:
    """Return the names that stand more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def _divide(path: Path, frame: "DataFrame") -> Sheet:
    """Tell columns of names from those of numbers. Raises TiaftError for faulty cells."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    rows: Texts = {}
    numbers = []
    for place, name in enumerate(frame.columns):
        column = frame.iloc[:, place]
        numeric = is_numeric_dtype(column) and not is_bool_dtype(column)
        if not _is_name(place, str(name)) and (numeric or column.isna().all()):
            numbers.append(place)
        elif not numeric and place and not _is_name(place, str(name)):
            _refuse_faulty(path, str(name), column, frame.iloc[:, 0])
            rows[str(name)] = _texts(column)
        else:
            rows[str(name) or "row names"] = _texts(column)
    if not numbers or not len(frame):
        raise TiaftError(f"{path} has no column of numbers beside {some(list(rows))}")
    values = frame.iloc[:, numbers].to_numpy(dtype=np.float64)
    names = np.array([str(frame.columns[place]).strip() for place in numbers])
    return Sheet(path, values, rows, {HEADER: names})


def _texts(column: "Series") -> np.ndarray:
    return np.array(["" if value != value or value is None else str(value).strip()
                     for value in column.tolist()], dtype=str)  # fmt: skip


def _refuse_faulty(path: Path, name: str, column: "Series", keys: "Series") -> None:
    """Raise TiaftError where a column is one of numbers but for a few cells."""
    import pandas as pd

    known = column.notna()
    fine = pd.to_numeric(column, errors="coerce").notna()
    bad = np.flatnonzero((known & ~fine).to_numpy())
    if not fine.any() or len(bad) * 2 > known.sum():
        return
    first = f"{str(column.iloc[bad[0]])[:40]!r} in the row of {keys.iloc[bad[0]]}"
    raise TiaftError(
        f"{path}: {len(bad)} cells of column {name} are no numbers, the first {first}: write "
        "nothing, or NA, where a value is missing"
    )

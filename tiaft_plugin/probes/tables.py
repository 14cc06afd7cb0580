"""Tables that people keep: CSV, TSV and parquet, read as texts and numbers, never guessed.

Names stay texts ("007" is a patient), every cell that should be a number is one or is named.
"""

import csv
import math
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_plugin.errors import TiaftError, first_line
from tiaft_plugin.files import sha256_of
from tiaft_plugin.probes.rows import FeatureRows, tidy_text
from tiaft_plugin.tiles.words import some

SUFFIXES = (".csv", ".tsv", ".parquet")
KEYS = ("key", "file", "tile", "id")
BELONGS = ("patient", "group", "slide")
_MISSING = {"", "na", "n/a", "nan", "null", "none", "#n/a"}


@dataclass(frozen=True)
class Table:
    """N rows: `texts` maps columns to (N,) text, `numbers` is (N, G) float64 of `names`.

    NaN is a cell with nothing in it, or NA.
    """

    path: Path
    texts: dict[str, np.ndarray]
    numbers: np.ndarray
    names: tuple[str, ...]

    @property
    def source(self) -> dict[str, Any]:
        """What is recorded of the file."""
        suffix = self.path.suffix.lower().lstrip(".")
        return {"format": suffix, "files": [self.path.name], "sha256": sha256_of(self.path)}


def read_feature_rows(path: Path) -> FeatureRows:
    """Read a table of features: a key, what it belongs to, a label; all else is a feature.

    The key is the column `key`, `file`, `tile` or `id`, or else `patient`. Raises TiaftError.
    """
    key = ""

    def texts_of(columns: Sequence[str]) -> list[str]:
        nonlocal key
        key = pick_key(path, columns, (*KEYS, "patient"))
        return [key, *(role for role in (*BELONGS, "label") if role in columns and role != key)]

    table = read_table(path, texts_of)
    texts = table.texts
    return FeatureRows(
        path,
        texts[key],
        table.numbers,
        {role: texts[role] for role in BELONGS if role != key and role in texts},
        texts.get("label"),
        unit="patient" if key == "patient" else "",
        source={**table.source, "models": [], "notes": []},
    )


def pick_key(path: Path, columns: Sequence[str], names: Sequence[str]) -> str:
    """Return the first of `names` that is a column. Raises TiaftError where none is."""
    found = [name for name in names if name in columns]
    if found:
        return found[0]
    genes = {"gene", "hugo_symbol", "gene_id", "gene_name", "symbol"}
    turned = genes & {column.lower() for column in columns[:2]}
    hint = ": genes stand in rows here, turn the table (a row a patient)" if turned else ""
    raise TiaftError(
        f"{path}: no column {' or '.join(names)}; the columns are {some(list(columns))}{hint}"
    )


def read_table(
    path: Path,
    texts_of: Callable[[Sequence[str]], Sequence[str]],
    take: Sequence[str] | None = None,
) -> Table:
    """Read a table: `texts_of` tells, from all column names, which hold text; the rest, numbers.

    Names of columns with a role (`patient`, `label` …) are in small letters whatever the file says.
    `take` picks columns of numbers. Raises TiaftError that names lines and columns.
    """
    suffix = path.suffix.lower()
    if not path.exists():
        raise TiaftError(f"{path}: no such file")
    if path.is_dir() or suffix not in SUFFIXES:
        excel = suffix in (".xlsx", ".xls", ".ods")
        hint = ": save the sheet as CSV UTF-8" if excel else ""
        raise TiaftError(f"{path} is no table: .csv, .tsv and .parquet are read{hint}")
    return (_read_parquet if suffix == ".parquet" else _read_text)(path, texts_of, take)


@dataclass
class _Faults:
    """Cells that are no numbers: the first few, and in which columns."""

    first: list[str] = field(default_factory=list)
    columns: dict[str, int] = field(default_factory=dict)
    decimal_comma: bool = False

    def number(self, cell: str, column: str, place: str) -> float:
        """Return what a text says, NaN for one that says nothing or, which is noted, no number."""
        cell = cell.strip()
        if cell.lower() in _MISSING:
            return math.nan
        try:
            return float(cell)
        except ValueError:
            self.columns[column] = self.columns.get(column, 0) + 1
            self.decimal_comma |= bool(re.fullmatch(r"-?\d*,\d+(e-?\d+)?", cell, re.IGNORECASE))
            if len(self.first) < 3:
                self.first.append(f"{place}, column {column}: {cell[:40]!r}")
            return math.nan

    def refuse(self, path: Path) -> None:
        if not self.columns:
            return
        count = sum(self.columns.values())
        what = (
            "1 cell that should be a number is"
            if count == 1
            else f"{count} cells that should be numbers are"
        )
        hint = "; write decimal points, not commas" if self.decimal_comma else ""
        raise TiaftError(
            f"{path}: {what} none, in {some(list(self.columns))} ({'; '.join(self.first)}){hint}"
        )


def _read_text(
    path: Path, texts_of: Callable[[Sequence[str]], Sequence[str]], take: Sequence[str] | None
) -> Table:
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    lines = _lines(path, separator)
    _, header = next(lines, (0, []))
    columns = _columns(path, header)
    texts, names = _divide(path, [c for c in columns if c], texts_of, take)
    place_of = {column: place for place, column in enumerate(columns)}
    of_text = [place_of[column] for column in texts]
    of_number = [place_of[column] for column in names]
    nameless = [place for place, column in enumerate(columns) if not column]
    faults = _Faults()
    found: list[list[str]] = []
    numbers: list[np.ndarray] = []
    for line, cells in lines:
        if len(cells) != len(columns):
            raise TiaftError(
                f"{path}, line {line}: {len(cells)} cells, the header has {len(columns)}"
            )
        _refuse_nameless(path, [place for place in nameless if cells[place].strip()])
        found.append([cells[place] for place in of_text])
        numbers.append(_numbers([cells[place] for place in of_number], names, line, faults))
    faults.refuse(path)
    if not found:
        raise TiaftError(f"{path} has no rows but its header")
    by_column = {
        column: tidy_text(values)
        for column, values in zip(texts, zip(*found, strict=True), strict=True)
    }
    return Table(path, _tidy(by_column), np.stack(numbers), tuple(names))


def _refuse_nameless(path: Path, places: Sequence[int]) -> None:
    """Raise TiaftError for columns that hold something under no name; empty ones are Excel's."""
    if places:
        raise TiaftError(
            f"{path}: column {places[0] + 1} has no name: name or remove it (pandas writes such a "
            "one unless index=False)"
        )


def _numbers(cells: list[str], names: Sequence[str], line: int, faults: _Faults) -> np.ndarray:
    if "_" in "".join(cells):  # Python reads 1_000, people do not
        cells = [f"'{cell}'" if "_" in cell else cell for cell in cells]
    numbers = np.empty(len(cells))
    for place, cell in enumerate(cells):
        try:
            numbers[place] = float(cell)
        except ValueError:
            numbers[place] = faults.number(cell, names[place], f"line {line}")
    return numbers


def _lines(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Give number and cells of each line that is not empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=separator)
            for cells in reader:
                if any(cell.strip() for cell in cells):  # Excel ends sheets in lines of commas
                    yield reader.line_num, cells
    except UnicodeDecodeError as error:
        raise TiaftError(
            f"{path} is not in UTF-8: save it again as CSV UTF-8 (Excel offers that by name)"
        ) from error
    except (OSError, csv.Error) as error:
        raise TiaftError(f"{path} cannot be read as a table: {first_line(error)}") from error


def _columns(path: Path, header: Sequence[str]) -> list[str]:
    """Return the names of the columns. Raises TiaftError where another sign separates them."""
    if not header:
        raise TiaftError(f"{path} is empty")
    alone = header[0] if len(header) == 1 else ""
    if ";" in alone:
        raise TiaftError(
            f"{path}: columns are separated by semicolons, as Excel writes them in some languages: "
            "save it with commas, and with decimal points"
        )
    if header[0].lower().startswith("sep="):
        raise TiaftError(f"{path}: the first line, {header[0]}, is for Excel alone: remove it")
    if "\t" in alone or (path.suffix.lower() == ".tsv" and "," in alone):
        sign, suffix = ("tabs", ".tsv") if "\t" in alone else ("commas", ".csv")
        raise TiaftError(f"{path}: columns are separated by {sign}: call the file {suffix}")
    return [_role(column) for column in header]


def _divide(
    path: Path,
    columns: Sequence[str],
    texts_of: Callable[[Sequence[str]], Sequence[str]],
    take: Sequence[str] | None,
) -> tuple[list[str], list[str]]:
    """Return the columns of text and those of numbers. Raises TiaftError for odd names."""
    twice = sorted(column for column, count in Counter(columns).items() if count > 1)
    if twice:
        raise TiaftError(f"{path}: columns stand more than once: {some(twice)}")
    odd = [repr(column) for column in columns if not column.isprintable()]
    if odd:
        raise TiaftError(f"{path}: column names hold line breaks or the like: {some(odd)}")
    texts = list(texts_of(columns))
    names = [column for column in columns if column not in texts]
    if take is None:
        return texts, names
    known = set(names)
    lacking = [name for name in take if name not in known]
    if lacking:
        raise TiaftError(f"{path}: no column for {len(lacking)} of {len(take)}: {some(lacking)}")
    return texts, list(dict.fromkeys(take))


def _role(column: str) -> str:
    """Return a column's name without blanks; in small letters where it is one with a role."""
    name = column.strip()
    roles = (*KEYS, *BELONGS, "label")
    return name.lower() if name.lower() in roles else name


def _tidy(texts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Write files as tile sets do: forward slashes, no ./ before them."""
    if "file" in texts:
        files = [
            posixpath.normpath(file.replace("\\", "/")) if file else ""
            for file in texts["file"].tolist()
        ]
        texts["file"] = np.array(files)
    return texts


def _read_parquet(
    path: Path, texts_of: Callable[[Sequence[str]], Sequence[str]], take: Sequence[str] | None
) -> Table:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise TiaftError(f"{path}: parquet needs pyarrow: pip install pyarrow") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            given = file.schema_arrow.names
            columns = [_role(name) for name in given]
            unnamed = [c for c in columns if not c or c.startswith(("__index_level_", "Unnamed:"))]
            if unnamed:
                raise TiaftError(
                    f"{path}: a column without a name (pandas' index): write it with index=False"
                )
            texts, names = _divide(path, columns, texts_of, take)
            name_of = dict(zip(columns, given, strict=True))
            wanted = [name_of[column] for column in (*texts, *names)]
            table = file.read(columns=wanted)
            arrays = [table.column(name) for name in wanted]
    except TiaftError:
        raise
    except Exception as error:  # pyarrow raises its own, OSError, KeyError
        raise TiaftError(
            f"{path} cannot be read as parquet, it is cut short or something else: "
            f"{first_line(error)}"
        ) from error
    if not table.num_rows:
        raise TiaftError(f"{path} has no rows")
    by_column = {c: _parquet_text(path, c, a) for c, a in zip(texts, arrays, strict=False)}
    faults = _Faults()
    numbers = np.empty((table.num_rows, len(names)))
    for place, (column, array) in enumerate(zip(names, arrays[len(texts) :], strict=True)):
        numbers[:, place] = _parquet_numbers(path, column, array, faults)
    faults.refuse(path)
    return Table(path, _tidy(by_column), numbers, tuple(names))


def _parquet_text(path: Path, column: str, array: Any) -> np.ndarray:
    from pyarrow import types

    kind = array.type
    if types.is_dictionary(kind):
        array, kind = array.cast(kind.value_type), kind.value_type
    if not (types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)):
        raise TiaftError(
            f"{path}: column {column} holds {kind}: names must be texts, so that 007 is no 7"
        )
    return tidy_text("" if v is None else str(v) for v in array.to_pylist())


def _parquet_numbers(path: Path, column: str, array: Any, faults: _Faults) -> np.ndarray:
    from pyarrow import types

    kind = array.type
    if (
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_null(kind)
    ):
        values = array.to_pylist() if types.is_boolean(kind) or types.is_null(kind) else array
        if values is array:
            return np.asarray(array.to_numpy(), dtype=np.float64)
        return np.array([math.nan if v is None else float(v) for v in values])
    if types.is_nested(kind):
        raise TiaftError(f"{path}: column {column} holds {kind}: give each number its own column")
    return np.array(
        [
            math.nan if cell is None else faults.number(str(cell), column, f"row {row}")
            for row, cell in enumerate(array.to_pylist(), start=1)
        ]
    )

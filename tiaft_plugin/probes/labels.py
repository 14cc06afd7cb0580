"""Label tables: tissues of tiles, expression and mutations of patients."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.probes.interface import FeatureTable, Kind, Targets
from tiaft_plugin.probes.rows import coarsest, refuse_odd_keys
from tiaft_plugin.probes.tables import BELONGS, KEYS, Table, pick_key, read_table
from tiaft_plugin.tiles.words import some

Transform = Literal["log2p1", "log1p", "none"]
TRANSFORMS = ("log2p1", "log1p", "none")

_LOGGED_ALREADY = 25.0  # no log2 of an expression is larger, hardly any table has no count that is
_HUGE = 1e100  # nothing that is measured: squares of it overflow
_DATE = re.compile(r"\d{1,2}-(mar|sep|sept|oct|dec|apr|feb|nov)\w*|(mar|sep|oct|dec)\w*-\d+", re.I)


def read_labels(
    path: Path | str,
    kind: Kind,
    *,
    names: Sequence[str] | None = None,
    transform: Transform = "log2p1",
    key_columns: Sequence[str] = (*KEYS, "patient"),
    label: str = "label",
) -> Targets:
    """Read what is to be predicted from ``.csv``, ``.tsv`` or ``.parquet``.

    "classes": a key, the first of `key_columns` there is, and the column `label`. "numbers" and
    "binary": `patient` (or a key), and a column a gene, of which `names` are taken. All may have
    `group`, `slide` and `patient`, which say what rows belong to. A missing value is NaN, a
    missing label "".

    "numbers" are transformed: log2(x + 1), ln(x + 1), or not; the paper has them "log transformed
    before modeling" (section 3.3). Raises TiaftError that names what is wrong, and where.
    """
    path = Path(path)
    if transform not in TRANSFORMS:
        raise TiaftError(f"no transform is called {transform!r}: {', '.join(TRANSFORMS)}")
    if kind == "classes":
        return _read_classes(path, key_columns, label)
    key, table = _read(path, ("patient", *KEYS), names=names)
    source: dict[str, Any] = {**table.source, "notes": []}
    if not table.names:
        raise TiaftError(f"{path}: no column is a gene, beside {' and '.join(table.texts)}")
    values, keys = table.numbers, table.texts[key]
    _refuse_infinite(path, table, keys)
    dates = [name for name in table.names if _DATE.fullmatch(name)]
    if dates:
        source["notes"].append(
            f"columns look like genes that Excel made dates of (MARCH1, SEPT2): {some(dates)}"
        )
    if kind == "binary":
        _refuse_other_than_0_and_1(path, table, keys)
    else:
        source["transform"] = transform
        source["notes"] += _doubts(table, transform)
        values = _transformed(path, table, keys, transform)
    return Targets(kind, keys, values, table.names, _groups(path, table, key), source)


def labels_of(table: FeatureTable) -> Targets:
    """Return the labels that a feature set brings with it. Raises TiaftError where it has none."""
    if table.labels is None:
        raise TiaftError(
            f"features {table.name} bring no labels: give a table of labels (--labels)"
        )
    _refuse_alike(f"features {table.name}", table.labels)
    source = {key: table.source.get(key) for key in ("format", "files", "sha256")}
    classes = _classes(table.labels)
    return Targets("classes", table.keys, table.labels, classes, table.groups, source)


def _read_classes(path: Path, columns: Sequence[str], label: str) -> Targets:
    key, table = _read(path, columns, names=(), more=(label,))
    if label not in table.texts:
        raise TiaftError(f"{path}: no column {label}, which names the class of each {key}")
    labels = table.texts[label]
    if not (labels != "").any():
        raise TiaftError(f"{path}: the column {label} is empty")
    _refuse_alike(str(path), labels)
    keys, classes = table.texts[key], _classes(labels)
    return Targets("classes", keys, labels, classes, _groups(path, table, key), table.source)


def _read(
    path: Path, keys: Sequence[str], *, names: Sequence[str] | None, more: Sequence[str] = ()
) -> tuple[str, Table]:
    """Return the column of keys, and the table, sorted by it."""
    key = ""

    def texts_of(columns: Sequence[str]) -> list[str]:
        nonlocal key
        key = pick_key(path, columns, keys)
        return [key, *(role for role in (*BELONGS, *more) if role in columns and role != key)]

    table = read_table(path, texts_of, names)
    _refuse_two_groups(path, table, key)
    refuse_odd_keys(str(path), table.texts[key])
    order = np.argsort(table.texts[key], kind="stable")
    texts = {column: values[order] for column, values in table.texts.items()}
    return key, Table(path, texts, table.numbers[order], table.names)


def _groups(path: Path, table: Table, key: str) -> np.ndarray | None:
    belongs = {role: table.texts[role] for role in BELONGS if role != key and role in table.texts}
    return coarsest(str(path), belongs)


def _classes(labels: np.ndarray) -> tuple[str, ...]:
    return tuple(str(label) for label in np.unique(labels) if label)


def _refuse_two_groups(path: Path, table: Table, key: str) -> None:
    """Raise TiaftError for a row that stands twice, in two groups: it would be in two folds."""
    if "group" not in table.texts:
        return
    groups: dict[str, set[str]] = {}
    for name, group in zip(table.texts[key].tolist(), table.texts["group"].tolist(), strict=True):
        groups.setdefault(name, set()).add(group)
    several = [
        f"{name} ({' and '.join(sorted(its))})" for name, its in groups.items() if len(its) > 1
    ]
    if several:
        raise TiaftError(
            f"{path}: {len(several)} stand in two groups, and would on both sides of a fold: "
            f"{some(several)}"
        )


def _refuse_alike(where: str, labels: np.ndarray) -> None:
    """Raise TiaftError for classes that a slip of the keyboard has made two of."""
    by_folded: dict[str, list[str]] = {}
    for name in _classes(labels):
        if not name.isprintable():
            raise TiaftError(f"{where}: a label holds line breaks or the like: {name!r}")
        by_folded.setdefault(name.casefold(), []).append(name)
    same = [" and ".join(names) for names in by_folded.values() if len(names) > 1]
    if same:
        raise TiaftError(f"{where}: labels differ only in case: {some(same)}: give them one name")


def _refuse_infinite(path: Path, table: Table, keys: np.ndarray) -> None:
    bad = np.argwhere(np.abs(table.numbers) > _HUGE)
    if len(bad):
        what = "infinite" if np.isinf(table.numbers).any() else f"beyond {_HUGE:g}"
        raise TiaftError(f"{path}: {len(bad)} values are {what}: {_cells(table, keys, bad)}")


def _refuse_other_than_0_and_1(path: Path, table: Table, keys: np.ndarray) -> None:
    numbers = table.numbers
    bad = np.argwhere(~np.isnan(numbers) & (numbers != 0) & (numbers != 1))
    if len(bad):
        raise TiaftError(
            f"{path}: {len(bad)} values are neither 0 nor 1: {_cells(table, keys, bad)}; write 1 "
            "where a gene is mutated, 0 where not, nothing where it is unknown"
        )


def _cells(table: Table, keys: np.ndarray, places: np.ndarray) -> str:
    """Name the first few of `places` (n, 2), rows and columns, with their values."""
    first = [f"{keys[r]}, {table.names[c]}: {table.numbers[r, c]:g}" for r, c in places[:5]]
    more = f" and {len(places) - 5} more" if len(places) > 5 else ""
    return "; ".join(first) + more


def _doubts(table: Table, transform: str) -> list[str]:
    if transform == "none" or np.isnan(table.numbers).all():
        return []
    largest = float(np.nanmax(table.numbers))
    if largest >= _LOGGED_ALREADY:
        return []
    return [
        f"the largest value is {largest:g} before {transform}: if the table is log-transformed "
        "already, pass --transform none"
    ]


def _transformed(path: Path, table: Table, keys: np.ndarray, transform: str) -> np.ndarray:
    if transform == "none":
        return table.numbers
    negative = np.argwhere(table.numbers < 0)
    if len(negative):
        raise TiaftError(
            f"{path}: {len(negative)} values are negative ({_cells(table, keys, negative)}), and "
            f"{transform} is for what is not: is the table already log-transformed? "
            "--transform none"
        )
    return np.log2(table.numbers + 1) if transform == "log2p1" else np.log1p(table.numbers)

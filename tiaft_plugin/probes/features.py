"""Feature sets from files: a row a tile, or a row a patient."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.probes.aggregate import (
    Aggregate,
    check_models,
    mean_of_tiles,
    represent,
    stack,
)
from tiaft_plugin.probes.interface import FeatureTable
from tiaft_plugin.probes.npz import read_npz, write_features
from tiaft_plugin.probes.rows import FeatureRows, coarsest, feature_table
from tiaft_plugin.probes.slides import lookup, name_patients
from tiaft_plugin.probes.stores import read_patients_of_stores
from tiaft_plugin.probes.tables import SUFFIXES, read_feature_rows
from tiaft_plugin.tiles.words import some

__all__ = [
    "feature_table",
    "parse_feature_argument",
    "parse_feature_arguments",
    "read_patients",
    "read_tiles",
    "write_features",
]


def parse_feature_argument(text: str) -> tuple[str, Path]:
    """Return name and path of ``NAME=PATH``, or of ``PATH``, which is called after its stem."""
    before, equals, after = text.partition("=")
    named = equals and not {"/", "\\"} & set(before) and not Path(text).exists()
    path = Path(after if named else text).expanduser()
    name = before.strip() if named else path.resolve().stem
    if not name or len(name) > 64 or not name.isprintable() or {"/", "\\"} & set(name):
        raise TiaftError(
            f"{text!r}: a feature set is given as NAME=PATH; a name has up to 64 characters, "
            "none of them / or \\"
        )
    if not (after if named else text).strip():
        raise TiaftError(f"{text!r}: no path after the =; a feature set is given as NAME=PATH")
    return name, path


def parse_feature_arguments(texts: Iterable[str]) -> dict[str, Path]:
    """Return the path of each named feature set. Raises TiaftError where two have one name."""
    found: dict[str, Path] = {}
    for name, path in map(parse_feature_argument, texts):
        if name in found:
            raise TiaftError(
                f"two feature sets are called {name}, {found[name]} and {path}: "
                "name them apart, NAME=PATH"
            )
        found[name] = path
    return found


def read_tiles(path: Path | str, name: str) -> FeatureTable:
    """Read a feature set of tiles from ``.npz``, ``.csv``, ``.tsv`` or ``.parquet``.

    `groups` are patients where the file names them, else slides. Raises TiaftError that names what
    is wrong, and in which rows.
    """
    path = Path(path)
    if path.is_dir():
        raise TiaftError(
            f"{path} (features {name}) is a folder: tiles are read from .npz, .csv or .parquet; "
            "stores of slides are for probes of patients"
        )
    rows = _read_rows(path, name)
    return feature_table(
        path,
        name,
        rows.keys,
        rows.values,
        groups=coarsest(f"{path} (features {name})", rows.belongs),
        labels=rows.labels,
        colour=rows.colour,
        source=rows.source,
    )


def read_patients(
    path: Path | str,
    name: str,
    *,
    patients: Mapping[str, str] | None = None,
    aggregate: Aggregate = mean_of_tiles,
    verbose: bool = False,
) -> FeatureTable:
    """Read a feature set with one row a patient, by default the mean of all the patient's tiles.

    `path` is a feature store, a folder of them, or a file whose rows are patients, or tiles with
    their patient. `patients` maps slides (file name or stem) to patients. What had to be assumed
    stands in ``source["notes"]``. Raises TiaftError that names what is wrong.

    The paper averages "the features of all tiles from a patient" (section 3.3).
    """
    path, table = Path(path), dict(patients or {})
    if path.is_dir():
        return read_patients_of_stores(path, name, table, aggregate, verbose=verbose)
    rows = _read_rows(path, name)
    of, notes = _patients_of(rows, table, f"{path} (features {name})")
    tiles = feature_table(
        path,
        name,
        rows.keys,
        rows.values,
        groups=rows.belongs.get("group") if of is None else of,
        labels=rows.labels if of is None else None,
        colour=rows.colour,
        source={**rows.source, "notes": [*rows.source["notes"], *notes]},
    )
    if of is None:
        return tiles
    check_models(aggregate, f"{path} (features {name})", rows.source.get("models", []))
    return _aggregated(tiles, rows, aggregate)


def _read_rows(path: Path, name: str) -> FeatureRows:
    suffix = path.suffix.lower()
    if not path.exists():
        raise TiaftError(f"{path} (features {name}): no such file or folder")
    if suffix == ".npz":
        return read_npz(path)
    if suffix in SUFFIXES:
        return read_feature_rows(path)
    hint = "; save the sheet as CSV UTF-8" if suffix in (".xlsx", ".xls", ".ods") else ""
    raise TiaftError(
        f"{path} (features {name}): {suffix or 'a file without suffix'} is no feature set: .npz, "
        f".csv, .tsv and .parquet are read, and stores (.zarr){hint}"
    )


def _patients_of(
    rows: FeatureRows, table: Mapping[str, str], where: str
) -> tuple[np.ndarray | None, list[str]]:
    """Return each row's patient, None where rows are patients, and what to say of it."""
    if rows.unit == "patient":
        return None, []
    known, notes = rows.belongs, list[str]()
    if "patient" in known:
        _refuse_conflicts(known, table, where)
        of, by = known["patient"], "patient"
    elif "group" in known or "slide" in known:
        by = "slide" if "slide" in known else "group"
        of, notes = name_patients(known[by], table, where, certain=by == "group")
    elif any(lookup(str(key), table) for key in rows.keys):
        by = "key"
        of, notes = name_patients(rows.keys, table, where)
    else:
        return None, []
    empty = [str(key) for key in rows.keys[of == ""]]
    if empty:
        raise TiaftError(
            f"{where}: {len(empty)} of {len(of)} rows have no {by}: {some(empty)}; name it"
        )
    count = len(np.unique(of))
    return of, [*notes, f"{len(of)} rows were aggregated to {count} patients by their {by}"]


def _refuse_conflicts(
    known: Mapping[str, np.ndarray], table: Mapping[str, str], where: str
) -> None:
    """Raise TiaftError where the file and the table name different patients for a slide."""
    if "slide" not in known:
        return
    for slide, patient in sorted(set(zip(known["slide"], known["patient"], strict=True))):
        other = lookup(str(slide), table)
        if other and patient and other != patient:
            raise TiaftError(
                f"{where}: slide {slide} is of patient {patient}, but of {other} in the table of "
                "patients: correct one of them"
            )


def _aggregated(tiles: FeatureTable, rows: FeatureRows, aggregate: Aggregate) -> FeatureTable:
    """Return one row for each patient, which `tiles` has as its groups."""
    known = rows.belongs.get("slide", rows.belongs.get("group"))
    slides = None if known is None else _in_order_of(tiles, rows, known)
    found, colours = {}, {}
    patients = tiles.groups if tiles.groups is not None else tiles.keys
    order = np.argsort(patients, kind="stable")
    names, starts = np.unique(patients[order], return_index=True)
    for patient, of in zip(names.tolist(), np.split(order, starts[1:]), strict=True):
        its = np.full(len(of), patient) if slides is None else slides[of]
        found[patient] = represent(aggregate, patient, tiles.values[of], its)
        if tiles.colour is not None:
            colours[patient] = tiles.colour[of].mean(axis=0, dtype=np.float64)
    groups, notes = _groups_of_patients(tiles, rows, order, starts)
    return feature_table(
        rows.path,
        tiles.name,
        names,
        stack(found),
        groups=groups,
        colour=np.stack(list(colours.values())) if colours else None,
        source={**tiles.source, "notes": [*tiles.source["notes"], *notes]},
    )


def _groups_of_patients(
    tiles: FeatureTable, rows: FeatureRows, order: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray | None, list[str]]:
    """Return what patients belong to (a hospital), where `group` stands beside `patient`."""
    if not {"patient", "group"} <= set(rows.belongs):
        return None, []
    groups = _in_order_of(tiles, rows, rows.belongs["group"])
    each = [np.unique(part) for part in np.split(groups[order], starts[1:])]
    if all(len(names) == 1 for names in each):
        return np.array([names[0] for names in each]), []
    return None, ["the column group divides patients: it is not what folds respect"]


def _in_order_of(tiles: FeatureTable, rows: FeatureRows, column: np.ndarray) -> np.ndarray:
    """Return a column of the file in the order of the sorted tiles."""
    found = dict(zip(rows.keys.tolist(), column.tolist(), strict=True))
    return np.array([found[key] for key in tiles.keys.tolist()])

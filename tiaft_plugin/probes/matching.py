"""Feature sets and targets of the very same rows; what is left out is said."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.probes.interface import Experiment, FeatureTable, Targets, Unit
from tiaft_plugin.tiles.words import some

Unmatched = Literal["refuse", "drop"]
Missing = Literal["refuse", "drop-genes", "drop-rows"]

_SMALL = 10  # rows: with fewer, a class has at most two in each of five folds
_FEW = 2  # of each outcome: with one, it is in a fold's training rows or in its test rows


def match(
    tables: Sequence[FeatureTable],
    targets: Targets,
    *,
    unit: Unit,
    unmatched: Unmatched = "refuse",
    missing: Missing = "refuse",
) -> Experiment:
    """Return features and targets of the same rows, sorted by key, and notes on what is odd.

    Keys that are not in all sets and in the targets are refused, or left out ("drop"); so are
    missing values, but those of "binary" targets, whose rows are left out gene by gene. What can
    tell nothing (constant genes) is left out. Raises TiaftError that names rows, genes and sets.
    """
    _refuse_odd_sets(tables, targets)
    notes = [f"{table.name}: {note}" for table in tables for note in table.source.get("notes", ())]
    notes += [f"labels: {note}" for note in targets.source.get("notes", ())]
    keys = _common_keys(tables, targets, unmatched, notes)
    tables, targets = [_rows(table, keys) for table in tables], _target_rows(targets, keys)
    tables, targets = _without_missing(tables, targets, missing, notes)
    targets = _without_constant(targets, notes)
    groups, grouped = _groups(tables, targets, unit, notes)
    for table in tables:
        _note_constant_features(table, notes)
    _note_odd_groups(groups, targets, grouped, notes)
    return Experiment(
        kind=targets.kind,
        unit=unit,
        keys=targets.keys,
        groups=groups,
        grouped=grouped,
        names=targets.names,
        values=targets.values,
        features={table.name: table.values for table in tables},
        colour=_colour(tables, notes),
        notes=tuple(notes),
        sources={
            "features": {table.name: _source(table) for table in tables},
            "labels": _source(targets),
        },
    )


def _refuse_odd_sets(tables: Sequence[FeatureTable], targets: Targets) -> None:
    if not tables:
        raise TiaftError("no feature set is given: NAME=PATH names one")
    names = [table.name for table in tables]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TiaftError(f"feature sets of one name: {some(twice)}: name them apart, NAME=PATH")
    for what, keys in [(f"features {table.name}", table.keys) for table in tables] + [
        ("labels", targets.keys)
    ]:
        if len(np.unique(keys)) != len(keys):
            raise TiaftError(f"{what}: a name stands more than once")


def _common_keys(
    tables: Sequence[FeatureTable], targets: Targets, unmatched: str, notes: list[str]
) -> np.ndarray:
    """Return the keys that all have, sorted; refuse, or note, what others there are."""
    common = set(targets.keys.tolist()).intersection(*(table.keys.tolist() for table in tables))
    misfits = []
    for table in tables:
        bare = sorted(set(table.keys.tolist()) - set(targets.keys.tolist()))
        idle = sorted(set(targets.keys.tolist()) - set(table.keys.tolist()))
        if bare:
            misfits.append(f"features {table.name}: {_have(bare, 'row')} no label: {some(bare)}")
        if idle:
            misfits.append(f"features {table.name}: {_have(idle, 'label')} no row: {some(idle)}")
    if not common:
        wanted = set(targets.keys.tolist())
        apart = next((t for t in tables if wanted.isdisjoint(t.keys.tolist())), None)
        if apart is None:
            raise TiaftError(f"no name is in all sets and the labels: {'; '.join(misfits)}")
        one, other = str(apart.keys[0]), str(targets.keys[0])
        raise TiaftError(
            f"features and labels have no name in common: features {apart.name} are of "
            f"{one!r} and the like, labels of {other!r}: name them alike"
        )
    if misfits and unmatched == "refuse":
        raise TiaftError(
            f"features and labels do not match: {'; '.join(misfits)}. Correct them, or go on with "
            f"the {len(common)} that all have: --unmatched drop"
        )
    if misfits:
        notes.extend(f"left out: {misfit}" for misfit in misfits)
    return np.array(sorted(common))


def _have(items: Sequence[str], what: str) -> str:
    return f"1 {what} has" if len(items) == 1 else f"{len(items)} {what}s have"


def _rows(table: FeatureTable, keys: np.ndarray) -> FeatureTable:
    """Return the rows of `keys`, in that order."""
    of = _places(table.keys, keys)
    pick = [None if a is None else a[of] for a in (table.groups, table.labels, table.colour)]
    return replace(
        table, keys=keys, values=table.values[of], groups=pick[0], labels=pick[1], colour=pick[2]
    )


def _target_rows(targets: Targets, keys: np.ndarray) -> Targets:
    of = _places(targets.keys, keys)
    groups = None if targets.groups is None else targets.groups[of]
    # Whoever makes Targets in Python may bring objects, which can be neither hashed nor kept.
    values = np.asarray(targets.values, str if targets.kind == "classes" else np.float64)
    return replace(targets, keys=keys, values=values[of], groups=groups)


def _places(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    place = {key: number for number, key in enumerate(keys.tolist())}
    return np.array([place[key] for key in wanted.tolist()], dtype=np.int64)


def _without_missing(
    tables: list[FeatureTable], targets: Targets, missing: str, notes: list[str]
) -> tuple[list[FeatureTable], Targets]:
    """Leave out rows or genes with missing values, as asked; refuse them, or note them."""
    lacks = targets.values == "" if targets.kind == "classes" else np.isnan(targets.values)
    if not lacks.any():
        return tables, targets
    by_row = lacks if targets.kind == "classes" else lacks.any(axis=1)
    rows = [str(key) for key in targets.keys[by_row]]
    if targets.kind == "classes":
        what = f"{_have(rows, 'row')} an empty label: {some(rows)}"
    else:
        genes = [
            f"{name} ({count})"
            for name, count in zip(targets.names, lacks.sum(axis=0).tolist(), strict=True)
            if count
        ]
        what = f"{_have(genes, 'gene')} missing values: {some(genes)}"
    if missing == "drop-rows":
        if by_row.all():
            raise TiaftError(f"every row has a missing value, none is left: {what}")
        notes.append(f"left out: {_have(rows, 'row')} missing values: {some(rows)}")
        keys = targets.keys[~by_row]
        return [_rows(table, keys) for table in tables], _target_rows(targets, keys)
    if missing == "drop-genes" and targets.kind != "classes":
        notes.append(f"left out: {what}")
        return tables, _genes(targets, ~lacks.any(axis=0), what)
    if targets.kind == "binary":
        notes.append(f"{what}; those rows are left out for that gene")
        return tables, targets
    ways = f"leave out the {len(rows)} rows (--missing drop-rows)"
    if targets.kind != "classes":
        ways = (
            f"leave out the genes (--missing drop-genes) or the {len(rows)} rows {some(rows)} "
            "(--missing drop-rows)"
        )
    raise TiaftError(f"labels: {what}; fill them in, or {ways}")


def _genes(targets: Targets, keep: np.ndarray, why: str) -> Targets:
    """Return the genes to keep. Raises TiaftError, which says why, where none is left."""
    if not keep.any():
        raise TiaftError(f"no gene is left to predict: {why}")
    names = tuple(name for name, kept in zip(targets.names, keep.tolist(), strict=True) if kept)
    return replace(targets, names=names, values=targets.values[:, keep])


def _without_constant(targets: Targets, notes: list[str]) -> Targets:
    """Leave out genes that cannot be predicted, and classes that are no longer there."""
    values = targets.values
    if targets.kind == "classes":
        classes = tuple(str(name) for name in np.unique(values))
        if len(classes) < 2:
            raise TiaftError(
                f"all {len(values)} rows are of one class, {classes[0]}: nothing to learn"
            )
        gone = [name for name in targets.names if name not in classes]
        if gone:
            notes.append(f"classes of which no row is left: {some(gone)}")
        return replace(targets, names=classes)
    if targets.kind == "numbers":
        keep = np.ptp(values, axis=0) > 0
        why = "the same value in every row"
    else:
        counts = np.stack([(values == outcome).sum(axis=0) for outcome in (0, 1)])
        keep = counts.min(axis=0) >= _FEW
        why = f"fewer than {_FEW} rows of 0 or of 1"
    left_out = [name for name, kept in zip(targets.names, keep.tolist(), strict=True) if not kept]
    if not left_out:
        return targets
    what = f"{_have(left_out, 'gene')} {why}: {some(left_out, 10)}"
    notes.append(f"left out: {what}")
    return _genes(targets, keep, what)


def _groups(
    tables: Sequence[FeatureTable], targets: Targets, unit: str, notes: list[str]
) -> tuple[np.ndarray, bool]:
    """Return the group of each row, and whether any was known."""
    given = {f"features {table.name}": table.groups for table in tables}
    given["labels"] = targets.groups
    known = {what: groups for what, groups in given.items() if groups is not None}
    groups = np.full(len(targets.keys), "", dtype=object)
    by = np.full(len(targets.keys), "", dtype=object)
    for what, found in known.items():
        clash = (groups != "") & (found != "") & (groups != found)
        if clash.any():
            listed = [
                f"{key} ({groups[row]} in {by[row]}, {found[row]} in {what})"
                for row, key in zip(np.flatnonzero(clash), targets.keys[clash], strict=True)
            ]
            raise TiaftError(
                f"{int(clash.sum())} rows stand in two groups, and would on both sides of a fold: "
                f"{some(listed)}: correct one, or leave groups out of it"
            )
        fresh = (groups == "") & (found != "")
        groups[fresh], by[fresh] = found[fresh], what
    lacking = [str(key) for key in targets.keys[groups == ""]]
    if not lacking:
        return groups.astype(str), True
    if len(lacking) < len(groups):
        raise TiaftError(
            f"{len(lacking)} of {len(groups)} rows have no group: {some(lacking)}: name the slide "
            "or patient of all rows, or of none"
        )
    if unit == "tile":
        notes.append(
            "no slide or patient is known of any tile: tiles of one slide may stand on both sides "
            "of a fold, and results look better than they are"
        )
    return targets.keys.astype(str), unit == "patient"


def _note_constant_features(table: FeatureTable, notes: list[str]) -> None:
    if not isinstance(table.values, np.ndarray):
        return
    zero = int((table.values == 0).all(axis=0).sum())
    constant = int((table.values == table.values[0]).all(axis=0).sum()) - zero
    width = table.values.shape[1]
    if zero:
        notes.append(f"{table.name}: {zero} of {width} features are zero in every row")
    if constant:
        notes.append(f"{table.name}: {constant} of {width} features have one value in every row")
    if zero + constant == width:
        raise TiaftError(f"features {table.name}: all {width} are the same in every row")


def _note_odd_groups(groups: np.ndarray, targets: Targets, grouped: bool, notes: list[str]) -> None:
    """Note groups and classes that a result may hang on."""
    names, counts = np.unique(groups, return_counts=True)
    largest = int(counts.argmax())
    if grouped and len(names) > 1 and counts[largest] * 2 > len(groups):
        notes.append(
            f"group {names[largest]} holds {counts[largest]} of {len(groups)} rows: "
            "folds are of very different sizes"
        )
    if targets.kind != "classes":
        return
    its = {name: groups[targets.values == name] for name in targets.names}
    small = [f"{name} ({len(of)})" for name, of in its.items() if len(of) < _SMALL]
    if small:
        notes.append(f"classes with fewer than {_SMALL} rows: {some(small, 10)}")
    lone = [f"{name} ({of[0]})" for name, of in its.items() if len(np.unique(of)) < _FEW]
    if grouped and lone:
        notes.append(
            f"classes in one group only: {some(lone, 10)}: folds of groups never have them in "
            "training and test at once"
        )


def _colour(tables: Sequence[FeatureTable], notes: list[str]) -> Any:
    """Return the colours of the first set that brings them."""
    colours = {table.name: table.colour for table in tables if table.colour is not None}
    if not colours:
        return None
    name, first = next(iter(colours.items()))
    if any(not _same(first, other) for other in colours.values()):
        notes.append(
            f"the feature sets bring different colours: the colour baseline is of {name}'s; were "
            "tiles of another resolution or stain normalisation read?"
        )
    return first


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return one.sha256 == other.sha256


def _source(thing: FeatureTable | Targets) -> Mapping[str, object]:
    return {key: value for key, value in thing.source.items() if key != "notes"}

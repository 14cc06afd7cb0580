"""From features and labels to the rows of a probe: tiles, slides or patients."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from tiaft_extensions.transcriptomics.evaluate.tasks import PEARSON, TEST, TRAIN, Task
from tiaft_extensions.transcriptomics.means import means_of
from tiaft_plugin.engine.jobs import read_patients
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.probes.features import feature_table, read_tiles
from tiaft_plugin.probes.interface import FeatureTable, Targets
from tiaft_plugin.probes.labels import labels_of, read_labels
from tiaft_plugin.probes.reading import read_names
from tiaft_plugin.probes.slides import name_patients
from tiaft_plugin.probes.stores import checked_chunks, open_stores, source_of
from tiaft_plugin.probes.tables import KEYS
from tiaft_plugin.tiles.colour import COLOUR_WIDTH
from tiaft_plugin.tiles.words import some


def read_rows(task: Task, path: Path, name: str) -> FeatureTable:
    """Return a task's rows by one model: `path` is tiles' features, or a folder of stores.

    A slide, or a patient, is the mean of all its tiles. Raises TiaftError.
    """
    patients = read_patients(task.patients) if task.patients else {}
    if path.is_dir():
        if task.level == "tile":
            raise TiaftError(f"{path}: stores are of slides, and level is tile")
        return pooled_stores(path, name, task.level, patients)
    tiles = read_tiles(path, name)
    if task.level == "tile":
        groups = _patients_of(tiles, patients, str(path)) if patients else tiles.groups
        return replace(tiles, groups=groups)
    return pooled_tiles(tiles, path, task.level, patients)


def pooled_tiles(
    tiles: FeatureTable, path: Path, level: str, patients: Mapping[str, str]
) -> FeatureTable:
    """Return slides or patients: a slide is what tiles call their group, or else their label."""
    slides = tiles.groups if tiles.groups is not None else tiles.labels
    if slides is None or (slides == "").any():
        raise TiaftError(f"{path}: tiles without a slide (group, or a folder a slide)")
    of_slide = _patients_of(tiles, patients, str(path))
    units = slides if level == "slide" else of_slide
    keys, first = np.unique(units, return_index=True)
    return feature_table(
        path,
        tiles.name,
        keys,
        means_of(tiles.values, units),
        groups=of_slide[first],
        colour=None if tiles.colour is None else means_of(tiles.colour, units),
        source=tiles.source,
    )


def pooled_stores(path: Path, name: str, level: str, patients: Mapping[str, str]) -> FeatureTable:
    """Return slides or patients of a folder of stores. Raises TiaftError for one without tiles."""
    stores = [store for store in open_stores(path, name) if len(store)]
    if not stores:
        raise TiaftError(f"{path}: no store has a tile")
    slides = np.array([store.facts["slide"]["name"] for store in stores])
    noted = {str(slide): store.facts["patient"] for slide, store in zip(slides, stores, strict=True)
             if store.facts["patient"]}  # fmt: skip
    of, notes = name_patients(slides, {**noted, **patients}, str(path))
    units = _stems(slides) if level == "slide" else of
    keys, first, inverse = np.unique(units, return_index=True, return_inverse=True)
    sums = np.zeros((len(keys), stores[0].values.shape[1]))
    shades = np.zeros((len(keys), COLOUR_WIDTH))
    for row, store in zip(inverse.tolist(), stores, strict=True):
        for values in checked_chunks(store):
            sums[row] += values.sum(axis=0, dtype=np.float64)
        if store.colour is not None:
            shades[row] += np.asarray(store.colour[:]).sum(axis=0, dtype=np.float64)
    counts = np.bincount(inverse, [len(store) for store in stores])[:, None]
    coloured = all(store.colour is not None for store in stores)
    return feature_table(
        path,
        name,
        keys,
        sums / counts,
        groups=of[first],
        colour=shades / counts if coloured else None,
        source={**source_of(stores), "notes": notes},
    )


def read_targets(task: Task) -> Targets | None:
    """Return what is to be predicted; None where the features bring it. Raises TiaftError.

    Expression is taken as it stands, as `tiaft transcriptomics expression` writes it.
    """
    if task.labels is None:
        return None
    if task.metric == PEARSON:
        genes = read_names(task.genes) if task.genes else None
        return read_labels(task.labels, "numbers", names=genes, transform="none")
    keys: Sequence[str] = KEYS if task.level == "tile" else (task.level, *KEYS)
    found = read_labels(task.labels, "classes", key_columns=keys, label=task.column)
    refuse_one_class(found)
    return found


def read_split(task: Task) -> Targets:
    """Return the part of each row, train or test, of a task that has a split. Raises TiaftError."""
    assert task.labels is not None
    keys: Sequence[str] = KEYS if task.level == "tile" else (task.level, *KEYS)
    found = read_labels(task.labels, "classes", key_columns=keys, label=task.split)
    parts = np.char.lower(found.values)
    unknown = sorted(set(parts.tolist()) - {TRAIN, TEST, ""})
    if unknown:
        raise TiaftError(
            f"{task.labels}: column {task.split} holds {some(unknown)}: {TRAIN} and {TEST} are "
            "known, and empty cells leave rows out"
        )
    return replace(found, values=parts)


def refuse_one_class(targets: Targets) -> None:
    """Raise TiaftError where there is one class, of which nothing can be told."""
    if targets.kind == "classes" and len(targets.names) < 2:
        raise TiaftError(
            f"all {len(targets.keys)} rows are of one class, {''.join(targets.names)}: a task "
            "needs two"
        )


def targets_of(task: Task, table: FeatureTable, targets: Targets | None) -> Targets:
    """Return a task's labels, by the names that its rows have."""
    if targets is None:
        return labels_of(table)
    if task.level != "slide":
        return targets
    known = set(table.keys.tolist())
    keys = np.array([k if k in known else PurePath(k).stem for k in targets.keys.tolist()])
    order = np.argsort(keys, kind="stable")
    groups = None if targets.groups is None else targets.groups[order]
    return replace(targets, keys=keys[order], values=targets.values[order], groups=groups)


def without(
    table: FeatureTable, targets: Targets, patients: Collection[str]
) -> tuple[FeatureTable, Targets]:
    """Return rows and labels of other patients than these. Raises TiaftError where none is left."""
    groups = table.keys if table.groups is None else table.groups
    keep = ~np.isin(groups, list(patients))
    if not keep.any():
        raise TiaftError(f"all {len(keep)} rows are of patients that are left out")
    stay = ~np.isin(targets.keys, table.keys[~keep])
    rows: dict[str, Any] = {name: None if (array := getattr(table, name)) is None else array[keep]
            for name in ("keys", "values", "groups", "labels", "colour")}  # fmt: skip
    groups_there = None if targets.groups is None else targets.groups[stay]
    labels = replace(
        targets, keys=targets.keys[stay], values=targets.values[stay], groups=groups_there
    )
    return replace(table, **rows), labels


def _patients_of(tiles: FeatureTable, patients: Mapping[str, str], where: str) -> np.ndarray:
    slides = tiles.groups if tiles.groups is not None else tiles.labels
    assert slides is not None
    return name_patients(slides, patients, where, certain=True)[0]


def _stems(slides: np.ndarray) -> np.ndarray:
    """Return slides' names without the suffix of a file, where they still differ so."""
    stems = np.array([PurePath(slide).stem for slide in slides.tolist()])
    return stems if len(np.unique(stems)) == len(np.unique(slides)) else slides

"""From feature stores of slides to one row a patient, patient by patient, chunk by chunk."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_plugin.engine.store import Store, chunk_slice, open_sound, read_chunk, read_store
from tiaft_plugin.errors import TiaftError, reason
from tiaft_plugin.probes.aggregate import (
    Aggregate,
    check_models,
    mean_of_tiles,
    represent,
    stack,
)
from tiaft_plugin.probes.interface import FeatureTable
from tiaft_plugin.probes.rows import feature_table
from tiaft_plugin.probes.slides import alone_note, lookup
from tiaft_plugin.progress import progress
from tiaft_plugin.tiles.words import some

_GRID = ("tile_size", "stride", "resolution", "units")


def read_patients_of_stores(
    path: Path,
    name: str,
    table: Mapping[str, str],
    aggregate: Aggregate,
    *,
    verbose: bool = False,
) -> FeatureTable:
    """Return one row a patient of the store, or of all the stores in the folder, at `path`.

    Every chunk is compared with its CRC-32 on the way. Raises TiaftError for stores that are not
    complete, of other models or settings than the rest, or of one slide.
    """
    where = f"{path} (features {name})"
    stores = open_stores(path, name)
    check_models(aggregate, where, source_of(stores)["models"])
    by_patient, notes = stores_by_patient(where, stores, table)
    empty = [patient for patient, its in by_patient.items() if not sum(map(len, its))]
    if empty:
        notes.append(f"patients without a tile are left out: {some(empty)}")
    by_patient = {patient: by_patient[patient] for patient in sorted(set(by_patient) - set(empty))}
    if not by_patient:
        raise TiaftError(f"{where}: no store has a tile")
    rows = {}
    with progress(sum(map(len, stores)), name, wanted=verbose) as bar:
        for patient, its in by_patient.items():
            rows[patient] = _row(aggregate, patient, its, bar.update)
    colours, lacking = _colours(stores, by_patient)
    return feature_table(
        path,
        name,
        np.array(list(rows)),
        stack(rows),
        colour=colours,
        source={**source_of(stores), "notes": notes + lacking},
    )


def open_stores(path: Path, name: str) -> list[Store]:
    """Return the feature store, or all the stores in the folder, at `path`: a set called `name`.

    Raises TiaftError for stores that are not complete, of other models or settings than the rest,
    or of one slide.
    """
    where = f"{path} (features {name})"
    stores = _open_all(where, _find(path, where))
    _refuse_mixes(where, stores)
    return stores


def _find(path: Path, where: str) -> list[Path]:
    if (path / "zarr.json").is_file() or path.suffix.lower() == ".zarr":
        return [path]
    found = sorted(p for p in path.glob("*.zarr") if not p.name.startswith("."))
    if not found:
        raise TiaftError(f"{where} holds no feature store (.zarr): `tiaft extract` writes them")
    return found


def _open_all(where: str, paths: Sequence[Path]) -> list[Store]:
    stores, faults = [], []
    for path in paths:
        try:
            store = read_store(path)
        except TiaftError as error:
            faults.append(reason(error))
            continue
        if store.kind != "features":
            faults.append(f"{path} holds {store.kind}, not features: `tiaft extract` writes those")
        stores.append(store)
    if faults:
        begin = "" if len(paths) == 1 else f"{len(faults)} of {len(paths)} stores cannot be used: "
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise TiaftError(f"{where}: {begin}{'; '.join(faults[:3])}{more}")
    return stores


def _refuse_mixes(where: str, stores: Sequence[Store]) -> None:
    """Raise TiaftError where stores differ in what makes their features comparable."""
    for what, of in _COMPARED.items():
        kinds: dict[str, list[str]] = {}
        for store in stores:
            kinds.setdefault(of(store), []).append(store.path.name)
        if len(kinds) > 1:
            listed = "; ".join(f"{kind[:60]}: {some(names, 3)}" for kind, names in kinds.items())
            raise TiaftError(
                f"{where}: stores of different {what} make no feature set ({listed}): "
                "put them into folders of their own"
            )
    by_slide: dict[str, list[str]] = {}
    for store in stores:
        by_slide.setdefault(store.facts["slide"]["fingerprint"], []).append(store.path.name)
    twice = [" and ".join(names) for names in by_slide.values() if len(names) > 1]
    if twice:
        raise TiaftError(f"{where}: stores of the very same slide: {some(twice)}: remove one")


def _grid_of(store: Store) -> str:
    grid = store.facts["grid"]
    size, stride = ("×".join(map(str, grid[key])) for key in ("tile_size", "stride"))
    return f"{size} px every {stride} px at {grid['resolution']} {grid['units']}"


_COMPARED: dict[str, Callable[[Store], str]] = {
    "models": lambda store: f"SHA-256 {store.facts['model']['sha256'][:16]}",
    "widths": lambda store: f"{store.values.shape[1]} features",
    "grids": _grid_of,
    "stain normalisations": lambda store: json.dumps(store.facts["stain_normalisation"]),
    "precisions": lambda store: str(store.facts["precision"]),
}


def stores_by_patient(
    where: str, stores: Sequence[Store], table: Mapping[str, str]
) -> tuple[dict[str, list[Store]], list[str]]:
    """Return each patient's stores, and sentences on slides that lack a patient, or a store.

    `table` maps slides (file name or stem) to patients; a slide that nobody names is its own.
    Raises TiaftError, which begins with `where`, where store and table contradict each other.
    """
    found: dict[str, list[Store]] = {}
    alone: dict[str, list[Store]] = {}
    for store in stores:
        slide, noted = store.facts["slide"]["name"], store.facts["patient"]
        other = lookup(slide, table)
        if noted and other and noted != other:
            raise TiaftError(
                f"{where}: slide {slide} is of patient {noted} in its store, but of {other} in the "
                "table of patients: correct the table, or extract the slide anew"
            )
        if noted or other:
            found.setdefault(noted or other, []).append(store)
        else:
            alone.setdefault(Path(slide).stem, []).append(store)
    same = [stem for stem, its in alone.items() if stem in found or len(its) > 1]
    if same:
        raise TiaftError(
            f"{where}: slides without a patient have the name of another slide or patient: "
            f"{some(same)}: name their patients in a table, slide,patient"
        )
    notes = [alone_note(sorted(alone))] if alone else []
    return {**found, **alone}, notes + _left_over(stores, table)


def _left_over(stores: Sequence[Store], table: Mapping[str, str]) -> list[str]:
    """Return a sentence on slides of the table that have no store."""
    there = {store.facts["slide"]["name"] for store in stores}
    there |= {Path(slide).stem for slide in there}
    lacking = sorted(slide for slide in table if not {slide, Path(slide).stem} & there)
    if not lacking:
        return []
    return [f"{len(lacking)} of {len(table)} slides of the table have no store: {some(lacking)}"]


def _row(
    aggregate: Aggregate, patient: str, stores: Sequence[Store], done: Callable[[int], Any]
) -> np.ndarray:
    """Return a patient's row (E,); for the mean, no more than a chunk is held at a time."""
    if aggregate is mean_of_tiles:
        total = np.zeros(stores[0].values.shape[1])
        for store in stores:
            for values in checked_chunks(store):
                total += values.sum(axis=0, dtype=np.float64)
                done(len(values))
        return total / sum(map(len, stores))
    features, slides = [], []
    for store in stores:
        for values in checked_chunks(store):
            features.append(values)
            slides += [store.facts["slide"]["name"]] * len(values)
            done(len(values))
    return represent(aggregate, patient, np.concatenate(features), np.array(slides))


def checked_chunks(store: Store) -> Iterator[np.ndarray]:
    """Give (n, D) float32 chunk by chunk. Raises TiaftError for what is not what was written."""
    group = open_sound(store.path)
    for number in range(group["chunk_crc32"].shape[0]):
        rows = chunk_slice(number, store.facts["chunk_rows"])
        values = read_chunk(group, number)
        if values is None:
            raise TiaftError(
                f"{store.path} is damaged: chunk {number} is not what was written; run the same "
                "`tiaft extract` again, it writes that chunk anew"
            )
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1)) + (rows.start or 0)
        if len(bad):
            raise TiaftError(
                f"{store.path}: features are NaN or infinite in {len(bad)} tiles of chunk "
                f"{number}, rows {some([str(row) for row in bad])}: extract the slide anew"
            )
        yield values


def _colours(
    stores: Sequence[Store], by_patient: Mapping[str, Sequence[Store]]
) -> tuple[np.ndarray | None, list[str]]:
    """Return patients' mean colours (P, B), where every store has them."""
    without = [store.path.name for store in stores if store.colour is None]
    if len(without) == len(stores):
        return None, []
    if without:
        return None, [
            f"{len(without)} of {len(stores)} stores have no colour, so that none is used: "
            f"{some(without)}"
        ]
    rows = []
    for its in by_patient.values():
        tiles = [np.asarray(store.colour[:]) for store in its if store.colour is not None]
        rows.append(np.concatenate(tiles).mean(axis=0, dtype=np.float64))
    return np.stack(rows), []


def source_of(stores: Sequence[Store]) -> dict[str, Any]:
    """Return what is recorded: the hash is of all stores' own, whatever they are called."""
    digests = []
    for store in stores:
        written = np.asarray(open_sound(store.path)["chunk_crc32"][:]).tolist()
        facts = [store.facts["settings_sha256"], store.facts["tiles_sha256"], written]
        digests.append(hashlib.sha256(json.dumps(facts).encode()).hexdigest())
    model = min((store.facts["model"] for store in stores), key=lambda model: model["name"])
    return {
        "format": "zarr",
        "files": sorted(store.path.name for store in stores),
        "sha256": hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest(),
        "models": [{key: model[key] for key in ("name", "sha256")}],
        "slides": len(stores),
        "tiles": sum(map(len, stores)),
    }

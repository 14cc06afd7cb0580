"""Slides with expression out of a folder of stores or tiles, and an expression table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_extensions.transcriptomics.expression.pairs import match_slides
from tiaft_extensions.transcriptomics.expression.tables import read_expression_table
from tiaft_plugin.engine.jobs import read_patients
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.finetune.interface import Inputs, Samples
from tiaft_plugin.reproduce.genes import read_genes
from tiaft_plugin.reproduce.leftout import LeftOut
from tiaft_plugin.tiles.words import some


@dataclass(frozen=True)
class Slides:
    """Slides by name: `files` are their tiles ("bags") or feature stores ("slides")."""

    root: Path
    inputs: Inputs
    files: dict[str, tuple[Path, ...]]
    patients: dict[str, str]
    tile_size: int | None = None
    mpp: float | None = None


@dataclass(frozen=True)
class Prepared:
    """Samples to learn from and to measure on, what was left out, and lines for people."""

    inputs: Inputs
    train: Samples
    val: Samples | None
    left: LeftOut
    lines: tuple[str, ...]


def read_samples(
    path: Path,
    table: Path,
    *,
    patients: Path | None = None,
    genes: Path | None = None,
    val_share: float = 0.2,
    seed: int = 0,
    mpp: float | None = None,
    **told: Any,
) -> Prepared:
    """Return slides of `path` that have expression in `table`, split by patient.

    `path` is a folder of feature stores, or tiles whose `group`, or folder, is their slide.
    `patients` is a table slide,patient; `told` goes to `read_expression_table`. Raises TiaftError.
    """
    left = LeftOut()
    slides = find_slides(path, mpp)
    of = {**slides.patients, **(read_patients(patients) if patients else {})}
    names = list(slides.files)
    found = read_expression_table(
        table,
        genes=read_genes(genes) if genes else None,
        known={*names, *(Path(name).stem for name in names), *of.values()},
        left=left,
        **told,
    )
    pairs = match_slides(names, found, patients=of, left=left)
    whole = Samples(
        root=slides.root,
        files=tuple(slides.files[name] for name in pairs.slides.tolist()),
        targets=tuple(map(tuple, found.values[pairs.rows].tolist())),
        target_names=found.genes,
        groups=tuple(pairs.patients.tolist()),
        tile_size=slides.tile_size,
        mpp=slides.mpp,
    )
    train, val = split_samples(whole, val_share, seed)
    lines = (
        f"{len(found.samples)} samples and {len(found.genes)} genes; the values are {found.unit}",
        *found.notes,
        f"{len(pairs.slides)} of {len(names)} slides have a sample, of "
        f"{len(set(pairs.patients.tolist()))} patients",
        f"{len(train.files)} slides to learn from, {len(val.files) if val else 0} to measure on",
    )
    return Prepared(slides.inputs, train, val, left, lines)


def find_slides(path: Path, mpp: float | None = None) -> Slides:
    """Return the slides of a folder of feature stores, or of tiles. Raises TiaftError."""
    if path.is_dir() and (path.suffix == ".zarr" or any(path.glob("*.zarr"))):
        return _of_stores(path, mpp)
    from tiaft_plugin.tiles.images import check_images
    from tiaft_plugin.tiles.listing import list_tiles

    root, rows = list_tiles(path)
    files: dict[str, list[Path]] = {}
    for row in rows:
        files.setdefault(row.group or row.label, []).append(row.file)
    size = check_images([row.file for row in rows], root)
    sizes = {row.mpp for row in rows if row.mpp is not None}
    if mpp is None and len(sizes) > 1:
        raise TiaftError(f"{root}: tiles of several µm/px ({some(list(map(str, sizes)))})")
    mpp = mpp or next(iter(sizes), None)
    return Slides(root, "bags", {n: tuple(its) for n, its in sorted(files.items())}, {}, size, mpp)


def _of_stores(path: Path, mpp: float | None) -> Slides:
    from tiaft_plugin.probes.stores import open_stores

    stores = {store.facts["slide"]["name"]: store for store in open_stores(path, "tune")}
    empty = [name for name, store in stores.items() if not len(store)]
    if empty:
        raise TiaftError(f"{path}: stores without a tile: {some(empty)}: remove them")
    files: dict[str, tuple[Path, ...]] = {n: (stores[n].path,) for n in sorted(stores)}
    patients = {n: its.facts["patient"] for n, its in stores.items() if its.facts["patient"]}
    grid = next(iter(stores.values())).facts["grid"]
    if mpp is None and grid["units"] == "mpp":
        mpp = float(grid["resolution"])
    return Slides(path, "slides", files, patients, int(np.ravel(grid["tile_size"])[0]), mpp)


def split_samples(whole: Samples, share: float, seed: int) -> tuple[Samples, Samples | None]:
    """Return samples to learn from, and a share of the patients to measure on; None for 0.

    Raises TiaftError where either would be without a patient.
    """
    if share == 0:
        return whole, None
    patients = sorted({str(group) for group in whole.groups})
    held = max(1, round(share * len(patients)))
    if held >= len(patients):
        raise TiaftError(f"{len(patients)} patients cannot be split: give --val-share 0")
    chosen = np.random.default_rng((seed, 2)).choice(len(patients), held, replace=False)
    val = {patients[number] for number in chosen.tolist()}
    places = range(len(whole.files))
    return (
        _pick(whole, [n for n in places if whole.groups[n] not in val]),
        _pick(whole, [n for n in places if whole.groups[n] in val]),
    )


def _pick(whole: Samples, places: Sequence[int]) -> Samples:
    from dataclasses import replace

    return replace(
        whole,
        files=tuple(whole.files[n] for n in places),
        targets=tuple(whole.targets[n] for n in places),
        groups=tuple(whole.groups[n] for n in places),
    )

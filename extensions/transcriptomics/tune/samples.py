"""Slides with expression out of a folder of stores or tiles, and an expression table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_extensions.transcriptomics.expression.pairs import match_slides
from tiaft_extensions.transcriptomics.expression.tables import read_expression_table
from tiaft_plugin.engine.jobs import read_patients
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_csv
from tiaft_plugin.finetune.interface import FinetuneJob, Inputs, Samples
from tiaft_plugin.reproduce.genes import read_genes
from tiaft_plugin.reproduce.leftout import LeftOut
from tiaft_plugin.tiles.words import some

SETS = ("train", "val", "test")
SLIDES, UNMATCHED = "slides.csv", "unmatched.csv"
_FEW = 2  # patients to learn from, or to choose by: nobody can be told from no other
FEWEST = 3  # patients to test on: of fewer there is no correlation


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
    """Samples to learn from, to choose an epoch by and to test on; what was left out; lines.

    `slides` are the names of all of them: (slide, patient, set).
    """

    inputs: Inputs
    train: Samples
    val: Samples | None
    test: Samples | None
    slides: tuple[tuple[str, str, str], ...]
    left: LeftOut
    lines: tuple[str, ...]

    def write(self, out: Path) -> None:
        """Write which slide is whose and in which set, and what has no part in any."""
        write_csv(out / SLIDES, ("slide", "patient", "set"), self.slides)
        self.left.write(out / UNMATCHED)


@dataclass(frozen=True, kw_only=True)
class NamedJob(FinetuneJob):
    """A job that knows its slides by name: its run writes the tables of `prepared`, too."""

    prepared: Prepared


def read_samples(
    path: Path,
    table: Path,
    *,
    patients: Path | None = None,
    genes: Path | None = None,
    val_share: float = 0.15,
    test_share: float = 0.2,
    seed: int = 0,
    mpp: float | None = None,
    **told: Any,
) -> Prepared:
    """Return slides of `path` that have expression in `table`, split by patient into three.

    The shares are of patients. `path` is a folder of feature stores, or tiles whose `group`, or
    folder, is their slide. `patients` is a table slide,patient; `told` goes to
    `read_expression_table`. Raises TiaftError.
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
    sets = split_patients(pairs.patients.tolist(), val_share, test_share, seed)
    picked = {name: _pick(whole, sets == name) for name in SETS if (sets == name).any()}
    told = {"train": "learn from", "val": "choose the epoch by", "test": "test on"}
    counts = (f"{len(its.files)} to {told[name]}" for name, its in picked.items())
    lines = (
        f"{len(found.samples)} samples and {len(found.genes)} genes; the values are {found.unit}",
        *found.notes,
        f"{len(pairs.slides)} of {len(names)} slides have a sample, of "
        f"{len(set(pairs.patients.tolist()))} patients",
        f"slides: {', '.join(counts)}",
    )
    rows = zip(pairs.slides.tolist(), pairs.patients.tolist(), sets.tolist(), strict=True)
    return Prepared(
        slides.inputs,
        picked["train"],
        picked.get("val"),
        picked.get("test"),
        tuple(rows),
        left,
        lines,
    )


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


def split_patients(
    patients: Sequence[str], val_share: float, test_share: float, seed: int
) -> np.ndarray:
    """Return "train", "val" or "test" for each slide (S,), all of a patient the same.

    A share above 0 is two patients at least, of the test three. Raises TiaftError where fewer than
    two patients would be left to learn from.
    """
    names = sorted(set(patients))
    counts = {"test": max(FEWEST, round(test_share * len(names))) if test_share else 0}
    counts["val"] = max(_FEW, round(val_share * len(names))) if val_share else 0
    if len(names) - sum(counts.values()) < _FEW:
        raise TiaftError(
            f"{len(names)} patients are too few to learn from {_FEW}, choose by {counts['val']} "
            f"and test on {counts['test']}: give --test-share 0, and perhaps --val-share 0"
        )
    order = np.random.default_rng((seed, 2)).permutation(len(names)).tolist()
    sets = ["test"] * counts["test"] + ["val"] * counts["val"]
    chosen = {names[number]: name for number, name in zip(order, sets, strict=False)}
    return np.array([chosen.get(patient, "train") for patient in patients])


def _pick(whole: Samples, wanted: np.ndarray) -> Samples:
    places = np.flatnonzero(wanted).tolist()
    return replace(
        whole,
        files=tuple(whole.files[n] for n in places),
        targets=tuple(whole.targets[n] for n in places),
        groups=tuple(whole.groups[n] for n in places),
    )

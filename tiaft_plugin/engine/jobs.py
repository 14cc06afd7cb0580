"""The jobs of a run, from what a person names: slides, masks, patients."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tiaft_plugin.engine.parts import Part
from tiaft_plugin.engine.timing import Timing
from tiaft_plugin.errors import TiaftError

if TYPE_CHECKING:
    from tiatoolbox.wsicore import WSIReader

MASK_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".geojson", ".json")


@dataclass(frozen=True)
class SlideJob:
    """A slide to work on.

    `mask` is an image file, an (h, w) array, a function that makes one for an open slide (of the
    file in its `path`, if it has one), or None for TIAToolbox's own. `mpp` (µm/px at baseline)
    serves where the file has none; `patient` is noted in the store.
    """

    slide: Path
    mask: Path | np.ndarray | Callable[["WSIReader"], np.ndarray] | None = None
    mpp: float | None = None
    patient: str | None = None
    reader: "WSIReader | None" = None  # where the slide is open already
    part: Part | None = None  # of a store that was begun


@dataclass(frozen=True)
class SlideResult:
    """What became of a slide: `status` is "done", "exists" or "failed" (then with a reason).

    `note` says what is to be known of one that did not fail, `speed` how fast it was computed, and
    what bounded that. Where a large one is left to several workers, it is "begun", and `parts` are
    the chunks that each is to make.
    """

    slide: Path
    status: str
    store: Path | None = None
    tiles: int = 0
    seconds: float = 0.0
    reason: str = ""
    note: str = ""
    speed: str = ""
    parts: tuple[range, ...] = ()
    timing: Timing | None = None  # of a part


def match_masks(slides: Sequence[Path], masks: Sequence[Path]) -> dict[Path, Path]:
    """Return a mask file for each slide: the one of its name, or the only one for the only slide.

    `masks` are files or folders of files. Raises TiaftError for a slide without a mask: it would
    be worked on whole, or not at all, and either could go unseen.
    """
    files = [file for mask in masks for file in _files_in(mask)]
    if len(slides) == 1 and len(files) == 1:
        return {slides[0]: files[0]}
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        by_stem.setdefault(file.stem, []).append(file)
    matched = {}
    for slide in slides:
        found = by_stem.get(slide.stem, [])
        if len(found) != 1:
            names = " and ".join(map(str, found))
            what = f"has several masks ({names})" if found else "has no mask of its name"
            raise TiaftError(f"{slide} {what}: give one {slide.stem}.png or .geojson in --masks")
        matched[slide] = found[0]
    return matched


def read_patients(path: Path) -> dict[str, str]:
    """Read a table with columns slide and patient: the patient of each slide's name or stem."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows, names = list(table), list(table.fieldnames or ())
        if any(names.count(name) != 1 for name in ("slide", "patient")):
            raise ValueError("columns")
        pairs = [(Path(row["slide"]).name, row["patient"].strip()) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise TiaftError(f"{path}: a CSV table with columns slide and patient expected") from error
    if not pairs:
        raise TiaftError(f"{path} names no patient: it has no rows but its header")
    patients: dict[str, str] = {}
    for slide, patient in pairs:
        if not patient:
            raise TiaftError(f"{path}: {slide} has no patient")
        if patients.setdefault(slide, patient) != patient:
            raise TiaftError(f"{path}: {slide} has two patients, {patients[slide]} and {patient}")
    return patients


def patient_of(slide: Path, patients: dict[str, str]) -> str | None:
    """Return a slide's patient, or None without a table. Raises TiaftError if it is not in it."""
    if not patients:
        return None
    for key in (slide.name, slide.stem):
        if key in patients:
            return patients[key]
    raise TiaftError(f"{slide.name} is not in the table of patients: add it")


def _files_in(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.suffix.lower() in MASK_SUFFIXES)
    if not path.is_file():
        raise TiaftError(f"{path}: no such mask")
    return [path]

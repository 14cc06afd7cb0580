"""A GDC manifest: which of its files are frozen slides, and whose."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.reproduce.barcodes import DIAGNOSTIC, FROZEN, kind_of, read_slide_name
from tiaft_plugin.reproduce.leftout import LeftOut

COLUMNS = ("id", "filename")
SUFFIX = ".svs"


class Slide(NamedTuple):
    """A slide file of a manifest; `id` names its folder after a download with gdc-client."""

    file: str
    patient: str
    id: str
    md5: str
    size: str


def read_manifest(path: Path) -> list[dict[str, str]]:
    """Read a GDC manifest: tab-separated, with columns id and filename at least.

    Raises TiaftError for anything else.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t")
            columns = reader.fieldnames or []
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TiaftError(f"{path} cannot be read as a GDC manifest: {error}") from error
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise TiaftError(
            f"{path} is no GDC manifest: it has no column {' and '.join(missing)}; one has "
            "id, filename, md5, size and state, separated by tabs"
        )
    cut = next((n for n, row in enumerate(rows, 2) if not row["id"] or not row["filename"]), None)
    if cut is not None:
        raise TiaftError(f"{path}, line {cut}: id or filename is empty: download it again")
    if not rows:
        raise TiaftError(f"{path} lists no file")
    return rows


def choose_slides(
    rows: Sequence[dict[str, str]], sample_types: Sequence[str], left: LeftOut
) -> list[Slide]:
    """Return the frozen slides of the wanted sample types, sorted by name; note all others."""
    slides: dict[str, Slide] = {}
    for row in rows:
        file = row["filename"]
        why = "listed twice" if file in slides else _unfit(file, sample_types)
        if why:
            left.add("slide", [file], why)
            continue
        told = read_slide_name(file)
        assert told is not None  # else it was unfit
        slides[file] = Slide(
            file, told.patient, row["id"], row.get("md5") or "", row.get("size") or ""
        )
    return [slides[file] for file in sorted(slides)]


def _unfit(file: str, sample_types: Sequence[str]) -> str:
    """Return why a file is no slide of the cohort, or an empty text."""
    if not file.lower().endswith(SUFFIX):
        return f"no slide ({SUFFIX})"
    told = read_slide_name(file)
    if told is None:
        return "its name is no TCGA slide's"
    if told.cut == DIAGNOSTIC:
        return "diagnostic (DX), not frozen"
    if told.cut not in FROZEN:
        return f"section {told.cut}, not one of {', '.join(FROZEN)}"
    if told.type not in sample_types:
        return f"sample type {kind_of(told.type)}"
    return ""

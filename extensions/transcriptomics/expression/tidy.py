"""The table that probes and fine-tuning read: a row a patient, ln(TPM + 1)."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tiaft_extensions.transcriptomics.expression.pairs import Pairs, match_slides
from tiaft_extensions.transcriptomics.expression.tables import read_expression_table
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_atomically, write_csv
from tiaft_plugin.reproduce.leftout import COLUMNS, LeftOut

EXPRESSION, SLIDES, LEFT_OUT = "expression.csv", "slides.csv", "left_out.csv"


def write_tidy(
    table: Path,
    out: Path,
    *,
    slides: Path | None = None,
    patients: Path | None = None,
    genes: Path | None = None,
    unit: str = "",
    genes_in: str = "",
    layer: str = "",
) -> list[str]:
    """Write ``left_out.csv``, with slides ``slides.csv``, and ``expression.csv``, the last.

    Killed before that, the same call finds what it would write and writes the rest. Returns what
    was recognised, in lines. Without slides a row is a sample. Raises TiaftError.
    """
    from tiaft_plugin.engine.jobs import read_patients
    from tiaft_plugin.reproduce.genes import read_genes

    _refuse_other(out / EXPRESSION)
    left = LeftOut()
    names = slide_names(slides) if slides else []
    of = read_patients(patients) if patients else {}
    found = read_expression_table(
        table,
        unit=unit,
        genes_in=genes_in,
        genes=read_genes(genes) if genes else None,
        known={*names, *(Path(name).stem for name in names), *of.values()},
        layer=layer,
        left=left,
    )
    source = found.source or {}
    told = [
        f"{len(found.samples)} samples and {len(found.genes)} genes, in {source.get('genes in')}",
        f"the values are {found.unit}" + ("" if source.get("unit told") else ", as they show"),
        *found.notes,
    ]
    keys, rows = list(found.samples), np.arange(len(found.samples))
    beside: dict[str, str | None] = {SLIDES: None}
    if slides:
        pairs = match_slides(names, found, patients=of, left=left)
        told.append(f"{len(pairs.slides)} of {len(names)} slides have a sample")
        keys, rows = _by_patient(pairs, left)
        beside[SLIDES] = _text(("slide", "patient"), zip(pairs.slides, pairs.patients, strict=True))
    beside[LEFT_OUT] = _text(COLUMNS, left.lines)
    for name, text in beside.items():
        _refuse_other(out / name, text)
    for name, text in beside.items():
        if text is not None:
            with write_atomically(out / name) as part:
                part.write_text(text, encoding="utf-8", newline="")
    values = found.values[rows]
    lines = ([key, *map(repr, row)] for key, row in zip(keys, values.tolist(), strict=True))
    write_csv(out / EXPRESSION, ("patient", *found.genes), lines)
    return [*told, *left.summary()]


def slide_names(path: Path) -> list[str]:
    """Return names of slides: of feature stores or files in a folder, or the lines of a file."""
    if path.is_dir():
        names = sorted(p.name.removesuffix(".zarr") for p in path.iterdir() if p.name[0] != ".")
    else:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    found = [name for name in names if name]
    if not found:
        raise TiaftError(f"{path} names no slide")
    return found


def _by_patient(pairs: Pairs, left: LeftOut) -> tuple[list[str], np.ndarray]:
    """Return patients and the row of each: of several samples, that of the first slide."""
    rows: dict[str, int] = {}
    for patient, slide, row in zip(
        pairs.patients.tolist(), pairs.slides.tolist(), pairs.rows.tolist(), strict=True
    ):
        if rows.setdefault(patient, row) != row:
            left.add("slide", [slide], "expression.csv has another sample of its patient")
    return sorted(rows), np.array([rows[patient] for patient in sorted(rows)])


def _refuse_other(path: Path, text: str | None = None) -> None:
    """Raise TiaftError for a file, unless it has this text: an earlier run may have left it."""
    if path.exists() and (text is None or path.read_bytes() != text.encode()):
        raise TiaftError(f"{path} exists already: choose another folder for --out, or remove it")


def _text(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()

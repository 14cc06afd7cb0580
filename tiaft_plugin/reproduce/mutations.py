"""Mutations: a MAF becomes a table of 0 and 1, patient by gene."""

import csv
import gzip
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.reproduce.barcodes import kind_of, read_sample
from tiaft_plugin.reproduce.leftout import LeftOut

COLUMNS = ("Hugo_Symbol", "Tumor_Sample_Barcode", "Variant_Classification")
# Those that change the protein, as maftools counts them.
COUNTED = (
    "Missense_Mutation", "Nonsense_Mutation", "Nonstop_Mutation", "Translation_Start_Site",
    "Splice_Site", "Frame_Shift_Del", "Frame_Shift_Ins", "In_Frame_Del", "In_Frame_Ins",
)  # fmt: skip
NOT_COUNTED = (
    "Silent", "Intron", "IGR", "RNA", "lincRNA", "3'UTR", "5'UTR", "3'Flank", "5'Flank",
    "Splice_Region", "Targeted_Region", "De_novo_Start_InFrame", "De_novo_Start_OutOfFrame",
)  # fmt: skip


def read_mutations(
    paths: Sequence[Path],
    genes: Sequence[str],
    sample_types: Sequence[str],
    left: LeftOut,
    *,
    sequenced: Sequence[str] | None = None,
) -> dict[str, dict[str, int]]:
    """Return 1 or 0 for each sequenced patient (sorted) and each of `genes`.

    A patient without any row may have no mutation, or may never have been sequenced: such a one
    is in the table only if `sequenced` names it. Notes in `left` what is not counted. Raises
    TiaftError.
    """
    mutated: dict[str, set[str]] = {name: set() for name in genes}
    patients = set(sequenced or ())
    kinds: Counter[str] = Counter()
    others: dict[str, str] = {}  # sample: its type
    for path in paths:
        for gene, barcode, kind in _rows(path):
            sample = read_sample(barcode)
            if sample is None:
                raise TiaftError(f"{path}: {barcode!r} is no TCGA barcode")
            if sample.type and sample.type not in sample_types:
                others[barcode] = sample.type
                continue
            patients.add(sample.patient)
            if kind not in COUNTED:
                kinds[kind] += 1
            elif gene in mutated:
                mutated[gene].add(sample.patient)
    _note(kinds, others, left)
    names = [gene for gene in genes if 0 < len(mutated[gene]) < len(patients)]
    left.add("mutated gene", [g for g in genes if not mutated[g]], "mutated in no patient")
    left.add(
        "mutated gene",
        [g for g in genes if mutated[g] and len(mutated[g]) == len(patients)],
        "mutated in every patient",
    )
    return {p: {gene: int(p in mutated[gene]) for gene in names} for p in sorted(patients)}


def read_sequenced(path: Path) -> list[str]:
    """Read a list of sequenced samples or patients, one barcode a line. Raises TiaftError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise TiaftError(f"{path} cannot be read: {error}") from error
    samples = [read_sample(line) for line in lines]
    wrong = [line for line, sample in zip(lines, samples, strict=True) if sample is None]
    if wrong or not lines:
        raise TiaftError(f"{path}: one TCGA barcode a line expected, not {wrong[:1] or 'nothing'}")
    return sorted({sample.patient for sample in samples if sample})


def _note(kinds: Counter[str], others: dict[str, str], left: LeftOut) -> None:
    for kind, number in sorted(kinds.items()):
        known = kind in NOT_COUNTED
        why = "not counted as a mutation" if known else "an unknown classification, not counted"
        left.add("variants", [f"{kind or '(empty)'}: {number} rows"], why)
    for barcode, kind in sorted(others.items()):
        left.add("sample", [barcode], f"in the MAF, sample type {kind_of(kind)}")


def _rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Give gene, barcode and classification of each row of a MAF. Raises TiaftError."""
    try:
        with _open(path) as file:
            lines = (line for line in file if not line.startswith("#"))
            reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            header = next(reader, [])
            missing = [name for name in COLUMNS if name not in header]
            if missing:
                raise TiaftError(f"{path} is no MAF: it has no column {', '.join(missing)}")
            places = [header.index(name) for name in COLUMNS]
            for number, row in enumerate(reader, 1):
                if len(row) <= max(places):
                    raise TiaftError(f"{path}: row {number} of the table is cut short")
                gene, barcode, kind = (row[place].strip() for place in places)
                yield gene, barcode, kind
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise TiaftError(f"{path} cannot be read as a MAF: {error}") from error


def _open(path: Path) -> Any:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return (gzip.open if packed else open)(path, "rt", encoding="utf-8-sig", newline="")

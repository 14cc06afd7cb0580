"""Expression tables as TCGA's users have them: samples × genes out of any of them."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_extensions.transcriptomics.expression.sheet import (
    HEADER,
    Sheet,
    Texts,
    read_sheet,
    repeated,
)
from tiaft_extensions.transcriptomics.expression.units import log1p_tpm, recognise
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import sha256_of
from tiaft_plugin.reproduce.barcodes import read_sample
from tiaft_plugin.reproduce.genes import plain_name
from tiaft_plugin.reproduce.leftout import LeftOut
from tiaft_plugin.tiles.words import some

_GENE_COLUMN = re.compile(r"(hgnc|hugo|gene|ensembl|entrez|symbol)([ _.]?(gene|symbol|id|name))*")
_SAMPLE_COLUMN = re.compile(r"(sample|patient|case|slide|barcode|tcga)([ _.]?(id|name|barcode))*")
_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{5,}(\.\d+)?(_PAR_Y)?")
# Rows of STAR and HTSeq that count reads of no gene.
_NO_GENE = re.compile(r"N_(unmapped|multimapping|noFeature|ambiguous)|__\w+|\?|")
_EXCEL = re.compile(r"\d{1,2}-(mar|sep|sept|oct|dec)\w*|(mar|sep|oct|dec)\w*-\d+", re.I)


@dataclass(frozen=True)
class Expression:
    """Samples × genes: `values` (S, G) float64, ln(TPM + 1) or what `unit` allows instead.

    `samples` and `genes` are unique names in the table's order, genes without Ensembl version;
    `unit` is what the table held. `notes` are sentences for people, `source` is what is recorded.
    """

    samples: tuple[str, ...]
    genes: tuple[str, ...]
    values: np.ndarray
    unit: str
    notes: tuple[str, ...] = ()
    source: Mapping[str, Any] | None = None


def read_expression_table(
    path: Path | str,
    *,
    unit: str = "",
    genes_in: str = "",
    genes: Sequence[str] | None = None,
    known: Collection[str] = (),
    layer: str = "",
    left: LeftOut | None = None,
) -> Expression:
    """Read a table of genes × samples or samples × genes.

    `genes_in` ("rows" or "columns") and `unit` (one of ``units.UNITS``) are recognised where they
    are not told, and refused where the table does not show them. `genes` picks genes by symbol or
    Ensembl id; `known` are names of patients, samples or slides that help to tell which names are
    samples'. `layer` is AnnData's. `left` gets what is left out, with reasons: rows that are no
    gene, second rows of a gene, genes with missing values. Raises TiaftError.
    """
    path = Path(path)
    left = left if left is not None else LeftOut()
    if genes_in not in ("", "rows", "columns"):
        raise TiaftError(f"genes stand in rows or columns, not in {genes_in!r}")
    sheet = read_sheet(path, layer)
    side = genes_in or sheet.genes_in or find_genes(sheet, known)
    values = sheet.values.T if side == "rows" else sheet.values
    of_genes, of_samples = (
        (sheet.rows, sheet.columns) if side == "rows" else (sheet.columns, sheet.rows)
    )
    samples = _pick_samples(path, of_samples, known)
    called, names = _pick_genes(of_genes, genes)
    values, names = _each_once(path, values, names, left)
    values, names = _finite(path, values, names, left)
    found = unit or recognise(values)
    if not found:
        raise TiaftError(
            f"{path} does not show whether it holds TPM, FPKM, counts or logarithms "
            f"({values.min():.4g} to {values.max():.4g}): say which, --unit tpm and the like"
        )
    values, notes = log1p_tpm(path, values, names, found)
    values, names = _wanted(path, values, names, genes, left)
    dates = [name for name in names if _EXCEL.fullmatch(name)]
    if dates:
        notes.append(f"names look like genes that Excel made dates of: {some(dates)}")
    source = {
        "files": [path.name],
        "sha256": sha256_of(path),
        "genes in": side,
        "gene names": called,
        "unit": found,
        "unit told": bool(unit),
    }
    return Expression(samples, tuple(names), values, found, tuple(notes), source)


def find_genes(sheet: Sheet, known: Collection[str] = ()) -> str:
    """Return the side that genes stand on, "rows" or "columns".

    TCGA barcodes are samples, and so are `known` names; Ensembl ids are genes; then it is told by
    how columns are called. Raises TiaftError where nothing tells, or both sides look alike.
    """
    tests = (
        (_barcodes, True, "TCGA barcodes"),
        (lambda texts: _among(texts, set(known)), True, "names of slides or patients"),
        (_ensembl, False, "Ensembl ids"),
    )
    for share, are_samples, what in tests:
        rows = max((share(texts) for texts in sheet.rows.values()), default=0)
        columns = max((share(texts) for texts in sheet.columns.values()), default=0)
        if rows > 0.5 and columns > 0.5:
            raise TiaftError(f"{sheet.path} has {what} on both sides: genes belong on one of them")
        if max(rows, columns) > 0.5:
            return "rows" if (columns > rows) == are_samples else "columns"
    for name in sheet.rows:
        if _GENE_COLUMN.fullmatch(name.lower()):
            return "rows"
        if _SAMPLE_COLUMN.fullmatch(name.lower()):
            return "columns"
    raise TiaftError(
        f"{sheet.path} does not show whether genes stand in rows or columns: say --genes-in rows, "
        "or --genes-in columns"
    )


def _barcodes(texts: np.ndarray) -> float:
    return sum(read_sample(text) is not None for text in texts.tolist()) / max(len(texts), 1)


def _among(texts: np.ndarray, known: set[str]) -> float:
    return sum(text in known for text in texts.tolist()) / max(len(texts), 1)


def _ensembl(texts: np.ndarray) -> float:
    return sum(bool(_ENSEMBL.fullmatch(text)) for text in texts.tolist()) / max(len(texts), 1)


def _pick_samples(path: Path, names: Texts, known: Collection[str]) -> tuple[str, ...]:
    """Return the samples' names, by the column that names known ones, barcodes, or says so."""
    wanted = set(known)

    def rank(name: str) -> tuple[float, float, bool]:
        called = name in (HEADER, "obs") or _SAMPLE_COLUMN.fullmatch(name.lower()) is not None
        return _among(names[name], wanted), _barcodes(names[name]), called

    best = max(names, key=rank)
    samples = names[best].tolist()
    twice = repeated(samples)
    if "" in samples:
        raise TiaftError(f"{path}: {samples.count('')} samples have no name (column {best})")
    if twice:
        raise TiaftError(
            f"{path}: samples stand more than once (column {best}): {some(twice)}: keep one each"
        )
    return tuple(samples)


def _pick_genes(names: Texts, wanted: Sequence[str] | None) -> tuple[str, list[str]]:
    """Return what the genes' names are called, and the names, without versions."""
    plain = {called: [plain_name(text) for text in texts.tolist()]
             for called, texts in names.items()}  # fmt: skip
    if wanted is not None:
        chosen = {plain_name(name) for name in wanted}
        best = max(plain, key=lambda called: len(chosen & set(plain[called])))
    else:
        best = max(plain, key=lambda called: len(set(plain[called])))
    return best, plain[best]


def _each_once(
    path: Path, values: np.ndarray, names: list[str], left: LeftOut
) -> tuple[np.ndarray, list[str]]:
    keep, seen = [], set[str]()
    for place, name in enumerate(names):
        if _NO_GENE.fullmatch(name):
            left.add("gene", [name or "(no name)"], "a row of the table that is no gene")
        elif name in seen:
            left.add("gene", [name], "a second row of that name in the expression table")
        else:
            seen.add(name)
            keep.append(place)
    if not keep:
        raise TiaftError(f"{path} names no gene")
    return values[:, keep], [names[place] for place in keep]


def _finite(
    path: Path, values: np.ndarray, names: list[str], left: LeftOut
) -> tuple[np.ndarray, list[str]]:
    fine = np.isfinite(values).all(axis=0)
    if not fine.any():
        raise TiaftError(
            f"{path}: every gene has missing or infinite values in a sample: remove such samples"
        )
    lost = [name for name, kept in zip(names, fine.tolist(), strict=True) if not kept]
    left.add("gene", lost, "missing or infinite in a sample")
    return values[:, fine], [name for name, kept in zip(names, fine.tolist(), strict=True) if kept]


def _wanted(
    path: Path, values: np.ndarray, names: list[str], genes: Sequence[str] | None, left: LeftOut
) -> tuple[np.ndarray, list[str]]:
    if genes is None:
        return values, names
    place = {name: number for number, name in enumerate(names)}
    wanted = list(dict.fromkeys(plain_name(name) for name in genes))
    left.add("gene", [g for g in wanted if g not in place], "not in the expression table")
    there = [gene for gene in wanted if gene in place]
    if not there:
        raise TiaftError(
            f"{path} has none of the {len(wanted)} listed genes: it calls genes {some(names, 3)}, "
            f"the list {some(wanted, 3)}"
        )
    return values[:, [place[gene] for gene in there]], there

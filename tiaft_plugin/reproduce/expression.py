"""Expression tables as TCGAbiolinks and the GDC give them: patients × genes out of any of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.reproduce.barcodes import kind_of, read_sample
from tiaft_plugin.reproduce.genes import plain_name
from tiaft_plugin.reproduce.leftout import LeftOut
from tiaft_plugin.tiles.words import some

if TYPE_CHECKING:
    from pandas import DataFrame


def read_expression(
    paths: Sequence[Path],
    genes: Sequence[str] | None,
    sample_types: Sequence[str],
    left: LeftOut,
) -> "DataFrame":
    """Return the expression of patients (rows, sorted) × genes, float64, as the tables have it.

    `paths` are tables of genes × samples or samples × genes; several are taken to hold different
    samples of the same genes. `genes` None takes all there are. Of several samples of a patient
    the first barcode in sorted order is used. Notes in `left` what is not. Raises TiaftError.
    """
    import pandas as pd

    tables = [_read_one(path, genes, left) for path in paths]
    shared = [g for g in tables[0].index if all(g in table.index for table in tables[1:])]
    left.add(
        "gene",
        sorted({g for table in tables for g in table.index} - set(shared)),
        "not in all expression tables",
    )
    whole = pd.concat([table.loc[shared] for table in tables], axis=1)
    chosen = _one_sample_each(list(whole.columns), sample_types, left)
    if not chosen:
        raise TiaftError(f"{_named(paths)}: no sample is of type {', '.join(sample_types)}")
    # By number: two tables may hold a barcode twice.
    table = whole.iloc[:, list(chosen.values())].T
    table.index = pd.Index(list(chosen), name="patient")
    table = _complete(table, left)
    if genes is not None:
        there = {gene for part in tables for gene in part.index}
        missing = [gene for gene in genes if gene not in there]
        left.add("gene", missing, "not in the expression table")
    return table


def _read_one(path: Path, genes: Sequence[str] | None, left: LeftOut) -> "DataFrame":
    """Return a table as genes × samples, genes by plain names, each once. Raises TiaftError."""
    frame = _load(path)
    columns = [column for column in frame.columns if read_sample(str(column))]
    rows = _column_of_samples(frame)
    if columns and rows is not None:
        raise TiaftError(f"{path} has TCGA barcodes on both sides: genes belong on one of them")
    if columns:
        values = frame[columns]
        names = {
            str(column): [plain_name(str(name)) for name in frame[column]]
            for column in frame.columns
            if column not in columns and not _is_numeric(frame[column])
        }
    elif rows is not None:
        numeric = [c for c in frame.columns if c != rows and _is_numeric(frame[c])]
        others = [str(c) for c in frame.columns if c != rows and c not in numeric]
        left.add("column", others, "not numbers, in a table of samples × genes")
        values = frame[numeric].T
        values.columns = frame[rows].astype(str)
        names = {"header": [plain_name(str(name)) for name in numeric]}
    else:
        raise TiaftError(
            f"{path} has no TCGA barcode (TCGA-05-4244-01A-…) in its header or in a column: "
            "is it an expression table?"
        )
    return _of_genes(path, values, names, genes, left)


def _of_genes(
    path: Path,
    values: "DataFrame",
    names: dict[str, list[str]],
    genes: Sequence[str] | None,
    left: LeftOut,
) -> "DataFrame":
    """Return the rows of the wanted genes, by the column of names that knows most of them."""
    if not names:
        raise TiaftError(f"{path} has no column of gene names")
    wanted = None if genes is None else set(genes)
    best = max(names, key=lambda c: len(wanted & set(names[c])) if wanted else 0)
    keep, seen, again = [], set[str](), []
    for number, name in enumerate(names[best]):
        if wanted is not None and name not in wanted:
            continue
        if name in seen:
            again.append(name)
            continue
        seen.add(name)
        keep.append(number)
    if not keep:
        examples = some([n for n in names[best] if n][:3])
        raise TiaftError(
            f"{path} has none of the {len(genes or ())} listed genes: it calls genes {examples}, "
            f"the list {some(list(genes or ()), 3)}"
        )
    left.add("gene", again, "a second row of that name in the expression table")
    found = values.iloc[keep]
    wrong = [str(column) for column in found.columns if not _is_numeric(found[column])]
    if wrong:
        raise TiaftError(f"{path}: not all numbers in {some(wrong, 3)}")
    found = found.astype(np.float64)
    found.index = [names[best][number] for number in keep]
    return found


def _one_sample_each(
    barcodes: Sequence[str], sample_types: Sequence[str], left: LeftOut
) -> dict[str, int]:
    """Return the number of the column to use for each patient, sorted by patient."""
    chosen: dict[str, int] = {}
    for number in sorted(range(len(barcodes)), key=lambda n: str(barcodes[n])):
        sample = read_sample(str(barcodes[number]))
        assert sample is not None  # else it would not be a column
        if sample.type and sample.type not in sample_types:
            left.add("sample", [sample.barcode], f"sample type {kind_of(sample.type)}")
        elif sample.patient in chosen:
            left.add("sample", [sample.barcode], "the patient has an earlier sample (sorted)")
        else:
            chosen[sample.patient] = number
    return dict(sorted(chosen.items()))


def _complete(table: "DataFrame", left: LeftOut) -> "DataFrame":
    """Return the genes that are finite in every patient."""
    finite = np.isfinite(table.to_numpy()).all(axis=0)
    left.add("gene", table.columns[~finite], "missing or infinite in a patient")
    return table.loc[:, finite]


def _load(path: Path) -> "DataFrame":
    import pandas as pd

    try:
        if path.suffix.lower() == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(
                path,
                sep=_separator(path),
                comment="#",
                low_memory=False,
                float_precision="round_trip",
            )
    except Exception as error:  # pandas, pyarrow and zlib each raise their own
        raise TiaftError(f"{path} cannot be read as a table: {error}") from error
    # R writes no header over its row names, and pandas makes an index of them.
    return frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()


def _separator(path: Path) -> str:
    import gzip

    opened: Any = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig") as file:
        header = next((line for line in file if not line.startswith("#")), "")
    return max("\t,;", key=header.count)


def _column_of_samples(frame: "DataFrame") -> Any:
    """Return the first column that holds TCGA barcodes only, or None."""
    for column in frame.columns:
        if not _is_numeric(frame[column]) and len(frame):
            if all(read_sample(str(value)) for value in frame[column]):
                return column
            return None  # a name column comes first
    return None


def _is_numeric(column: Any) -> bool:
    from pandas.api.types import is_numeric_dtype

    return is_numeric_dtype(column)


def _named(paths: Sequence[Path]) -> str:
    return some([str(path) for path in paths], 2)

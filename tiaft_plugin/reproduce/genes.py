"""Gene lists, and how a gene's name in one table is known in another."""

import csv
import re
from pathlib import Path

from tiaft_plugin.errors import TiaftError

# Of InnateDB's export, of biomaRt and of common tables; compared without case, space and "_".
_COLUMNS = ("genesymbol", "symbol", "hgncsymbol", "genename", "gene", "ensembl", "ensemblid",
            "ensemblgeneid", "geneid", "name")  # fmt: skip
_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{5,})(\.\d+)?(_PAR_Y)?")
_WITH_ENTREZ = re.compile(r"([^|]+)\|\d+")  # A1BG|1, as in TCGA's older tables


def plain_name(text: str) -> str:
    """Return a gene's name without an Ensembl version or Entrez number."""
    text = text.strip()
    for pattern in (_ENSEMBL, _WITH_ENTREZ):
        match = pattern.fullmatch(text)
        if match:
            return match[1]
    return text


def read_genes(path: Path) -> list[str]:
    """Read a gene list: one name a line, or a table with a header such as InnateDB's export.

    Lines that begin with # are comments. Returns plain names in order, each once. Raises
    TiaftError.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TiaftError(f"{path} cannot be read as a gene list: {error}") from error
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    names = _column_of(path, lines) if lines and re.search(r"[\t,;]", lines[0]) else lines
    if names and _folded(names[0]) in _COLUMNS:
        names = names[1:]  # a header of one column
    found = list(dict.fromkeys(plain_name(name) for name in names if name.strip()))
    if not found:
        raise TiaftError(f"{path} names no gene")
    return found


def _column_of(path: Path, lines: list[str]) -> list[str]:
    """Return the column of a table that names genes. Raises TiaftError where none does."""
    separator = max("\t,;", key=lines[0].count)
    header, *rows = csv.reader(lines, delimiter=separator)
    folded = [_folded(name) for name in header]
    known = next((name for name in _COLUMNS if name in folded), None)
    if known is None:
        raise TiaftError(
            f"{path}: none of its columns ({', '.join(header)}) is called gene, symbol or ensembl: "
            "give one gene a line, or name the column so"
        )
    place = folded.index(known)
    return [row[place] for row in rows if len(row) > place]


def _folded(name: str) -> str:
    return re.sub(r"[\s_]", "", name).lower()

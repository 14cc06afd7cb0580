"""What the numbers of an expression table are, and log1p(TPM) out of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.tiles.words import some

# "logged" are logarithms of something else: they are taken as they are.
UNITS = (
    "tpm",
    "fpkm",
    "counts",
    "log2(tpm+1)",
    "ln(tpm+1)",
    "log2(tpm+0.001)",
    "log2(counts+1)",
    "logged",
)
MILLION = 1e6
_NEAR = 0.02  # of a million: rounding, and genes of other rows
_LOG_AT_MOST = 40.0  # no logarithm of an expression is larger, in whatever base
_XENA_ZERO = float(np.log2(0.001))
_WHOLE = 1000  # genes: of fewer, a million says nothing


def recognise(values: np.ndarray) -> str:
    """Return the unit that values (S, G) show, samples in rows; "" where they do not show it.

    TPM sum up to a million in each sample, also beneath a logarithm; counts are whole numbers.
    FPKM, and any unit where only some of the genes are there, show nothing.
    """
    known = values[:, np.isfinite(values).all(axis=0)]
    if not known.size:
        return ""
    whole = known.shape[1] >= _WHOLE
    low, high = float(known.min()), float(known.max())
    if low < 0:
        zero = abs(low - _XENA_ZERO) < 0.01
        return "log2(tpm+0.001)" if zero and whole and _sums(np.exp2(known) - 0.001) else ""
    if high > _LOG_AT_MOST and whole and _sums(known):
        return "tpm"
    if high > _LOG_AT_MOST:
        return "counts" if (known == np.rint(known)).all() else ""
    if whole and _sums(np.exp2(known) - 1):
        return "log2(tpm+1)"
    if whole and _sums(np.expm1(known)):
        return "ln(tpm+1)"
    counts = np.exp2(known) - 1
    if high > 10 and np.allclose(counts, np.rint(counts), rtol=1e-5, atol=1e-3):
        return "log2(counts+1)"
    return ""


def _sums(linear: np.ndarray) -> bool:
    return bool((np.abs(linear.sum(axis=1) / MILLION - 1) < _NEAR).all())


def log1p_tpm(
    path: Path, values: np.ndarray, genes: Sequence[str], unit: str
) -> tuple[np.ndarray, list[str]]:
    """Return ln(TPM + 1) of values (S, G), and notes; the genes are all that the table has.

    FPKM are scaled to a million a sample, which makes TPM of them. Counts have no gene lengths
    with them: they become counts per million. Raises TiaftError for unknown units and values that
    no such unit has.
    """
    if unit not in UNITS:
        raise TiaftError(f"no unit is called {unit!r}: {', '.join(UNITS)}")
    if unit == "logged":
        return values, ["taken as logarithms already"]
    if unit.startswith(("log2", "ln")):
        _refuse_no_log(path, values, unit)
    if unit == "ln(tpm+1)":
        return values, []
    if unit == "log2(tpm+1)":
        return values * np.log(2), []
    if unit == "log2(tpm+0.001)":
        return np.log1p(np.maximum(np.exp2(values) - 0.001, 0)), []
    linear = np.exp2(values) - 1 if unit == "log2(counts+1)" else values
    _refuse_negative(path, linear, genes, unit)
    if unit == "tpm":
        return np.log1p(linear), []
    totals = np.nansum(linear, axis=1, keepdims=True)
    if (totals <= 0).any():
        raise TiaftError(f"{path}: {int((totals <= 0).sum())} samples have no expression at all")
    notes = []
    if len(genes) < _WHOLE:
        notes.append(
            f"{unit} of {len(genes)} genes only are scaled to a million a sample: give the whole "
            "table, and choose genes afterwards"
        )
    if unit != "fpkm":
        notes.append("counts, without lengths of genes: counts per million stand for TPM")
    return np.log1p(linear / totals * MILLION), notes


def _refuse_negative(path: Path, values: np.ndarray, genes: Sequence[str], unit: str) -> None:
    # What exp2 makes of a zero's logarithm may lie a little below it.
    bad = np.flatnonzero((values < -1e-6).any(axis=0))
    if len(bad):
        which = some([genes[gene] for gene in bad.tolist()])
        raise TiaftError(
            f"{path}: {unit} are never negative, and {len(bad)} genes have such values "
            f"({which}): is the table of logarithms, or standardised?"
        )


def _refuse_no_log(path: Path, values: np.ndarray, unit: str) -> None:
    if np.nanmax(values, initial=0) > _LOG_AT_MOST:
        raise TiaftError(
            f"{path}: {unit} are never {np.nanmax(values):g}: is the table not logarithmic?"
        )

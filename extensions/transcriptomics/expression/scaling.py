"""Genes of which something can be learnt, each with mean 0 and variance 1 in training patients."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.reproduce.leftout import LeftOut


@dataclass(frozen=True)
class GeneScale:
    """G of a table's genes: their `names`, `columns` there (G,), `mean` and `sd` (G,) float64."""

    names: tuple[str, ...]
    columns: np.ndarray
    mean: np.ndarray
    sd: np.ndarray

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return (n, G) float32, standardised, of rows (n, all genes of the table)."""
        return ((values[:, self.columns] - self.mean) / self.sd).astype(np.float32)


def scale_genes(
    values: np.ndarray,
    names: Sequence[str],
    *,
    most: int | None = None,
    left: LeftOut | None = None,
) -> GeneScale:
    """Return mean and standard deviation (n − 1) of each gene in training rows (n, G).

    Genes that are constant there are left out, and noted; `most` keeps the most variable ones.
    Raises TiaftError where no gene is left, or there are fewer than two rows.
    """
    left = left if left is not None else LeftOut()
    if len(values) < 2:
        raise TiaftError(f"{len(values)} training samples: standardising needs at least 2")
    mean, sd = values.mean(axis=0), values.std(axis=0, ddof=1)
    # A constant's deviation may be a rounding error instead of 0.
    varies = (values != values[0]).any(axis=0) & (sd > 1e-9 * np.maximum(np.abs(mean), 1e-3))
    columns = np.flatnonzero(varies)
    left.add(
        "gene", [names[g] for g in np.flatnonzero(~varies).tolist()], "constant in training samples"
    )
    if not len(columns):
        raise TiaftError(f"all {len(names)} genes are constant in the training samples")
    if most is not None and most < len(columns):
        order = np.argsort(-sd[columns], kind="stable")
        rest = np.sort(columns[order[most:]])
        left.add("gene", [names[g] for g in rest.tolist()], f"not among the {most} most variable")
        columns = np.sort(columns[order[:most]])
    return GeneScale(tuple(names[g] for g in columns.tolist()), columns, mean[columns], sd[columns])

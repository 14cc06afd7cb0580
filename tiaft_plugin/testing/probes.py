"""Whether a probe gives the same table for the same data."""

from typing import Any

import numpy as np

from tiaft_plugin.errors import TiaftError, reason


def check_probe(probe: Any) -> None:
    """Raise TiaftError unless a probe gives the same table for the same data.

    ``probe.run(features, labels, groups, seed=0)`` gets features (N, D) float32, labels (N,) and
    groups (N,) of text, or None for groups, and returns a table as a dict of columns of one
    length. It must not depend on the order of the rows, draw from numpy's global random state, or
    change its input.
    """
    features, labels, groups = _separable_data()
    before = str(np.random.get_state())
    table = _table(probe, features, labels, groups)
    if str(np.random.get_state()) != before:
        raise TiaftError("the probe draws from numpy's global random state: use its seed instead")
    again = _table(probe, features, labels, groups)
    if not _same_table(table, again):
        raise TiaftError("the probe gives another table for the same data and seed")
    order = np.random.default_rng(2).permutation(len(labels))
    shuffled = _table(probe, features[order], labels[order], groups[order])
    if not _same_table(table, shuffled):
        raise TiaftError("the probe's table depends on the order of the rows: sort them first")
    _table(probe, features, labels, None)


def _separable_data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return 60 rows of 8 features, two classes, six groups; the arrays cannot be written to."""
    rng = np.random.default_rng(0)
    labels = np.array(["NORM", "TUM"])[np.arange(60) % 2]
    groups = np.array([f"slide {number}" for number in range(6)])[np.arange(60) // 10]
    features = rng.normal(size=(60, 8)).astype(np.float32)
    features[labels == "TUM", 0] += 2
    for array in (features, labels, groups):
        array.flags.writeable = False
    return features, labels, groups


def _table(probe: Any, features: Any, labels: Any, groups: Any) -> dict[str, list]:
    """Run a probe once; return its table, once it is known to be one."""
    without = " without groups" if groups is None else ""
    try:
        result = probe.run(features, labels, groups, seed=0)
    except Exception as error:
        raise TiaftError(f"the probe fails{without}: {reason(error)}") from error
    try:
        table = {str(name): list(column) for name, column in dict(result).items()}
    except (TypeError, ValueError):
        table = {}
    lengths = {len(column) for column in table.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise TiaftError(
            f"the probe returns {type(result).__name__} with columns of lengths "
            f"{sorted(lengths)}{without}: a dict of columns of one length is expected"
        )
    return table


def _same_table(one: dict[str, list], other: dict[str, list]) -> bool:
    """Compare two tables; numbers may differ in their last bits, as sums in other orders do."""
    if list(one) != list(other):
        return False
    for name, column in one.items():
        a, b = np.asarray(column), np.asarray(other[name])
        numeric = a.dtype.kind in "fiu" and b.dtype.kind in "fiu"
        if a.shape != b.shape or not (
            np.allclose(a, b, rtol=1e-6, atol=1e-9, equal_nan=True) if numeric else (a == b).all()
        ):
            return False
    return True

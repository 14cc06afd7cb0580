"""How far a CKA may be off, other slides or tiles given: a jackknife that leaves groups out.

A bootstrap would draw tiles twice, which are alike to themselves; leaving tiles out does not.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

FEWEST_GROUPS = 10  # slides or patients; of fewer, leaving one out says little of others
BLOCKS = 30  # of tiles drawn at random, where slides are not known or too few


def groups_of(names: Sequence[str | None], seed: int = 0) -> tuple[np.ndarray, str] | None:
    """Return what is left out together, (n,) codes for n tiles, and what that is in words.

    Slides or patients, where all are known and there are ten; else blocks of random tiles. None
    where tiles are too few even for these.
    """
    known = [name for name in names if name is not None]
    if len(known) == len(names) and len(set(known)) >= FEWEST_GROUPS:
        codes = np.unique(known, return_inverse=True)[1]
        return codes, f"{codes.max() + 1} slides or patients"
    blocks = min(BLOCKS, len(names) // 2)
    if blocks < FEWEST_GROUPS:
        return None
    codes = np.random.default_rng([seed, 1]).permutation(len(names)) % blocks
    return codes, f"{blocks} blocks of random tiles"


def intervals(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return 95 % intervals (A, B) of the unbiased CKA, from features (n, channels) of all layers.

    `groups` (n,) are codes 0…G−1 of what is left out together. Busing, Meijer and van der Leeden's
    jackknife for groups of unequal size (1999), and Student's t with G − 1 degrees of freedom.
    NaN where a layer gives the same for all tiles. Memory: 8 n² bytes a layer.
    """
    keep = np.ones((len(groups), groups.max() + 2))  # the last leaves nothing out
    keep[np.arange(len(groups)), groups] = 0
    first, second = ([_Gram(layer, keep) for layer in layers] for layers in (a, b))
    alone = [np.stack([_hsic(g, g, keep) for g in each]) for each in (first, second)]
    across = np.stack([[_hsic(g, h, keep) for h in second] for g in first])
    with np.errstate(invalid="ignore", divide="ignore"):
        cka = across / np.sqrt(alone[0][:, None] * alone[1][None])
    return _jackknife(cka[..., :-1], cka[..., -1], np.bincount(groups))


class _Gram:
    """A Gram matrix (n, n) without its diagonal, and its rows' sums over the tiles kept (n, K)."""

    def __init__(self, features: np.ndarray, keep: np.ndarray):
        x = np.asarray(features, np.float64)
        x = x - x.mean(axis=0)  # which changes no HSIC, and keeps digits
        self.matrix = x @ x.T
        np.fill_diagonal(self.matrix, 0)
        self.rows = self.matrix @ keep


def _hsic(one: _Gram, other: _Gram, keep: np.ndarray) -> np.ndarray:
    """Return HSIC₁ (K,) of the tiles that each column of `keep` (n, K) has."""
    n = keep.sum(axis=0)
    trace = (keep * ((one.matrix * other.matrix) @ keep)).sum(axis=0)
    sums = (keep * one.rows).sum(axis=0) * (keep * other.rows).sum(axis=0)
    product = (keep * one.rows * other.rows).sum(axis=0)
    return (trace + sums / ((n - 1) * (n - 2)) - 2 * product / (n - 2)) / (n * (n - 3))


def _jackknife(
    without: np.ndarray, whole: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval of `whole` (…), from values without each group (…, G) of `sizes` (G,)."""
    times = sizes.sum() / sizes
    pseudo = times * whole[..., None] - (times - 1) * without
    mean = len(sizes) * whole - ((1 - 1 / times) * without).sum(axis=-1)
    variance = ((pseudo - mean[..., None]) ** 2 / (times - 1)).mean(axis=-1)
    half = stats.t.ppf(0.975, len(sizes) - 1) * np.sqrt(variance)
    return whole - half, np.minimum(whole + half, 1.0)

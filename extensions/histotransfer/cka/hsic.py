"""Linear CKA of two representations of the same tiles, exact or by minibatches, tile by tile.

CKA is HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)). Plain HSIC is Kornblith et al.'s (2019),
‖XᵀY‖²_F of centred columns. Where features are many and tiles are few it is biased: unrelated
representations seem alike. With HSIC₁ of Song et al. (2012) they have a CKA of 0 on average, so
that it may lie a little below. Nguyen et al. (2021) average HSIC₁ over minibatches.
"""

from collections.abc import Sequence

import numpy as np

FEWEST = 4  # tiles that HSIC₁ needs
CONSTANT = 1e-11  # of the sum of squares: float32 varies by so much where all tiles are the same


def linear_cka(x: np.ndarray, y: np.ndarray, *, unbiased: bool = False) -> float:
    """Return linear CKA of x (n, p) and y (n, q), which are features of the same n tiles.

    1 for a representation and its rotation, shift or multiple. The plain one is the paper's (its
    section on representation similarity), with `unbiased` it is that of HSIC₁. NaN where x or y
    is the same for all tiles. Raises ValueError for other shapes, or n < 4.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < FEWEST:
        raise ValueError(f"features {x.shape} and {y.shape} are not of the same 4 tiles or more")
    sums = ExactCKA(1, 1)
    sums.add([x], [y])
    return float((sums.unbiased() if unbiased else sums.plain())[0, 0])


class ExactCKA:
    """CKA between A layers of one network and B of another, of all tiles that were added.

    Memory does not grow with tiles, but with features: 8 bytes for each pair of them.
    """

    def __init__(self, a: int, b: int):
        self.across = [[_Sums() for _ in range(b)] for _ in range(a)]
        self.first = [_Sums() for _ in range(a)]
        self.second = [_Sums() for _ in range(b)]

    def add(self, a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> None:
        """Add what the layers give for n more tiles, arrays (n, features) of any float type."""
        a, b = ([np.asarray(layer, np.float64) for layer in layers] for layers in (a, b))
        for row, x in zip(self.across, a, strict=True):
            for sums, y in zip(row, b, strict=True):
                sums.add(x, y)
        for one, layers in ((self.first, a), (self.second, b)):
            for sums, x in zip(one, layers, strict=True):
                sums.add(x, x)

    def plain(self) -> np.ndarray:
        """Return the paper's CKA, (A, B)."""
        return self._ratios("plain")

    def unbiased(self) -> np.ndarray:
        """Return the CKA of HSIC₁, (A, B)."""
        return self._ratios("unbiased")

    def _ratios(self, kind: str) -> np.ndarray:
        across = np.array([[getattr(sums, kind)() for sums in row] for row in self.across])
        alone = [
            np.array([getattr(s, kind)() if s.varies() else np.nan for s in one])
            for one in (self.first, self.second)
        ]
        return across / np.sqrt(np.outer(*alone))


class MinibatchCKA:
    """CKA between A layers of one network and B of another, its HSIC₁ averaged over batches.

    Memory does not grow with features either: each batch of n tiles takes 8 n² bytes a layer.
    """

    def __init__(self, a: int, b: int):
        self.across, self.first, self.second = np.zeros((a, b)), np.zeros(a), np.zeros(b)
        self.size = [np.zeros(a), np.zeros(b)]
        self.spread = [np.zeros(a), np.zeros(b)]

    def add(self, a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> None:
        """Add a batch of n ≥ 4 tiles, arrays (n, features) of any float type."""
        sides = []
        for number, layers in enumerate((a, b)):
            grams = []
            for place, layer in enumerate(layers):
                x = np.asarray(layer, np.float64)
                self.size[number][place] += (x**2).sum()
                x = x - x.mean(axis=0)
                self.spread[number][place] += (x**2).sum()
                grams.append(_without_bias(x @ x.T).ravel())
            sides.append(np.stack(grams))
        count = len(a[0])
        scale = count * (count - 3)
        self.across += sides[0] @ sides[1].T / scale
        self.first += (sides[0] ** 2).sum(axis=1) / scale
        self.second += (sides[1] ** 2).sum(axis=1) / scale

    def cka(self) -> np.ndarray:
        """Return the CKA, (A, B)."""
        alone = [
            np.where(spread > CONSTANT * size, hsic, np.nan)
            for hsic, spread, size in zip(
                (self.first, self.second), self.spread, self.size, strict=True
            )
        ]
        return self.across / np.sqrt(np.outer(*alone))


def _without_bias(gram: np.ndarray) -> np.ndarray:
    """Return a Gram matrix (n, n) centred so that products of two, over n (n − 3), are HSIC₁.

    Székely and Rizzo's U-centring (2014): their diagonals are left out.
    """
    count = len(gram)
    np.fill_diagonal(gram, 0)
    rows = gram.sum(axis=0) / (count - 2)
    centred = gram - rows - rows[:, None] + rows.sum() / (count - 1)
    np.fill_diagonal(centred, 0)
    return centred


class _Sums:
    """Sums over tiles of x (p) and y (q), from which both HSICs follow.

    `kx` and `ky` below are ‖x‖² and ‖y‖² of a tile, the diagonals of the Gram matrices.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add float64 x (n, p) and y (n, q)."""
        if not self.count:
            self._begin(x, y)
        self.count += len(x)
        x, y = x - self.shift_x, y - self.shift_y
        kx, ky = (x**2).sum(axis=1), (y**2).sum(axis=1)
        self.xy += x.T @ y
        self.x += x.sum(axis=0)
        self.y += y.sum(axis=0)
        self.x_ky += ky @ x
        self.y_kx += kx @ y
        self.kx += kx.sum()
        self.ky += ky.sum()
        self.kx_ky += kx @ ky

    def _begin(self, x: np.ndarray, y: np.ndarray) -> None:
        # No HSIC changes with a shift; near the mean, no digits are lost in the differences.
        self.shift_x, self.shift_y = x.mean(axis=0), y.mean(axis=0)
        p, q = x.shape[1], y.shape[1]
        self.xy, self.x, self.y = np.zeros((p, q)), np.zeros(p), np.zeros(q)
        self.x_ky, self.y_kx = np.zeros(p), np.zeros(q)
        self.kx = self.ky = self.kx_ky = 0.0

    def varies(self) -> bool:
        """Return whether x is not the same for all tiles."""
        spread = self.kx - self.x @ self.x / self.count
        mean = self.shift_x + self.x / self.count
        return bool(spread > CONSTANT * (spread + self.count * mean @ mean))

    def plain(self) -> float:
        """Return ‖XᵀY‖² of centred columns."""
        centred = self.xy - np.outer(self.x, self.y / self.count)
        return float((centred**2).sum())

    def unbiased(self) -> float:
        """Return HSIC₁; K and L of its formula are the Gram matrices without their diagonals."""
        n, x, y = self.count, self.x, self.y
        trace = (self.xy**2).sum() - self.kx_ky
        sum_k, sum_l = x @ x - self.kx, y @ y - self.ky
        sum_kl = x @ self.xy @ y - x @ self.x_ky - y @ self.y_kx + self.kx_ky
        total = trace + sum_k * sum_l / ((n - 1) * (n - 2)) - 2 * sum_kl / (n - 2)
        return float(total / (n * (n - 3)))

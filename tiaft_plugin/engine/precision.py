"""Precision is earned: the fastest whose outputs, on the very slide, are those of float32."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch

from tiaft_plugin.engine.compute import LARGEST_ERROR, LEAST_COSINE, Compute, relative_error
from tiaft_plugin.errors import first_line
from tiaft_plugin.network.precision import has_bfloat16

TRIED_ON = 64  # tiles


@dataclass(frozen=True)
class Earned:
    """A precision, and how far its outputs are from float32 (the least cosine of all tiles)."""

    precision: str
    cosine: float
    relative_error: float
    tiles: int
    tiles_per_second: float
    why: str

    @property
    def facts(self) -> dict[str, Any]:
        """Return what belongs into a store: all but the speed, which is no property of a slide."""
        return {k: v for k, v in asdict(self).items() if k != "tiles_per_second"}


def earned(
    compute: Compute, tiles: np.ndarray | torch.Tensor, candidates: Sequence[str] | None = None
) -> Earned:
    """Return the first of `candidates` with cosine ≥ 0.9995 and relative error ≤ 1 % to float32.

    `tiles` are some of the slide, as `compute` takes them, 64 of them if it has that many.
    `candidates` begin with the fastest; without them, bfloat16 is tried where the device has
    instructions for it. float32 always passes.
    """
    if candidates is None:
        candidates = ("bfloat16",) if has_bfloat16(compute.device) else ()
    exact, rate = _timed(compute.at("float32"), tiles)
    refused = []
    for precision in candidates:
        if precision == "float32":
            break
        try:
            found, its_rate = _timed(compute.at(precision), tiles)
        except (RuntimeError, TypeError) as problem:  # not every operation knows every precision
            refused.append(f"{precision} fails: {first_line(problem)}")
            continue
        cosine, error = least_cosine(found, exact), relative_error(found, exact)
        told = f"cosine {cosine:.5f}, relative error {error:.2%} to float32 on {len(tiles)} tiles"
        if cosine >= LEAST_COSINE and error <= LARGEST_ERROR:
            why = f"{precision}: {told}"
            return Earned(precision, cosine, error, len(tiles), its_rate, why)
        refused.append(f"{precision} is too far: {told}")
    why = "; ".join(["float32", *refused]) if refused else "float32: nothing faster was tried"
    return Earned("float32", 1.0, 0.0, len(tiles), rate, why)


def least_cosine(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the least cosine of rows (n, D) of both; of two rows of zeros it is 1."""
    if found.shape != wanted.shape or not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        return -1.0
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    same = (found == wanted).all(axis=1)
    cosines = (found * wanted).sum(axis=1) / np.where(norms > 0, norms, 1.0)
    return float(np.where(same, 1.0, cosines).min())


def _timed(compute: Compute, tiles: Any) -> tuple[np.ndarray, float]:
    compute(tiles[:1])  # the first time takes longer
    started = perf_counter()
    outputs = compute(tiles)
    return outputs, len(tiles) / (perf_counter() - started)

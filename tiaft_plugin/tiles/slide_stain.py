"""Stain normalisation of whole slides: stains estimated once, then applied to batches of tiles."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from tiaft_plugin.tiles.stain import (
    FAINTEST,
    Macenko,
    is_stained,
    least_stained_pixels,
    stains_of,
)

TILES = 64  # stained ones that a slide's stains are estimated from
TRIED = 512  # tiles at most that are read to find them
_MOST_PIXELS = 1 << 18  # of them: 4,096 of a tile
_PIXELS_AT_ONCE = 1 << 18  # that are normalised; more are slower on a CPU, and take more memory
_STEEPEST = 42  # change of density at which the product of three factors is still a float64

_DENSITY = np.maximum(-np.log(np.maximum(np.arange(256), 1) / 255), 1e-6)  # as TIAToolbox's rgb2od


class SlideMacenko:
    """Macenko et al. (ISBI 2009) with one stain matrix for a slide, not one for each tile.

    `target` and errors as of ``tiles.stain.Macenko``, which is the paper's way. Here a tile keeps
    its share of haematoxylin and eosin, and how strong they are next to the slide's other tiles.
    """

    def __init__(self, target: np.ndarray | None = None):
        self._macenko = Macenko(target)
        self.facts = {**self._macenko.facts, "scope": "slide"}

    def __repr__(self) -> str:
        return f"SlideMacenko(target={self.facts['target']!r})"

    def fit(self, tiles: Iterable[np.ndarray]) -> "FittedMacenko":
        """Return the normalisation of the slide that `tiles`, uint8 (k, H, W, 3), are of.

        Matrix and maximal concentrations are what TIAToolbox finds in all stained tiles (see
        ``tiles.stain.is_stained``) together, as one image; of very many pixels, in every n-th.
        Without stained tiles, or stains in them, no tile will be normalised.
        """
        stained = [tile.reshape(-1, 3) for tile in tiles if is_stained(tile)]
        stains = None
        if stained:
            pixels = np.concatenate(stained)
            step = -(-len(pixels) // _MOST_PIXELS)
            step += step % 2 == 0  # an even one would take the same columns of every JPEG block
            stains = stains_of(self._macenko.normaliser, pixels[None, ::step])
        return self.again(
            {
                "matrix": stains.matrix.tolist() if stains else None,
                "maxima": stains.maxima.ravel().tolist() if stains else None,
                "tiles": len(stained),
            }
        )

    def again(self, found: dict[str, Any]) -> "FittedMacenko":
        """Return the normalisation whose `found` this is, the same to the bit.

        A run that goes on where another stopped must not estimate anew.
        """
        factors = None if found["matrix"] is None else _factors(found, self._macenko.normaliser)
        return FittedMacenko(self.facts, found, factors)


class FittedMacenko:
    """The normalisation of one slide. `SlideMacenko.fit` makes it.

    ``facts`` say what was asked for, ``found`` (for JSON) what was estimated: "matrix" (2, 3),
    haematoxylin first, "maxima" (2,), the 99th percentile of each concentration, and "tiles", how
    many were stained. `factors`, float64 (3 from, 3 to, 256), are what each level contributes.
    """

    def __init__(self, facts: dict[str, str], found: dict[str, Any], factors: np.ndarray | None):
        self.facts, self.found, self._factors = facts, found, factors
        self._colours: dict[torch.device, torch.Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_colours": {}}  # other processes make their own

    def __call__(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return uint8 tiles (n, H, W, 3) normalised where they lie, and which are, bool (n,).

        The others, which show too little tissue (``tiles.stain.is_stained``), stay as they are.
        A tile becomes the same to the bit in any batch, on any device. Keeps 64 MiB on the device.
        """
        if self._factors is None or batch.dtype != torch.uint8 or batch.shape[3:] != (3,):
            return batch, torch.zeros(len(batch), dtype=torch.bool, device=batch.device)
        if batch.device not in self._colours:
            self._colours[batch.device] = _all_colours(self._factors, batch.device)
        colours = self._colours[batch.device]
        done = torch.empty(batch.shape, dtype=torch.uint8, device=batch.device)
        at_once = max(1, _PIXELS_AT_ONCE // max(1, batch.shape[1] * batch.shape[2]))
        parts = zip(batch.split(at_once), done.split(at_once), strict=True)
        return done, torch.cat([_normalise(part, colours, into) for part, into in parts])

    def tile(self, tile: np.ndarray) -> tuple[np.ndarray, bool]:
        """Return one uint8 tile (H, W, 3), and whether it was normalised: as ``Macenko()`` does."""
        if tile.dtype != np.uint8 or tile.ndim != 3:
            return tile, False
        batch, normalised = self(torch.tensor(tile)[None])
        return (batch[0].numpy(), True) if normalised[0] else (tile, False)


def sample_tiles(
    read: Callable[[int], np.ndarray], rows: int, seed: int, *, count: int = TILES
) -> list[np.ndarray]:
    """Return `count` stained tiles, drawn at random, of a slide with `rows` tiles.

    `read` gives the tile (H, W, 3) of a row. It is called for one row after the other until enough
    are found, at most ``TRIED`` times: there may be fewer.
    """
    drawn = np.random.default_rng(seed).permutation(rows)[:TRIED]
    stained: list[np.ndarray] = []
    for row in drawn.tolist():
        if len(stained) == count:
            break
        tile = read(row)
        if is_stained(tile):
            stained.append(tile)
    return stained


def _factors(found: dict[str, Any], target: Any) -> np.ndarray | None:
    """Return FittedMacenko's factors; None where the two stains are practically one.

    Density after is linear in the densities of red, green and blue before, so that a level after
    is the product of one factor for each of them.
    """
    stains = np.asarray(found["matrix"])
    try:
        to_concentrations = np.linalg.solve(stains @ stains.T, stains).T  # least squares; (3, 2)
    except np.linalg.LinAlgError:
        return None
    rescale = target.maxC_target / np.asarray(found["maxima"])
    change = (to_concentrations * rescale) @ target.stain_matrix_target  # of density, (3, 3)
    if not (np.abs(change) < _STEEPEST).all():
        return None
    factors = np.exp(-change[:, :, None] * _DENSITY)
    factors[0] *= 255
    return factors


def _all_colours(factors: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return what becomes of each of 2^24 colours, int32: R, G, B, and 1 if it counts as stained.

    The products are of float64, and nothing but products: the same on every machine.
    """
    exact = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
    of_red, of_green, of_blue = torch.from_numpy(factors).to(exact)
    colours = torch.zeros((256, 256, 256, 4), dtype=torch.uint8, device=exact)
    for red, into in enumerate(colours):
        level = of_red[:, red, None, None] * of_green[:, :, None] * of_blue[:, None]
        into[..., :3] = level.clamp_(max=255).movedim(0, -1)  # cut to whole numbers, as TIAToolbox
    colours[: FAINTEST + 1, : FAINTEST + 1, : FAINTEST + 1, 3] = 1
    return colours.view(torch.int32).flatten().to(device)


def _normalise(batch: torch.Tensor, colours: torch.Tensor, done: torch.Tensor) -> torch.Tensor:
    """Write tiles (n, H, W, 3) as `colours` has them into `done`; return which are stained."""
    red, green, blue = batch.int().unbind(-1)
    number = (red << 16).add_(green << 8).add_(blue)
    found = colours.index_select(0, number.flatten()).view(torch.uint8).view(*number.shape, 4)
    for channel in range(3):  # three times as fast on a CPU as all at once
        done[..., channel] = found[..., channel]
    stained = found[..., 3].flatten(1).sum(1) >= least_stained_pixels(number[:1].numel())
    if not stained.all():
        done[~stained] = batch[~stained]
    return stained

"""How fast stains are normalised: TIAToolbox's class, ours of a tile, and ours of a whole slide.

    python benchmarks/stain.py [TILES] [--device auto] [--threads 1] [--batch 32] [--runs 5]

TILES is a folder of images (WebP or PNG) of one size, searched to the bottom; without, a stained
section of colonic glands (scikit-image) is cut into tiles. Blank tiles are left out: TIAToolbox's
class fails on some. All ways see the same tiles, taking turns with every batch; "ms a tile" is the
median of the runs, "from … to" the quickest and the slowest of them. The slide's way gets batches
that lie on the device already, and waits for the device.

What a slide costs once is printed apart: estimating its stains, and the table of colours that is
made for its first tile. So is the largest difference in grey levels to TIAToolbox's class, told the
same stain matrix and maximal concentrations. The exit status is 1 where the slide's way is less
than ten times as fast as TIAToolbox's, or differs by more than one level.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from tiatoolbox.tools.stainnorm import CustomNormalizer, MacenkoNormalizer

from tiaft_plugin.network.device import pick_device
from tiaft_plugin.tiles.images import read_image
from tiaft_plugin.tiles.slide_stain import TILES, FittedMacenko, SlideMacenko
from tiaft_plugin.tiles.stain import REFERENCE, REFERENCE_MAXIMA, Macenko

LEAST_GAIN, MOST_LEVELS = 10, 1
SIDE = 224  # px


def tiles_of(folder: Path | None) -> list[np.ndarray]:
    """Return tiles, uint8 (H, W, 3)."""
    if folder is not None:
        files = sorted(file for file in folder.rglob("*") if file.suffix in (".webp", ".png"))
        return [read_image(file) for file in files]
    from skimage.data import immunohistochemistry

    image = immunohistochemistry()
    corners = [(y, x) for y in range(0, 288, 48) for x in range(0, 288, 48)]
    return [image[y : y + SIDE, x : x + SIDE] for y, x in corners]


def stock(matrix: np.ndarray | None = None) -> MacenkoNormalizer | CustomNormalizer:
    """Return TIAToolbox's class with our target; told a stain matrix, or finding it."""
    normaliser = MacenkoNormalizer() if matrix is None else CustomNormalizer(matrix)
    normaliser.stain_matrix_target, normaliser.maxC_target = REFERENCE, REFERENCE_MAXIMA
    return normaliser


def machine() -> str:
    """Return the processor's name, where Linux tells it, and how many there are."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} × {names[0] if names else platform.machine()}"


def seconds(work: Callable[[], object]) -> float:
    """Return how long something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def difference(fitted: FittedMacenko, batches: list[torch.Tensor]) -> int:
    """Return the largest difference to TIAToolbox's class, told the same, in grey levels."""
    normaliser, maxima = stock(np.array(fitted.found["matrix"])), np.array(fitted.found["maxima"])
    largest = 0
    with mock.patch("numpy.percentile", lambda *_, **__: maxima):  # it asks nowhere else for them
        for batch in batches:
            done, normalised = fitted(batch)
            for tile, found in zip(batch[normalised].cpu(), done[normalised].cpu(), strict=True):
                expected = normaliser.transform(tile.numpy().copy()).astype(int)
                largest = max(largest, int(np.abs(found.numpy() - expected).max()))
    return largest


def options() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tiles", nargs="?", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--runs", type=int, default=5)
    return parser.parse_args()


def measure(
    fitted: FittedMacenko, batches: list[torch.Tensor], runs: int
) -> dict[str, list[float]]:
    """Return milliseconds a tile of each way, in each run."""
    single, theirs = Macenko(), stock()
    ways: dict[str, Callable[[Any], object]] = {
        "TIAToolbox, tile": lambda tiles: [theirs.transform(tile) for tile in tiles],
        "ours, tile": lambda tiles: [single(tile) for tile in tiles],
        "ours, slide": lambda batch: fitted(batch)[1].tolist(),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        spent = dict.fromkeys(ways, 0.0)
        for batch in batches:
            tiles = batch.cpu().numpy()
            for name, way in ways.items():
                given = batch if name == "ours, slide" else tiles.copy()
                spent[name] += seconds(partial(way, given))
        for name, total in spent.items():
            taken[name].append(1000 * total / sum(map(len, batches)))
    return taken


def main() -> int:
    """Measure, print, and say by the exit status whether it is fast and exact enough."""
    chosen = options()
    torch.set_num_threads(chosen.threads)
    device = pick_device(chosen.device)
    tiles = np.stack([tile for tile in tiles_of(chosen.tiles) if Macenko()(tile)[1]])
    height, width = tiles.shape[1:3]
    fit = seconds(lambda: SlideMacenko().fit(tiles[:TILES]))
    fitted = SlideMacenko().fit(tiles[:TILES])
    batches = list(torch.from_numpy(tiles).to(device).split(chosen.batch))
    table = seconds(lambda: fitted(batches[0][:1])[1].tolist())
    taken = measure(fitted, batches, chosen.runs)
    middle = {name: statistics.median(times) for name, times in taken.items()}
    gain = {name: middle["TIAToolbox, tile"] / median for name, median in middle.items()}
    levels = difference(fitted, batches)

    print(f"{machine()}, {device}, {chosen.threads} threads")
    print(", ".join(f"{name} {version(name)}" for name in ("tiatoolbox", "torch", "numpy")))
    print(f"{len(tiles)} tiles of {width}×{height} px; {chosen.runs} runs")
    print(f"{'':18}{'ms a tile':>10}{'from':>8}{'to':>8}{'gain':>8}")
    for name, times in taken.items():
        spread = f"{min(times):8.2f}{max(times):8.2f}"
        print(f"{name:18}{middle[name]:10.2f}{spread}{gain[name]:7.1f}×")
    print(
        f"once a slide: stains from {fitted.found['tiles']} tiles {fit:.2f} s, table {table:.2f} s"
    )
    print(f"largest difference to TIAToolbox's class, told the same: {levels} grey levels")
    return 0 if gain["ours, slide"] >= LEAST_GAIN and levels <= MOST_LEVELS else 1


if __name__ == "__main__":
    sys.exit(main())

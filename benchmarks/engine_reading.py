"""How fast tiles of a slide are read: TIAToolbox's datasets and tiaft's reading, side by side.

    python benchmarks/engine_reading.py [--side PX] [--tiles N] [--workers N] [SLIDE …]

Without slides, it makes some of real tissue (TIAFT_DATA, default ../shared/data): SVS-like and
OME-TIFF, with compressed tiles of 240 or 512 px and of 4096 px. Tiles are 224 px at 0.5 µm/px, in
order. "CPU" is processor time a tile, of all processes and threads: where other things run on the
machine it says more than tiles/s. Every tile of ours is compared with TIAToolbox's.
"""

import argparse
import logging
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

SIDE = 224  # px
MPP = 0.5  # µm/px


class InBatches(Dataset):
    """Our reading in the processes of a DataLoader: each opens the slide, and shares nothing."""

    def __init__(self, tiles: Any):
        self.tiles = tiles
        self.reading: Any = None

    def __getitems__(self, rows: list[int]) -> np.ndarray:
        """Return tiles (n, H, W, 3)."""
        from tiaft_plugin.engine.reading import TileReading

        if self.reading is None:
            self.reading = TileReading(self.tiles, workers=0)
        return next(iter(self.reading.read([rows])))[1]

    def __len__(self) -> int:
        return len(self.tiles)


def ways(tiles: Any, batches: list[list[int]], workers: int) -> dict[str, Callable[[], Iterator]]:
    """Return ways to read `batches`, by what they are called."""
    from tiaft_plugin.engine.reading import TileReading

    def loader(dataset: Any, **options: Any) -> Iterator:
        return iter(DataLoader(dataset, batch_sampler=batches, num_workers=workers, **options))

    def stock() -> Iterator:
        return ([tiles[row]["image"] for row in rows] for rows in batches)

    def ours(workers: int) -> Iterator:
        return (found for _, found in TileReading(tiles, workers=workers).read(batches))

    return {
        "TIAToolbox": stock,
        f"TIAToolbox, {workers} processes": lambda: loader(tiles, collate_fn=list),
        "ours": lambda: ours(0),
        f"ours, {workers} threads": lambda: ours(workers),
        f"ours, {workers} processes": lambda: loader(InBatches(tiles), collate_fn=np.asarray),
    }


def measure(way: Callable[[], Iterator]) -> tuple[float, float]:
    """Return seconds, and seconds of processor time with that of processes that ended."""
    before, started = _processor(), time.perf_counter()
    for _ in way():
        pass
    return time.perf_counter() - started, _processor() - before


def same(tiles: Any, batches: list[list[int]], workers: int) -> int:
    """Return how many tiles of ours differ from TIAToolbox's."""
    from tiaft_plugin.engine.reading import TileReading

    read = TileReading(tiles, workers=workers).read(batches)
    return sum(
        not np.array_equal(tile, tiles[row]["image"])
        for rows, found in read
        for row, tile in zip(rows, found, strict=True)
    )


def tiles_of(path: Path) -> Any:
    """Return TIAToolbox's dataset of a slide's tiles, glass and all."""
    from tiatoolbox.models.dataset.dataset_abc import WSIPatchDataset

    return WSIPatchDataset(
        path,
        patch_input_shape=[SIDE, SIDE],
        stride_shape=[SIDE, SIDE],
        resolution=MPP,
        units="mpp",
        auto_get_mask=False,
    )


def tissue(side: int) -> np.ndarray:
    """Return an RGB picture of `side` px of real tiles, in an order that a seed decides."""
    from PIL import Image

    default = Path(__file__).parents[2] / "shared/data"
    data = Path(os.environ.get("TIAFT_DATA", default)) / "nct_crc_he"
    files = sorted(path for path in data.rglob("*") if path.suffix in (".png", ".webp", ".tif"))
    tiles = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    rng, lines = np.random.default_rng(0), -(-side // SIDE)
    chosen = [[tiles[i] for i in rng.integers(len(tiles), size=lines)] for _ in range(lines)]
    return np.vstack([np.hstack(line) for line in chosen])[:side, :side]


def write_slide(path: Path, pixels: np.ndarray, piece: int, levels: int = 1) -> Path:
    """Write a slide at MPP in JPEG tiles of `piece` px: OME-TIFF or, as its name says, SVS-like.

    Each of the levels has a quarter of the last one's side.
    """
    import cv2
    import tifffile

    svs, (height, width) = path.suffix == ".svs", pixels.shape[:2]
    about = f"Aperio Image Library\r\n{width}x{height} ({piece}x{piece}) JPEG/RGB|MPP = {MPP}"
    sizes = {"PhysicalSizeX": MPP, "PhysicalSizeY": MPP}
    units = {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    first: dict[str, Any] = {"metadata": {"axes": "YXS", **sizes, **units}, "subifds": levels - 1}
    if svs:
        first = {"description": about, "metadata": None}
    options: dict[str, Any] = {"photometric": "rgb", "compression": "jpeg", "tile": (piece, piece)}
    with tifffile.TiffWriter(path, ome=not svs) as file:
        file.write(pixels, **options, **first)
        for level in range(1, levels):
            size = (width // 4**level, height // 4**level)
            smaller = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
            file.write(smaller, subfiletype=1, metadata=None, **options)
    return path


def write_slides(folder: Path, side: int) -> list[Path]:
    """Write slides of `side` px at MPP: SVS-like and OME-TIFF, with small and large tiles."""
    pixels = tissue(side)
    kinds = [(240, "svs"), (4096, "svs"), (512, "ome.tiff"), (4096, "ome.tiff")]
    return [
        write_slide(folder / f"{side}-{piece}.{suffix}", pixels, piece) for piece, suffix in kinds
    ]


def main() -> None:
    """Measure slides, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slides", nargs="*", type=Path)
    parser.add_argument("--side", type=int, default=11_200, help="px of slides that are made")
    parser.add_argument("--tiles", type=int, default=1000, help="tiles a slide")
    parser.add_argument("--stock", type=int, default=100, help="of these by TIAToolbox")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        for path in options.slides or write_slides(Path(folder), options.side):
            report(path, options)


def report(path: Path, options: argparse.Namespace) -> None:
    """Print what was measured of a slide."""
    from tiaft_plugin.engine.reading import TileReading

    tiles = tiles_of(path)
    rows = list(range(min(options.tiles, len(tiles))))
    stock, all_rows = (
        [part[start : start + 32] for start in range(0, len(part), 32)]
        for part in (rows[: options.stock], rows)
    )
    differ = same(tiles, stock, options.workers)
    tiles.reader = None  # what is open cannot be shared with processes
    how = TileReading(tiles).how
    print(f"{path.name}, read as {how}; {differ} of {options.stock} tiles differ")
    names = ways(tiles, [], options.workers)
    for name in names:
        batches = stock if name.startswith("TIAToolbox") else all_rows
        seconds, processor = measure(ways(tiles, batches, options.workers)[name])
        tiles.reader = None
        count = sum(map(len, batches))
        print(
            f"  {name:26}{count:6} tiles{count / seconds:8.0f} tiles/s"
            f"{processor / count * 1000:8.2f} ms CPU a tile",
            flush=True,
        )


def _processor() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


if __name__ == "__main__":
    main()

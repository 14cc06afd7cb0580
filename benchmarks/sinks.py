"""How fast each sink writes tile predictions, and that its memory does not grow with them.

    python benchmarks/sinks.py [TILES …]

Each run is a process of its own; "peak" is its memory at most, above that of an empty run.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from uuid import UUID

import numpy as np

from tiaft_plugin.engine.predictions import TileBlock, TilePredictions
from tiaft_plugin.plugins import collect

CLASSES = tuple("ABCDEFGHI")
ROWS = 512  # tiles a block, as in a store
SIDE = 224  # px


def predictions(count: int) -> TilePredictions:
    """Return made-up predictions of `count` tiles, made block by block."""

    def blocks():
        rng = np.random.default_rng(0)
        for start in range(0, count, ROWS):
            number = np.arange(start, min(start + ROWS, count))
            corner = np.stack([number % 1000, number // 1000], 1) * float(SIDE)
            probabilities = rng.dirichlet(np.ones(len(CLASSES)), len(number)).astype(np.float32)
            ids = [UUID(int=int(value)) for value in number]
            yield TileBlock(np.concatenate([corner, corner + SIDE], 1), probabilities, ids)

    size = (1000 * SIDE, (count // 1000 + 1) * SIDE)
    return TilePredictions(Path("made-up.svs"), size, CLASSES, "none", "0" * 64, count, blocks)


def measure(sink: str, count: int) -> None:
    """Run one sink, and print seconds, bytes and peak memory (KiB)."""
    registered = collect("register_sinks")[sink]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"out{registered.options['suffix']}"
        started = time.perf_counter()
        registered.thing(predictions(count), path)
        seconds = time.perf_counter() - started
        size = path.stat().st_size
    print(seconds, size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    """Measure the sinks that need no slide, each on several numbers of tiles."""
    counts = [int(text) for text in sys.argv[1:]] or [10_000, 100_000, 1_000_000]
    print(f"{'sink':16}{'tiles':>10}{'seconds':>10}{'tiles/s':>10}{'MB':>8}{'peak MB':>9}")
    for sink in ("geojson", "annotationstore"):
        base = run(sink, 0)[2]
        for count in counts:
            seconds, size, peak = run(sink, count)
            more = (peak - base) / 1024
            rate = count / seconds
            print(f"{sink:16}{count:10}{seconds:10.1f}{rate:10.0f}{size / 1e6:8.1f}{more:9.0f}")


def run(sink: str, count: int) -> list[float]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--one", sink, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(text) for text in done.stdout.split()]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        measure(sys.argv[2], int(sys.argv[3]))
    else:
        main()

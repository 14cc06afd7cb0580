"""How much faster stage 1 is with Part A's outputs computed once than with Part A in every epoch.

    python benchmarks/finetuning_stage1.py [--tiles 128] [--epochs 20] [--backbone NAME] [--size PX]

Made-up tiles of four colours, random weights, held-out tiles measured after each epoch. Both ways
are the fine-tuner itself with the same job: the second gets an augmentation that changes nothing,
so that it must look at every tile in every epoch. It prints seconds of stage 1 (whatever comes
before the first epoch included), the largest difference between the losses of an epoch, and by how
much the one is faster than the other.
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from tiaft_plugin import hookimpl
from tiaft_plugin.finetune.run import finetune_tiles
from tiaft_plugin.plugins import plugin_manager

COLOURS = {"A": (200, 120, 170), "B": (190, 130, 170), "C": (200, 130, 160), "D": (190, 120, 180)}
TOLERANCE = 1e-4  # nats


class Clock:
    """A plug-in that takes the time of a stage."""

    seconds = 0.0

    @hookimpl
    def stage_started(self, stage, network):
        """Start the clock."""
        self.started = time.perf_counter()

    @hookimpl
    def stage_ended(self, stage, network):
        """Keep the time of stage 1."""
        if stage == 1:
            self.seconds = time.perf_counter() - self.started


class EveryEpoch:
    """A plug-in by which tiles could differ from epoch to epoch; they do not."""

    @hookimpl
    def choose_augmentation(self, stage, tile_size):
        """Return an augmentation that changes nothing."""
        return unchanged


def unchanged(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a tile as it is."""
    return tile


def make_tiles(root: Path, count: int, size: int) -> Path:
    """Write `count` noisy tiles of `size` px in four classes, a fifth of them of another slide."""
    rng = np.random.default_rng(0)
    with (root / "manifest.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("file", "label", "group"))
        for number in range(count):
            label = "ABCD"[number % 4]
            pixels = rng.normal(COLOURS[label], 40, (size, size, 3)).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"{number}.png")
            rows.writerow((f"{number}.png", label, "held out" if number % 5 == 4 else "trained"))
    return root


def stage1(
    tiles: Path, out: Path, plugins: list, options: argparse.Namespace
) -> tuple[float, dict]:
    """Return seconds of stage 1 and the losses by epoch and split."""
    clock = Clock()
    for plugin in (clock, *plugins):
        plugin_manager().register(plugin)
    try:
        result = finetune_tiles(
            tiles,
            val_groups=["held out"],
            out=out,
            backbone=options.backbone,
            init="random",
            epochs=(options.epochs, 0),
            batch_size=options.batch_size,
            device="cpu",
            workers=options.workers,
        )
    finally:
        for plugin in (clock, *plugins):
            plugin_manager().unregister(plugin)
    with result.metrics.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == "1"]
    return clock.seconds, {(row["epoch"], row["split"]): float(row["loss"]) for row in rows}


def main() -> None:
    """Print both ways, their difference and their ratio."""
    parser = argparse.ArgumentParser(description="Time stage 1 with and without the cache.")
    parser.add_argument("--tiles", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--size", type=int, default=224, help="side of tiles, px")
    parser.add_argument("--backbone", default="legacy_xception")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    ways = {"Part A once": [], "Part A in every epoch": [EveryEpoch()]}
    found = {}
    print(
        f"{options.backbone}, {options.tiles} tiles of {options.size} px (a fifth held out), "
        f"{options.epochs} epochs"
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "tiles").mkdir()
        tiles = make_tiles(root / "tiles", options.tiles, options.size)
        for number, (name, plugins) in enumerate(ways.items()):
            found[name] = stage1(tiles, root / f"out{number}", plugins, options)
            print(f"{name:24}{found[name][0]:9.1f} s", flush=True)
    (fast, losses), (slow, expected) = found.values()
    assert losses.keys() == expected.keys() and len(losses) == 2 * options.epochs
    apart = max(abs(losses[key] - expected[key]) for key in losses)
    verdict = "within" if apart <= TOLERANCE else "MORE THAN"
    print(f"losses of an epoch differ by at most {apart:.1e} nats ({verdict} {TOLERANCE:g})")
    print(f"{slow / fast:.1f} times as fast")


if __name__ == "__main__":
    main()

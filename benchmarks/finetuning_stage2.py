"""Stage 2 as the fine-tuner does it beside a plain PyTorch loop: speed, and accuracy.

    python benchmarks/finetuning_stage2.py [--tiles 128] [--epochs 2] [--backbone NAME] [--size PX]
    python benchmarks/finetuning_stage2.py --accuracy [--seeds 3]

Speed: made-up tiles, random weights; tiles a second while Part A trains, reading included, of the
last epoch. The plain loop is what a script would be: float32, NCHW, decoding in the same process;
beside it `tiaft finetune`, as a command of its own.

Accuracy: ImageNet's MobileNetV2 on the tiles of five slides of `kather2016`; the other five are
held out. Both ways begin with the same stage 1 and see the same tiles in the same order. The data
are found as the tests find them (TIAFT_DATA).
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from tiaft_plugin.finetune.interface import FinetuneJob
from tiaft_plugin.finetune.run import finetune
from tiaft_plugin.network import Network, load_model
from tiaft_plugin.network.create import create_network
from tiaft_plugin.network.precision import pick_precision
from tiaft_plugin.tiles.tileset import TileSet, read_tileset

DATA = Path(os.environ.get("TIAFT_DATA", Path(__file__).parents[1] / "../shared/data"))
WEIGHTS = "weights/mobilenetv2_100.imagenet.safetensors"
TRAINED = ("01", "03", "04", "06", "08")  # slides; the halves of finetuning_gain.py
# What these weights need: TensorFlow's padding and pixel range, and BatchNorm as it is, because
# their running statistics are placeholders.
MOBILENET = {
    "backbone": "mobilenetv2_100",
    "backbone_args": {"pad_type": "same"},
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}
EPOCHS, LRS, BATCH = (20, 10), (4e-4, 5e-5), 16


class PlainTiles(torch.utils.data.Dataset):
    """Tiles as float32 (3, H, W), normalised, with their class."""

    def __init__(self, tiles: TileSet, net: Network):
        self.files, self.targets = tiles.files, tiles.targets
        self.mean = torch.tensor(net.card.mean).view(3, 1, 1)
        self.std = torch.tensor(net.card.std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        pixels = np.array(Image.open(self.files[index]).convert("RGB"))
        # As torchvision's ToTensor; without contiguous(), batches would come channels-last.
        image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255
        return (image - self.mean) / self.std, self.targets[index]


def plain_loop(
    net: Network, batches: torch.utils.data.DataLoader, epochs: int, lr: float, batchnorm: bool
) -> float:
    """Train Part A as a script would, with BatchNorm training or not; return the last epoch's s."""
    model = nn.Sequential(net.part_a, net.part_b)
    for parameter in net.part_b.parameters():
        parameter.requires_grad = False
    optimizer = torch.optim.Adam(net.part_a.parameters(), lr=lr, eps=1e-7)
    criterion = nn.CrossEntropyLoss()
    for _ in range(epochs):
        started = time.perf_counter()
        model.train()
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d) and not batchnorm:
                layer.eval()
        for images, targets in batches:
            optimizer.zero_grad()
            loss = criterion(model(images), targets)
            loss.backward()
            optimizer.step()
    return time.perf_counter() - started


def made_up(root: Path, count: int, size: int) -> TileSet:
    """Write noisy tiles in two classes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        folder = root / "AB"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return read_tileset(root, mpp=0.5)


def speed(options: argparse.Namespace) -> None:
    """Print tiles a second of both ways, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tiles = made_up(root / "tiles", options.tiles, options.size)
        net = create_network(options.backbone, tiles.classes, init="random", tile_size=options.size)
        batches = torch.utils.data.DataLoader(
            PlainTiles(tiles, net), batch_size=options.batch_size, shuffle=True
        )
        plain = len(tiles) / plain_loop(net, batches, options.epochs, LRS[1], True)
        precision = pick_precision("auto", torch.device("cpu"))
        print(f"{options.backbone}, {options.size} px, {options.batch_size} tiles a batch")
        print(f"{'plain loop, float32':28}{plain:8.2f} tiles/s", flush=True)
        command = [
            str(Path(sys.executable).with_name("tiaft")), "finetune", str(root / "tiles"),
            "--out", str(root / "out"), "--val-share", "0", "--mpp", "0.5", "--device", "cpu",
            "--backbone", options.backbone, "--init", "random", "--epochs", f"0,{options.epochs}",
            "--batch-size", str(options.batch_size), "--workers", str(options.workers),
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = rows_of(root / "out" / "metrics.csv")
    last = [row for row in rows if row["stage"] == "2" and row["split"] == "train"][-1]
    ours = len(tiles) / float(last["seconds"])
    print(f"{f'tiaft, {precision}':28}{ours:8.2f} tiles/s")
    print(f"{ours / plain:.1f} times as fast")


def rows_of(metrics: Path) -> list[dict[str, str]]:
    """Return the rows of ``metrics.csv``."""
    with metrics.open(newline="") as file:
        return list(csv.DictReader(file))


def accuracy(options: argparse.Namespace) -> None:
    """Print held-out accuracy of both ways for each seed, and the mean difference."""
    tiles = read_tileset(DATA / "kather2016", mpp=0.495)
    inside = np.array([str(group)[-2:] in TRAINED for group in tiles.groups])
    train, held_out = (tiles.subset(np.flatnonzero(rows)) for rows in (inside, ~inside))
    precision = pick_precision("auto", torch.device("cpu"))
    print(f"mobilenetv2_100, {len(train)} tiles to train on, {len(held_out)} held out")
    ways = ("stage 1", "plain, float32", "tiaft, float32", f"tiaft, {precision}")
    print("seed" + "".join(f"{way:>17}" for way in ways))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            row = one_seed(train, held_out, seed, Path(folder) / str(seed), options.workers)
            found.append(row)
            print(f"{seed:4}" + "".join(f"{value:17.4f}" for value in row), flush=True)
    _, plain, *ours = 100 * np.mean(found, axis=0)
    for way, value in zip(ways[2:], ours, strict=True):
        print(f"{way}: {value - plain:+.2f} percentage points, mean of {options.seeds} seeds")


def one_seed(
    train: TileSet, held_out: TileSet, seed: int, out: Path, workers: int
) -> tuple[float, float, float, float]:
    """Return held-out accuracy after stage 1, the plain loop, and our stage 2 in each precision.

    Our float32 tells what is due to precision, and what to anything else.
    """
    from tiaft_plugin.finetune.data import Order

    job: dict[str, Any] = {
        "train": train,
        "val": held_out,
        "init": str(DATA / WEIGHTS),
        "epochs": EPOCHS,
        "lrs": LRS,
        "batch_size": BATCH,
        "freeze_batchnorm": True,
        "seed": seed,
        "workers": workers,
        "device": "cpu",
        "cache": out / "part-a",
        **MOBILENET,
    }
    last = []
    for precision in ("float32", "auto"):
        result = finetune(FinetuneJob(out=out / precision, precision=precision, **job))
        rows = [row for row in rows_of(result.metrics) if row["split"] == "val"]
        last.append({row["stage"]: float(row["accuracy"]) for row in rows})
    assert result.stage1 is not None
    net = load_model(result.stage1)
    order = Order(len(train), BATCH, (seed, 2))
    batches = torch.utils.data.DataLoader(PlainTiles(train, net), batch_sampler=Indices(order))
    plain_loop(net, batches, EPOCHS[1], LRS[1], batchnorm=False)
    return last[0]["1"], accuracy_of(net, held_out), last[0]["2"], last[1]["2"]


class Indices:
    """The fine-tuner's own order of tiles, epoch after epoch."""

    def __init__(self, order: Any):
        self.order, self.epoch = order, 0

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self):
        self.order.epoch, self.epoch = self.epoch, self.epoch + 1
        for batch in self.order:
            yield [index for _, index in batch]


def accuracy_of(net: Network, tiles: TileSet) -> float:
    """Return the share of tiles whose class a network gets right."""
    net.eval()
    right = 0
    with torch.no_grad():
        for images, targets in torch.utils.data.DataLoader(PlainTiles(tiles, net), batch_size=32):
            right += int((net.part_b(net.part_a(images)).argmax(1) == targets).sum())
    return right / len(tiles)


def main() -> None:
    """Compare speed, or accuracy."""
    parser = argparse.ArgumentParser(description="Compare stage 2 with a plain loop.")
    parser.add_argument("--tiles", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--size", type=int, default=224, help="side of tiles, px")
    parser.add_argument("--backbone", default="legacy_xception")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--accuracy", action="store_true", help="compare accuracy instead")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    (accuracy if options.accuracy else speed)(options)


if __name__ == "__main__":
    main()

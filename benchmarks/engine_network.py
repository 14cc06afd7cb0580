"""A network alone, without slides: as it comes, and as the engine runs it.

    python benchmarks/engine_network.py [--backbone NAME] [--tiles 64] [--runs 3] [--compile]
    python benchmarks/engine_network.py --weights FILE.safetensors --of DIR

Tiles a second of TIAToolbox's `TimmBackbone` by its own `infer_batch` (float32, 32 tiles a batch,
as its engine calls it), and of `Compute` in each precision; how far each one's outputs are from the
first's, and whether bfloat16 is earned. Weights are random (BatchNorm's statistics too) and tiles
made up, unless given: a file of tiaft's or timm's weights, and a folder of tiles.

The rounds take turns, and rates are medians: other work on the machine hits all alike. With
``--cpu-time`` seconds of one thread's own time are counted instead, which others disturb least.
"""

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tiatoolbox.models.architecture.vanilla import TimmBackbone
from tiatoolbox.models.dataset.classification import _TorchPreprocCaller
from torch import nn
from torchvision import transforms

from tiaft_plugin.engine.compute import Compute, relative_error
from tiaft_plugin.engine.precision import earned, least_cosine
from tiaft_plugin.network import create_network
from tiaft_plugin.network.device import pick_device
from tiaft_plugin.network.export import check_tiles
from tiaft_plugin.tiles.images import read_image

MOBILENET = {"backbone_args": {"pad_type": "same"}, "mean": (0.5,) * 3, "std": (0.5,) * 3}


def model_of(options: argparse.Namespace) -> TimmBackbone:
    """Return a backbone in TIAToolbox's own class, with preprocessing as TIAToolbox wraps it."""
    init = options.weights or "random"
    args: dict = MOBILENET if options.backbone.startswith("mobilenetv2") else {}
    net = create_network(options.backbone, init=init, tile_size=options.size, **args)
    if init == "random":
        torch.manual_seed(0)
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
                layer.running_mean.normal_(0, 0.05)
    model = TimmBackbone("test_resnet", pretrained=False)
    model.feat_extract = net.part_a
    steps = [transforms.ToTensor(), transforms.Normalize(net.card.mean, net.card.std)]
    model.preproc_func = _TorchPreprocCaller(steps)
    return model


def tiles_of(options: argparse.Namespace) -> np.ndarray:
    """Return tiles (N, size, size, 3) uint8."""
    size, count = options.size, options.tiles
    if options.of is None:
        return np.resize(check_tiles(size)[:6], (count, size, size, 3))
    paths = sorted(p for p in options.of.rglob("*") if p.suffix in (".png", ".webp", ".jpg"))
    step = max(len(paths) // count, 1)
    return np.stack([read_image(path) for path in paths[::step][:count]])


def as_it_comes(
    model: TimmBackbone, tiles: np.ndarray, device: torch.device
) -> Callable[[np.ndarray], np.ndarray]:
    """Return TIAToolbox's way, 32 tiles a batch; preprocessed here, before the clock starts."""
    prepared = torch.stack([model.preproc_func(tile) for tile in tiles])
    twin = nn.Module.to(copy.deepcopy(model), device)

    def run(_: np.ndarray) -> np.ndarray:
        batches = prepared.split(32)
        return np.concatenate([twin.infer_batch(twin, b, device=str(device))[0] for b in batches])

    return run


def ways_of(
    options: argparse.Namespace, tiles: np.ndarray, device: torch.device
) -> tuple[dict, Compute]:
    """Return the ways to compute by name, and the float32 one of ours."""
    model = model_of(options)
    started = time.perf_counter()
    exact = Compute(
        model,
        device,
        batch_size=options.batch_size,
        tile_shape=(options.size, options.size),
    )
    print(f"made ready in {time.perf_counter() - started:.1f} s: {exact.facts}")
    ways: dict[str, Callable] = {
        "as it comes, float32": as_it_comes(model, tiles, device),
        "engine, float32": exact,
        "engine, bfloat16": exact.at("bfloat16"),
    }
    if options.compile:
        for precision in ("float32", "bfloat16"):
            compute = exact.at(precision, compiled=True)
            print(f"{precision} compiled ({compute.compiled}) in {compute.compile_seconds:.0f} s")
            ways[f"engine, {precision}, compiled"] = compute
    return ways, exact


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="Time a network alone.")
    parser.add_argument("--backbone", default="legacy_xception")
    parser.add_argument("--weights", help="a file of weights; random without")
    parser.add_argument("--of", type=Path, help="a folder of tiles; made-up ones without")
    parser.add_argument("--size", type=int, default=224, help="side of tiles, px")
    parser.add_argument("--tiles", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="compiled, too")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cpu-time", action="store_true", help="one thread, its own time")
    options = parser.parse_args()
    if options.cpu_time:
        torch.set_num_threads(1)
    clock = time.process_time if options.cpu_time else time.perf_counter
    device, tiles = pick_device(options.device), tiles_of(options)
    print(f"{options.backbone}, {options.size} px, {len(tiles)} tiles, {options.runs} runs")
    threads, capability = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    print(
        f"{platform.machine()} {capability}, {threads} threads, {device}, torch {torch.__version__}"
    )
    ways, exact = ways_of(options, tiles, device)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    outputs = {name: run(tiles) for name, run in ways.items()}
    for _ in range(options.runs):
        for name, run in ways.items():
            started = clock()
            run(tiles)
            rates[name].append(len(tiles) / (clock() - started))
    first = next(iter(ways))
    base = statistics.median(rates[first])
    print(f"{'':28}{'tiles/s':>8}{'least':>8}{'most':>8}{'times':>7}{'rel. error':>12}  cosine")
    for name, found in rates.items():
        middle, error = statistics.median(found), relative_error(outputs[name], outputs[first])
        print(
            f"{name:28}{middle:8.2f}{min(found):8.2f}{max(found):8.2f}{middle / base:7.2f}"
            f"{error:12.1e}  {least_cosine(outputs[name], outputs[first]):.6f}"
        )
    print(earned(exact, tiles[:64], ["bfloat16", "float32"]).why)


if __name__ == "__main__":
    main()

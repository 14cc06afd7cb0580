"""A truncated network against the whole one: tiles a second with stock TIAToolbox, in turns.

    python benchmarks/truncated.py --weights FILE.safetensors [--cut blocks.3] [--tiles 256]

Both are registered under names of their own in a folder that is removed again, and used by
TIAToolbox's own `DeepFeatureExtractor` on made-up tiles. The rounds take turns and rates are
medians, so that other work on the machine hits both alike.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tiatoolbox.models import DeepFeatureExtractor

from tiaft_extensions.truncation.backbones.macs import macs_of, parameters_of
from tiaft_plugin.network import create_network, save_model
from tiaft_plugin.zoo.folder import add_model

MOBILENET = {"backbone_args": {"pad_type": "same"}, "mean": (0.5,) * 3, "std": (0.5,) * 3}


def register(options: argparse.Namespace, backbone: str, name: str, folder: Path) -> str:
    """Give a backbone's model file a name; return what it costs."""
    init = options.weights or "random"
    args: dict = MOBILENET if backbone.startswith("mobilenetv2") else {}
    net = create_network(backbone, init=init, tile_size=options.size, mpp=0.5, **args)
    add_model(name, str(save_model(net, folder / f"{name}.safetensors")))
    millions, gmacs = parameters_of(net.part_a) / 1e6, macs_of(net.part_a, options.size) / 1e9
    return f"{backbone:30}{net.feature_width:9}{millions:14.3f}{gmacs:8.3f}"


def rate(extractor: DeepFeatureExtractor, tiles: np.ndarray, batch_size: int) -> float:
    """Return tiles a second of one run."""
    begun = time.perf_counter()
    extractor.run(tiles, patch_mode=True, batch_size=batch_size)
    return len(tiles) / (time.perf_counter() - begun)


def main() -> None:
    """Print both rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--cut", default="blocks.3")
    parser.add_argument("--weights", type=str, help="timm's weights of the whole; else random")
    parser.add_argument("--tiles", type=int, default=256)
    parser.add_argument("--size", type=int, default=224, help="px")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    shape = (options.tiles, options.size, options.size, 3)
    tiles = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with tempfile.TemporaryDirectory() as place:
        os.environ["TIAFT_MODELS"] = str(Path(place) / "models")
        backbones = (options.backbone, f"{options.backbone}:{options.cut}")
        costs = {
            name: register(options, backbone, name, Path(place))
            for name, backbone in zip(("whole", "cut-off"), backbones, strict=True)
        }
        engines = {name: DeepFeatureExtractor(name, verbose=False) for name in costs}
        for engine in engines.values():  # the first run of each does not count
            rate(engine, tiles[: options.batch_size], options.batch_size)
        rates: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(options.runs):
            for name, engine in engines.items():
                rates[name].append(rate(engine, tiles, options.batch_size))
    print(
        f"{torch.get_num_threads()} threads, {options.tiles} tiles of {options.size} px, ", end=""
    )
    print(f"torch {torch.__version__}, DeepFeatureExtractor, median of {options.runs}")
    print(f"{'backbone':30}{'features':>9}{'M parameters':>14}{'GMACs':>8}{'tiles/s':>9}")
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, cost in costs.items():
        print(f"{cost}{medians[name]:9.1f}")
    print(f"truncated / whole: {medians['cut-off'] / medians['whole']:.2f}")


if __name__ == "__main__":
    main()

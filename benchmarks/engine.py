"""The whole engine on a slide: TIAToolbox's DeepFeatureExtractor, and tiaft's, side by side.

    python benchmarks/engine.py [--backbone NAME] [--side PX] [--runs 3] [--workers 1] [SLIDE]

Without a slide, one of real tissue is made (TIAFT_DATA, default ../shared/data): an SVS of --side
px with JPEG tiles of 240 px. Tiles are 224 px at 0.5 µm/px, the network is in TIAToolbox's own
class (TimmBackbone) with random weights, batches have 32 tiles. The ways take turns; tiles/s are
medians of the runs, with the least and the most. Start-up (loading, folding, the trial of
precisions) is counted apart. "Network alone" computes tiles that were read before.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from engine_network import model_of
from engine_reading import write_slides
from tiatoolbox.models.engine.deep_feature_extractor import DeepFeatureExtractor
from tiatoolbox.models.engine.io_config import IOPatchPredictorConfig

from tiaft_plugin import FeatureExtractor
from tiaft_plugin.engine.compute import Compute, relative_error
from tiaft_plugin.engine.jobs import SlideJob
from tiaft_plugin.engine.reading import TileReading
from tiaft_plugin.engine.store import read_store

BATCH, SIDE, MPP = 32, 224, 0.5
CONFIG = IOPatchPredictorConfig(
    input_resolutions=[{"units": "mpp", "resolution": MPP}],
    patch_input_shape=[SIDE, SIDE],
    stride_shape=[SIDE, SIDE],
)


def stock(model: torch.nn.Module, slide: Path, out: Path) -> tuple[np.ndarray, float, float]:
    """Return TIAToolbox's features, and seconds: before the first tile, and of all tiles."""
    import zarr

    begun = time.perf_counter()
    engine = DeepFeatureExtractor(model, batch_size=BATCH, num_workers=0, verbose=False)
    ready = time.perf_counter()
    found = engine.run(
        [slide], patch_mode=False, ioconfig=CONFIG, save_dir=out, output_type="zarr",
        auto_get_mask=False,
    )  # fmt: skip
    done = time.perf_counter()
    [path] = found.values()
    return np.asarray(zarr.open(str(path), mode="r")["features"][:]), ready - begun, done - ready


def ours(
    model: torch.nn.Module, slide: Path, out: Path, precision: str, workers: int
) -> tuple[np.ndarray, float, float, str]:
    """Return tiaft's features, seconds as `stock`, and what the engine says of its speed."""
    begun = time.perf_counter()
    engine = FeatureExtractor(
        model, batch_size=BATCH, num_workers=workers, verbose=False, precision=precision
    )
    engine.ioconfig = engine._ioconfig = CONFIG
    engine.auto_mask = False
    [result] = engine.process([SlideJob(slide)], out)
    took = time.perf_counter() - begun
    assert result.status == "done", result.reason
    store = read_store(result.store)
    computing = len(store) / float(result.speed.split(" ")[0])  # its own count, without start-up
    told = f"{store.facts['precision']}: {result.speed}"
    return np.asarray(store.values[:]), took - computing, computing, told


def network_alone(model: torch.nn.Module, slide: Path, precision: str, tiles: int) -> float:
    """Return tiles/s of the network on tiles that are in memory already."""
    from tiatoolbox.models.dataset import WSIPatchDataset
    from tiatoolbox.wsicore import WSIReader

    dataset = WSIPatchDataset(
        WSIReader.open(slide), patch_input_shape=[SIDE, SIDE], stride_shape=[SIDE, SIDE],
        resolution=MPP, units="mpp", auto_get_mask=False,
    )  # fmt: skip
    [(_, some)] = TileReading(dataset, workers=1).read([range(min(tiles, len(dataset)))])
    compute = Compute(model, "cpu", precision, batch_size=BATCH, tile_shape=(SIDE, SIDE))
    compute(some[:BATCH])
    begun = time.perf_counter()
    compute(some)
    return len(some) / (time.perf_counter() - begun)


def told(name: str, rates: list[float], first: float, startup: float, error: float) -> str:
    """Return a line of the table."""
    rate = statistics.median(rates)
    return (
        f"{name:28}{rate:8.2f}{min(rates):8.2f}{max(rates):8.2f}{rate / first:8.2f}"
        f"{startup:10.1f}{error:12.2g}"
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", nargs="?", type=Path)
    parser.add_argument("--backbone", default="legacy_xception")
    parser.add_argument("--side", type=int, default=11_424, help="px of the slide that is made")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="threads that read")
    options = parser.parse_args()
    options.weights, options.size = None, SIDE
    with tempfile.TemporaryDirectory() as folder:
        slide = options.slide or write_slides(Path(folder), options.side)[0]
        compare(options, slide, Path(folder))


def compare(options: argparse.Namespace, slide: Path, folder: Path) -> None:
    """Run all ways, in turn, and print what they took."""
    model = model_of(options)
    ways: dict[str, Callable[[Path], tuple]] = {
        "TIAToolbox": lambda out: stock(model, slide, out),
        "tiaft, float32": lambda out: ours(model, slide, out, "float32", options.workers),
        "tiaft, auto": lambda out: ours(model, slide, out, "auto", options.workers),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    last: dict[str, tuple] = {}
    for run in range(options.runs):
        for number, (name, way) in enumerate(ways.items()):
            last[name] = way(folder / f"{run}-{number}")
            rates[name].append(len(last[name][0]) / last[name][2])
    wanted, first = last["TIAToolbox"][0], statistics.median(rates["TIAToolbox"])
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{options.backbone}, {len(wanted)} tiles, {options.runs} runs")
    print(f"{'':28}{'tiles/s':>8}{'least':>8}{'most':>8}{'ratio':>8}{'start s':>10}{'error':>12}")
    for name, (values, startup, *_) in last.items():
        print(told(name, rates[name], first, startup, relative_error(values, wanted)))
    for name in ("tiaft, float32", "tiaft, auto"):
        precision = last[name][3].split(":")[0]
        alone = network_alone(model, slide, precision, 512)
        share = statistics.median(rates[name]) / alone
        print(f"network alone, {precision}: {alone:.2f} tiles/s; the engine reaches {share:.0%}")
        print(f"  {last[name][3]}")


if __name__ == "__main__":
    main()

"""The whole engine on a slide: TIAToolbox's DeepFeatureExtractor, and tiaft's, side by side.

    python benchmarks/engine.py [OUT] [--runs 3] [--format svs,ome.tiff] [--plot FILE]
    python benchmarks/engine.py [OUT] --slide FILE

Without --slide, slides of real tissue are made (TIAFT_DATA, default ../shared/data) of --side px,
three levels: an SVS with JPEG tiles of 240 px, and an OME-TIFF with JPEG tiles of 512 px. Tiles are
224 px at 0.5 µm/px, the network is in TIAToolbox's own class (TimmBackbone) with random weights,
batches have 32 tiles. The ways take turns: TIAToolbox; tiaft in float32, and right after it the
network alone, as the engine runs it, on tiles that were read before; tiaft as its commands run by
default (auto), and the network alone in the precision that this took.

"tiles/s" are medians of the runs, with the least and the most; "ratio" and "of alone" are medians
of what they are within each run, to TIAToolbox and to the network alone. All from the first tile
read to the end of the store; "start" is what came before (loading, folding, the trial of
precisions, compiling), "compile" is a part of it. "error" is the relative error of all features to
TIAToolbox's. "others" is the share of the processors that other programs had, at most.

What was measured is kept in OUT (CSV and JSON): an interrupted benchmark, given again, goes on, and
with more runs it adds to what there is. The exit status is 1 where a goal is missed.
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from engine_network import model_of
from engine_reading import MPP, SIDE, tiles_of, tissue, write_slide
from kept import Kept, machine
from tiatoolbox.models.engine.deep_feature_extractor import DeepFeatureExtractor
from tiatoolbox.models.engine.io_config import IOPatchPredictorConfig

from tiaft_plugin import FeatureExtractor
from tiaft_plugin.engine.compute import Compute, relative_error
from tiaft_plugin.engine.jobs import SlideJob
from tiaft_plugin.engine.reading import TileReading
from tiaft_plugin.engine.store import read_store
from tiaft_plugin.files import write_atomically
from tiaft_plugin.network.precision import has_bfloat16

BATCH = 32
PIECES = {"svs": 240, "ome.tiff": 512}  # px of JPEG tiles
CONFIG = IOPatchPredictorConfig(
    input_resolutions=[{"units": "mpp", "resolution": MPP}],
    patch_input_shape=[SIDE, SIDE],
    stride_shape=[SIDE, SIDE],
)
STOCK, FLOAT, AUTO = "TIAToolbox", "tiaft, float32", "tiaft, auto"
ALONE = {FLOAT: "network alone, float32", AUTO: "network alone, as auto"}
WAYS = (STOCK, FLOAT, ALONE[FLOAT], AUTO, ALONE[AUTO])
# Goals: times TIAToolbox's tiles/s, share of the network alone, relative error.
LEAST_RATIO = {FLOAT: 1.5, AUTO: 4.5 if has_bfloat16(torch.device("cpu")) else 2.0}
LEAST_SHARE, MOST_ERROR = 0.9, {FLOAT: 1e-5, AUTO: 1e-2}
Row = dict[str, Any]


class Stock(DeepFeatureExtractor):
    """TIAToolbox's engine, which notes when it is ready to read tiles."""

    ready = cpu_before = 0.0

    def get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loader, and note the time, and the processors'."""
        loader = super().get_dataloader(*args, **kwargs)
        self.ready, self.cpu_before = time.perf_counter(), time.process_time()
        return loader


class Ours(FeatureExtractor):
    """Tiaft's engine, which notes when it is ready to read tiles."""

    ready = cpu_before = 0.0

    def _write_chunks(self, *args: Any, **kwargs: Any) -> Any:
        self.ready, self.cpu_before = time.perf_counter(), time.process_time()
        return super()._write_chunks(*args, **kwargs)


def stock(model: torch.nn.Module, slide: Path, features: Path) -> Row:
    """Run TIAToolbox's engine, and keep its features."""
    import zarr

    begun = time.perf_counter()
    engine = Stock(model, batch_size=BATCH, num_workers=0, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        found = engine.run(
            [slide], patch_mode=False, ioconfig=CONFIG, save_dir=Path(folder) / "out",
            output_type="zarr", auto_get_mask=False,
        )  # fmt: skip
        done = time.perf_counter()
        [path] = found.values()
        values = np.asarray(zarr.open_array(path / "features", mode="r")[:])
    np.save(features, values)
    return _row(len(values), done - engine.ready, engine.ready - begun, precision="float32")


def ours(
    model: torch.nn.Module, slide: Path, precision: str, workers: int, wanted: np.ndarray
) -> Row:
    """Run tiaft's engine; `wanted` are TIAToolbox's features."""
    begun = time.perf_counter()
    engine = Ours(model, batch_size=BATCH, num_workers=workers, verbose=False, precision=precision)
    engine.ioconfig = engine._ioconfig = CONFIG
    engine.auto_mask = False
    with tempfile.TemporaryDirectory() as folder, compiling() as compiled:
        [result] = engine.process([SlideJob(slide)], Path(folder))
        done = time.perf_counter()
        assert result.store is not None, result.reason
        store = read_store(result.store)
        values = np.asarray(store.values[:])
    row = _row(len(values), done - engine.ready, engine.ready - begun, compiled[0])
    return row | {
        "precision": store.facts["precision"],
        "compiled": store.facts["compute"]["compiled"],
        "error": relative_error(values, wanted),
        "told": result.speed,
    }


def network_alone(model: torch.nn.Module, slide: Path, count: int, like: Row) -> Row:
    """Compute tiles that are in memory already, as the engine did in the run of row `like`."""
    dataset = tiles_of(slide)
    reading = TileReading(dataset, workers=1)
    rows = range(min(count, len(dataset)))
    batches = [tiles for _, tiles in reading.read([rows[i : i + BATCH] for i in rows[::BATCH]])]
    begun = time.perf_counter()
    how = {"batch_size": BATCH, "tile_shape": (SIDE, SIDE), "compiled": like["compiled"]}
    compute = Compute(model, "cpu", like["precision"], **how)
    compute(batches[0])
    ready = time.perf_counter()
    done = sum(len(outputs) for outputs in compute.each(batches))
    took = time.perf_counter() - ready
    row = _row(done, took, ready - begun, compute.compile_seconds)
    return row | {"precision": like["precision"], "compiled": like["compiled"]}


@contextmanager
def compiling() -> Iterator[list[float]]:
    """Give a list that holds, afterwards, how many seconds compiling took."""
    took, own = [0.0], Compute._compile

    def timed(compute: Compute) -> None:
        own(compute)
        took[0] += compute.compile_seconds

    with mock.patch.object(Compute, "_compile", timed):
        yield took


def measure(kept: Kept, slide: Path, kind: str, options: argparse.Namespace) -> None:
    """Run all ways in turn, those that were not run before."""
    model, features = model_of(options), kept.path.with_name(f"{kind}-stock.npy")
    for run in range(options.runs):
        key = {"format": kind, "run": run}
        kept.once(lambda: stock(model, slide, features), way=STOCK, **key)
        wanted = np.load(features)
        for way, precision in ((FLOAT, "float32"), (AUTO, "auto")):

            def engine(precision: str = precision, wanted: np.ndarray = wanted) -> Row:
                return ours(model, slide, precision, options.workers, wanted)

            row = kept.once(engine, way=way, **key)

            def alone(row: Row = row) -> Row:
                return network_alone(model, slide, options.alone, row)

            kept.once(alone, way=ALONE[way], **key)
        print(f"{kind}: run {run + 1} of {options.runs} is done", file=sys.stderr, flush=True)


def report(rows: list[Row], kind: str) -> list[str]:
    """Print the table of a format; return which goals are missed."""
    rows = [row for row in rows if row["format"] == kind]
    runs = max(row["run"] for row in rows) + 1
    busy, tiles = max(row["others"] for row in rows), rows[0]["tiles"]
    print(f"\n{kind}, {tiles} tiles, {runs} runs, others had {busy:.0%} of the processors at most")
    head = ("tiles/s", "least", "most", "ratio", "of alone", "start s", "compile s", "error")
    print(f"{'':26}" + "".join(f"{name:>10}" for name in head))
    missed = []
    for way in WAYS:
        own = _of(rows, way)
        rates = [row["rate"] for row in own]
        ratio = statistics.median(_quotients(rows, way, STOCK))
        line = f"{way:26}" + "".join(
            f"{rate:10.2f}" for rate in (statistics.median(rates), min(rates), max(rates), ratio)
        )
        share = statistics.median(_quotients(rows, way, ALONE[way])) if way in ALONE else None
        line += f"{share:10.1%}" if share is not None else " " * 10
        for name in ("start", "compile"):
            line += f"{statistics.median(row[name] for row in own):10.1f}"
        errors = [row["error"] for row in own if "error" in row]
        print(line + (f"{max(errors):10.1e}" if errors else ""))
        if share is not None:
            missed += _missed(f"{kind}, {way}", way, ratio, share, max(errors))
    for way in ALONE:
        last = _of(rows, way)[-1]
        print(f"{way}: {last['precision']}; {last['told']}")
    return missed


def plot(rows: list[Row], file: Path, title: str) -> None:
    """Draw medians as bars, and every run as a point."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(row["format"] for row in rows))
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(1 + 4.2 * len(kinds), 3), sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, kind in zip(axes[0], kinds, strict=True):
        own = [row for row in rows if row["format"] == kind]
        for place, way in enumerate(WAYS):
            rates = [row["rate"] for row in _of(own, way)]
            middle, ratio = statistics.median(rates), statistics.median(_quotients(own, way, STOCK))
            colour = {STOCK: "#999999"}.get(way, "#3b6fb6" if way in ALONE else "#b9cde6")
            axis.barh(place, middle, color=colour)
            axis.plot(rates, [place] * len(rates), ".", color="black", markersize=4)
            axis.text(max(rates), place, f"  {ratio:.2f}×", va="center", fontsize=9)
        axis.set_yticks(range(len(WAYS)), WAYS)
        axis.set_title(f"{kind}, {own[0]['tiles']} tiles", fontsize=10)
        axis.set_xlabel("tiles/s")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].invert_yaxis()
    axes[0][0].margins(x=0.15)
    figure.suptitle(title.replace(", ", ",\n", 1), fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def main() -> int:
    """Measure what is not there yet; print what there is."""
    options = options_of()
    logging.disable(logging.WARNING)  # TIAToolbox's, of each slide and run
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder)
        kinds = options.format.split(",") if options.slide is None else [options.slide.name]
        given = {"slide": str(options.slide)} if options.slide else {"side": options.side}
        settings = {"backbone": options.backbone, "workers": options.workers, "batch": BATCH}
        kept = Kept(out, "engine", settings | given | {"alone": options.alone})
        for kind in kinds:
            slide = options.slide or out / f"{options.side}.{kind}"
            if not slide.exists():
                with write_atomically(slide) as part:
                    write_slide(part, tissue(options.side), PIECES[kind], levels=3)
            measure(kept, slide, kind, options)
        rows = [row for row in kept.rows if row["format"] in kinds and row["run"] < options.runs]
        title = f"{options.backbone}, {machine()}, {torch.get_num_threads()} threads"
        print(title)
        missed = [text for kind in kinds for text in report(rows, kind)]
        if options.plot:
            plot(rows, options.plot, title)
    print("\n" + ("\n".join(missed) or "all goals are met"))
    return 1 if missed else 0


def options_of() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, help="folder for what was measured")
    parser.add_argument("--slide", type=Path, help="this one, instead of some that are made")
    parser.add_argument("--format", default="svs,ome.tiff", help="of slides that are made")
    parser.add_argument("--backbone", default="legacy_xception")
    parser.add_argument("--side", type=int, default=11_424, help="px of the slide that is made")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="threads that read")
    parser.add_argument("--alone", type=int, default=1024, help="tiles for the network alone")
    parser.add_argument("--plot", type=Path, help="draw a picture (.png, .svg)")
    return parser.parse_args(namespace=argparse.Namespace(weights=None, size=SIDE))


def _row(tiles: int, seconds: float, start: float, compiled: float = 0.0, **more: Any) -> Row:
    numbers = {"seconds": seconds, "rate": tiles / seconds, "start": start, "compile": compiled}
    return {"tiles": tiles, **{k: round(v, 3) for k, v in numbers.items()}, **more}


def _of(rows: list[Row], way: str) -> list[Row]:
    return sorted((row for row in rows if row["way"] == way), key=lambda row: row["run"])


def _quotients(rows: list[Row], way: str, base: str) -> list[float]:
    """Return a way's tiles/s by those of another, within each run."""
    pairs = zip(_of(rows, way), _of(rows, base), strict=True)
    return [row["rate"] / other["rate"] for row, other in pairs]


def _missed(name: str, way: str, ratio: float, share: float, error: float) -> list[str]:
    goals = (
        (ratio >= LEAST_RATIO[way], f"{ratio:.2f} times TIAToolbox's speed", LEAST_RATIO[way]),
        (share >= LEAST_SHARE, f"{share:.1%} of the network alone", f"{LEAST_SHARE:.0%}"),
        (error <= MOST_ERROR[way], f"relative error {error:.1e}", MOST_ERROR[way]),
    )
    return [f"missed: {name}: {found}, wanted {goal}" for met, found, goal in goals if not met]


if __name__ == "__main__":
    sys.exit(main())

"""How time and memory of the engine, and of TIAToolbox's, grow with the tiles of a slide.

    python benchmarks/engine_growth.py [OUT] [--tiles 250,1000,…] [--minutes 5] [--plot FILE]

Slides of real tissue are made (TIAFT_DATA, default ../shared/data), SVS-like, JPEG, each as large
as so many tiles of 32 px side by side; the network is a tiny one with random weights and one
thread, so that what grows is the engine's. Each run is a process of its own. "peak" is its largest
memory, "growth" that above the same way's smallest slide. Seconds are from the first tile read to
the end of the store, "CPU s" those of the processors in it, all threads together (where other
things run on the machine they say more); "start" is what came before. "others" is the share of the
processors that other programs had.

TIAToolbox is not run where, at its last rate, it would take longer than --minutes: the line says
so, and no number of it stands in the table or the picture. What was measured is kept in OUT: an
interrupted benchmark, given again, goes on. The exit status is 1 where ours grows by 200 MB or more
over the smallest slide of 1,000 tiles or more.
"""

import argparse
import json
import logging
import math
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from engine import AUTO, BATCH, STOCK, Ours, Row, Stock
from engine_network import model_of
from engine_reading import MPP, tissue, write_slide
from kept import Kept, machine
from tiatoolbox.models.engine.io_config import IOPatchPredictorConfig

from tiaft_plugin.engine.jobs import SlideJob
from tiaft_plugin.files import write_atomically
from tiaft_plugin.finetune.memory import peak_gib

TILE, PIECE = 32, 240  # px
COUNTS = "250,1000,2500,10000,25000,100000"
MOST_GROWTH, FROM = 200, 1000  # MB, tiles
LIKE = argparse.Namespace(backbone="test_resnet", weights=None, size=TILE)
CONFIG = IOPatchPredictorConfig(
    input_resolutions=[{"units": "mpp", "resolution": MPP}],
    patch_input_shape=[TILE, TILE],
    stride_shape=[TILE, TILE],
)


def one(way: str, slide: Path, out: Path) -> Row:
    """Run one way on one slide, in this process, and return what it took."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # two would spin while they wait for each other, and count as work
    model, begun = model_of(LIKE), time.perf_counter()
    if way == STOCK:
        engine: Any = Stock(model, batch_size=BATCH, num_workers=0, verbose=False)
        engine.run(
            [slide], patch_mode=False, ioconfig=CONFIG, save_dir=out, output_type="zarr",
            auto_get_mask=False,
        )  # fmt: skip
    else:
        engine = Ours(model, batch_size=BATCH, num_workers=1, verbose=False, precision="auto")
        engine.ioconfig = engine._ioconfig = CONFIG
        engine.auto_mask = False
        [result] = engine.process([SlideJob(slide)], out)
        assert result.status == "done", result.reason
    seconds, cpu = time.perf_counter() - engine.ready, time.process_time() - engine.cpu_before
    peak = peak_gib(torch.device("cpu")) * 1024
    return {"seconds": seconds, "cpu": cpu, "start": engine.ready - begun, "peak": peak}


def in_a_process(way: str, slide: Path) -> Row:
    """Run one way in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", way, str(slide), str(Path(folder) / "out")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(kept: Kept, out: Path, counts: list[int], minutes: float) -> list[Row]:
    """Run both ways on slides of more and more tiles; what is not run has "about", in minutes."""
    rows = []
    rate = math.inf  # TIAToolbox's last
    for count in counts:
        lines = round(math.sqrt(count))
        slide = out / f"{lines * TILE}.svs"
        if not slide.exists():
            with write_atomically(slide) as part:
                write_slide(part, tissue(lines * TILE), PIECE)
        for way in (STOCK, AUTO):
            key: Row = {"way": way, "tiles": lines**2}
            if way == STOCK and lines**2 / rate > 60 * minutes:
                rows.append(key | {"about": lines**2 / rate / 60})
                continue
            row = kept.once(partial(in_a_process, way, slide), **key)
            rate = row["tiles"] / row["seconds"] if way == STOCK else rate
            rows.append(row)
            print(f"{way}: {row['tiles']} tiles are done", file=sys.stderr, flush=True)
    return rows


def report(rows: list[Row]) -> float:
    """Print a table; return by how much memory of ours grows, in MB, from FROM tiles on."""
    print(f"{'':14}{'tiles':>8}{'seconds':>10}{'CPU s':>10}{'tiles/s':>10}{'start s':>10}", end="")
    print(f"{'peak MB':>10}{'growth MB':>11}{'others':>8}")
    for way in (STOCK, AUTO):
        own = [row for row in rows if row["way"] == way]
        for row in own:
            line = f"{way:14}{row['tiles']:8}"
            if "about" in row:
                print(f"{line}  not run: about {row['about']:.1f} min at the last rate")
                continue
            rate, growth = row["tiles"] / row["seconds"], row["peak"] - own[0]["peak"]
            line += f"{row['seconds']:10.1f}{row['cpu']:10.1f}{rate:10.0f}{row['start']:10.1f}"
            print(f"{line}{row['peak']:10.0f}{growth:11.0f}{row['others']:8.0%}")
    peaks = [row["peak"] for row in rows if row["way"] == AUTO and row["tiles"] >= FROM]
    return max(peaks) - peaks[0] if peaks else 0.0


def plot(rows: list[Row], file: Path, title: str) -> None:
    """Draw processor seconds and memory over tiles; what was not run is not drawn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharex=True, layout="constrained")
    for way, colour in ((STOCK, "#999999"), (AUTO, "#3b6fb6")):
        own = [row for row in rows if row["way"] == way and "about" not in row]
        tiles = [row["tiles"] for row in own]
        axes[0].plot(tiles, [row["cpu"] for row in own], "o-", color=colour, label=way)
        growth = [row["peak"] - own[0]["peak"] for row in own]
        axes[1].plot(tiles, growth, "o-", color=colour, label=way)
    axes[0].set(xscale="log", yscale="log", ylabel="processor seconds")
    axes[1].set(ylabel=f"peak memory above that of {rows[0]['tiles']} tiles, MB")
    for axis in axes:
        axis.set_xlabel("tiles")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.suptitle(title, fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def main() -> int:
    """Measure what is not there yet; print what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, help="folder for what was measured")
    parser.add_argument("--tiles", default=COUNTS)
    parser.add_argument("--minutes", type=float, default=5, help="at most, for TIAToolbox")
    parser.add_argument("--plot", type=Path, help="draw a picture (.png, .svg)")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, slide, out = options.one
        print(json.dumps(one(way, Path(slide), Path(out))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder)
        kept = Kept(out, "growth", {"tile": TILE, "backbone": LIKE.backbone, "batch": BATCH})
        rows = measure(kept, out, [int(n) for n in options.tiles.split(",")], options.minutes)
    title = f"{LIKE.backbone}, tiles of {TILE} px, {machine()}"
    print(title)
    growth = report(rows)
    if options.plot:
        plot(rows, options.plot, title)
    print(f"\nfrom {FROM} tiles on ours grows by {growth:.0f} MB at most (goal: {MOST_GROWTH})")
    return 1 if growth >= MOST_GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())

"""How time and memory of the engine grow with the tiles of a slide.

    python benchmarks/engine_growth.py [--side PX] [--tiles 1000,10000,100000]

A slide of real tissue is made (TIAFT_DATA, default ../shared/data), and read with so many tiles of
32 px (a smaller stride gives more of them) for a tiny network, so that what grows is the engine's.
Each count runs in a process of its own; its peak of memory is printed, and the growth over the
first.
"""

import argparse
import math
import subprocess
import sys
import tempfile
from pathlib import Path

from engine_reading import write_slides

TILE, MPP = 32, 0.5
RUN = """
import sys
import time
from pathlib import Path

import torch

from tiaft_plugin.engine.jobs import SlideJob
from tiaft_plugin.engine.run import make_engine
from tiaft_plugin.finetune.memory import peak_gib

model, slide, out, stride = sys.argv[1:]
engine = make_engine("features", model, stride=int(stride), auto_mask=False, device="cpu")
engine.verbose = False
begun = time.perf_counter()
[result] = engine.process([SlideJob(Path(slide))], Path(out))
assert result.status == "done", result.reason
print(result.tiles, time.perf_counter() - begun, peak_gib(torch.device("cpu")) * 1024)
"""


def main() -> None:
    """Print a line for each number of tiles."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=4480, help="px of the slide")
    parser.add_argument("--tiles", default="1000,10000,100000")
    options = parser.parse_args()
    from tiaft_plugin.network import create_network, save_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide = write_slides(folder, options.side)[0]
        net = create_network("test_resnet", "ab", init="random", tile_size=TILE, mpp=MPP)
        model = save_model(net, folder / "tiny.safetensors")
        print(f"{'tiles':>8}{'seconds':>10}{'tiles/s':>10}{'peak MB':>10}{'growth MB':>11}")
        first = None
        for count in map(int, options.tiles.split(",")):
            stride = max(1, round(options.side / math.sqrt(count)))
            out = folder / str(count)
            done = subprocess.run(
                [sys.executable, "-c", RUN, model, slide, out, str(stride)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            tiles, seconds, peak = map(float, done.stdout.splitlines()[-1].split())
            first = first or peak
            print(f"{tiles:8.0f}{seconds:10.1f}{tiles / seconds:10.0f}{peak:10.0f}", end="")
            print(f"{peak - first:11.0f}", flush=True)


if __name__ == "__main__":
    main()

"""How fast tiles come into a QuPath project: tiaft's way, paquo's bulk way, and tile by tile.

    python benchmarks/qupath_push.py [--tiles N] [--measurements N]
    python benchmarks/qupath_push.py --million

Needs a QuPath that paquo finds (PAQUO_QUPATH_DIR). Each line is a process of its own, on a project
of its own, in which Java runs already. "made" is the time from arrays of numbers to objects in the
image, "saved" from there to the saved file, "CPU" what both took of all cores (on a busy machine
the one to compare), "ratio" how often tiaft's "all" goes into this one. "Java MB" is what QuPath's
objects take in the end, "taken" what Java has taken from the machine for it. tiaft's objects have
ids and marks in addition.

``--million`` pushes 1,000,000 tiles with 4 GiB of Java memory, and replaces them by others.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from uuid import UUID

import numpy as np
from PIL import Image

from tiaft_plugin.qupath.objects import Classes, NewTiles, Origin

NAMES = tuple(f"Class {letter}" for letter in "ABCDEFGHI")
SIDE = 224  # px
WAYS = {"tiaft": "tiaft", "bulk": "paquo, detections.update", "single": "paquo, add_tile"}
MILLION_MEMORY = "4g"


def tiles(count: int, measurements: int, grid: str = "first") -> NewTiles:
    """Return made-up tiles, prepared as a push has them."""
    rng = np.random.default_rng(0)
    number = np.arange(count)
    corner = np.stack([number % 1000, number // 1000], 1) * float(SIDE)
    first = 1 << 100 if grid == "first" else 1 << 101
    return NewTiles(
        Origin("made-up", "0" * 64, grid),
        Classes(NAMES, tuple((20 * i, 255 - 20 * i, 100) for i in range(len(NAMES)))),
        [UUID(int=first + i) for i in range(count)],
        np.concatenate([corner, corner + SIDE], 1),
        rng.integers(0, len(NAMES), count),
        {f"Probability: {i}": rng.random(count, dtype=np.float32) for i in range(measurements)},
    )


def make_project(folder: Path) -> Path:
    """Make a project with one image."""
    from tiaft_plugin.qupath.java.add_images import create_project, make_entries
    from tiaft_plugin.qupath.project.project_file import add_entries

    image = folder / "image.png"
    Image.new("RGB", (256, 256), "white").save(image)
    project = create_project(folder / "project")
    add_entries(project, *make_entries([image], folder / "scratch"))
    return project


def tiaft(project: Path, new: NewTiles) -> list[float]:
    """Replace what tiaft wrote into the image before; return the clock's figures."""
    from tiaft_plugin.qupath.java.image_data import open_image
    from tiaft_plugin.qupath.project.project_file import read_project
    from tiaft_plugin.qupath.project.writing import rewrite
    from tiaft_plugin.qupath.pushing.plan import plan_push

    clock = Clock()
    found_project = read_project(project)
    with rewrite(found_project, found_project.images[0], dry_run=False) as writing:
        image = open_image(writing.entry)
        plan = plan_push(image.found(), new)
        image.remove(plan.remove)
        image.add_tiles(new, plan.add)
        clock.stop()
        classes = list(zip(new.classes.names, new.classes.colours, strict=True))
        writing.save(image, classes=classes, metadata={})
    return clock.figures()


def paquo(project: Path, new: NewTiles, single: bool) -> list[float]:
    """Add the tiles as paquo's documentation has it; return the clock's figures."""
    from paquo.classes import QuPathPathClass
    from paquo.pathobjects import QuPathPathTileObject
    from paquo.projects import QuPathProject
    from shapely import box

    clock = Clock()
    opened = QuPathProject(project, mode="r+")
    hierarchy = opened.images[0].hierarchy
    pairs = zip(new.classes.names, new.classes.colours, strict=True)
    classes = [QuPathPathClass(name, colour) for name, colour in pairs]
    columns = (column.astype(float).tolist() for column in new.measurements.values())
    values = zip(*columns, strict=True)
    rows = zip(box(*new.bounds.T), new.labels.tolist(), values, strict=True)
    prepared = ((area, classes[label], dict(zip(new.measurements, row, strict=True)))
                for area, label, row in rows)  # fmt: skip
    if single:
        for each in prepared:
            hierarchy.add_tile(*each)
    else:
        hierarchy.detections.update([QuPathPathTileObject.from_shapely(*each) for each in prepared])
    clock.stop()
    opened.save()
    return clock.figures()


class Clock:
    """Seconds between its making, `stop` and `figures`."""

    def __init__(self) -> None:
        self.cpu = time.process_time()
        self.times = [time.perf_counter()]

    def stop(self) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    def figures(self) -> list[float]:
        """Return seconds made and saved, CPU seconds of both, Java's MB used and taken."""
        self.stop()
        return [*np.diff(self.times), time.process_time() - self.cpu, *java_memory()]


def java_memory() -> tuple[float, float]:
    """Return MB that Java's objects use now, and that Java has taken from the machine."""
    import jpype

    runtime = jpype.java.lang.Runtime.getRuntime()
    taken = runtime.totalMemory() / 2**20
    jpype.java.lang.System.gc()
    return (runtime.totalMemory() - runtime.freeMemory()) / 2**20, taken


def measure(way: str, project: Path, count: int, measurements: int, grid: str) -> None:
    """Run one way; print its figures, peak MB of the process, MB of the file, QuPath's version."""
    from tiaft_plugin.qupath.java.start import start_java

    version = start_java()
    if not project.exists():
        project = make_project(project.parent.parent)
    new = tiles(count, measurements, grid)
    done = tiaft(project, new) if way == "tiaft" else paquo(project, new, way == "single")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    from paquo.projects import QuPathProject

    reread = len(QuPathProject(project, mode="r").images[0].hierarchy)
    assert reread == count, f"{reread} objects in the file"
    size = sum(file.stat().st_size for file in project.parent.glob("data/*/data.qpdata")) / 1e6
    print(*done, peak, size, version)


def run(way: str, project: Path, options: argparse.Namespace, grid: str = "first") -> list[str]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--one", way, "--project", str(project), "--grid", grid]
    command += ["--tiles", str(options.tiles), "--measurements", str(options.measurements)]
    env = dict(os.environ)
    if options.million:
        env["TIAFT_JAVA_MEMORY"] = MILLION_MEMORY
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
    return done.stdout.split()


def compare(options: argparse.Namespace) -> None:
    """Print the three ways side by side."""
    head = f"{options.tiles} tiles, {options.measurements} measurements each"
    columns = f"{'made s':>8}{'saved s':>9}{'all s':>8}{'ratio':>7}{'CPU s':>8}"
    columns += f"{'Java MB':>9}{'taken':>7}"
    totals = {}
    for way, name in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            made, saved, cpu, used, taken, *_, version = run(
                way, Path(folder) / "project/p", options
            )
        if not totals:
            print(f"QuPath {version}: {head}\n{'':26}{columns}")
        totals[way] = total = float(made) + float(saved)
        ratio = total / totals["tiaft"]
        print(
            f"{name:26}{float(made):8.2f}{float(saved):9.2f}{total:8.2f}{ratio:7.1f}"
            f"{float(cpu):8.1f}{float(used):9.0f}{float(taken):7.0f}"
        )


def million(options: argparse.Namespace) -> None:
    """Print what pushing a million tiles takes, and replacing them in another process."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project/project.qpproj"
        for name, grid in (("pushed", "first"), ("reopened, replaced", "second")):
            made, saved, cpu, used, taken, peak, size, version = run(
                "tiaft", project, options, grid
            )
            print(
                f"QuPath {version}, {options.tiles} tiles {name}: {float(made):.1f} s made, "
                f"{float(saved):.1f} s saved ({float(cpu):.0f} s of CPU), {float(size):.0f} MB; "
                f"Java {float(used):.0f} MB, at most {float(taken):.0f} MB of {MILLION_MEMORY}; "
                f"process {float(peak):.0f} MB"
            )


def main() -> None:
    """Compare, or with --million push a million."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=int)
    parser.add_argument("--measurements", type=int, default=9)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--project", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--grid", default="first", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.tiles = options.tiles or (1_000_000 if options.million else 100_000)
    if options.one:
        measure(options.one, options.project, options.tiles, options.measurements, options.grid)
    elif options.million:
        million(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()

"""Slides whose label is a rule that we know: at least three of their tiles show tumour.

    python plant_bags.py DATA OUT

A slide is a mosaic of real tiles of `DATA/kather2016`, all of one of its ten source images, which
is its patient. OUT gets `learn`, slides of five patients, and `new`, slides of the other five, each
with the slides as OME-TIFF, `labels.csv`, `patients.csv` and `truth.csv`, which says where the
tumour tiles lie (no model is given it). What is there stays; the same seed gives the same.
"""

import argparse
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from tiaft_plugin.files import write_atomically, write_csv

MPP, SIDE = 0.495, 150  # of the tiles, µm/px and px
COLUMNS, ROWS = 8, 5  # tiles of a slide
LEAST, MOST = 3, 6  # tumour tiles of a positive slide; a negative one has fewer than LEAST
TUMOUR = "01_TUMOR"
# The split of the source images that shares the tissues out most evenly.
HALVES = {"learn": ("01", "03", "04", "06", "08"), "new": ("02", "05", "07", "09", "10")}
SLIDES = {"learn": 12, "new": 6}  # of each patient


@dataclass(frozen=True)
class Bag:
    """A slide: `rows` are its tiles' places in the tile set, in the order they lie in."""

    name: str
    patient: str
    rows: np.ndarray
    positive: bool


def draw_bags(
    sources: np.ndarray, tumour: np.ndarray, bags: int, tiles: int, seed: int
) -> Iterator[Bag]:
    """Give `bags` slides of `tiles` tiles for each source image, half of them positive.

    `sources` (N,) and `tumour` (N,) bool are those of the tiles there are. A slide holds no tumour
    tile twice; the others may be, where a source has few.
    """
    rng = np.random.default_rng(seed)
    for source in np.unique(sources):
        own, others = (np.flatnonzero((sources == source) & of) for of in (tumour, ~tumour))
        for number in range(bags):
            wanted = rng.integers(LEAST, MOST + 1) if number % 2 else rng.integers(0, LEAST)
            count = min(int(wanted), len(own))
            rest = tiles - count
            drawn = [*rng.choice(own, count, replace=False)]
            drawn += [*rng.choice(others, rest, replace=len(others) < rest)]
            name = f"{source}-{number:02d}"
            yield Bag(name, str(source), rng.permutation(drawn), count >= LEAST)


def read_tiles(data: Path) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """Return the files (N) of kather2016, their source images and which are tumour (N,) each."""
    with (data / "kather2016/manifest.csv").open(newline="", encoding="utf-8") as file:
        known = list(csv.DictReader(file))
    files = [data / "kather2016" / row["file"] for row in known]
    sources = np.array([row["group"].rpartition("-")[2] for row in known])
    return files, sources, np.array([row["label"] == TUMOUR for row in known])


def write_slide(path: Path, files: Sequence[Path]) -> None:
    """Lay tiles side by side, row by row, to a slide of 0.495 µm/px."""
    pixels = np.zeros((ROWS * SIDE, COLUMNS * SIDE, 3), np.uint8)
    for place, file in enumerate(files):
        y, x = (SIDE * n for n in divmod(place, COLUMNS))
        pixels[y : y + SIDE, x : x + SIDE] = Image.open(file).convert("RGB")
    sizes = {"PhysicalSizeX": MPP, "PhysicalSizeY": MPP}
    units = {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    with write_atomically(path) as part:
        tifffile.imwrite(
            part,
            pixels,
            ome=True,
            tile=(256, 256),
            photometric="rgb",
            compression="adobe_deflate",
            metadata={"axes": "YXS", **sizes, **units},
        )


def plant(data: Path, out: Path, seed: int) -> None:
    """Write the slides and tables of both halves."""
    files, sources, tumour = read_tiles(data)
    for number, (half, own) in enumerate(HALVES.items()):
        here = np.flatnonzero(np.isin(sources, own))
        folder = out / half
        bags = list(
            draw_bags(sources[here], tumour[here], SLIDES[half], ROWS * COLUMNS, seed + number)
        )
        for bag in bags:
            path = folder / "slides" / f"{half}-{bag.name}.ome.tiff"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_slide(path, [files[row] for row in here[bag.rows]])
        _write_tables(folder, half, bags, [tumour[here][bag.rows] for bag in bags])
        print(f"{folder}: {len(bags)} slides, {sum(bag.positive for bag in bags)} of them positive")


def _write_tables(
    folder: Path, half: str, bags: Sequence[Bag], tumour: Sequence[np.ndarray]
) -> None:
    """Write truth.csv, of which tiles (n,) bool are `tumour`, patients.csv and labels.csv."""
    named = [(f"{half}-{bag.name}.ome.tiff", bag) for bag in bags]
    places = [
        (name, place % COLUMNS, place // COLUMNS)
        for (name, _), its in zip(named, tumour, strict=True)
        for place in np.flatnonzero(its).tolist()
    ]
    patients = [(name, f"patient-{bag.patient}") for name, bag in named]
    labels = [(name, "tumour" if bag.positive else "none") for name, bag in named]
    write_csv(folder / "truth.csv", ("slide", "column", "row"), places)
    write_csv(folder / "patients.csv", ("slide", "patient"), patients)
    write_csv(folder / "labels.csv", ("slide", "label"), labels)  # last: whoever finds it finds all


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA", help="folder that holds kather2016")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for learn and new")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    plant(given.data, given.out, given.seed)

"""Top-k fine-tuning against the frozen encoder, on patients that nothing was learnt from.

    python benchmarks/topk.py OUT [--patients 240] [--test 240] [--tiles 40] [-k 12] [--epochs 10]
        [--lr 1e-5] [--keep best|last] [--half 0|1]

A patient is a bag of real `kather2016` tiles of one source slide, positive where at least three of
them are tumour. Patients to learn from have tiles of four of the ten source slides, those to choose
epochs by of one, and test patients of the other five: no tile, no slide is on two sides. ImageNet's
MobileNetV2 makes the features, an attention head learns from them (paper 4, stage 1), and both
learn from the tiles with the most attention (stage 2). The test compares them with what they were.

Printed are the AUROC of both, and the difference with its verdict at 2 points, twice: with an
interval over test patients, given these five slides, and over the five slides themselves. What is
done is kept in OUT: an interrupted benchmark, given again, goes on. The data are found as the tests
find them (TIAFT_DATA).
"""

import argparse
import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "examples/histotransfer"))
from plant_bags import HALVES, TUMOUR, Bag, draw_bags
from planted_bags import DATA, MPP, SIZE, WEIGHTS, write_store

from tiaft_extensions.histotransfer.attention import save_head
from tiaft_extensions.histotransfer.mil import Mil
from tiaft_extensions.histotransfer.recipe import Recipe
from tiaft_extensions.histotransfer.topk.held_out import HeldOut, compare, read_held_out, verdict
from tiaft_extensions.histotransfer.training import train
from tiaft_plugin.engine.tile_features import ExtractedTiles, extract_tiles
from tiaft_plugin.finetune.interface import FinetuneJob, Samples
from tiaft_plugin.finetune.run import finetune
from tiaft_plugin.network import create_network, save_model
from tiaft_plugin.probes.reading import read_inputs
from tiaft_plugin.tiles.tileset import TileSet, read_tileset

CLASSES = ("none", "tumour")
SOURCES = 5  # source slides of a half


def main() -> None:
    """Print AUROCs of the frozen and the tuned encoder, and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for stores, head and run")
    parser.add_argument("--patients", type=int, default=240, help="to learn and choose from")
    parser.add_argument("--test", type=int, default=240, help="patients that are only measured")
    parser.add_argument("--tiles", type=int, default=40, help="of a patient")
    parser.add_argument("-k", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1e-5, help="the paper's by default")
    parser.add_argument("--keep", choices=("best", "last"), default="best", help="epoch")
    parser.add_argument("--half", type=int, choices=(0, 1), default=0, help="to learn from")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    tiles = read_tileset(DATA / "kather2016", mpp=MPP)
    halves = list(HALVES.values())
    learnt, tested = halves[given.half], halves[1 - given.half]
    bags = draw(tiles, learnt, given.patients, given.tiles, given.seed)
    test = draw(tiles, tested, given.test, given.tiles, given.seed + 1)
    about = f"patients{given.patients}-tiles{given.tiles}-half{given.half}-seed{given.seed}"
    place = given.out / about
    model = encoder(given.out / "encoder.safetensors")
    chose = head(place, tiles, model, bags, given.seed)
    sets = {
        "train": samples(tiles, [bag for bag in bags if bag.name not in chose]),
        "val": samples(tiles, [bag for bag in bags if bag.name in chose]),
        "test": samples(tiles, test),
    }
    for name, its in sets.items():
        print(f"{len(its.files)} {name} patients of {given.tiles} tiles")
    out = place / f"k{given.k}-epochs{given.epochs}-lr{given.lr:g}-{given.keep}-test{given.test}"
    if not (out / "summary.json").exists():
        options = {"attention": head_of(place), "k": given.k, "epochs": given.epochs,
                   "lr": given.lr, "keep": given.keep}  # fmt: skip
        job = FinetuneJob(
            out=out, **sets, inputs="bags", init=str(model), seed=given.seed, device="cpu",
            checkpoint_minutes=1.0, options=options,
        )  # fmt: skip
        finetune(job, "top-k")
    with (out / "metrics.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            print(f"epoch {row['epoch']:>2} {row['split']:5} accuracy {float(row['accuracy']):.3f}"
                  f", loss {float(row['loss']):.3f}")  # fmt: skip
    found = read_held_out([out / "held_out.csv"], CLASSES)
    of_slide = {bag.name: bag.patient for bag in test}
    told(found, f"{len(found.keys)} test patients", given.seed)
    slides = np.array([of_slide[group] for group in found.groups.tolist()])
    told(replace(found, groups=slides), f"their {SOURCES} source slides", given.seed)


def draw(tiles: TileSet, slides: tuple[str, ...], count: int, size: int, seed: int) -> list[Bag]:
    """Return patients, as many of each slide; `rows` are places among all tiles."""
    of = np.array([str(group).rpartition("-")[2] for group in tiles.groups])
    here = np.flatnonzero(np.isin(of, slides))
    tumour = np.array(tiles.labels)[here] == TUMOUR
    drawn = draw_bags(of[here], tumour, count // SOURCES, size, seed)
    return [replace(bag, rows=here[bag.rows]) for bag in drawn]


def encoder(path: Path) -> Path:
    """Return the file of ImageNet's MobileNetV2."""
    if not path.exists():
        net = create_network(
            "mobilenetv2_100", init=str(DATA / WEIGHTS), tile_size=SIZE, mpp=MPP,
            backbone_args={"pad_type": "same"}, mean=(0.5,) * 3, std=(0.5,) * 3,
        )  # fmt: skip
        save_model(net, path)
    return path


def head_of(out: Path) -> Path:
    """Return where the attention head lies."""
    return out / "head.safetensors"


def head(out: Path, tiles: TileSet, model: Path, bags: list[Bag], seed: int) -> set[str]:
    """Train the attention head on frozen features; return the patients that chose its epoch."""
    stores, kept = out / "stores", out / "chose.txt"
    if not kept.exists():
        known: ExtractedTiles = extract_tiles(tiles, str(model))
        place = {key: row for row, key in enumerate(known.keys.tolist())}
        shown = [place[tiles.shown(file)] for file in tiles.files]
        rows = [["slide", "label"]]
        for bag in bags:
            write_store(stores / f"{bag.name}.zarr", known, np.array(shown)[bag.rows], bag.name)
            rows.append([bag.name, CLASSES[bag.positive]])
        with (stores / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        tables, targets = read_inputs(Mil(), [f"features={stores}"], stores / "labels.csv")
        features, codes = tables[0].values, (targets.values == CLASSES[1]).astype(np.int64)
        slides = np.array([key.partition("-")[0] for key in targets.keys.tolist()])
        trained = train(features, codes, len(CLASSES), slides, seed, Recipe())
        about = {"epoch": trained.epoch, "bags": len(bags)}
        save_head(head_of(out), trained.net, CLASSES, about)
        names = [Path(key).stem for key in tables[0].keys[trained.choosing].tolist()]
        kept.write_text("\n".join(names), encoding="utf-8")
    return set(kept.read_text(encoding="utf-8").split())


def samples(tiles: TileSet, bags: list[Bag]) -> Samples:
    """Return patients with their classes, as a finetuner takes them."""
    return Samples(
        root=tiles.root,
        files=tuple(tuple(tiles.files[row] for row in bag.rows) for bag in bags),
        targets=tuple((float(not bag.positive), float(bag.positive)) for bag in bags),
        target_names=CLASSES,
        groups=tuple(bag.name for bag in bags),
        tile_size=tiles.tile_size,
        mpp=MPP,
    )


def told(found: HeldOut, over: str, seed: int) -> None:
    """Print both AUROCs and the verdict, with intervals over groups."""
    compared = compare(found, seed)
    print(f"\nintervals over {over}")
    for name, (auroc, low, high, balanced) in compared.models.items():
        print(f"{name:16}AUROC {auroc:.3f} ({low:.3f} to {high:.3f}), balanced {balanced:.3f}")
    for name, its in compared.differences.items():
        print(f"{name} less frozen {its.value:+.3f}: {verdict(its)}")


if __name__ == "__main__":
    main()

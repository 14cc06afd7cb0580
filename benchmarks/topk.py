"""Top-k fine-tuning against the frozen encoder, on bags of real tiles with a planted rule.

    python benchmarks/topk.py FOLDER [--data DATA] [--k 12] [--epochs 5] [--bags 6] [--tiles 24]

DATA holds `kather2016` and MobileNetV2's ImageNet weights. A bag is tiles of one source image, its
patient; it is positive where at least three of them are tumour. FOLDER gets the bags, their
features, the run of `tiaft probe mil` and that of `tiaft histotransfer tune`. Interrupted, the
same command goes on.
"""

import argparse
import csv
import os
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from tiaft_extensions.histotransfer.kept import read_run
from tiaft_extensions.histotransfer.mil import Mil
from tiaft_extensions.histotransfer.tile_stores import write_tile_stores
from tiaft_extensions.histotransfer.topk.folds import tune_folds
from tiaft_plugin.network import create_network, save_model
from tiaft_plugin.probes import baselines
from tiaft_plugin.probes.reading import read_inputs
from tiaft_plugin.probes.run import run_probe
from tiaft_plugin.tiles.tileset import read_tileset

MPP = 0.495
LEAST, MOST = 3, 12  # tumour tiles of a positive bag
MOBILENET = {"backbone_args": {"pad_type": "same"}, "mean": (0.5,) * 3, "std": (0.5,) * 3}


def plant(data: Path, folder: Path, bags: int, tiles: int, seed: int) -> Path:
    """Write bags as folders of links to tiles, and their table ``labels.csv``; return that."""
    root, labels = data / "kather2016", folder / "labels.csv"
    if labels.exists():
        return labels
    with (root / "manifest.csv").open(newline="", encoding="utf-8") as file:
        known = list(csv.DictReader(file))
    tumour = np.array(["TUMOR" in row["label"] for row in known])
    source = np.array([row["group"] for row in known])
    rng, rows = np.random.default_rng(seed), []
    for patient in np.unique(source):
        own = np.flatnonzero((source == patient) & tumour)
        others = np.flatnonzero((source == patient) & ~tumour)
        for number in range(bags):
            positive = number % 2 == 0 and len(own) >= LEAST
            count = rng.integers(LEAST, MOST + 1) if positive else rng.integers(0, LEAST)
            count = min(int(count), len(own))
            of = [*rng.choice(own, count, replace=False)]
            of += [*rng.choice(others, tiles - count, replace=len(others) < tiles - count)]
            name = f"{patient}-{number}"
            _link(folder / "bags" / name, [root / known[i]["file"] for i in rng.permutation(of)])
            rows.append([name, f"P{patient}", "tumour" if tumour[of].sum() >= LEAST else "none"])
    with labels.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("slide", "patient", "label"), *rows])
    return labels


def _link(folder: Path, files: list[Path]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files):
        link = folder / f"{number:03d}_{file.parent.name}{file.suffix}"
        if not link.exists():
            link.symlink_to(file.resolve())


def tumour_tiles(bag: Path) -> list[bool]:
    """Return which tiles of a bag show tumour, in their order."""
    return ["TUMOR" in tile.name for tile in sorted(bag.iterdir())]


def main() -> None:
    """Print AUROCs of the frozen and the tuned encoder, and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=os.environ.get("TIAFT_DATA", "."))
    parser.add_argument("--bags", type=int, default=6, help="of each patient")
    parser.add_argument("--tiles", type=int, default=24, help="of each bag")
    parser.add_argument("--k", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    folder = options.folder
    os.environ["TIAFT_MODELS"] = str(folder / "models")
    folder.mkdir(parents=True, exist_ok=True)
    labels = plant(options.data, folder, options.bags, options.tiles, options.seed)
    base, stores = folder / "mobilenet.safetensors", folder / "stores"
    if not base.exists():
        weights = str(options.data / "weights/mobilenetv2_100.imagenet.safetensors")
        net = create_network("mobilenetv2_100", init=weights, tile_size=150, mpp=MPP, **MOBILENET)
        save_model(net, base)
    bags = [path.stem for path in sorted((folder / "bags").iterdir())]
    if not all((stores / f"{bag}.zarr").exists() for bag in bags):
        tiles = read_tileset(folder / "bags", mpp=MPP, classes=bags)
        write_tile_stores(tiles, str(base), stores, overwrite=True, device=options.device)
    run = folder / "mil"
    if not (run / "summary.json").exists():
        baselines.LEAK_DRAWS = 1  # each costs a training of every fold, and is not looked at here
        tables, targets = read_inputs(Mil(), [f"mobilenet={stores}"], labels)
        how = {"folds": options.folds, "repeats": 1, "permutations": 0}
        run_probe("mil", tables, targets, run, seed=options.seed, **how)
    attention = read_run(run)
    truths = {bag: tumour_tiles(folder / "bags" / bag) for bag in bags}
    areas = [
        roc_auc_score(truth, attention.tiles(stores / f"{bag}.zarr").held_out)
        for bag, truth in truths.items()
        if any(truth)
    ]
    print(f"AUROC of attention against tumour tiles, mean over bags: {np.mean(areas):.3f}")
    study = tune_folds(
        stores,
        run,
        folder / "topk",
        model=str(base),
        options={
            "slides": [folder / "bags"],
            "k": options.k,
            "epochs": options.epochs,
            "lr": options.lr,
        },
        seed=options.seed,
        device=options.device,
        say=print,
    )
    for name, (auroc, low, high, balanced) in study.compared.models.items():
        print(f"{name:8}AUROC {auroc:.3f} ({low:.3f} to {high:.3f}), balanced {balanced:.3f}")
    print(f"{study.compared.bags} held-out bags of {study.compared.groups} patients")
    print(f"difference {study.compared.difference.value:+.3f}: {study.compared.verdict}")


if __name__ == "__main__":
    main()

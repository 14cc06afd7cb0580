"""Whether attention finds the few tiles that decide: bags of real tiles with a planted rule.

    python benchmarks/planted_bags.py [--bags 12] [--tiles 80] [--repeats 3] [--shuffles 2]

`kather2016` (960 tiles, 10 slides) and ImageNet's MobileNetV2. A bag has tiles of one slide, and is
positive where at least 3 of them are tumour; a negative one has up to 2. `tiaft probe mil` holds
out whole slides, which are its patients here. Printed are the AUROC of attention, of the mean of a
bag's tiles and of colour alone, with intervals from a bootstrap of slides; the difference; how well
held-out attention tells the tumour tiles of a positive bag from its others; and what is left of it
all when the labels of bags are shuffled. The data are found as the tests find them (TIAFT_DATA).
"""

import argparse
import csv
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_extensions.histotransfer.kept import read_run
from tiaft_extensions.histotransfer.mil import Mil
from tiaft_plugin.engine import store
from tiaft_plugin.engine.tile_features import ExtractedTiles, extract_tiles
from tiaft_plugin.network import create_network, save_model
from tiaft_plugin.probes.interface import FeatureTable, Result, Targets
from tiaft_plugin.probes.reading import read_inputs
from tiaft_plugin.probes.run import run_probe
from tiaft_plugin.probes.statistics import cluster_weights, interval
from tiaft_plugin.tiles.tileset import read_tileset

sys.path.insert(0, str(Path(__file__).parents[1] / "examples/histotransfer"))
from plant_bags import LEAST, TUMOUR, draw_bags

DATA = Path(os.environ.get("TIAFT_DATA", Path(__file__).parents[1] / "../shared/data"))
WEIGHTS = "weights/mobilenetv2_100.imagenet.safetensors"
MPP, SIZE = 0.495, 150  # µm/px, px
NAME = "attention"
MEAN = f"{NAME} (mean pooling)"


def main() -> None:
    """Make the bags, probe them, and print what comes of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bags", type=int, default=12, help="of each slide")
    parser.add_argument("--tiles", type=int, default=80, help="in a bag")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shuffles", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        stores, out = Path(place) / "stores", Path(place) / "mil"
        truth = plant(features(Path(place)), stores, given.bags, given.tiles, given.seed)
        (bags, means), targets = read_inputs(Mil(), [f"{NAME}={stores}"], stores / "labels.csv")
        print(
            f"{len(truth)} bags of {given.tiles} tiles of {len(np.unique(bags.groups))} slides, "
            f"{(targets.values == 'tumour').sum()} of them with {LEAST} tumour tiles or more"
        )
        how = {"repeats": given.repeats, "seed": given.seed, "workers": given.workers}
        report(probe([means, bags], targets, out, **how))
        report_truth(out, truth, given.seed)
        for number in range(given.shuffles):
            mixed = shuffled(targets, given.seed, number)
            found = probe([bags, means], mixed, None, **{**how, "repeats": 1})
            values = (f"{row(found, name)['value']:.3f} {name}" for name in (NAME, MEAN))
            print(f"labels of bags shuffled: AUROC {', '.join(values)}")


def features(place: Path) -> ExtractedTiles:
    """Return MobileNetV2's features of all tiles, and their colour."""
    net = create_network(
        "mobilenetv2_100",
        init=str(DATA / WEIGHTS),
        tile_size=SIZE,
        mpp=MPP,
        backbone_args={"pad_type": "same"},
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    model = save_model(net, place / "mobilenetv2.safetensors")
    return extract_tiles(read_tileset(DATA / "kather2016", mpp=MPP), str(model))


def plant(
    tiles: ExtractedTiles, folder: Path, bags: int, size: int, seed: int
) -> dict[str, np.ndarray]:
    """Write stores of bags, and labels.csv; return which tiles of each are tumour, (n,) bool."""
    rows, truth = [], {}
    tumour = tiles.labels == TUMOUR
    for bag in draw_bags(tiles.groups, tumour, bags, size, seed):
        path = folder / f"slide-{bag.name}.zarr"
        write_store(path, tiles, bag.rows, f"slide-{bag.patient}")
        truth[path.stem] = tumour[bag.rows]
        rows.append([path.stem, "tumour" if bag.positive else "none"])
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["slide", "label"], *rows])
    return truth


def write_store(path: Path, tiles: ExtractedTiles, rows: np.ndarray, patient: str) -> None:
    """Write some tiles as a store, as if they lay side by side on a slide of their own."""
    side = len(rows)
    settings = {
        "kind": "features",
        "slide": {
            "name": f"{path.stem}.svs",
            "fingerprint": path.stem,
            "size": [side * SIZE, SIZE],
            "mpp": [MPP, MPP],
        },
        "model": tiles.about["models"][0],
        "classes": [],
        "grid": {
            "tile_size": [SIZE] * 2,
            "stride": [SIZE] * 2,
            "resolution": MPP,
            "units": "mpp",
        },
        "scale_to_baseline": [1.0, 1.0],
        "precision": "float32",
        "stain_normalisation": None,
    }
    about = store.describe(
        settings, patient=patient, batch_size=1, threads=1, device="cpu", versions={}
    )
    x = np.arange(side) * SIZE
    places = np.stack([x, x * 0, x + SIZE, x * 0 + SIZE], axis=1)
    width, beside = tiles.features.shape[1], ("colour",)
    group = store.open_for_writing(path, about, places, np.ones(side), width=width, beside=beside)
    for number in range(group["chunk_crc32"].shape[0]):
        part = rows[store.chunk_slice(number, store.CHUNK_ROWS)]
        store.write_chunk(group, number, tiles.features[part], {"colour": tiles.colour[part]})


def probe(tables: Sequence[FeatureTable], targets: Targets, out: Path | None, **how: Any) -> Result:
    """Run the probe; all that it measures has mean pooling as reference, where that comes first."""
    if out is None:  # colour costs as much as attention, and is known already
        tables = [replace(table, colour=None) for table in tables]
    left_out = {"permutations": 0, "leak_control": False}  # they are not printed here
    return run_probe("mil", tables, targets, out, verbose=None, **left_out, **how)


def row(found: Result, name: str, metric: str = "AUROC") -> dict[str, Any]:
    """Return the line of a result that holds a metric of a feature set, of the tumour bags."""
    rows = [*found.summary["scores"], *found.summary["baselines"]]
    own = (r for r in rows if r["features"] == name and r["metric"] == metric)
    return next(r for r in own if r["target"] in ("", "tumour"))


def report(found: Result) -> None:
    """Print AUROC of each feature set, and what attention has more than mean pooling."""
    for name in (NAME, MEAN, "colour"):
        one = row(found, name)
        print(f"AUROC {one['value']:.3f} ({span(one)})  {name}")
    compared = (r for r in found.summary["comparisons"] if r["metric"] == "AUROC")
    more = next(r for r in compared if r["b"] == NAME and r["target"] in ("", "tumour"))
    print(f"attention less mean pooling: {more['difference']:+.3f} ({span(more)})")


def span(found: dict[str, Any]) -> str:
    """Return a 95 % interval in words."""
    return f"{found['low']:.3f} to {found['high']:.3f}"


def report_truth(out: Path, truth: dict[str, np.ndarray], seed: int) -> None:
    """Print the AUROC of held-out attention for tumour tiles, mean of the positive bags."""
    from sklearn.metrics import roc_auc_score

    run = read_run(out, NAME)
    areas, groups = [], []
    for key, group, label in zip(run.keys, run.groups, run.labels, strict=True):
        if label == "tumour":
            areas.append(roc_auc_score(truth[key], run.tiles(f"{key}.zarr").held_out))
            groups.append(group)
    of_slides = np.array(groups)
    weights = cluster_weights(of_slides, seed=seed)
    draws = weights @ np.array(areas) / weights.sum(axis=1)
    low, high = interval(draws, len(np.unique(of_slides)), run.count)
    print(
        f"AUROC {np.mean(areas):.3f} ({low:.3f} to {high:.3f})  of held-out attention for tumour "
        f"tiles, mean of {len(areas)} positive bags"
    )


def shuffled(targets: Targets, seed: int, number: int) -> Targets:
    """Return labels in another order."""
    order = np.random.default_rng([seed, number]).permutation(len(targets.values))
    return replace(targets, values=targets.values[order])


if __name__ == "__main__":
    main()

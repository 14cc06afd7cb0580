"""What bfloat16 does to features, and to the accuracy of a probe that learns from them.

    python benchmarks/precision.py [OUT] [--repeats 3]

MobileNetV2 with ImageNet's weights and, since there are none here, Xception with random ones; the
tiles of kather2016 (960 of 10 slides, 8 classes) and of CRC-VAL-HE-7K (32, slides unknown), found
as the tests find them (TIAFT_DATA), resized to 224 px. Both precisions are computed by the engine's
own `Compute`, bfloat16 whether it is earned or not; "auto" is what the engine would take by itself,
after its trial on 64 tiles. The tissue probe then learns from either (5 folds of whole slides; of
CRC-VAL-HE-7K 4 folds of tiles), both split alike.

"cosine" is a tile's, to float32; "error" is that of all features, relative to their size and, "of
spread", to how they differ from their mean over the tiles, which is all that a probe sees.
Accuracies are of predictions averaged over repeats; "bfloat16 − float32" is the mean difference
over folds, in points, with its 95 % interval by Nadeau and Bengio's corrected t test; "changed" is
the share of tiles that the two probes, averaged over repeats, predict differently. What was
computed is kept in OUT: an interrupted benchmark, given again, goes on.
"""

import argparse
import itertools
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from engine_network import model_of
from kept import Kept, machine

from tiaft_plugin.engine.compute import Compute, relative_error
from tiaft_plugin.engine.precision import TRIED_ON, earned
from tiaft_plugin.files import write_atomically
from tiaft_plugin.probes.interface import FeatureTable, Targets
from tiaft_plugin.probes.run import run_probe
from tiaft_plugin.tiles.images import read_image
from tiaft_plugin.tiles.tileset import TileSet, read_tileset

DATA = Path(os.environ.get("TIAFT_DATA", Path(__file__).parents[1] / "../shared/data"))
WEIGHTS = "weights/mobilenetv2_100.imagenet.safetensors"
NETWORKS = {"mobilenetv2_100": DATA / WEIGHTS, "legacy_xception": None}
SETS = {"kather2016": (0.495, 5), "crc_val_he_7k": (0.5, 4)}  # µm/px, folds
SIDE, BATCH = 224, 32
FLOAT, HALF = "float32", "bfloat16"


def features_of(backbone: str, tiles: TileSet, out: Path) -> tuple[dict[str, np.ndarray], str]:
    """Return features (N, D) by precision, and what the engine's trial says."""
    path = out / f"{tiles.root.name}-{backbone}.npz"
    if not path.exists():
        options = argparse.Namespace(backbone=backbone, weights=NETWORKS[backbone], size=SIDE)
        compute = Compute(model_of(options), "cpu", batch_size=BATCH, tile_shape=(SIDE, SIDE))
        pixels = np.stack([read_image(file, SIDE) for file in tiles.files])
        some = np.linspace(0, len(pixels) - 1, min(TRIED_ON, len(pixels))).round().astype(int)
        trial = earned(compute, pixels[some], [HALF])
        found: dict[str, Any] = {name: compute.at(name)(pixels) for name in (FLOAT, HALF)}
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as part, part.open("wb") as file:
            np.savez(file, auto=trial.precision, **found)
    with np.load(path) as kept:
        return {name: kept[name] for name in (FLOAT, HALF)}, str(kept["auto"])


def distances(features: dict[str, np.ndarray]) -> str:
    """Return how far bfloat16's features are from float32's, in columns."""
    found, wanted = (features[name].astype(np.float64) for name in (HALF, FLOAT))
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    cosines = (found * wanted).sum(1) / norms
    spread = relative_error(found - found.mean(0), wanted - wanted.mean(0))
    error = relative_error(found, wanted)
    return f"{cosines.min():8.4f}{np.median(cosines):8.4f}{error:8.2%}{spread:11.1%}"


def probed(features: dict[str, np.ndarray], tiles: TileSet, repeats: int) -> dict[str, Any]:
    """Return the accuracy of the tissue probe with each precision, and their difference."""
    keys = np.array([tiles.shown(file) for file in tiles.files])
    groups = np.array(tiles.groups) if any(tiles.groups) else None
    result = run_probe(
        "tissue",
        [FeatureTable(precision, keys, values) for precision, values in features.items()],
        Targets("classes", keys, np.array(tiles.labels), tiles.classes, groups),
        folds=SETS[tiles.root.name][1], repeats=repeats, grouped=groups is not None,
        permutations=0, reference=FLOAT, verbose=False,
    )  # fmt: skip
    accuracy, [difference] = (
        [row for row in result.summary[what] if row["metric"] == "accuracy" and not row["target"]]
        for what in ("scores", "comparisons")
    )
    predicted = [result.predictions[f"average/{p}/0/0"].argmax(1) for p in (FLOAT, HALF)]
    return {
        **{f"accuracy_{row['features']}": row["value"] for row in accuracy},
        **{name: difference[name] for name in ("difference", "low", "high")},
        "changed": float((predicted[0] != predicted[1]).mean()),
    }


def main() -> None:
    """Compute what is not there yet; print a line a network and tile set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, help="folder for what was computed")
    parser.add_argument("--repeats", type=int, default=3, help="of the probe's folds")
    options = parser.parse_args()
    print(f"{machine()}; {options.repeats} repeats of the folds")
    print(f"{'':30}{'':6}{'':>10}  cosine          error           accuracy")
    print(f"{'':30}{'tiles':>6}{'auto':>10}{'least':>8}{'median':>8}{'of all':>8}", end="")
    print(f"{'of spread':>11}{FLOAT:>9}{HALF:>10}{'bfloat16 − float32':>24}{'changed':>9}")
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder)
        kept = Kept(out, "precision", {"repeats": options.repeats})
        for name, backbone in itertools.product(SETS, NETWORKS):
            tiles = _sorted(read_tileset(DATA / name, mpp=SETS[name][0]))
            features, auto = features_of(backbone, tiles, out)
            probe = partial(probed, features, tiles, options.repeats)
            row = kept.once(probe, network=backbone, set=name)
            network = "random Xception" if NETWORKS[backbone] is None else "MobileNetV2"
            difference = "{:+.1f} ({:+.1f} to {:+.1f})".format(
                *(100 * row[part] for part in ("difference", "low", "high"))
            )
            print(
                f"{name + ', ' + network:30}{len(tiles):6}{auto:>10}{distances(features)}"
                f"{row[f'accuracy_{FLOAT}']:9.3f}{row[f'accuracy_{HALF}']:10.3f}"
                f"{difference:>24}{row['changed']:9.1%}",
                flush=True,
            )


def _sorted(tiles: TileSet) -> TileSet:
    names = [tiles.shown(file) for file in tiles.files]
    return tiles.subset(sorted(range(len(tiles)), key=names.__getitem__))


if __name__ == "__main__":
    main()

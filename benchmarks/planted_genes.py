"""Fine-tuning on planted genes: is what depends on the tissue found, and nothing where nothing is?

    python benchmarks/planted_genes.py OUT [--cases head last whole] [--half 0|1]

A patient is a bag of real `kather2016` tiles of a tissue mix of its own. Of its genes, some are the
mix and noise ("linear"), some depend on it in other ways (products, thresholds), and some are noise
alone ("null"). Patients to learn from and to choose an epoch by have tiles of five of the ten
source slides, test patients tiles of the other five: no tile, no slide is on both sides.

Each case fine-tunes an encoder, directly and by contrast, and prints what its test found beside the
untuned encoder's mean features, read by ridge regression and by the expression probe:

    head     ImageNet's MobileNetV2 stays as it is; a projection of its features learns
    last     its last blocks learn, too
    whole    a ResNet of 0.4 million weights begins with random ones; all of it learns

Intervals are over test patients, whose bags share the tiles of five source slides. What is done is
kept in OUT: an interrupted benchmark, given again, goes on. The data are found as the tests find
them (TIAFT_DATA).
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_extensions.transcriptomics.tune.scores import DIRECTIONS, Score, gene_scores
from tiaft_extensions.transcriptomics.tune.tested import (
    BASE_RIDGE,
    BASE_SVR,
    TUNED_HEAD,
    TUNED_RIDGE,
)
from tiaft_plugin.finetune.interface import FinetuneJob, Samples
from tiaft_plugin.finetune.run import finetune
from tiaft_plugin.tiles.tileset import TileSet, read_tileset

sys.path.insert(0, str(Path(__file__).parents[1] / "examples/transcriptomics"))
from plant_genes import HALVES, LINEAR, NULL, OTHER, TISSUES, draw_bags, express, signal_of

DATA = Path(os.environ.get("TIAFT_DATA", Path(__file__).parents[1] / "../shared/data"))
WEIGHTS = "weights/mobilenetv2_100.imagenet.safetensors"
MPP, SIDE = 0.495, 96  # of the tiles, µm/px, and what they are resized to, px
TEST = 400  # patients
BAG = 12  # tiles of a patient
KINDS = {"linear": slice(0, 16), "other": slice(16, 32), "null": slice(32, 64)}

MOBILENET: dict[str, Any] = {
    "backbone": "mobilenetv2_100",
    "backbone_args": {"pad_type": "same"},
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
}
COMMON = {"tiles": BAG, "slides": 40, "chunk": 8, "width": 64, "test_tiles": BAG}
# As large a batch as can be had: what is not a patient's own is told from more of others.
LARGE = {"slides": 240, "chunk": 60}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "head": (
        {**MOBILENET, "init": WEIGHTS},
        {"train": "head", "head": "mlp", "epochs": 60, "lr": 3e-3, **LARGE},
    ),
    "last": (
        {**MOBILENET, "init": WEIGHTS},
        {"train": "last", "blocks": 2, "epochs": 10, "lr": 3e-4},
    ),
    "whole": (
        {"backbone": "test_resnet", "init": "random", "tile_size": 64},
        {"train": "whole", "epochs": 30, "lr": 2e-3},
    ),
}
PATIENTS = {"head": 1200, "last": 480, "whole": 480}  # to learn from
OBJECTIVES = ("direct", "contrastive")
WAYS = (TUNED_HEAD, TUNED_RIDGE, BASE_RIDGE, BASE_SVR)


def main() -> None:
    """Fine-tune what is not there yet; print what each test found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for what each case gives")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--half", type=int, choices=(0, 1), default=0, help="to learn from")
    parser.add_argument(
        "--patients",
        type=int,
        help=f"to learn from; a fourth as many choose the epoch [default: {PATIENTS}]",
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    tiles = read_tileset(DATA / "kather2016", mpp=MPP)
    print(f"{LINEAR} linear, {OTHER} other, {NULL} null genes; patients have {BAG} tiles")
    for case in given.cases:
        patients = given.patients or PATIENTS[case]
        sets = cohort(tiles, patients, given.half, given.seed)
        counts = ", ".join(f"{len(its.files)} {name}" for name, its in sets.items())
        about = f"patients{patients}-half{given.half}-seed{given.seed}"
        for objective in OBJECTIVES:
            out = given.out / f"{case}-{objective}-{about}"
            if not (out / "model.safetensors").exists():
                tune(sets, case, objective, given.seed, out)
            print(f"\n{case}, {objective}: {counts} patients")
            print("\n".join(told(out)))


def cohort(tiles: TileSet, patients: int, half: int, seed: int) -> dict[str, Samples]:
    """Return train, val and test patients with their expression."""
    own = np.array([str(group)[-2:] in list(HALVES.values())[half] for group in tiles.groups])
    labels = np.array(tiles.labels)
    names = tuple(f"{kind}{n}" for kind, its in KINDS.items() for n in range(64)[its])
    weights = np.random.default_rng((seed, 9)).normal(size=(len(TISSUES), LINEAR))
    sets, scale = {}, None
    sizes = {"train": patients, "val": patients // 4, "test": TEST}
    for number, (name, count) in enumerate(sizes.items()):
        rng = np.random.default_rng((seed, number))
        inside = ~own if name == "test" else own
        pools = [np.flatnonzero(inside & (labels == tissue)) for tissue in TISSUES]
        bags, mixes = draw_bags(pools, count, BAG, rng)
        files = tuple(tuple(tiles.files[row] for row in bag) for bag in bags)
        signal = signal_of(mixes, weights)
        scale = scale or (signal.mean(axis=0), signal.std(axis=0))
        values = express(signal, scale, rng)
        groups = tuple(f"{name}{n:04d}" for n in range(count))
        sets[name] = Samples(tiles.root, files, tuple(map(tuple, values.tolist())), names,
                             groups, tiles.tile_size, MPP)  # fmt: skip
    return sets


def tune(sets: dict[str, Samples], case: str, objective: str, seed: int, out: Path) -> None:
    """Fine-tune as a case says; an interrupted run goes on."""
    network, settings = CASES[case]
    network = {"tile_size": SIDE, **network}
    if network["init"] == WEIGHTS:
        network["init"] = str(DATA / WEIGHTS)
    job = FinetuneJob(
        out=out, **sets, inputs="bags", targets="regression", seed=seed, device="cpu",
        checkpoint_minutes=1.0, options={**COMMON, **settings}, **network,
    )  # fmt: skip
    finetune(job, f"expression-{objective}")


def told(out: Path) -> Iterator[str]:
    """Give the lines on a test: each kind of gene, then how expression is found."""
    about = json.loads((out / "test.json").read_text(encoding="utf-8"))
    with np.load(out / "test.npz") as arrays:
        observed = arrays["observed"].astype(float)
        ways = {name: arrays[name].astype(float) for name in arrays.files if name in WAYS}
    bases = [name for name in ways if name.startswith("base")]
    columns, silent = {}, 0
    for kind, genes in KINDS.items():
        picked = {way: values[:, genes] for way, values in ways.items()}
        scores, by_gene = gene_scores(observed[:, genes], picked, bases, seed=0)
        columns[f"{kind}, mean r of {by_gene['r'].size}"] = scores
        silent = int((by_gene["q"] < 0.05).sum())
    yield from lines(columns)
    yield f"null genes that {about['genes_by']} tells (q < 0.05): {silent}"
    scores = [Score(**{k: np.nan if v is None else v for k, v in its.items()})
              for its in about["scores"]]  # fmt: skip
    for direction in DIRECTIONS:
        its = [score for score in scores if score.measure.endswith(direction)]
        yield f"\n{direction}"
        names = dict.fromkeys(score.measure for score in its)
        yield from lines({name.removesuffix(direction): [i for i in its if i.measure == name]
                          for name in names})  # fmt: skip


def lines(columns: dict[str, list[Score]]) -> Iterator[str]:
    """Give a table as text: a column a measure, a row a way or its difference to a base."""
    rows = dict.fromkeys((its.way, its.against) for scores in columns.values() for its in scores)
    yield f"{'':28}" + "".join(f"{name:>27}" for name in columns)
    for way, against in sorted(rows, key=lambda row: row[1] != ""):
        cells = [next((shown(i) for i in scores if (i.way, i.against) == (way, against)), "")
                 for scores in columns.values()]  # fmt: skip
        name = f"{way} − {against}" if against else way
        yield f"{name:28}" + "".join(f"{cell:>27}" for cell in cells)


def shown(its: Score) -> str:
    """Return a score with its interval, such as ``0.512 [0.401, 0.610]``."""
    sign = "+" if its.against else ""
    if np.isnan(its.low):
        return f"{its.value:.3f}"
    return f"{its.value:{sign}.3f} [{its.low:{sign}.3f}, {its.high:{sign}.3f}]"


if __name__ == "__main__":
    main()

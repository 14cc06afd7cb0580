"""Patients whose genes are rules that we know: some depend on which tissues there are, some don't.

    python plant_genes.py DATA OUT

A patient is a bag of real tiles of `DATA/kather2016`, a mix of tissues of its own. Of its genes
LINEAR go with the mix, OTHER with pairs of tissues and with what is there in more than a trace,
and NULL with nothing. OUT gets

    tiles/SLIDE/           links to the tiles of each slide
    learn.csv, new.csv     the same as tile sets: half of the patients has tiles of five of the ten
                           source images, the others of the other five
    expression.tsv.gz      genes × samples, TPM, with barcodes, as TCGA's tables are
    genes.txt              the planted genes; the table has others, and a row that is no gene
    mix.txt, null.txt      those that depend on the mix, and those on nothing
    tissue.csv             tiles of the five images of `new`, by tissue
    stroma.csv             slides of `new`: is there more stroma than in most?

The barcodes are made up. What is there is written again, and is the same for the same seed.
"""

import argparse
import csv
import gzip
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tiaft_plugin.files import write_atomically, write_csv

# The split of the source images that shares the tissues out most evenly.
HALVES = {"learn": ("01", "03", "04", "06", "08"), "new": ("02", "05", "07", "09", "10")}
TISSUES = ("01_TUMOR", "02_STROMA", "03_COMPLEX", "04_LYMPHO", "05_DEBRIS", "06_MUCOSA")
PATIENTS = {"learn": 300, "new": 60}
BAG = 8  # tiles of a patient
LINEAR, OTHER, NULL = 16, 16, 32  # genes
SIGNAL = LINEAR + OTHER
NOISE = 0.5  # sd, where the signal's is 1: who knew the mix would reach r = .89
LEVEL = 5.0  # of ln(TPM + 1)
REST = 1200  # genes that share out what is left of the million
MADE_UP = "TCGA-ZZ-{:04d}"  # a patient
SLIDE = "{}-01Z-00-DX1"


def draw_bags(
    pools: Sequence[np.ndarray], count: int, size: int, rng: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return `count` bags, each `size` places of tiles, and their mixes (count, T).

    `pools` are the places of each of the T tissues' tiles; a bag holds none of them twice.
    """
    bags, mixes = [], []
    for _ in range(count):
        counts = rng.multinomial(size, rng.dirichlet(np.full(len(pools), 0.7)))
        rows = [rng.choice(pool, n, replace=False) for pool, n in zip(pools, counts, strict=True)]
        bags.append(np.concatenate(rows))
        mixes.append(counts / size)
    return bags, np.array(mixes)


def signal_of(mixes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return what depends on tissue mixes (P, 6): (P, 32), the linear genes first."""
    # Pairs of tissues side by side, and tissues that are there in more than a trace.
    pairs = [mixes[:, i] * mixes[:, j] for i in range(len(TISSUES)) for j in range(i)]
    there = [mixes[:, i] > 0.2 for i in range(len(TISSUES))]
    other = [*pairs[: OTHER - len(there)], *there]
    return np.concatenate([mixes @ weights, np.stack(other, axis=1)], axis=1)


def express(
    signal: np.ndarray, scale: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """Return ln(TPM + 1) (P, 64) of a signal (P, 32), whose mean and sd are `scale`: with noise."""
    values = LEVEL + rng.normal(size=(len(signal), SIGNAL + NULL))
    values[:, :SIGNAL] *= NOISE
    values[:, :SIGNAL] += (signal - scale[0]) / scale[1]
    return values


def gene_names() -> tuple[str, ...]:
    """Return the planted genes' names, which say what each depends on."""
    kinds = (("LINEAR", LINEAR), ("OTHER", OTHER), ("NULL", NULL))
    return tuple(f"{kind}{number:02d}" for kind, count in kinds for number in range(count))


def plant(data: Path, out: Path, seed: int) -> None:
    """Write tiles, expression and tables."""
    with (data / "kather2016/manifest.csv").open(newline="", encoding="utf-8") as file:
        known = list(csv.DictReader(file))
    files = [(data / "kather2016" / row["file"]).resolve() for row in known]
    labels = np.array([row["label"] for row in known])
    sources = np.array([row["group"].rpartition("-")[2] for row in known])
    weights = np.random.default_rng((seed, 9)).normal(size=(len(TISSUES), LINEAR))
    planted: dict[str, np.ndarray] = {}
    scale = None
    for number, (half, own) in enumerate(HALVES.items()):
        rng = np.random.default_rng((seed, number))
        inside = np.isin(sources, own)
        pools = [np.flatnonzero(inside & (labels == tissue)) for tissue in TISSUES]
        bags, mixes = draw_bags(pools, PATIENTS[half], BAG, rng)
        patients = [MADE_UP.format(len(planted) + n + 1) for n in range(len(bags))]
        rows = list(_link(out / "tiles", patients, [[files[row] for row in bag] for bag in bags]))
        write_csv(out / f"{half}.csv", ("file", "label", "group"), rows)
        signal = signal_of(mixes, weights)
        scale = scale or (signal.mean(axis=0), signal.std(axis=0))
        planted |= dict(zip(patients, express(signal, scale, rng), strict=True))
        print(f"{half}: {len(patients)} patients, {len(rows)} tiles")
    names = gene_names()
    for name, its in (("genes", names), ("mix", names[:SIGNAL]), ("null", names[SIGNAL:])):
        with write_atomically(out / f"{name}.txt") as part:
            part.write_text("".join(f"{gene}\n" for gene in its), encoding="utf-8")
    _write_expression(out / "expression.tsv.gz", planted, np.random.default_rng((seed, 8)))
    here = np.flatnonzero(inside & np.isin(labels, TISSUES))
    tiles = [(files[row], labels[row], sources[row]) for row in here.tolist()]
    write_csv(out / "tissue.csv", ("file", "label", "group"), tiles)
    stroma = mixes[:, TISSUES.index("02_STROMA")]
    more = (stroma > np.median(stroma)).tolist()
    write_csv(  # last: whoever finds it finds all
        out / "stroma.csv",
        ("slide", "label"),
        [
            (SLIDE.format(patient), "more" if its else "less")
            for patient, its in zip(patients, more, strict=True)
        ],
    )


def _link(
    folder: Path, patients: Sequence[str], bags: Sequence[Sequence[Path]]
) -> Iterator[tuple[str, str, str]]:
    """Link the tiles of each patient's only slide; give the lines of a manifest beside `folder`."""
    for patient, files in zip(patients, bags, strict=True):
        slide = SLIDE.format(patient)
        (folder / slide).mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(files):
            link = folder / slide / f"{number:02d}_{file.parent.name}{file.suffix}"
            if not link.is_symlink():
                link.symlink_to(file)
            yield f"{folder.name}/{slide}/{link.name}", slide, slide


def _write_expression(path: Path, planted: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    """Write TPM, genes × samples: the planted genes, the rest of a million, what is to be left out.

    The first patient has a sample of normal tissue, too, and one patient has no slide.
    """
    values = {f"{patient}-01A": row for patient, row in planted.items()}
    first = next(iter(planted))
    for other in (f"{first}-11A", f"{MADE_UP.format(9999)}-01A"):
        values[other] = rng.normal(LEVEL, 1, SIGNAL + NULL)
    tpm = np.expm1(np.maximum(np.array(list(values.values())), 0)).T  # genes × samples
    rest = rng.lognormal(5, 1, (REST, tpm.shape[1]))
    rest *= (1e6 - tpm.sum(axis=0)) / rest.sum(axis=0)
    names = (*gene_names(), *(f"REST{number:04d}" for number in range(REST)))
    rows = np.concatenate([tpm, rest]).round(4).tolist()
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["gene_name", *values])
    writer.writerow(["N_unmapped", *[123456] * len(values)])
    writer.writerows([name, *row] for name, row in zip(names, rows, strict=True))
    with write_atomically(path) as part:
        part.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA", help="folder that holds kather2016")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for tiles and tables")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    plant(given.data, given.out, given.seed)

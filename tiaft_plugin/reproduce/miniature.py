"""The chain in miniature: MobileNetV2, 960 tiles of ten slides, and patients made of tiles."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_csv
from tiaft_plugin.probes.interface import FeatureTable, Result, Targets
from tiaft_plugin.reproduce.bags import Planted, as_bags, deal, plant
from tiaft_plugin.reproduce.chain import (
    Models,
    Runner,
    extract_tile_sets,
    hashes,
    make_models,
    probe,
)
from tiaft_plugin.reproduce.table import Line, mutation_lines, tissue_lines, write_table

if TYPE_CHECKING:
    from tiaft_plugin.tiles.tileset import TileSet

TILES, WEIGHTS = "kather2016", "weights/mobilenetv2_100.imagenet.safetensors"
HELD_OUT = tuple(f"CRC-Prim-HE-{number}" for number in ("02", "06", "07", "08", "09"))
EMPTY = "08_EMPTY"  # in one of the slides held out only, so that no fold could learn it
PATIENTS = 80
SEED = 0
NAMES = {"pooled": "IMGNET", "ftx": "FTX"}
PLANTED = Planted(
    genes={f"LYMPHO{n}": "04_LYMPHO" for n in range(1, 5)}
    | {f"TUMOR{n}": "01_TUMOR" for n in range(1, 5)},
    null_genes=tuple(f"CONTROL{n:02}" for n in range(1, 33)),
    mutations={"LYMPHO": "04_LYMPHO", "TUMOR": "01_TUMOR"},
    null_mutations=("CONTROL1", "CONTROL2"),
)
# Of the paper's numbers, what fits into ten minutes: fewer epochs on fewer tiles, fewer repeats.
JOB: dict[str, Any] = {
    "backbone": "mobilenetv2_100",
    "backbone_args": {"pad_type": "same"},
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "tile_size": 224,  # px, which these weights were made for; the tiles have 150
    "hidden": (512,),
    "epochs": (8, 3),
    "batch_size": 32,
    "freeze_batchnorm": True,  # these weights' running statistics are placeholders
    "seed": SEED,
    "device": "cpu",
}
REPEATS = {"tissue": 10, "expression": 10, "mutation": 5}
# Labels of the mutations are not permuted: that alone would take minutes.
PERMUTATIONS = {"tissue": 99, "expression": 99, "mutation": 0}


def run_miniature(
    data: Path | None,
    out: Path,
    *,
    workers: int | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Run what of the miniature is not done yet; print its table and write ``out/table.csv``.

    `data` holds tiles of Kather 2016 and MobileNetV2's weights. Raises TiaftError that says what
    is missing.
    """
    from tiaft_plugin.tiles.split import split_by_groups
    from tiaft_plugin.tiles.tileset import read_tileset

    folder = _check_data(data)
    runner = Runner(out, say, workers)
    _, held_out = split_by_groups(read_tileset(folder / TILES), HELD_OUT)
    held_out = held_out.subset(n for n, label in enumerate(held_out.labels) if label != EMPTY)
    job = {**JOB, "init": str(folder / WEIGHTS)}
    models = make_models(runner, folder / TILES, job, NAMES, val_groups=HELD_OUT)
    files = extract_tile_sets(runner, "tissue", held_out, models, device="cpu")
    tissue = _tissue(runner, files)
    bags = _make_bags(runner, files)
    expression, mutation = (_molecular(runner, name, bags) for name in ("expression", "mutation"))
    lines = [
        *tissue_lines(tissue.summary, list(models), {}),
        *_colour_line(tissue),
        *_gene_lines(expression, models),
        *_mutation_lines(mutation, models),
    ]
    path = write_table(lines, out / "table.csv", say, expected="expected")
    say(_about(held_out))
    return path


def _check_data(data: Path | None) -> Path:
    """Return the folder of data. Raises TiaftError that says what is missing."""
    if data is None:
        raise TiaftError(
            "the miniature needs data: name their folder with --data or TIAFT_DATA "
            "(docs/reproduce.md says what is to be in it)"
        )
    missing = [name for name in (f"{TILES}/manifest.csv", WEIGHTS) if not (data / name).is_file()]
    if missing:
        raise TiaftError(
            f"{data} lacks {' and '.join(missing)}: docs/reproduce.md says where they are from"
        )
    return data


def _tissue(runner: Runner, files: Mapping[str, Path]) -> Result:
    from tiaft_plugin.probes.features import read_tiles
    from tiaft_plugin.probes.labels import labels_of

    def read() -> tuple[list[FeatureTable], Targets]:
        tables = [read_tiles(path, name) for name, path in files.items()]
        return tables, labels_of(tables[0])

    return probe(runner, "tissue", hashes(files), read, **_settings("tissue"))


def _make_bags(runner: Runner, files: Mapping[str, Path]) -> dict[str, Path]:
    """Write patients' tiles, expression and mutations; return the files by feature set or table."""
    folder = runner.out / "bags"
    made = {name: folder / f"{name}.npz" for name in files}
    made |= {name: folder / f"{name}.csv" for name in ("expression", "mutation")}

    def make() -> None:
        from tiaft_plugin.probes.features import read_tiles, write_features

        tables = [read_tiles(path, name) for name, path in files.items()]
        labels = tables[0].labels
        assert labels is not None  # extract_tile_sets wrote them
        owner = deal(labels, sorted(set(labels.tolist())), PATIENTS, SEED)
        for table in tables:
            write_features(made[table.name], as_bags(table, owner), overwrite=True)
        for name, targets in zip(
            ("expression", "mutation"), plant(labels, owner, PLANTED, SEED), strict=True
        ):
            _write_targets(made[name], targets)

    settings = {**hashes(files), "patients": PATIENTS, "planted": vars(PLANTED), "seed": SEED}
    runner.steps.run("bags", settings, list(made.values()), make)
    return made


def _molecular(runner: Runner, name: str, bags: Mapping[str, Path]) -> Result:
    from tiaft_plugin.probes.features import read_patients
    from tiaft_plugin.probes.labels import read_labels

    inputs = {key: bags[key] for key in (*NAMES.values(), name)}

    def read() -> tuple[list[FeatureTable], Targets]:
        tables = [read_patients(bags[features], features) for features in NAMES.values()]
        if name == "mutation":
            return tables, read_labels(bags[name], "binary")
        return tables, read_labels(bags[name], "numbers", transform="none")

    return probe(runner, name, hashes(inputs), read, **_settings(name))


def _settings(name: str) -> dict[str, Any]:
    return {"repeats": REPEATS[name], "permutations": PERMUTATIONS[name], "seed": SEED}


def _write_targets(path: Path, targets: Targets) -> None:
    values = targets.values.astype(int if targets.kind == "binary" else float)
    rows = zip(targets.keys, values.tolist(), strict=True)
    write_csv(path, ("patient", *targets.names), ((patient, *row) for patient, row in rows))


def _colour_line(result: Result) -> list[Line]:
    return [
        Line("tissue", "accuracy, all tissues", "colour alone", "", row["value"], row["low"],
             row["high"])
        for row in result.summary["baselines"]
        if (row["baseline"], row["metric"], row["target"]) == ("colour", "accuracy", "")
    ]  # fmt: skip


def _gene_lines(result: Result, models: Models) -> list[Line]:
    """Return how many planted genes and how many controls each feature set finds."""
    alpha = result.summary["genes"]["alpha"]
    lines = []
    for name in models:
        found = {
            row["target"]
            for row in result.rows
            if row["features"] == name and float(row["q"]) < alpha
        }
        for what, genes, expected in (
            ("planted genes found", tuple(PLANTED.genes), "most"),
            ("controls found", PLANTED.null_genes, "none or few"),
        ):
            number = len(found & set(genes))
            text = f"{number} of {len(genes)}"
            lines.append(Line("expression", f"{what} (q < {alpha:g})", name, expected, text))
    return lines


def _mutation_lines(result: Result, models: Models) -> list[Line]:
    expected = dict.fromkeys(PLANTED.mutations, "above 0.5")
    expected |= dict.fromkeys(PLANTED.null_mutations, "about 0.5")
    return [
        Line(**{**vars(line), "expected": expected[line.what.split()[-1]]})
        for line in mutation_lines(result.summary, list(models))
    ]


def _about(tiles: "TileSet") -> str:
    """Say what such numbers mean, and what they do not."""
    each = len(tiles) // PATIENTS
    return (
        f"Tissue: {len(tiles)} tiles of {len(HELD_OUT)} slides that were not trained on, without "
        f"{EMPTY}; folds keep slides together.\n"
        f"Expression and mutation: {PATIENTS} made-up patients of {each} real tiles each, no tile "
        f"in two of them; all tiles are of {len(HELD_OUT)} slides. The share of "
        f"{' and '.join(sorted(set(PLANTED.genes.values())))} drives what is planted; controls are "
        "noise. It shows that the method finds what is there, and says nothing of cancer."
    )

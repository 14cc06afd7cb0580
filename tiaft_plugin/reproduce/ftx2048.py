"""The whole chain of FTX-2048 (sections 3 and 4), from a configuration to a table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.files import sha256_of
from tiaft_plugin.probes.interface import FeatureTable, Result, Targets
from tiaft_plugin.reproduce.chain import (
    Models,
    Runner,
    extract_tile_sets,
    hashes,
    make_models,
    probe,
)
from tiaft_plugin.reproduce.config import Config
from tiaft_plugin.reproduce.table import compare_with_paper, write_table
from tiaft_plugin.tiles.words import some

TABLE = "table.csv"


def run_chain(
    config: Config,
    out: Path,
    *,
    workers: int | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Run what of the chain is not done yet, print the table and write ``out/table.csv``.

    `workers` are the processes of the probes. Raises TiaftError.
    """
    runner = Runner(out, say, workers)
    slides = _find_slides(config) if {"expression", "mutation"} & set(config.experiments) else {}
    models = make_models(
        runner,
        config.data.finetune,
        _finetune_job(config),
        _names(config.finetune.imgnet),
        val=config.data.tissue if "tissue" in config.experiments else None,
    )
    results = {}
    if "tissue" in config.experiments:
        results["tissue"] = _tissue(runner, config, models)
    if slides:
        folders = _extract_slides(runner, config, models, slides)
        for name in ("expression", "mutation"):
            if name in config.experiments:
                results[name] = _molecular(runner, config, name, folders, slides)
    summaries = {name: result.summary for name, result in results.items()}
    return write_table(compare_with_paper(summaries, list(models)), out / TABLE, say)


def _finetune_job(config: Config) -> dict[str, Any]:
    how = config.finetune
    return {
        "backbone": how.backbone,
        "init": how.init,
        "hidden": how.hidden,
        "epochs": how.epochs,
        "lrs": how.learning_rates,
        "batch_size": how.batch_size,
        "freeze_batchnorm": how.freeze_batchnorm,
        "mpp": how.mpp,
        "seed": config.seed,
        "device": config.device,
        "workers": config.workers,
    }


def _names(readings: Sequence[str]) -> dict[str, str]:
    """Name the feature sets, the reference first: one reading of IMGNET-2048, or both."""
    names = {"pooled": "IMGNET-2048", "stage1": "IMGNET-2048-stage1"}
    return {reading: names[reading] for reading in readings} | {"ftx": "FTX-2048"}


def _tissue(runner: Runner, config: Config, models: Models) -> Result:
    from tiaft_plugin.probes.features import read_tiles
    from tiaft_plugin.probes.labels import labels_of
    from tiaft_plugin.tiles.tileset import read_tileset

    assert config.data.tissue is not None  # read_config has seen to it
    tiles = read_tileset(config.data.tissue, mpp=config.finetune.mpp)
    files = extract_tile_sets(
        runner, "tissue", tiles, models, device=config.device, workers=config.workers
    )

    def read() -> tuple[list[FeatureTable], Targets]:
        tables = [read_tiles(path, name) for name, path in files.items()]
        return tables, labels_of(tables[0])

    return probe(runner, "tissue", hashes(files), read, **_probe_settings(config))


def _probe_settings(config: Config) -> dict[str, Any]:
    settings = {**asdict(config.probe), "seed": config.seed}
    del settings["transform"]  # of the labels
    return settings


def _find_slides(config: Config) -> dict[Path, str]:
    """Return the slides of the table, found in the folder, with their patients.

    Raises TiaftError that names those that are missing, or there twice.
    """
    from tiaft_plugin.engine.jobs import read_patients

    folder, table = config.data.slides, config.data.slide_table
    assert folder is not None and table is not None  # read_config has seen to it
    patients = read_patients(table)
    by_name: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        by_name.setdefault(path.name, []).append(path)
    missing = [name for name in patients if name not in by_name]
    if missing:
        raise TiaftError(
            f"{folder} lacks {len(missing)} of the {len(patients)} slides in {table}: "
            f"{some(missing)}: download them, or take them out of the table"
        )
    twice = [name for name in patients if len(by_name[name]) > 1]
    if twice:
        raise TiaftError(f"{folder} holds slides of one name: {some(twice)}: keep one of each")
    return {by_name[name][0]: patient for name, patient in patients.items()}


def _extract_slides(
    runner: Runner, config: Config, models: Models, slides: Mapping[Path, str]
) -> dict[str, Path]:
    """Extract features of all slides with each model; return the folders of stores."""
    folders = {}
    for name, model in models.items():
        folder = runner.out / "slides" / name
        settings = {
            **asdict(config.extract),
            "model": sha256_of(model),
            "slides": sorted(f"{path.name} {patient}" for path, patient in slides.items()),
        }
        del settings["batch_size"]  # decides nothing

        def extract(model: Path = model, folder: Path = folder) -> None:
            _extract(config, model, slides, folder, runner.say)

        runner.steps.run(f"slides-{name}", settings, [folder], extract)
        folders[name] = folder
    return folders


def _extract(
    config: Config,
    model: Path,
    slides: Mapping[Path, str],
    out: Path,
    say: Callable[[str], None],
) -> None:
    """Extract slides into stores, going on with what is there. Raises Stopped where one failed."""
    from tiaft_plugin.engine.jobs import SlideJob
    from tiaft_plugin.engine.run import make_engine, run_slides
    from tiaft_plugin.tiles.stain import make_stain

    how = config.extract
    engine = make_engine(
        "features",
        str(model),
        resolution=how.resolution,
        stride=how.stride,
        min_tissue=how.min_tissue,
        batch_size=how.batch_size,
        workers=config.workers,
        device=config.device,
        stain=None if how.stain == "none" else make_stain(how.stain),
    )
    jobs = [SlideJob(path, mpp=how.slide_mpp, patient=patient) for path, patient in slides.items()]
    failed = []
    for result in run_slides(engine, jobs, out):
        if result.status == "failed":
            failed.append(result.slide.name)
            say(f"FAILED {result.slide.name}: {result.reason}")
        elif result.note:
            say(f"{result.slide.name}: {result.note}")
    if failed:
        raise Stopped(
            f"{len(failed)} of {len(jobs)} slides failed ({some(failed)}; reasons in "
            f"{out / 'summary.csv'}): mend them, or take them out of {config.data.slide_table}, "
            "and run the same command again"
        )


def _molecular(
    runner: Runner,
    config: Config,
    name: str,
    folders: Mapping[str, Path],
    slides: Mapping[Path, str],
) -> Result:
    """Probe patients for expression or mutations."""
    from tiaft_plugin.probes.features import read_patients
    from tiaft_plugin.probes.labels import read_labels

    path = config.data.expression if name == "expression" else config.data.mutations
    assert path is not None  # read_config has seen to it
    patients = {slide.name: patient for slide, patient in slides.items()}

    def read() -> tuple[list[FeatureTable], Targets]:
        tables = [
            read_patients(folder, features, patients=patients, verbose=True)
            for features, folder in folders.items()
        ]
        if name == "mutation":
            return tables, read_labels(path, "binary")
        return tables, read_labels(path, "numbers", transform=config.probe.transform)

    inputs = {
        **{f: sha256_of(runner.out / "steps" / f"slides-{f}.json") for f in folders},
        "labels": sha256_of(path),
        "transform": config.probe.transform if name == "expression" else "",
    }
    return probe(runner, name, inputs, read, **_probe_settings(config))

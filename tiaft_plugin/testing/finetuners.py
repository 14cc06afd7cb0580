"""Whether a finetuner keeps what its model file says."""

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_plugin.errors import TiaftError, reason
from tiaft_plugin.finetune.interface import FinetuneJob, Finetuner, FinetuneResult
from tiaft_plugin.zoo.checks import check_model

BACKBONE = "test_efficientnet"  # timm's smallest with BatchNorm
TILE_SIZE = 32  # px
MPP = 0.5  # µm/px
CLASSES = ("NORM", "TUM")


def check_finetuner(finetuner: Finetuner) -> None:
    """Raise TiaftError unless a finetuner makes a model that can be used and made again.

    `finetuner` gets two jobs of 16 tiles of 32 px in two colours, with a tiny backbone, one epoch
    a stage and no GPU. The model file has to load, to name classes, tile size and µm/px of the
    tiles, to pass `check_model`, and to be the same bytes for the same seed; where there is a
    stage 1, its Part A is the one it began with, BatchNorm's statistics included, and the
    model's Part B is stage 1's. The tiles stay as they are, and a finished run is not overwritten.

    Finetuners that take no tiles with classes cannot be checked yet.
    """
    _check_kinds(finetuner)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, val = _write_tiles(folder / "train", 0), _write_tiles(folder / "val", 1)
        job = FinetuneJob(
            out=folder / "run",
            train=train,
            val=val,
            init=str(_write_init(folder / "init.safetensors")),
            hidden=(8,),
            epochs=(1, 1),
            lrs=(1e-3, 1e-3),
            batch_size=8,
            device="cpu",
        )
        before = _digests(folder / "train")
        result = _run(finetuner, job)
        again = _run(finetuner, replace(job, out=folder / "again"))
        if _digests(folder / "train") != before:
            raise TiaftError("the finetuner changes the tiles that it trains on")
        _check_result(result, job)
        if result.model.read_bytes() != again.model.read_bytes():
            raise TiaftError("the finetuner gives another model file for the same job and seed")
        _check_frozen(result, job)
        _check_refuses(finetuner, job, result)


def _check_kinds(finetuner: Any) -> None:
    for attribute, known in (
        ("inputs", {"tiles", "bags", "slides"}),
        ("targets", {"classes", "multilabel", "regression"}),
    ):
        kinds = set(getattr(finetuner, attribute, ()))
        if not kinds or not kinds <= known:
            raise TiaftError(
                f"the finetuner's {attribute} are {sorted(kinds)}: "
                f"a set of {', '.join(sorted(known))} says what it takes"
            )
    if "tiles" not in finetuner.inputs or "classes" not in finetuner.targets:
        raise TiaftError("check_finetuner can check finetuners of tiles with classes only")


def _run(finetuner: Finetuner, job: FinetuneJob) -> FinetuneResult:
    try:
        result = finetuner(job)
    except TiaftError:
        raise
    except Exception as error:
        raise TiaftError(f"the finetuner fails: {reason(error)}") from error
    if not isinstance(result, FinetuneResult):
        raise TiaftError(f"the finetuner returns {type(result).__name__}, not a FinetuneResult")
    for file in (result.model, result.metrics, result.report, result.stage1, result.confusion):
        if file is not None and not Path(file).is_file():
            raise TiaftError(f"the finetuner's result names {file}, which is no file")
        if file is not None and job.out.resolve() not in Path(file).resolve().parents:
            raise TiaftError(f"the finetuner writes {file}, outside of the run's folder")
    return result


def _check_result(result: FinetuneResult, job: FinetuneJob) -> None:
    from tiaft_plugin.network import load_model

    for file in filter(None, (result.model, result.stage1)):
        net = load_model(file)
        found = (net.card.classes, net.card.tile_size, net.card.mpp)
        if found != (CLASSES, TILE_SIZE, MPP):
            raise TiaftError(
                f"{file.name} is a model of {found}: classes {CLASSES}, {TILE_SIZE} px and "
                f"{MPP} µm/px are the tiles'"
            )
        check_model(net)


def _check_frozen(result: FinetuneResult, job: FinetuneJob) -> None:
    """Stage 1 leaves Part A alone, the last stage Part B; between them they train the model."""
    from safetensors.numpy import load_file

    init, model = load_file(job.init), load_file(result.model)
    if all(np.array_equal(model[name], init[name]) for name in init):
        raise TiaftError("the finetuner does not train Part A: its weights are the init file's")
    if result.stage1 is None:
        return
    stage1 = load_file(result.stage1)
    for name, value in stage1.items():
        expected, when = (
            (init[name], "Part A moves in stage 1")
            if name.startswith("part_a.")
            else (model[name], "Part B moves after stage 1")
        )
        if not np.array_equal(value, expected):
            raise TiaftError(f"frozen is not frozen: {when} ({name})")


def _check_refuses(finetuner: Finetuner, job: FinetuneJob, result: FinetuneResult) -> None:
    before = result.model.read_bytes()
    try:
        finetuner(job)
    except TiaftError:
        if result.model.read_bytes() == before:
            return
    raise TiaftError("the finetuner overwrites a finished run without being asked")


def _write_tiles(folder: Path, seed: int) -> Any:
    """Write eight tiles a class, pink and purple, from two slides; return the tile set."""
    from PIL import Image

    from tiaft_plugin.tiles.tileset import read_tileset

    rng = np.random.default_rng(seed)
    rows = ["file,label,group"]
    for label, colour in zip(CLASSES, ((230, 180, 200), (110, 70, 150)), strict=True):
        (folder / label).mkdir(parents=True)
        for number in range(8):
            noise = rng.integers(-20, 21, (TILE_SIZE, TILE_SIZE, 3))
            pixels = (np.array(colour) + noise).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
            rows.append(f"{label}/{number}.png,{label},slide {seed}-{number % 2}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return read_tileset(folder, mpp=MPP)


def _write_init(path: Path) -> Path:
    """Write a backbone whose BatchNorm statistics are not those that every new one has."""
    from tiaft_plugin.network import save_model
    from tiaft_plugin.network.create import create_network

    net = create_network(BACKBONE, init="random", tile_size=TILE_SIZE, mpp=MPP)
    for name, statistic in net.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            statistic += 0.1
    return save_model(net, path)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

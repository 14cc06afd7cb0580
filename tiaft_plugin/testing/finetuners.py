"""Whether a finetuner keeps what its model file says."""

import hashlib
import random
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_plugin.errors import TiaftError, reason
from tiaft_plugin.finetune.interface import FinetuneJob, Finetuner, FinetuneResult
from tiaft_plugin.hookspecs import hookimpl
from tiaft_plugin.plugins import plugin_manager
from tiaft_plugin.zoo.checks import check_model

BACKBONE = "test_efficientnet"  # timm's smallest with BatchNorm
TILE_SIZE = 32  # px
MPP = 0.5  # µm/px
CLASSES = ("NORM", "TUM")
PARTS = ("train", "val", "test")


def check_finetuner(finetuner: Finetuner, **settings: Any) -> None:
    """Raise TiaftError unless a finetuner makes a model that can be used and made again.

    `finetuner` gets a few jobs of 16 tiles of 32 px in two colours, with a tiny backbone and no
    GPU. What a job leaves to the finetuner is None, but for `settings`, further fields of
    FinetuneJob: ``epochs=(1,)`` saves time where they are known.

    The model file has to load, to name classes, tile size and µm/px of the tiles, to pass
    `check_model`, and to be the same bytes for the same seed, wherever it is written and whatever
    was drawn from global generators before. Test tiles do not change it; without validation tiles
    there is one, too, or a TiaftError. Where there is a stage 1, its Part A is the one it began
    with, BatchNorm's statistics included, and the model's Part B is stage 1's. A run that is
    interrupted as its first epoch ends leaves no model; the same job, given again, ends with the
    undisturbed run's. The tiles stay as they are, and a finished run is not overwritten.

    Finetuners that take no tiles with classes cannot be checked yet.
    """
    _check_kinds(finetuner)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sets = {part: _write_tiles(folder / part, i) for i, part in enumerate(PARTS)}
        init = str(_write_init(folder / "init.safetensors"))
        job = FinetuneJob(out=folder / "run", **sets, init=init, **{"device": "cpu", **settings})
        before = _digests(*(folder / part for part in PARTS))
        result = _run(finetuner, job)
        again = _run(finetuner, replace(job, out=folder / "again"))
        if _digests(*(folder / part for part in PARTS)) != before:
            raise TiaftError("the finetuner changes the tiles that it is given")
        _check_result(result)
        if result.model.read_bytes() != again.model.read_bytes():
            raise TiaftError("the finetuner gives another model file for the same job and seed")
        _check_frozen(result, job)
        _check_refuses(finetuner, job, result)
        _check_interrupted(finetuner, job, result)
        _check_sets(finetuner, job, result)


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
        with _other_randomness():
            result = finetuner(job)
    except TiaftError as error:
        raise _Refusal(error) from error
    except Exception as error:
        raise TiaftError(f"the finetuner fails: {reason(error)}") from error
    if not isinstance(result, FinetuneResult):
        raise TiaftError(f"the finetuner returns {type(result).__name__}, not a FinetuneResult")
    for file in (
        result.model,
        result.metrics,
        result.report,
        result.stage1,
        result.confusion,
        result.labels,
        result.tiles,
    ):
        if file is not None and not Path(file).is_file():
            raise TiaftError(f"the finetuner's result names {file}, which is no file")
        if file is not None and job.out.resolve() not in Path(file).resolve().parents:
            raise TiaftError(f"the finetuner writes {file}, outside of the run's folder")
    return result


def _check_result(result: FinetuneResult) -> None:
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
    missing = [name for name in init if name not in model]
    if missing:
        raise TiaftError(f"the model has no {missing[0]}: it is not the network of job.init")
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


def _check_interrupted(finetuner: Finetuner, job: FinetuneJob, result: FinetuneResult) -> None:
    """Interrupt a run as Ctrl-C does, and give the job again."""
    job = replace(job, out=job.out.with_name("interrupted"))
    manager, stop = plugin_manager(), _Interrupts()
    manager.register(stop, name="check_finetuner")
    try:
        finetuner(job)
    except KeyboardInterrupt:
        written = job.out / result.model.name
        if written.exists():
            raise TiaftError(f"an interrupted run leaves {written.name}") from None
    else:
        if stop.epochs:
            raise TiaftError("the finetuner hides a KeyboardInterrupt")
        shutil.rmtree(job.out)  # it calls no epoch_ended: let it do the whole again
    finally:
        manager.unregister(stop)
    try:
        resumed = _run(finetuner, job)
    except _Refusal as error:
        raise TiaftError(
            f"the finetuner does not go on where it was interrupted: {error}"
        ) from error
    if resumed.model.read_bytes() != result.model.read_bytes():
        raise TiaftError("the finetuner gives another model file after an interruption")


def _check_sets(finetuner: Finetuner, job: FinetuneJob, result: FinetuneResult) -> None:
    """The model is the same without test tiles; without validation tiles, it may be refused."""
    from safetensors.numpy import load_file

    untested = _run(finetuner, replace(job, out=job.out.with_name("untested"), test=None))
    with_test, without = load_file(result.model), load_file(untested.model)
    if any(not np.array_equal(with_test[name], without[name]) for name in without):
        raise TiaftError("test tiles change the model: they may be measured, and choose nothing")
    bare = replace(job, out=job.out.with_name("bare"), val=None, test=None)
    with suppress(_Refusal):
        _check_result(_run(finetuner, bare))


class _Refusal(TiaftError):
    """The finetuner's own TiaftError."""


class _Interrupts:
    """A plug-in that stops a run as its first epoch ends."""

    epochs = 0

    @hookimpl
    def epoch_ended(self) -> None:
        self.epochs += 1
        raise KeyboardInterrupt


@contextmanager
def _other_randomness() -> Iterator[None]:
    """Give global generators states that they never had before, and later their own again."""
    import torch

    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        seed = secrets.randbits(32)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


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


def _digests(*folders: Path) -> dict[str, str]:
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

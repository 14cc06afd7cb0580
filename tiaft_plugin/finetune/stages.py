"""Fine-tuning in stages (paper 1, section 3.2: Part B first, then Part A), as a recipe has them."""

import copy
import hashlib
import json
import warnings as python_warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from lightning.fabric import Fabric

from tiaft_plugin.finetune import checkpoint
from tiaft_plugin.finetune.augment import augmentation_of
from tiaft_plugin.finetune.checks import (
    check_job,
    folded_batchnorm,
    refuse_existing_run,
    refuse_full_disk,
)
from tiaft_plugin.finetune.data import Batches, Order, PooledBatches, Tiles
from tiaft_plugin.finetune.frozen import frozen_modules
from tiaft_plugin.finetune.interface import FinetuneJob, FinetuneResult
from tiaft_plugin.finetune.losses import class_weights
from tiaft_plugin.finetune.measured import StageResult
from tiaft_plugin.finetune.memory import checkpoint_activations, decide, measure_need
from tiaft_plugin.finetune.origin import backbone_of, describe_init, licence_of
from tiaft_plugin.finetune.outputs import write_run
from tiaft_plugin.finetune.pooled import pooled_outputs
from tiaft_plugin.finetune.processes import is_first, launched, make_fabric, quiet
from tiaft_plugin.finetune.provenance import describe_data, shared_tiles
from tiaft_plugin.finetune.recipes import Recipe, Stage, recipe_of
from tiaft_plugin.finetune.sets import Sets
from tiaft_plugin.finetune.stage import StageWork, run_stage
from tiaft_plugin.finetune.unfinished import now_written, unfinished
from tiaft_plugin.network.create import create_network
from tiaft_plugin.network.device import pick_device
from tiaft_plugin.network.net import Network
from tiaft_plugin.network.precision import environment, pick_precision, slow_bfloat16
from tiaft_plugin.network.weights import sha256_of_weights
from tiaft_plugin.plugins import call_hook
from tiaft_plugin.progress import hide_progress
from tiaft_plugin.tiles.fingerprint import content_hashes
from tiaft_plugin.tiles.stain import normaliser

BatchesOf = dict[str, Batches | PooledBatches]  # by name of the set


@dataclass(frozen=True)
class Run:
    """What all stages of a run share; `hashes` are of the tiles' files, by name of the set."""

    job: FinetuneJob
    recipe: Recipe
    sets: Sets
    hashes: dict[str, list[str]]
    fabric: Fabric
    folder: Path  # of what an interruption must not lose
    twice: bool  # activations are checkpointed: the same result with less memory


def run_stages(job: FinetuneJob) -> FinetuneResult:
    """Fine-tune on labelled tiles, and write the models, metrics and the report.

    Everything that can be refused is refused before training. Interrupted at any moment, the same
    job goes on from its last checkpoint, and ends on one machine's CPU with the model files of an
    undisturbed run, whatever the number of workers. Raises TiaftError.
    """
    begun, first = monotonic(), is_first(job)
    recipe = recipe_of(job)
    refuse_existing_run(job)
    device = pick_device(job.device)
    sets, warnings = check_job(job, recipe)
    net = _create(job, recipe, sets)
    frozen_modules(net, recipe.frozen)  # which refuses names that the backbone has not
    precision: Any = pick_precision(job.precision, device)
    notes = slow_bfloat16(job.precision, device)
    job = replace(job, precision=precision)
    twice, more = _twice(job, recipe, net, device)
    refuse_full_disk(job, recipe, net, sum(len(tiles) for tiles in sets.named().values()))
    with nullcontext() if first else hide_progress():
        hashes = {name: content_hashes(tiles) for name, tiles in sets.named().items()}
        data, around = describe_data(job, sets, hashes), environment(device, job.precision)
        warnings += [*folded_batchnorm(net, job), *notes, *more, *shared_tiles(hashes)]
        _warn(warnings if first else [])  # now, not after hours of training
        settings = _settings(job, recipe, net, data, sets)
        cuda = [device] if device.type == "cuda" else []
        with (
            unfinished(job, settings, around, first=first) as (folder, elsewhere),
            torch.random.fork_rng(devices=cuda),
            quiet(),
        ):
            _warn(elsewhere)
            run = Run(job, recipe, sets, hashes, make_fabric(job, device), folder, twice)
            times = {"checks": monotonic() - begun}
            results = _run_all(run, net, times)
            now_written(folder)
            told = (*warnings, *elsewhere)
            return write_run(job, recipe, results, data, sets, told, times, around)


def _twice(
    job: FinetuneJob, recipe: Recipe, net: Network, device: torch.device
) -> tuple[bool, list[str]]:
    """Return whether activations are computed twice, and what to say of it. Raises TiaftError."""
    trained = {s.trains for s in recipe.stages if s.epochs and s.trains != "part_b"}
    tiles = recipe.batch_size // (job.devices * job.nodes)
    found = []
    for trains in sorted(trained) if job.activation_checkpointing != "off" else ():
        need = measure_need(net, trains, job.precision)
        found.append(decide(job.activation_checkpointing, need, tiles, device))
    return any(twice for twice, _ in found), [note for _, note in found if note]


def _warn(texts: list[str]) -> None:
    for text in texts:
        python_warnings.warn(text, stacklevel=3)


def _create(job: FinetuneJob, recipe: Recipe, sets: Sets) -> Network:
    train = sets.train
    size, mpp = job.tile_size or train.tile_size, job.mpp or train.mpp
    net = create_network(
        backbone_of(job, recipe),
        train.classes,
        init=job.init,
        tile_size=size,
        # Resized tiles have another resolution.
        mpp=None if mpp is None else mpp * train.tile_size / size,
        hidden=recipe.hidden,
        backbone_args=job.backbone_args,
        mean=job.mean,
        std=job.std,
        seed=job.seed,
        task=job.targets,
    )
    net.card = replace(
        net.card,
        training=describe_init(job.init),
        licence=net.card.licence or licence_of(job.init, net.card.backbone),
    )
    return net


def _settings(
    job: FinetuneJob, recipe: Recipe, net: Network, data: dict[str, Any], sets: Sets
) -> dict[str, Any]:
    """Return what decides a run's result: an interrupted one goes on with the same only."""
    order = [[tiles.shown(file) for file in tiles.files] for tiles in sets.named().values()]
    fingerprints = {
        f"{name} tiles": about["fingerprint"]
        for name, about in (("training", data), ("held-out", data.get("held_out")),
                            ("test", data.get("test")))
        if about
    }  # fmt: skip
    card = net.card
    return {
        **asdict(recipe),
        **fingerprints,
        "backbone": [card.backbone, card.backbone_args],
        "weights": sha256_of_weights(net),
        "classes": card.classes,
        "task": card.task,
        # Fingerprints leave it out, but shuffling begins from it, and tiles.csv is written in it.
        "order of tiles": hashlib.sha256(json.dumps(order).encode()).hexdigest(),
        "tile_size": card.tile_size,
        "mpp": card.mpp,
        "mean": card.mean,
        "std": card.std,
        "stain": job.stain,
        "freeze_batchnorm": job.freeze_batchnorm,
        "seed": job.seed,
        "processes": job.devices * job.nodes,
    }


def _run_all(run: Run, net: Network, times: dict[str, float]) -> list[StageResult]:
    """Run the stages that are left, in all processes; only the first comes back."""
    begun = monotonic()
    prepared = None
    # Before other processes wait for it: they would lose patience. What earlier runs left is not
    # loaded before the first process has looked at it.
    if not _file(run, run.recipe.stages[0]).exists():
        prepared = _prepare(run, net, run.recipe.stages[0])
        times["Part A, frozen"] = monotonic() - begun
    results = []
    with launched(run.fabric):
        for stage in run.recipe.stages:
            result = _finished(run, net, stage)
            if result is None:
                result = _run_one(run, net, stage, prepared or _prepare(run, net, stage))
            prepared = None
            times[f"stage {stage.number}"] = result.measured.seconds
            results.append(result)
    return results


@dataclass(frozen=True)
class Prepared:
    """Batches for a stage, by name of the set, and whether training tiles are augmented."""

    batches: BatchesOf
    augmented: bool


def _prepare(run: Run, net: Network, stage: Stage) -> Prepared:
    """Return batches for a stage: of tiles, or of Part A's outputs, computed now or before."""
    job, recipe = run.job, run.recipe
    if is_first(job):
        call_hook("stage_started", stage=stage.number, network=net)
    # A frozen Part A gives each tile the same outputs in every epoch, unless a plug-in varies them.
    names = () if stage.trains == "part_b" else recipe.augment
    augment = augmentation_of(stage.number, net.card.tile_size, names)
    pooled = stage.trains == "part_b" and augment is None and stage.epochs > 0
    seed = (job.seed, stage.number)
    batches: BatchesOf = {}
    for name, tiles in run.sets.named().items():
        train = name == "train"
        order = _order(run, len(tiles), seed if train else None)
        read = Tiles(
            tiles,
            net.card.tile_size,
            augment if train else None,
            seed if train else (),
            normaliser(job.stain),
        )
        if pooled:
            outputs = pooled_outputs(
                net,
                read,
                job.cache or run.folder / "part-a",
                hashes=run.hashes[name],
                batch_size=recipe.batch_size,
                device=run.fabric.device,
                workers=job.workers,
            )
            batches[name] = PooledBatches(outputs, tiles.targets, order)
        else:
            pin = run.fabric.device.type == "cuda"
            batches[name] = Batches(read, order, workers=job.workers, pin_memory=pin)
    return Prepared(batches, augment is not None)


def _order(run: Run, tiles: int, seed: tuple[int, int] | None) -> Order:
    recipe, train = run.recipe, run.sets.train
    chances = None
    if seed is not None and recipe.balance == "sampling":
        weights = class_weights(train.counts)[train.targets]
        chances = weights / weights.sum()
    return Order(
        tiles,
        recipe.batch_size,
        seed,
        chances=chances,
        world=run.fabric.world_size,
    )


def _run_one(run: Run, net: Network, stage: Stage, prepared: Prepared) -> StageResult:
    """Run one stage on `net`, in place; return a copy of the network with what was measured."""
    batches = dict(prepared.batches)
    for each in batches.values():
        each.order.rank = run.fabric.global_rank  # known since the processes were launched
    work = StageWork(
        net=net,
        stage=stage,
        stages=len(run.recipe.stages),
        recipe=run.recipe,
        job=run.job,
        sets=run.sets,
        fabric=run.fabric,
        train=batches.pop("train"),
        held_out=batches,
        file=run.folder / f"stage{stage.number}-progress.pt",
    )
    twice = run.twice and stage.trains != "part_b"
    with checkpoint_activations(net.part_a) if twice else nullcontext():
        measured = run_stage(work)
    if run.fabric.global_rank == 0:
        content = {
            "weights": net.state_dict(),
            "measured": checkpoint.measured_to_plain(measured),
            "augmented": prepared.augmented,
        }
        checkpoint.save(_file(run, stage), content)
        work.file.unlink(missing_ok=True)
        call_hook("stage_ended", stage=stage.number, network=net)
    run.fabric.barrier()
    return StageResult(stage, copy.deepcopy(net), measured, prepared.augmented)


def _finished(run: Run, net: Network, stage: Stage) -> StageResult | None:
    """Return a stage that an earlier run finished, with `net` as it was then, or None."""
    state = checkpoint.load(_file(run, stage))
    if state is None:
        return None
    net.load_state_dict(state["weights"])
    measured = checkpoint.measured_from_plain(state["measured"])
    return StageResult(stage, copy.deepcopy(net), measured, state["augmented"])


def _file(run: Run, stage: Stage) -> Path:
    return run.folder / f"stage{stage.number}.pt"

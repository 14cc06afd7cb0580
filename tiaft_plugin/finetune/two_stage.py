"""Fine-tuning in two stages (paper 1, section 3.2): Part B first, then Part A.

The paper's "20 iterations" and "10 iterations" are read as epochs: at batch size 128 twenty
steps would show Part B 2,560 of the 100,000 tiles.
"""

import copy
import warnings as python_warnings
from contextlib import closing
from dataclasses import replace

import torch

from tiaft_plugin.finetune.checks import check_job, folded_batchnorm, refuse_existing_run
from tiaft_plugin.finetune.data import Batches, Pooled, Tiles
from tiaft_plugin.finetune.interface import FinetuneJob, FinetuneResult
from tiaft_plugin.finetune.origin import describe_init, licence_of
from tiaft_plugin.finetune.outputs import StageResult, write_run
from tiaft_plugin.finetune.provenance import describe_data, shared_tiles
from tiaft_plugin.finetune.stage import Stage, run_stage
from tiaft_plugin.network.create import create_network
from tiaft_plugin.network.device import pick_device
from tiaft_plugin.network.net import Network
from tiaft_plugin.plugins import call_hook
from tiaft_plugin.progress import progress
from tiaft_plugin.tiles.fingerprint import content_hashes
from tiaft_plugin.tiles.tileset import TileSet


def run_two_stages(job: FinetuneJob) -> FinetuneResult:
    """Fine-tune on labelled tiles, and write the model, stage 1's model, metrics and the report.

    Everything that can be refused is refused before training; files are written at the end, so
    that an interrupted run leaves none. On one machine's CPU the same job gives the same model
    files, with any number of workers. Raises TiaftError.
    """
    refuse_existing_run(job)
    device = pick_device(job.device)
    train, val, warnings = check_job(job)
    net = _create(job, train)
    warnings += folded_batchnorm(net, job)
    hashes = content_hashes(train), content_hashes(val) if val else []
    warnings += shared_tiles(*hashes)
    data = describe_data(job, train, val, *hashes)
    for text in warnings:
        python_warnings.warn(text, stacklevel=2)  # now, not after hours of training
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        results = [_run_stage(net, job, number, train, val, device) for number in (1, 2)]
    return write_run(job, results, data, train.counts, tuple(warnings))


def _create(job: FinetuneJob, train: TileSet) -> Network:
    size, mpp = job.tile_size or train.tile_size, job.mpp or train.mpp
    net = create_network(
        job.backbone,
        train.classes,
        init=job.init,
        tile_size=size,
        # Resized tiles have another resolution.
        mpp=None if mpp is None else mpp * train.tile_size / size,
        hidden=job.hidden,
        backbone_args=job.backbone_args,
        mean=job.mean,
        std=job.std,
        seed=job.seed,
    )
    net.card = replace(
        net.card,
        training=describe_init(job.init),
        licence=net.card.licence or licence_of(job.init, net.card.backbone),
    )
    return net


def _run_stage(
    net: Network,
    job: FinetuneJob,
    number: int,
    train: TileSet,
    val: TileSet | None,
    device: torch.device,
) -> StageResult:
    """Run one stage on `net`, in place; return a copy of the network with what was measured."""
    call_hook("stage_started", stage=number, network=net)
    augment = call_hook("choose_augmentation", stage=number, tile_size=net.card.tile_size)
    stage = Stage(
        number,
        job.epochs[number - 1],
        job.lrs[number - 1],
        freeze_batchnorm=job.freeze_batchnorm,
        # A frozen Part A gives each tile the same outputs in every epoch, unless tiles vary.
        pooled=number == 1 and augment is None and job.epochs[0] > 0,
    )
    torch.manual_seed(job.seed + number)  # dropout draws from it, in this process alone
    seed = (job.seed, number)
    batches = _batches(
        net, job, stage, Tiles(train, net.card.tile_size, augment, seed), device, seed
    )
    held_out = _batches(net, job, stage, Tiles(val, net.card.tile_size), device) if val else None
    measured = run_stage(net, stage, batches, held_out, device)
    call_hook("stage_ended", stage=number, network=net)
    return StageResult(stage, copy.deepcopy(net), measured, augment is not None)


def _batches(
    net: Network,
    job: FinetuneJob,
    stage: Stage,
    tiles: Tiles,
    device: torch.device,
    shuffle_seed: tuple[int, int] | None = None,
) -> Batches:
    """Return batches for a stage: of tiles, or of Part A's outputs, which are then computed."""
    pin = device.type == "cuda"
    if not stage.pooled:
        return Batches(
            tiles,
            job.batch_size,
            shuffle_seed=shuffle_seed,
            workers=job.workers,
            pin_memory=pin,
        )
    once = Batches(tiles, job.batch_size, workers=job.workers, pin_memory=pin)
    with closing(once):
        pooled = Pooled(compute_pooled(net, once, device), tiles.targets)
    return Batches(pooled, job.batch_size, shuffle_seed=shuffle_seed)


@torch.inference_mode()
def compute_pooled(net: Network, batches: Batches, device: torch.device) -> torch.Tensor:
    """Return Part A's pooled outputs, float32 (N, width) on the CPU, in eval mode."""
    net.to(device).eval()
    outputs = []
    with progress(batches.tiles, "Part A, frozen") as bar:
        for tiles, _ in batches:
            outputs.append(net.pooled(tiles).cpu())
            bar.update(len(tiles))
    net.cpu()
    return torch.cat(outputs)

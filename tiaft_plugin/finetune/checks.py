"""What would spoil a fine-tuning, found before it starts."""

import math
import os

from torch import nn

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import refuse_existing
from tiaft_plugin.finetune.interface import FinetuneJob
from tiaft_plugin.finetune.outputs import FILES
from tiaft_plugin.network.net import Network
from tiaft_plugin.tiles.tileset import TileSet
from tiaft_plugin.tiles.words import some


def refuse_existing_run(job: FinetuneJob) -> None:
    """Raise TiaftError if the run's folder holds one already, or cannot be made; make nothing."""
    out = job.out.resolve()
    for tiles in (job.train, job.val):
        if tiles is not None and out.is_relative_to(tiles.root.resolve()):
            raise TiaftError(
                f"{job.out} lies among the tiles of {tiles.root}: choose another --out"
            )
    first = next(folder for folder in (out, *out.parents) if folder.exists())
    if not first.is_dir() or not os.access(first, os.W_OK):
        raise TiaftError(f"{job.out} cannot be a folder for results: {first} is not writable")
    if not job.overwrite:
        for name in FILES:
            refuse_existing(job.out / name)


def check_job(job: FinetuneJob) -> tuple[TileSet, TileSet | None, list[str]]:
    """Return the tiles to train on, those held out with the same classes, and warnings.

    Raises TiaftError where options are not known, numbers are out of range, µm/px is unknown, or
    the sets do not fit.
    """
    _refuse_options(job)
    _check_numbers(job)
    train, val = job.train, job.val
    if not isinstance(train, TileSet) or not isinstance(val, TileSet | None):
        raise TiaftError("two-stage takes tile sets (read_tileset), not other samples")
    doubts = []
    if (job.mpp or train.mpp) is None:
        doubts.append(
            "the tiles' µm/px is not known, so that the model can have no name: pass --mpp, or "
            "give manifest.csv a column mpp"
        )
    if val is None:
        doubts.append("no tiles were held out: nothing here tells how others would fare")
        return train, None, doubts
    val = val.with_classes(train.classes)
    _refuse_misfit(train, val)
    return train, val, doubts + _doubts(job, train, val)


def folded_batchnorm(net: Network, job: FinetuneJob) -> list[str]:
    """Return a warning if Part A's BatchNorm statistics are placeholders that will be replaced."""
    layers = [m for m in net.part_a.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    means = [m.running_mean for m in layers if m.running_mean is not None]
    variances = [m.running_var for m in layers if m.running_var is not None]
    untouched = not any(mean.any() for mean in means) and all((v == 1).all() for v in variances)
    if not means or not untouched or job.init == "random":
        return []
    if job.freeze_batchnorm:
        return ["Part A's BatchNorm is folded into its convolutions; it stayed in eval mode"]
    return [
        "Part A's BatchNorm statistics are placeholders (mean 0, variance 1), as where BatchNorm "
        "was folded into the convolutions: stage 2 replaces them; pass --freeze-batchnorm"
    ]


def _refuse_options(job: FinetuneJob) -> None:
    if job.options:
        raise TiaftError(
            f"two-stage has no setting {', '.join(sorted(job.options))}: --finetuner-arg is for "
            "finetuners of plug-ins"
        )


def _check_numbers(job: FinetuneJob) -> None:
    if len(job.epochs) != 2 or len(job.lrs) != 2 or min(job.epochs) < 0:
        raise TiaftError(f"epochs {job.epochs}, lrs {job.lrs}: one number for each of two stages")
    if not all(math.isfinite(lr) and lr > 0 for lr in job.lrs):
        raise TiaftError(f"lrs {job.lrs}: learning rates are positive numbers")
    if job.batch_size < 2 or job.workers < 0 or job.seed < 0:
        raise TiaftError("batch_size is 2 or more; workers and seed are 0 or more")


def _refuse_misfit(train: TileSet, val: TileSet) -> None:
    if val.tile_size != train.tile_size:
        raise TiaftError(
            f"{val.root} has tiles of {val.tile_size} px, {train.root} of {train.tile_size} px: "
            "cut both at one size and µm/px"
        )
    both = sorted(set(train.group_names) & set(val.group_names))
    if both:
        raise TiaftError(
            f"slides or patients stand on both sides of the split: {some(both)}: take "
            "them out of one, or hold out groups of one set with --val-groups"
        )


def _doubts(job: FinetuneJob, train: TileSet, val: TileSet) -> list[str]:
    doubts = []
    if None in train.groups or None in val.groups:
        doubts.append(
            "not every tile has a group: slides or patients may stand on both sides of the split"
        )
    absent = [name for name, count in val.counts.items() if not count]
    if absent:
        doubts.append(f"no held-out tile is of class {', '.join(absent)}: nothing is known of it")
    if job.mpp is None and val.mpp and train.mpp and not math.isclose(val.mpp, train.mpp):
        doubts.append(
            f"held-out tiles have {val.mpp:g} µm/px, training tiles {train.mpp:g}: they look other"
        )
    return doubts

"""What would spoil a fine-tuning, found before it starts."""

import math
import os
import shutil
from pathlib import Path

from torch import nn

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import refuse_existing
from tiaft_plugin.finetune.augment import compose
from tiaft_plugin.finetune.interface import FinetuneJob
from tiaft_plugin.finetune.outputs import FILES
from tiaft_plugin.finetune.recipes import Recipe
from tiaft_plugin.finetune.sets import Sets
from tiaft_plugin.finetune.unfinished import is_being_written
from tiaft_plugin.network.backbone import pooled_width
from tiaft_plugin.network.net import Network
from tiaft_plugin.tiles.split import missing_classes, refuse_shared_groups
from tiaft_plugin.tiles.tileset import TileSet


def refuse_existing_run(job: FinetuneJob) -> None:
    """Raise TiaftError if the run's folder holds one already, or cannot be made; make nothing.

    Nor may that for Part A's outputs lie among the tiles, where it would look like a class.
    """
    for tiles in (job.train, job.val, job.test):
        for folder, option in ((job.out, "--out"), (job.cache, "--cache")):
            if (
                tiles is not None
                and folder is not None
                and folder.resolve().is_relative_to(tiles.root.resolve())
            ):
                raise TiaftError(
                    f"{folder} lies among the tiles of {tiles.root}: choose another {option}"
                )
    first = first_existing(job.out)
    if not first.is_dir() or not os.access(first, os.W_OK):
        raise TiaftError(f"{job.out} cannot be a folder for results: {first} is not writable")
    if not job.overwrite and not is_being_written(job.out):
        for name in FILES:
            refuse_existing(job.out / name)


def refuse_full_disk(job: FinetuneJob, recipe: Recipe, net: Network, tiles: int) -> None:
    """Raise TiaftError where checkpoints, Part A's outputs and models will not find room."""
    weights = sum(parameter.nbytes for parameter in net.parameters())
    # A checkpoint holds weights, two numbers more for each, and the best epoch's; it stands beside
    # the one before while it is written. A finished stage and two models come on top.
    checkpoint = (3 + (recipe.keep == "best")) * weights
    needed = {job.out: 2 * checkpoint + 3 * weights}
    if any(stage.trains == "part_b" and stage.epochs for stage in recipe.stages):
        folder = job.cache or job.out
        needed[folder] = needed.get(folder, 0) + 4 * pooled_width(net.part_a) * tiles
    for folder, size in needed.items():
        free = shutil.disk_usage(first_existing(folder)).free
        if free < size:
            raise TiaftError(
                f"{folder} needs {size / 2**30:.2g} GiB, and {free / 2**30:.2g} are free there: "
                "make room, or choose another folder"
            )


def check_job(job: FinetuneJob, recipe: Recipe) -> tuple[Sets, list[str]]:
    """Return the tiles of a job, all with the same classes, and warnings.

    Raises TiaftError where numbers are out of range, an augmentation is not known, or the sets do
    not fit.
    """
    train, val, test = job.train, job.val, job.test
    if (
        not isinstance(train, TileSet)
        or not isinstance(val, TileSet | None)
        or not isinstance(test, TileSet | None)
    ):
        raise TiaftError("two-stage takes tile sets (read_tileset), not other samples")
    several = job.targets != "classes"
    if any(tiles.multilabel != several for tiles in (train, val, test) if tiles is not None):
        raise TiaftError("tiles and targets of a job are all multilabel, or none of them is")
    _check_numbers(job, recipe, len(train))
    compose(recipe.augment)  # which refuses names that nobody registered
    doubts = list(job.notes)
    if (job.mpp or train.mpp) is None:
        doubts.append(
            "the tiles' µm/px is not known, so that the model can have no name: pass --mpp, or "
            "give manifest.csv a column mpp"
        )
    if not any(stage.epochs for stage in recipe.stages):
        doubts.append("no stage has an epoch: nothing is trained, Part B stays random")
    if val is None and test is None:
        doubts.append("no tiles were held out: nothing here tells how others would fare")
    if train.multilabel and recipe.balance == "sampling":
        raise TiaftError(
            "balanced sampling needs one class a tile: pass --balance weights with --multilabel"
        )
    if val is None and (recipe.keep == "best" or recipe.schedule == "plateau"):
        raise TiaftError(
            f"recipe {recipe.name} watches validation tiles, and there are none: give --val, "
            "--val-groups or --val-share"
        )
    held_out = {}
    for name, tiles in (("val", val), ("test", test)):
        if tiles is not None:
            held_out[name] = tiles.with_classes(train.classes)
            _refuse_misfit(train, held_out[name])
            doubts += _doubts(job, train, held_out[name])
    sets = Sets(train, **held_out)
    refuse_shared_groups(sets.named())
    return sets, list(dict.fromkeys(doubts))  # splitting may have said some


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


def first_existing(path: Path) -> Path:
    """Return a path, or the nearest folder above it that exists."""
    whole = path.resolve()
    return next(folder for folder in (whole, *whole.parents) if folder.exists())


def _check_numbers(job: FinetuneJob, recipe: Recipe, tiles: int) -> None:
    if job.workers < 0 or job.seed < 0:
        raise TiaftError("workers and seed are 0 or more")
    if job.devices < 1 or job.nodes < 1:
        raise TiaftError("devices and nodes are 1 or more")
    if not job.checkpoint_minutes > 0 or (job.checkpoint_steps or 1) < 1:
        raise TiaftError("checkpoint_minutes and checkpoint_steps are above 0")
    processes = job.devices * job.nodes
    if processes > 1 and min(recipe.batch_size, tiles) < 2 * processes:
        raise TiaftError(
            f"{processes} processes need batches of {2 * processes} tiles or more, and as many "
            f"tiles: batch_size is {recipe.batch_size}, tiles are {tiles}"
        )


def _refuse_misfit(train: TileSet, val: TileSet) -> None:
    if val.tile_size != train.tile_size:
        raise TiaftError(
            f"{val.root} has tiles of {val.tile_size} px, {train.root} of {train.tile_size} px: "
            "cut both at one size and µm/px"
        )


def _doubts(job: FinetuneJob, train: TileSet, val: TileSet) -> list[str]:
    doubts = []
    told = any("group" in note for note in job.notes)  # by who made the sets, and knows more
    if not told and (None in train.groups or None in val.groups):
        doubts.append(
            "not every tile has a group: slides or patients may stand on both sides of the split"
        )
    doubts += missing_classes(val)
    if job.mpp is None and val.mpp and train.mpp and not math.isclose(val.mpp, train.mpp):
        doubts.append(
            f"held-out tiles have {val.mpp:g} µm/px, training tiles {train.mpp:g}: they look other"
        )
    return doubts

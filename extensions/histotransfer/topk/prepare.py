"""What a job of the finetuner ``top-k`` works with, and whether it fits together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tiaft_extensions.histotransfer.attention import Head, load_head
from tiaft_extensions.histotransfer.topk.settings import TopKSettings, settings_of
from tiaft_extensions.histotransfer.topk.tiles import (
    StoreTiles,
    TileBag,
    TileImages,
    bag_of_stores,
    digest,
)
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import sha256_of
from tiaft_plugin.finetune.interface import FinetuneJob, Samples
from tiaft_plugin.network.card import has_card
from tiaft_plugin.network.device import pick_device
from tiaft_plugin.network.file import load_model
from tiaft_plugin.network.net import Network
from tiaft_plugin.network.precision import pick_precision
from tiaft_plugin.tiles.stain import make_stain
from tiaft_plugin.tiles.words import some

_LEAST = 2  # bags to learn from


@dataclass(frozen=True)
class BagSet:
    """The bags of a set (train, val or test), their classes (n,) int64 and groups (n,) text."""

    bags: tuple[TileBag, ...]
    codes: np.ndarray
    groups: np.ndarray

    @property
    def identity(self) -> str:
        """A hash of all that is in them."""
        return digest(
            [[bag.identity for bag in self.bags], self.codes.tolist(), self.groups.tolist()]
        )


@dataclass(frozen=True)
class Prepared:
    """A job whose inputs fit each other; `decides` is what decides the result."""

    job: FinetuneJob
    settings: TopKSettings
    net: Network
    head: Head
    sets: dict[str, BagSet]
    device: torch.device
    precision: str  # of training
    decides: dict[str, Any]

    @property
    def identity(self) -> str:
        """A hash of what decides the result."""
        return digest(sorted(self.decides.items()))


def prepare(job: FinetuneJob) -> Prepared:
    """Return a job's network, head and bags. Raises TiaftError for what does not fit."""
    if job.devices * job.nodes > 1:
        raise TiaftError("top-k takes a bag a step, on one device: leave out --devices and --nodes")
    settings = settings_of(job)
    device = pick_device(job.device)
    precision = pick_precision(job.precision, device)
    if not has_card(Path(job.init)):
        raise TiaftError(
            f"{job.init} is no model file of tiaft's: top-k tunes the encoder that made the "
            "features, from its file"
        )
    net, head = load_model(job.init), load_head(settings.attention)
    if head.net.shape["width"] != net.feature_width:
        raise TiaftError(
            f"{settings.attention} takes {head.net.shape['width']} features, {job.init} gives "
            f"{net.feature_width}: give the model that the attention run's features are of"
        )
    given = {"train": job.train, "val": job.val, "test": job.test}
    sets = {
        name: _bags_of(name, its, job, settings, net, head)
        for name, its in given.items()
        if its is not None
    }
    _check_sets(sets)
    net.card = replace(net.card, mpp=_mpp(job, net, sets["train"]))
    decides = {
        **settings.numbers,
        **{f"{name} bags": its.identity for name, its in sets.items()},
        "encoder": sha256_of(job.init),
        "head": sha256_of(settings.attention),
        "classes": list(head.classes),
        "seed": job.seed,
        "mpp": net.card.mpp,
        "precision": precision,
    }
    return Prepared(job, settings, net, head, sets, device, precision, decides)


def _bags_of(
    name: str, samples: Any, job: FinetuneJob, settings: TopKSettings, net: Network, head: Head
) -> BagSet:
    codes = _codes_of(name, samples, head)
    size = net.card.tile_size
    if job.inputs == "slides":
        bags = [
            bag_of_stores(files, settings.slides, size, settings.stain_target)
            for files in samples.files
        ]
        _check_stores(bags, job)
    else:
        stain = make_stain(None if job.stain == "none" else job.stain)
        bags = [
            TileBag(files[0].stem if len(files) == 1 else files[0].parent.name, (images,))
            for files in samples.files
            for images in [TileImages(tuple(files), size, stain)]
        ]
    groups = [group or f"bag {number} of {name}" for number, group in enumerate(samples.groups)]
    return BagSet(tuple(bags), codes, np.array(groups))


def _codes_of(name: str, samples: Any, head: Head) -> np.ndarray:
    """Return the classes (n,) int64 of bags. Raises TiaftError where they are not the head's."""
    if not isinstance(samples, Samples):
        raise TiaftError(f"{name}: bags with classes are wanted (Samples), not tile sets")
    if samples.target_names != head.classes:
        raise TiaftError(
            f"{name}: classes are {some(samples.target_names)}, the head's {some(head.classes)}: "
            "give the labels that the attention run had"
        )
    targets = np.array(samples.targets, dtype=np.float64)
    if targets.shape != (len(samples.files), len(samples.target_names)) or not (
        np.isin(targets, (0, 1)).all() and (targets.sum(axis=1) == 1).all()
    ):
        raise TiaftError(f"{name}: each bag has 1 for its class and 0 for the others")
    empty = [str(number) for number, files in enumerate(samples.files) if not files]
    if empty:
        raise TiaftError(f"{name}: bags without a tile: number {some(empty)}: leave them out")
    return targets.argmax(axis=1)


def _check_stores(bags: Sequence[TileBag], job: FinetuneJob) -> None:
    """Raise TiaftError for stores of other models, and slides that are not the stores'."""
    own = sha256_of(job.init)
    for part in (part for bag in bags for part in bag.parts):
        assert isinstance(part, StoreTiles)
        model = part.store.facts["model"]
        if model["sha256"] != own:
            raise TiaftError(
                f"{part.store.path} has features of model {model['name']}, not of {job.init}: give "
                "the model that extracted them"
            )
        part.check()


def _check_sets(sets: dict[str, BagSet]) -> None:
    train = sets["train"]
    if len(train.bags) < _LEAST or len(np.unique(train.codes)) < 2:
        raise TiaftError(
            f"{len(train.bags)} bags of {len(np.unique(train.codes))} classes to learn from: two "
            "classes are needed"
        )
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if one in sets and other in sets:
            shared = sorted(set(sets[one].groups.tolist()) & set(sets[other].groups.tolist()))
            if shared:
                raise TiaftError(
                    f"{len(shared)} patients stand in {one} and {other}: {some(shared)}"
                )


def _mpp(job: FinetuneJob, net: Network, train: BagSet) -> float | None:
    """Return the µm/px that the tiles were read at."""
    if job.mpp is not None:
        return job.mpp
    part = train.bags[0].parts[0]
    if isinstance(part, StoreTiles):
        grid = part.store.facts["grid"]
        return float(grid["resolution"]) if grid["units"] == "mpp" else net.card.mpp
    return (job.train.mpp if isinstance(job.train, Samples) else None) or net.card.mpp

"""From bags and a head to a tuned encoder: a job of the finetuner ``top-k``."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tiaft_extensions.histotransfer.attention import Head, load_head
from tiaft_extensions.histotransfer.topk import loop
from tiaft_extensions.histotransfer.topk.held_out import HeldOut
from tiaft_extensions.histotransfer.topk.outputs import FILES, SUMMARY, read_result, write_run
from tiaft_extensions.histotransfer.topk.settings import TopKSettings, settings_of
from tiaft_extensions.histotransfer.topk.tiles import (
    StoreTiles,
    TileBag,
    TileImages,
    bag_of_stores,
    cached,
    digest,
)
from tiaft_extensions.histotransfer.topk.tuned import Encoder, Tuned, highest, look
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import refuse_existing, sha256_of, write_atomically
from tiaft_plugin.finetune.interface import FinetuneJob, FinetuneResult, Samples
from tiaft_plugin.finetune.origin import describe_init, joined_licence
from tiaft_plugin.finetune.processes import quiet
from tiaft_plugin.finetune.unfinished import FOLDER, is_being_written, now_written, unfinished
from tiaft_plugin.network.card import has_card
from tiaft_plugin.network.device import pick_device
from tiaft_plugin.network.file import load_model
from tiaft_plugin.network.net import Network
from tiaft_plugin.network.precision import environment, memory_format, pick_precision
from tiaft_plugin.plugins import call_hook
from tiaft_plugin.progress import progress
from tiaft_plugin.tiles.stain import Macenko, make_stain
from tiaft_plugin.tiles.words import some

_LEAST = 2  # bags to learn from
_VERSIONS = ("tiaft_plugin", "torch", "timm", "numpy")


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


def run_job(job: FinetuneJob, *, fold: int = 0, reuse: bool = False) -> FinetuneResult:
    """Fine-tune as a job says (the paper's stage 2). Raises TiaftError.

    Everything that can be refused is refused before training. Interrupted at any moment, the same
    job goes on, and ends on one machine's CPU with the files of an undisturbed run. With `reuse`,
    a finished run of the very same job is taken as it is. `fold` is noted in the tables.
    """
    ready = prepare(job)
    if reuse and not is_being_written(job.out):
        found = read_result(job.out)
        if found is not None and found[0] == ready.identity:
            shutil.rmtree(job.out / FOLDER, ignore_errors=True)
            return found[1]
    if not job.overwrite and not is_being_written(job.out):
        for name in FILES:
            refuse_existing(job.out / name)
    around = environment(ready.device, ready.precision)
    cuda = [ready.device] if ready.device.type == "cuda" else []
    with (
        unfinished(job, ready.decides, around) as (folder, warnings),
        torch.random.fork_rng(devices=cuda),
        quiet(),
    ):
        (job.out / SUMMARY).unlink(missing_ok=True)  # which says that a run is finished
        tuned, progressed, held_out = _tuned(ready, folder, fold)
        now_written(folder)
        net = _finished(ready, progressed, around)
        notes = (*job.notes, *_doubts(ready, progressed), *warnings)
        return write_run(ready, net, tuned.head, progressed, held_out, notes)


def _tuned(ready: Prepared, folder: Path, fold: int) -> tuple[Tuned, loop.Progress, HeldOut | None]:
    """Train and measure, with all that an interruption must not lose in `folder`."""
    job, tuned = ready.job, _on_device(ready)
    looked = {name: _looked(ready, its, tuned, folder) for name, its in ready.sets.items()}
    splits = {
        name: _split(ready, its, looked[name], folder)
        for name, its in ready.sets.items()
        if name != "test"
    }
    call_hook("stage_started", stage=1, network=ready.net)
    work = loop.Work(
        tuned,
        ready.settings,
        splits["train"],
        splits.get("val"),
        job.seed,
        folder,
        job.checkpoint_minutes,
        job.checkpoint_steps,
    )
    progressed = loop.run(work)
    call_hook("stage_ended", stage=1, network=ready.net)
    tuned.eval()
    held_out = None
    if "test" in ready.sets:
        frozen = [logits for logits, _ in looked["test"]]
        held_out = _held_out(ready, tuned, frozen, folder, fold)
    return tuned.cpu(), progressed, held_out


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


def _on_device(ready: Prepared) -> Tuned:
    ready.net.part_a.to(memory_format=memory_format(ready.net.part_a))  # type: ignore[call-overload]
    tuned = Tuned(Encoder(ready.net, ready.precision), ready.head.net)
    return tuned.to(ready.device).eval()


def _looked(
    ready: Prepared, its: BagSet, tuned: Tuned, folder: Path
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return logits (C,) and raw attention logits (N,) of each bag by the frozen encoder.

    Kept in `folder`, each by what decides it: the weights change later.
    """
    decides = [ready.decides["encoder"], ready.decides["head"]]
    found = []
    with progress(len(its.bags), "Attention", "bag") as bar:
        for bag in its.bags:
            path = folder / "looked" / f"{digest([bag.identity, decides])[:32]}.npz"
            found.append(_kept(path, tuned, partial(bag.features, tuned.encoder.encode)))
            bar.update()
    return found


def _kept(path: Path, tuned: Tuned, blocks: Callable[[], Any]) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        logits, raw = look(tuned.head, blocks())
        with write_atomically(path) as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, logits=logits.double().numpy(), raw=raw)
    with np.load(path, allow_pickle=False) as kept:
        return kept["logits"], kept["raw"]


def _split(
    ready: Prepared, its: BagSet, looked: Sequence[tuple[np.ndarray, np.ndarray]], folder: Path
) -> loop.Split:
    """Return a set's tiles with the most attention, read once."""
    cache = ready.job.cache or folder / "tiles"
    files = []
    with progress(len(its.bags), "Reading tiles", "bag") as bar:
        for bag, (_, raw) in zip(its.bags, looked, strict=True):
            files.append(cached(bag, highest(raw, ready.settings.k), cache))
            bar.update()
    return loop.Split(tuple(files), its.codes)


def _held_out(
    ready: Prepared, tuned: Tuned, frozen: Sequence[np.ndarray], folder: Path, fold: int
) -> HeldOut:
    """Return what both say of test bags, of which all tiles are seen."""
    its, kept = ready.sets["test"], folder / f"held-out-{ready.identity[:32]}"
    found = []
    with progress(sum(map(len, its.bags)), "Held-out bags") as bar:
        for number, bag in enumerate(its.bags):
            blocks = partial(_encoded, bag, tuned)
            found.append(_kept(kept / f"{number}.npz", tuned, blocks)[0])
            bar.update(len(bag))
    return HeldOut(
        ready.head.classes,
        np.full(len(its.bags), fold),
        np.array([bag.name for bag in its.bags]),
        its.groups,
        its.codes,
        *(_log_softmax(logits) for logits in (frozen, found)),
    )


def _encoded(bag: TileBag, tuned: Tuned) -> Iterator[np.ndarray]:
    yield from map(tuned.encoder.encode, bag.read())


def _log_softmax(logits: Sequence[np.ndarray]) -> np.ndarray:
    return torch.from_numpy(np.stack(logits)).log_softmax(1).numpy()


def _finished(ready: Prepared, found: loop.Progress, around: dict[str, Any]) -> Network:
    """Return the network of the model file: the tuned encoder, and a card that says how."""
    card, job = ready.net.card, ready.job
    kept = found.best["epoch"] if found.best else ready.settings.epochs
    training: dict[str, Any] = {
        **describe_init(job.init),
        "finetuner": "top-k",
        "seed": job.seed,
        **ready.settings.numbers,
        "optimizer": "Adam",
        "head_sha256": ready.decides["head"],
        "kept_epoch": kept,
        "metrics": {
            row["split"]: {"loss": row["loss"], "accuracy": row["accuracy"]}
            for row in found.rows
            if row["epoch"] == kept
        },
        "versions": {name: version(name) for name in _VERSIONS},
        "environment": {k: v for k, v in around.items() if not k.endswith(" version")},
    }
    stain = _stain(ready)
    if stain == Macenko().facts:  # what a model file can ask for; others a user has to
        training["stain"] = stain
    ready.net.card = replace(
        card,
        training=training,
        data={
            "name": job.train.root.resolve().name,
            "bags": {name: len(its.bags) for name, its in ready.sets.items()},
            "groups": {name: len(np.unique(its.groups)) for name, its in ready.sets.items()},
            "classes": list(ready.head.classes),
        },
        licence=joined_licence(card.licence, {}),
        source=f"{card.source}; top-k fine-tuned on {len(ready.sets['train'].bags)} bags",
    )
    return ready.net


def _stain(ready: Prepared) -> Any:
    part = ready.sets["train"].bags[0].parts[0]
    if isinstance(part, StoreTiles):
        return part.store.facts["stain_normalisation"]
    return getattr(getattr(part, "stain", None), "facts", None)


def _doubts(ready: Prepared, found: loop.Progress) -> list[str]:
    doubts, card = [], ready.net.card
    if card.classes:
        doubts.append(
            "the classifier of tiles in the model file was not tuned with its features: use these "
            "(NAME-features, tiaft extract)"
        )
    stain = _stain(ready)
    if stain is not None and "stain" not in card.training:
        doubts.append(
            f"its tiles were stain-normalised ({json.dumps(stain)}), which the model file cannot "
            "ask for: extract with the same options"
        )
    if "val" not in ready.sets:
        doubts.append("no validation bags: the last epoch is kept")
    elif loop.rank(found.rows[0]) >= max(map(loop.rank, found.rows_of("val")[1:])):
        doubts.append(
            "on validation bags no epoch was better than the frozen encoder: more bags may help, a "
            "lower --lr, or to leave the encoder as it is"
        )
    return doubts

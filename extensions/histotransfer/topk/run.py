"""From bags and a head to a tuned encoder: a job of the finetuner ``top-k``."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tiaft_extensions.histotransfer.topk.card import doubts_of, finished
from tiaft_extensions.histotransfer.topk.held_out import FROZEN, OF_K, TUNED, HeldOut
from tiaft_extensions.histotransfer.topk.loop import Split, TopKEpochs
from tiaft_extensions.histotransfer.topk.outputs import FILES, SUMMARY, read_result, write_run
from tiaft_extensions.histotransfer.topk.prepare import BagSet, Prepared, prepare
from tiaft_extensions.histotransfer.topk.tiles import TileBag, cached, digest
from tiaft_extensions.histotransfer.topk.tuned import Seen, Tuned, highest, look
from tiaft_plugin.files import refuse_existing, write_atomically
from tiaft_plugin.finetune.encoder import Encoder
from tiaft_plugin.finetune.epochs import Progress, Work
from tiaft_plugin.finetune.interface import FinetuneJob, FinetuneResult
from tiaft_plugin.finetune.processes import quiet
from tiaft_plugin.finetune.unfinished import FOLDER, is_being_written, now_written, unfinished
from tiaft_plugin.network.precision import environment, memory_format
from tiaft_plugin.plugins import call_hook
from tiaft_plugin.progress import progress


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
        net = finished(ready, progressed, around)
        notes = (*job.notes, *doubts_of(ready, progressed), *warnings)
        return write_run(ready, net, tuned.head, progressed, held_out, notes)


def _tuned(ready: Prepared, folder: Path, fold: int) -> tuple[Tuned, Progress, HeldOut | None]:
    """Train and measure, with all that an interruption must not lose in `folder`."""
    job, tuned = ready.job, _on_device(ready)
    looked = {name: _looked(ready, its, tuned, folder) for name, its in ready.sets.items()}
    splits = {
        name: _split(ready, its, looked[name], folder)
        for name, its in ready.sets.items()
        if name != "test"
    }
    call_hook("stage_started", stage=1, network=ready.net)
    train, val = splits["train"], splits.get("val")
    progressed = TopKEpochs(Work(tuned, ready.settings, train, val, job, folder)).run()
    call_hook("stage_ended", stage=1, network=ready.net)
    tuned.eval()
    held_out = None
    if "test" in ready.sets:
        held_out = _held_out(ready, tuned, looked["test"], folder, fold)
    return tuned.cpu(), progressed, held_out


def _on_device(ready: Prepared) -> Tuned:
    ready.net.part_a.to(memory_format=memory_format(ready.net.part_a))
    tuned = Tuned(Encoder(ready.net, precision=ready.precision), ready.head.net)
    return tuned.to(ready.device).eval()


def _looked(ready: Prepared, its: BagSet, tuned: Tuned, folder: Path) -> list[Seen]:
    """Return what the frozen encoder and head say of each bag.

    Kept in `folder`, each by what decides it: the weights change later.
    """
    k = ready.settings.k
    decides = [ready.decides["encoder"], ready.decides["head"], k]
    found = []
    with progress(len(its.bags), "Attention", "bag") as bar:
        for bag in its.bags:
            path = folder / "looked" / f"{digest([bag.identity, decides])[:32]}.npz"
            found.append(_kept(path, tuned, k, partial(bag.features, tuned.encoder.encode)))
            bar.update()
    return found


def _kept(path: Path, tuned: Tuned, k: int, blocks: Callable[[], Any]) -> Seen:
    if not path.is_file():
        seen = look(tuned.head, blocks(), k)
        with write_atomically(path) as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, **seen._asdict())
    with np.load(path, allow_pickle=False) as kept:
        return Seen(**kept)


def _split(ready: Prepared, its: BagSet, looked: Sequence[Seen], folder: Path) -> Split:
    """Return a set's tiles with the most attention, read once."""
    cache = ready.job.cache or folder / "tiles"
    files = []
    with progress(len(its.bags), "Reading tiles", "bag") as bar:
        for bag, seen in zip(its.bags, looked, strict=True):
            files.append(cached(bag, highest(seen.raw, ready.settings.k), cache))
            bar.update()
    return Split(tuple(files), its.codes, _log_softmax([seen.by_all for seen in looked]))


def _held_out(
    ready: Prepared, tuned: Tuned, frozen: Sequence[Seen], folder: Path, fold: int
) -> HeldOut:
    """Return what both say of test bags."""
    its, kept = ready.sets["test"], folder / f"held-out-{ready.identity[:32]}"
    found = []
    with progress(sum(map(len, its.bags)), "Held-out bags") as bar:
        for number, bag in enumerate(its.bags):
            blocks = partial(_encoded, bag, tuned)
            found.append(_kept(kept / f"{number}.npz", tuned, ready.settings.k, blocks))
            bar.update(len(bag))
    return HeldOut(
        ready.head.classes,
        np.full(len(its.bags), fold),
        np.array([bag.name for bag in its.bags]),
        its.groups,
        its.codes,
        {
            FROZEN: _log_softmax([seen.by_all for seen in frozen]),
            TUNED: _log_softmax([seen.by_all for seen in found]),
            OF_K: _log_softmax([seen.by_k for seen in found]),
        },
    )


def _encoded(bag: TileBag, tuned: Tuned) -> Iterator[np.ndarray]:
    yield from map(tuned.encoder.encode, bag.read())


def _log_softmax(logits: Sequence[np.ndarray]) -> np.ndarray:
    return torch.from_numpy(np.stack(logits)).log_softmax(1).numpy()

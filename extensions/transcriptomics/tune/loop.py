"""The training: epochs over slides, measured on others, interrupted and gone on with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from tiaft_extensions.transcriptomics.tune.bags import FIXED, Bags, Chunk, read_chunk
from tiaft_extensions.transcriptomics.tune.gradcache import backward_whole
from tiaft_extensions.transcriptomics.tune.losses import (
    Contrastive,
    Direct,
    pearson,
    recall,
    similarity,
)
from tiaft_extensions.transcriptomics.tune.settings import TuneSettings
from tiaft_extensions.transcriptomics.tune.towers import ImageTower
from tiaft_plugin.errors import Stopped
from tiaft_plugin.finetune import checkpoint
from tiaft_plugin.plugins import call_hook
from tiaft_plugin.progress import progress

_STATE = "stage1-progress.pt"
_RECALLED = (1, 10)


@dataclass(frozen=True)
class Split:
    """Slides with expression: `expression` (S, G) float32, standardised; `patients` (S,) int64."""

    bags: Bags
    expression: Tensor
    patients: Tensor

    def __len__(self) -> int:
        return len(self.patients)


class Tuned(nn.Module):
    """All that learns: the tower of images, and the objective with what belongs to it."""

    def __init__(self, tower: ImageTower, objective: Direct | Contrastive):
        super().__init__()
        self.tower, self.objective = tower, objective

    def learns(self) -> dict[str, nn.Parameter]:
        """Return the parameters that learn, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def state(self) -> dict[str, Tensor]:
        """Return a copy of them on the CPU; whatever else there is never changes."""
        return {name: p.detach().cpu().clone() for name, p in self.learns().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Set what learns to a copy that `state` made."""
        with torch.no_grad():
            for name, parameter in self.learns().items():
                parameter.copy_(state[name])


@dataclass
class Progress:
    """Epochs and steps done, rows of ``metrics.csv``, the sum of losses, and the best epoch."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None


@dataclass(frozen=True)
class Work:
    """What a training works with; its state is kept in `folder`, every `minutes` and `steps`."""

    tuned: Tuned
    settings: TuneSettings
    train: Split
    val: Split | None  # slides that the epoch may be chosen by
    fabric: Fabric
    seed: int
    folder: Path
    minutes: float = 10.0
    steps: int | None = None


def run(work: Work) -> Progress:
    """Train in place, and return what was measured; goes on from what an interruption left.

    The weights that come back are those of the epoch with the lowest loss on validation slides,
    where there are such and that is asked for, else the last. Raises Stopped where the loss is not
    finite any more.
    """
    loop = _Loop(work)
    loop.resume()
    epochs = work.settings.epochs
    with progress(epochs * len(work.train), "Expression", "slide") as bar:
        bar.update(loop.progress.epoch * len(work.train))
        while loop.progress.epoch < epochs:
            loop.epoch(bar)
    if loop.progress.best is not None:
        work.tuned.restore(loop.progress.best["weights"])
    return loop.progress


class _Loop:
    def __init__(self, work: Work):
        self.work, self.progress = work, Progress()
        self.device = work.fabric.device
        work.tuned.to(self.device)
        self.learns = work.tuned.learns()
        settings = work.settings
        self.optimizer = torch.optim.AdamW(
            self.learns.values(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        # A last batch of one slide, which has no other to be told from, joins the one before; so
        # does one that is too small for all processes to have a slide of it.
        starts = list(range(0, len(work.train), settings.slides))
        if len(starts) > 1 and len(work.train) - starts[-1] < max(2, work.fabric.world_size):
            starts.pop()
        self.bounds = list(zip(starts, [*starts[1:], len(work.train)], strict=True))
        self.saved, self.since = monotonic(), 0

    def resume(self) -> None:
        state = checkpoint.load(self.work.folder / _STATE)
        if state is not None:
            self.work.tuned.restore(state["weights"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress(**state["progress"])

    def epoch(self, bar: Any) -> None:
        work, state = self.work, self.progress
        work.tuned.train()
        order = np.random.default_rng((work.seed, 1, state.epoch)).permutation(len(work.train))
        for start, end in self.bounds[state.step :]:
            loss = self._step(order[start:end].tolist())
            state.loss += loss * (end - start)
            state.step += 1
            bar.update(end - start)
            if not math.isfinite(loss):
                raise Stopped(
                    f"the loss is {loss} in epoch {state.epoch + 1}: a lower lr may help "
                    f"(now {work.settings.lr:g})"
                )
            if state.step < len(self.bounds):
                self._save_if_due()
        rows = [{"split": "train", "loss": state.loss / len(work.train)}]
        rows += [{"split": "val", **self.measure(work.val)}] if work.val else []
        for row in rows:
            row |= {"epoch": state.epoch + 1, "lr": self._lr(self._number() - 1)}
        state.rows += rows
        self._note_best(rows)
        state.epoch, state.step, state.loss = state.epoch + 1, 0, 0.0
        self._save()
        if work.fabric.global_rank == 0:
            metrics = {row["split"]: row for row in rows}
            call_hook("epoch_ended", stage=1, epoch=state.epoch, metrics=metrics)

    def _number(self) -> int:
        """Return how many steps have been made in all."""
        return self.progress.epoch * len(self.bounds) + self.progress.step

    def _lr(self, step: int) -> float:
        """Return a step's learning rate: it rises in the warm-up, then falls as a cosine."""
        settings, steps = self.work.settings, self.work.settings.epochs * len(self.bounds)
        rise = round(settings.warmup * steps)
        if step < rise:
            return settings.lr * (step + 1) / rise
        return settings.lr * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2

    def _step(self, slides: list[int]) -> float:
        work, number = self.work, self._number()
        self.optimizer.zero_grad()
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(number)
        train, fabric = work.train, work.fabric
        expression = train.expression[slides].to(self.device)
        patients = train.patients[slides].to(self.device)
        own = np.array_split(np.arange(len(slides)), fabric.world_size)[fabric.global_rank]
        size = work.settings.chunk
        drawn = 1 + self.progress.epoch
        chunks = [
            [slides[i] for i in own[start : start + size]] for start in range(0, len(own), size)
        ]
        seed = int(np.random.SeedSequence((work.seed, number)).generate_state(1)[0])
        with torch.random.fork_rng(devices=self._cuda()):
            loss = backward_whole(
                lambda part: self._embed(train, part, drawn),
                chunks,
                lambda every: work.tuned.objective(every, expression, patients),
                seed=seed,
                first=int(own[0]),
                gather=None if fabric.world_size == 1 else self._gather(len(slides), own),
            )
        if fabric.world_size > 1:
            self._sum_gradients()
        self.optimizer.step()
        return float(loss)

    def _cuda(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def _embed(self, split: Split, slides: list[int], drawn: int) -> Tensor:
        chunk: Chunk = read_chunk(
            split.bags, slides, self.work.settings.tiles, self.work.seed, drawn
        )
        return self.work.tuned.tower(chunk.tiles.to(self.device), chunk.there.to(self.device))

    def _gather(self, slides: int, own: np.ndarray) -> Any:
        """Return what puts the embeddings of all processes together."""
        place = slice(int(own[0]), int(own[-1]) + 1)

        def gather(mine: Tensor) -> tuple[Tensor, slice]:
            every = mine.new_zeros(slides, mine.shape[1])
            every[place] = mine
            torch.distributed.all_reduce(every)
            return every, place

        return gather

    def _sum_gradients(self) -> None:
        """Add up what the processes' slides give; the objective's gradient is whole in each."""
        for name, parameter in self.learns.items():
            if name.startswith("tower."):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)

    @torch.no_grad()
    def embed(self, split: Split) -> Tensor:
        """Return the embeddings (S, P) of all slides, of the same tiles at every call."""
        self.work.tuned.eval()
        size, every = self.work.settings.chunk, list(range(len(split)))
        rows = torch.empty(len(split), self.work.tuned.tower.width, device=self.device)
        for start in every[::size]:
            rows[start : start + size] = self._embed(split, every[start : start + size], FIXED)
        return rows

    @torch.no_grad()
    def measure(self, split: Split) -> dict[str, float]:
        """Return the loss and what else is told of slides, all of them at once."""
        work = self.work
        slides, objective = self.embed(split), work.tuned.objective
        expression = split.expression.to(self.device)
        patients = split.patients.to(self.device)
        found = {"loss": float(objective(slides, expression, patients))}
        if isinstance(objective, Direct):
            genes = pearson(objective.predict(slides), expression)
            return found | {"pearson": float(genes.nanmean())}
        first = torch.stack([(patients == p).nonzero()[0, 0] for p in patients.unique()])
        cosines = similarity(slides, objective.predict(expression[first]))
        return found | {f"recall@{n}": recall(cosines, patients, n) for n in _RECALLED}

    def _note_best(self, rows: list[dict[str, Any]]) -> None:
        state = self.progress
        loss = next((row["loss"] for row in rows if row["split"] == "val"), None)
        if self.work.settings.keep != "best" or loss is None:
            return
        if state.best is None or loss < state.best["loss"]:
            weights = self.work.tuned.state()
            state.best = {"epoch": state.epoch + 1, "loss": loss, "weights": weights}

    def _save_if_due(self) -> None:
        self.since += 1
        late = monotonic() - self.saved > 60 * self.work.minutes
        if late or (self.work.steps is not None and self.since >= self.work.steps):
            self._save()

    def _save(self) -> None:
        if self.work.fabric.global_rank == 0:
            content = {
                "weights": self.work.tuned.state(),
                "optimizer": self.optimizer.state_dict(),
                "progress": vars(self.progress),
            }
            checkpoint.save(self.work.folder / _STATE, content)
        self.saved, self.since = monotonic(), 0

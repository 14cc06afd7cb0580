"""The training: epochs over slides, measured on others."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor

from tiaft_extensions.transcriptomics.tune.bags import FIXED, Bags, Chunk, read_chunk
from tiaft_extensions.transcriptomics.tune.losses import (
    Contrastive,
    Direct,
    pearson,
    recall,
    similarity,
)
from tiaft_extensions.transcriptomics.tune.settings import TuneSettings
from tiaft_extensions.transcriptomics.tune.towers import ImageTower
from tiaft_plugin.finetune.epochs import Epochs, Learner, Work
from tiaft_plugin.finetune.gradcache import backward_whole

_RECALLED = (1, 10)


@dataclass(frozen=True)
class Split:
    """Slides with expression: `expression` (S, G) float32, standardised; `patients` (S,) int64."""

    bags: Bags
    expression: Tensor
    patients: Tensor

    def __len__(self) -> int:
        return len(self.patients)


class Tuned(Learner):
    """All that learns: the tower of images, and the objective with what belongs to it."""

    def __init__(self, tower: ImageTower, objective: Direct | Contrastive):
        super().__init__()
        self.tower, self.objective = tower, objective


class SlideEpochs(Epochs[Tuned, TuneSettings, Split]):
    """Learns from a batch of slides a step, in several processes; the lowest loss is the best."""

    label, unit = "Expression", "slide"

    def __init__(self, work: Work[Tuned, TuneSettings, Split], fabric: Fabric):
        self.fabric, self.device = fabric, fabric.device
        work.tuned.to(self.device)
        self.learns = work.tuned.learns()
        settings = work.settings
        optimizer = torch.optim.AdamW(
            self.learns.values(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        # A last batch of one slide, which has no other to be told from, joins the one before; so
        # does one that is too small for all processes to have a slide of it.
        starts = list(range(0, len(work.train), settings.slides))
        if len(starts) > 1 and len(work.train) - starts[-1] < max(2, fabric.world_size):
            starts.pop()
        bounds = list(zip(starts, [*starts[1:], len(work.train)], strict=True))
        super().__init__(work, optimizer, bounds, first=fabric.global_rank == 0)

    def row(self, split: str, measured: dict[str, float]) -> dict[str, Any]:
        """Return a row with the learning rate of the epoch's last step."""
        return super().row(split, measured) | {"lr": self._lr(self._number() - 1)}

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

    def step(self, samples: list[int]) -> float:
        """Learn from some slides."""
        work, slides, number = self.work, samples, self._number()
        self.optimizer.zero_grad()
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(number)
        train, fabric = work.train, self.fabric
        expression = train.expression[slides].to(self.device)
        patients = train.patients[slides].to(self.device)
        own = np.array_split(np.arange(len(slides)), fabric.world_size)[fabric.global_rank]
        size = work.settings.chunk
        drawn = 1 + self.progress.epoch
        chunks = [
            [slides[i] for i in own[start : start + size]] for start in range(0, len(own), size)
        ]
        seed = int(np.random.SeedSequence((work.job.seed, number)).generate_state(1)[0])
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
        tiles, seed = self.work.settings.tiles, self.work.job.seed
        chunk: Chunk = read_chunk(split.bags, slides, tiles, seed, drawn)
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

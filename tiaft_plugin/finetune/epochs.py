"""Epochs of what learns with a loss of its own: interrupted and gone on with, the best one kept.

What is learnt from in another way than tile by tile (``stage.py``) needs other steps and other
measures, but the same epochs around them.
"""

import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tiaft_plugin.errors import Stopped
from tiaft_plugin.finetune import checkpoint
from tiaft_plugin.finetune.interface import FinetuneJob
from tiaft_plugin.plugins import call_hook
from tiaft_plugin.progress import progress

_STATE = "stage1-progress.pt"


class Learner(nn.Module):
    """All that learns, and what does not: this never changes."""

    def learns(self) -> dict[str, nn.Parameter]:
        """Return the parameters that learn, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def state(self) -> dict[str, Tensor]:
        """Return a copy of them on the CPU."""
        return {name: p.detach().cpu().clone() for name, p in self.learns().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Set what learns to a copy that `state` made."""
        with torch.no_grad():
            for name, parameter in self.learns().items():
                parameter.copy_(state[name])


class Settings(Protocol):
    """What epochs are told."""

    @property
    def epochs(self) -> int:
        """How many there are."""

    @property
    def lr(self) -> float:
        """The learning rate."""

    @property
    def keep(self) -> str:
        """Which one is kept: the "best" or the "last"."""


Model = TypeVar("Model", bound=Learner)
Told = TypeVar("Told", bound=Settings)
Set = TypeVar("Set", bound=Sized)


@dataclass(frozen=True)
class Work(Generic[Model, Told, Set]):
    """What a training works with; `val` may choose the epoch, `folder` keeps the state."""

    tuned: Model
    settings: Told
    train: Set
    val: Set | None
    job: FinetuneJob
    folder: Path


@dataclass
class Progress:
    """Epochs and steps done, rows of ``metrics.csv``, sums of the epoch, and the best epoch.

    `right` is for steps that count what they recognise; `best` is a row, with its weights.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    right: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None

    def rows_of(self, split: str) -> list[dict[str, Any]]:
        """Return the rows of a split, by epoch."""
        return [row for row in self.rows if row["split"] == split]


class Epochs(Generic[Model, Told, Set]):
    """A training. Its subclasses say what a step is (`step`) and how a set fares (`measure`).

    A step takes the samples from one of `bounds` to the next, of all of them in random order.
    `label` and `unit` are the progress bar's. Only the `first` process writes.
    """

    label, unit = "Training", "sample"

    def __init__(
        self,
        work: Work[Model, Told, Set],
        optimizer: torch.optim.Optimizer,
        bounds: Sequence[tuple[int, int]],
        *,
        first: bool = True,
    ):
        self.work, self.optimizer, self.bounds, self.first = work, optimizer, bounds, first
        self.progress = Progress()
        self.saved, self.since = monotonic(), 0

    def step(self, samples: list[int]) -> float:
        """Learn from some samples, and return their mean loss."""
        raise NotImplementedError

    def measure(self, split: Set) -> dict[str, float]:
        """Return the loss, and what else is told, of samples that are not learnt from."""
        raise NotImplementedError

    def begin(self) -> None:
        """Note what there is before the first epoch."""

    def row(self, split: str, measured: dict[str, float]) -> dict[str, Any]:
        """Return a row of ``metrics.csv``, of the epoch that ends."""
        return {"epoch": self.progress.epoch + 1, "split": split, **measured}

    def learnt(self) -> dict[str, float]:
        """Return the means of the epoch that ends."""
        return {"loss": self.progress.loss / len(self.work.train)}

    @staticmethod
    def rank(row: Mapping[str, Any]) -> Any:
        """Return by what rows of validation samples are compared: the best is the highest."""
        return -row["loss"]

    def run(self) -> Progress:
        """Train in place, and return what was measured; goes on from what an interruption left.

        The weights that come back are those of the best epoch on validation samples, the earliest
        of them, where there are such and it is asked for, else the last. Raises Stopped where the
        loss is not finite any more.
        """
        work = self.work
        self._resume()
        state, count = self.progress, len(work.train)
        with progress(work.settings.epochs * count, self.label, self.unit) as bar:
            bar.update(state.epoch * count + (self.bounds[state.step - 1][1] if state.step else 0))
            while state.epoch < work.settings.epochs:
                self._epoch(bar)
        if state.best is not None:
            work.tuned.restore(state.best["weights"])
        return state

    def _resume(self) -> None:
        state = checkpoint.load(self.work.folder / _STATE)
        if state is None:
            self.begin()
            return
        self.work.tuned.restore(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])

    def _epoch(self, bar: Any) -> None:
        work, state = self.work, self.progress
        work.tuned.train()
        order = np.random.default_rng((work.job.seed, 1, state.epoch)).permutation(len(work.train))
        for start, end in self.bounds[state.step :]:
            loss = self.step(order[start:end].tolist())
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
        rows = [self.row("train", self.learnt())]
        if work.val:
            rows.append(self.row("val", self.measure(work.val)))
            self.note_best(rows[-1])
        state.rows += rows
        state.epoch, state.step, state.loss, state.right = state.epoch + 1, 0, 0.0, 0.0
        self._save()
        if self.first:
            metrics = {row["split"]: row for row in rows}
            call_hook("epoch_ended", stage=1, epoch=state.epoch, metrics=metrics)

    def note_best(self, row: dict[str, Any]) -> None:
        """Keep the weights as they are, with their row, if none were better."""
        best = self.progress.best
        if self.work.settings.keep == "best" and (best is None or self.rank(row) > self.rank(best)):
            self.progress.best = {**row, "weights": self.work.tuned.state()}

    def _save_if_due(self) -> None:
        job = self.work.job
        self.since += 1
        late = monotonic() - self.saved > 60 * job.checkpoint_minutes
        if late or (job.checkpoint_steps is not None and self.since >= job.checkpoint_steps):
            self._save()

    def _save(self) -> None:
        if self.first:
            content = {
                "weights": self.work.tuned.state(),
                "optimizer": self.optimizer.state_dict(),
                "progress": vars(self.progress),
            }
            checkpoint.save(self.work.folder / _STATE, content)
        self.saved, self.since = monotonic(), 0

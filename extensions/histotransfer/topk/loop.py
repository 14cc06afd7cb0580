"""The training: epochs over bags, one a step, interrupted and gone on with (stage 2)."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tiaft_extensions.histotransfer.topk.settings import TopKSettings
from tiaft_extensions.histotransfer.topk.tuned import Tuned
from tiaft_extensions.transcriptomics.tune.gradcache import backward_whole
from tiaft_plugin.errors import Stopped
from tiaft_plugin.finetune import checkpoint
from tiaft_plugin.network.precision import exact_float32
from tiaft_plugin.plugins import call_hook
from tiaft_plugin.progress import progress

_STATE = "stage1-progress.pt"


@dataclass(frozen=True)
class Split:
    """Bags: `files` hold the top-k tiles of each, uint8 (k, H, W, 3); `codes` (n,) int64."""

    files: tuple[Path, ...]
    codes: np.ndarray

    def __len__(self) -> int:
        return len(self.files)


@dataclass
class Progress:
    """Epochs and steps done, rows of ``metrics.csv``, sums of the epoch, and the best epoch."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    right: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None

    def rows_of(self, split: str) -> list[dict[str, Any]]:
        """Return the rows of a split, by epoch."""
        return [row for row in self.rows if row["split"] == split]


def rank(row: dict[str, Any]) -> tuple[float, float]:
    """Return by what epochs are compared: accuracy, then loss."""
    return row["accuracy"], -row["loss"]


@dataclass(frozen=True)
class Work:
    """What a training works with; its state is kept in `folder`, every `minutes` and `steps`."""

    tuned: Tuned
    settings: TopKSettings
    train: Split
    val: Split | None
    seed: int
    folder: Path
    minutes: float = 10.0
    steps: int | None = None


def run(work: Work) -> Progress:
    """Train in place, and return what was measured; goes on from what an interruption left.

    The weights that come back are those of the best epoch on validation bags, where there are
    such and it is asked for, else the last. Raises Stopped where the loss is not finite any more.
    """
    loop = _Loop(work)
    loop.resume()
    epochs = work.settings.epochs
    with progress(epochs * len(work.train), "Top-k", "bag") as bar:
        bar.update(loop.progress.epoch * len(work.train) + loop.progress.step)
        while loop.progress.epoch < epochs:
            loop.epoch(bar)
    if loop.progress.best is not None:
        work.tuned.restore(loop.progress.best["weights"])
    return loop.progress


class _Loop:
    def __init__(self, work: Work):
        self.work, self.progress = work, Progress()
        self.device = work.tuned.head.classify.weight.device
        self.optimizer = torch.optim.Adam(work.tuned.learns().values(), lr=work.settings.lr)
        self.saved, self.since = monotonic(), 0

    def resume(self) -> None:
        state = checkpoint.load(self.work.folder / _STATE)
        if state is not None:
            self.work.tuned.restore(state["weights"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress(**state["progress"])
        elif self.work.val is not None:  # where it begins: the frozen encoder
            self.progress.rows.append({"epoch": 0, "split": "val", **self.measure(self.work.val)})

    def epoch(self, bar: Any) -> None:
        work, state = self.work, self.progress
        work.tuned.train()
        order = np.random.default_rng((work.seed, 1, state.epoch)).permutation(len(work.train))
        for bag in order[state.step :].tolist():
            loss, right = self._step(bag)
            state.loss, state.right = state.loss + loss, state.right + right
            state.step += 1
            bar.update()
            if not math.isfinite(loss):
                raise Stopped(
                    f"the loss is {loss} in epoch {state.epoch + 1}: a lower lr may help "
                    f"(now {work.settings.lr:g})"
                )
            if state.step < len(work.train):
                self._save_if_due()
        count = len(work.train)
        means = {"loss": state.loss / count, "accuracy": state.right / count}
        rows = [{"epoch": state.epoch + 1, "split": "train", **means}]
        if work.val is not None:
            rows.append({"epoch": state.epoch + 1, "split": "val", **self.measure(work.val)})
            self._note_best(rows[-1])
        state.rows += rows
        state.epoch, state.step, state.loss, state.right = state.epoch + 1, 0, 0.0, 0.0
        self._save()
        call_hook(
            "epoch_ended", stage=1, epoch=state.epoch, metrics={row["split"]: row for row in rows}
        )

    def _step(self, bag: int) -> tuple[float, float]:
        """Learn from a bag; return its loss, and whether it was recognised."""
        tuned, right = self.work.tuned, []

        def loss_of(features: torch.Tensor) -> torch.Tensor:
            logits, _ = tuned.head(features)
            right.append(float(logits.argmax() == code))
            return F.cross_entropy(logits, code)

        tiles, code = self._read(self.work.train, bag)
        self.optimizer.zero_grad()
        chunks = tiles.split(self.work.settings.chunk)
        loss = backward_whole(tuned.encoder, chunks, loss_of)
        self.optimizer.step()
        return float(loss), right[0]

    @torch.no_grad()
    def measure(self, split: Split) -> dict[str, float]:
        """Return the mean loss and accuracy over bags, by their top-k tiles, in float32."""
        self.work.tuned.eval()
        losses, right = 0.0, 0.0
        for bag in range(len(split)):
            tiles, code = self._read(split, bag)
            with exact_float32():
                chunks = tiles.split(self.work.settings.chunk)
                features = torch.cat([self.work.tuned.encoder(chunk) for chunk in chunks])
                logits, _ = self.work.tuned.head(features)
            losses += float(F.cross_entropy(logits, code))
            right += float(logits.argmax() == code)
        return {"loss": losses / len(split), "accuracy": right / len(split)}

    def _read(self, split: Split, bag: int) -> tuple[torch.Tensor, torch.Tensor]:
        tiles = torch.from_numpy(np.load(split.files[bag], allow_pickle=False))
        return tiles.to(self.device), torch.tensor(int(split.codes[bag]), device=self.device)

    def _note_best(self, row: dict[str, Any]) -> None:
        state = self.progress
        if self.work.settings.keep != "best":
            return
        if state.best is None or rank(row) > rank(state.best):
            state.best = {**row, "weights": self.work.tuned.state()}

    def _save_if_due(self) -> None:
        self.since += 1
        late = monotonic() - self.saved > 60 * self.work.minutes
        if late or (self.work.steps is not None and self.since >= self.work.steps):
            self._save()

    def _save(self) -> None:
        content = {
            "weights": self.work.tuned.state(),
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.progress),
        }
        checkpoint.save(self.work.folder / _STATE, content)
        self.saved, self.since = monotonic(), 0

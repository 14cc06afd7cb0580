"""The training: epochs over bags, one a step (stage 2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tiaft_extensions.histotransfer.topk.settings import TopKSettings
from tiaft_extensions.histotransfer.topk.tuned import Tuned
from tiaft_plugin.finetune.epochs import Epochs, Work
from tiaft_plugin.finetune.gradcache import backward_whole
from tiaft_plugin.network.precision import exact_float32


@dataclass(frozen=True)
class Split:
    """Bags: `files` hold the top-k tiles of each, uint8 (k, H, W, 3); `codes` (n,) int64.

    `frozen` (n, C) float64 are the frozen encoder's log probabilities, by all tiles.
    """

    files: tuple[Path, ...]
    codes: np.ndarray
    frozen: np.ndarray

    def __len__(self) -> int:
        return len(self.files)


class TopKEpochs(Epochs[Tuned, TopKSettings, Split]):
    """Learns from a bag a step; epochs are compared by accuracy, then loss."""

    label, unit = "Top-k", "bag"

    def __init__(self, work: Work[Tuned, TopKSettings, Split]):
        self.device = work.tuned.head.classify.weight.device
        optimizer = torch.optim.Adam(work.tuned.learns().values(), lr=work.settings.lr)
        super().__init__(work, optimizer, [(bag, bag + 1) for bag in range(len(work.train))])

    def begin(self) -> None:
        """Measure the frozen encoder, by all tiles, as its head learnt: it may be the best."""
        if (val := self.work.val) is not None:
            own = val.frozen[np.arange(len(val)), val.codes]
            right = float((val.frozen.argmax(axis=1) == val.codes).mean())
            row = {"epoch": 0, "split": "val", "loss": float(-own.mean()), "accuracy": right}
            self.progress.rows.append(row)
            self.note_best(row)

    @staticmethod
    def rank(row: Mapping[str, Any]) -> tuple[float, float]:
        """Return by what epochs are compared."""
        return row["accuracy"], -row["loss"]

    def learnt(self) -> dict[str, float]:
        """Return the epoch's mean loss, and how many bags were recognised."""
        return super().learnt() | {"accuracy": self.progress.right / len(self.work.train)}

    def step(self, samples: list[int]) -> float:
        """Learn from a bag, and note whether it was recognised."""
        tuned, right = self.work.tuned, []

        def loss_of(features: torch.Tensor) -> torch.Tensor:
            logits, _ = tuned.head(features)
            right.append(float(logits.argmax() == code))
            return F.cross_entropy(logits, code)

        tiles, code = self._read(self.work.train, samples[0])
        self.optimizer.zero_grad()
        chunks = tiles.split(self.work.settings.chunk)
        loss = backward_whole(tuned.encoder, chunks, loss_of)
        self.optimizer.step()
        self.progress.right += right[0]
        return float(loss)

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

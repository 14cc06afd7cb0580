"""One stage: the one part trains, the other is frozen (paper 1, section 3.2)."""

import math
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.finetune.data import Batches, Order
from tiaft_plugin.finetune.evaluation import Evaluation
from tiaft_plugin.finetune.tally import Tally
from tiaft_plugin.finetune.trainer import make_trainer, quiet_and_interruptible
from tiaft_plugin.network.net import Network
from tiaft_plugin.plugins import call_hook
from tiaft_plugin.progress import progress


@dataclass(frozen=True)
class Stage:
    """Stage 1 trains Part B with Part A frozen, stage 2 Part A with Part B frozen.

    With `freeze_batchnorm` the BatchNorm layers of the part that trains use their running
    statistics and keep them; their scale and shift train all the same. With `pooled` the batches
    hold Part A's outputs instead of tiles.
    """

    number: int
    epochs: int
    lr: float
    freeze_batchnorm: bool = False
    pooled: bool = False

    @property
    def trains(self) -> str:
        """The attribute of the network that trains."""
        return "part_b" if self.number == 1 else "part_a"

    @property
    def freezes(self) -> str:
        """The attribute of the network that is frozen."""
        return "part_a" if self.number == 1 else "part_b"


@dataclass(frozen=True)
class Measured:
    """What a stage's training gave: rows of ``metrics.csv``, and how held-out tiles fared."""

    rows: list[dict[str, Any]]
    held_out: Evaluation | None
    optimizer: str  # its class, or empty where no epoch was trained


def run_stage(
    net: Network, stage: Stage, train: Batches, val: Batches | None, device: torch.device
) -> Measured:
    """Train `net` in place, and return what was measured.

    `net` comes back on the CPU and in eval mode. Raises Stopped where the loss is no longer
    finite or a tile cannot be read, and KeyboardInterrupt.
    """
    per_epoch = train.tiles + (val.tiles if val else 0)
    label = f"Stage {stage.number} of 2"
    with progress(per_epoch * stage.epochs, label) as bar:
        module = StageModule(net, stage, train.order, bar)
        try:
            with quiet_and_interruptible():
                trainer = make_trainer(device, stage.epochs)
                if stage.epochs:
                    trainer.fit(module, train, val)
                elif val:
                    trainer.validate(module, val, verbose=False)
            if trainer.interrupted:  # Lightning before 2.5 only notes it
                raise KeyboardInterrupt
        finally:
            for batches in filter(None, (train, val)):
                batches.close()
            net.cpu().eval().requires_grad_(True)
    optimizer = type(trainer.optimizers[0]).__name__ if trainer.optimizers else ""
    held_out = module.held_out.evaluation() if module.held_out else None
    return Measured(module.rows, held_out, optimizer)


class StageModule(pl.LightningModule):
    """A network in one stage, with its loss, and the rows of ``metrics.csv`` so far."""

    def __init__(self, net: Network, stage: Stage, order: Order, bar: tqdm):
        super().__init__()
        self.net, self.stage, self.order, self.bar = net, stage, order, bar
        self.rows: list[dict[str, Any]] = []
        self.trained: Tally | None = None
        self.held_out: Tally | None = None
        net.requires_grad_(False)
        getattr(net, stage.trains).requires_grad_(True)

    def train(self, mode: bool = True) -> "StageModule":
        """Set the mode of the part that trains: whoever calls this, frozen means frozen."""
        super().train(mode)
        getattr(self.net, self.stage.freezes).eval()
        if self.stage.freeze_batchnorm:
            for layer in getattr(self.net, self.stage.trains).modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()
        return self

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return a plug-in's optimiser, or Adam as in the paper."""
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        lr = self.stage.lr
        chosen = call_hook(
            "choose_optimizer", stage=self.stage.number, parameters=parameters, lr=lr
        )
        if not isinstance(chosen, torch.optim.Optimizer | None):
            raise TiaftError(f"choose_optimizer gave {chosen!r}, which is no torch optimiser")
        return chosen or torch.optim.Adam(parameters, lr=lr)

    def on_train_epoch_start(self) -> None:
        """Lightning leaves the mode as it finds it, and evaluation may have changed it."""
        self.train()
        self.order.epoch = self.current_epoch
        self.trained = Tally(self.net.card.classes, self.device)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        """Return the mean cross-entropy of a batch."""
        assert self.trained is not None
        return self._step(self.trained, *batch)

    def on_validation_epoch_start(self) -> None:
        """Count held-out tiles apart."""
        self.held_out = Tally(self.net.card.classes, self.device)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        """Count a batch of held-out tiles."""
        assert self.held_out is not None
        self._step(self.held_out, *batch)

    def on_train_epoch_end(self) -> None:
        """Write the epoch down, show it, and tell plug-ins."""
        tallies = {"train": self.trained, "val": self.held_out}
        rows = {split: self._row(split, tally) for split, tally in tallies.items() if tally}
        if not all(math.isfinite(row["loss"]) for row in rows.values()):
            raise Stopped(
                f"stage {self.stage.number}, epoch {self.current_epoch + 1}: the loss is no longer "
                f"a number: lower --lr (now {self.stage.lr:g}), or look at --mean, --std and --init"
            )
        self.rows += rows.values()
        self.bar.set_postfix({f"{s} accuracy": f"{row['accuracy']:.3f}" for s, row in rows.items()})
        epoch = self.current_epoch + 1
        call_hook("epoch_ended", stage=self.stage.number, epoch=epoch, metrics=rows)

    def _step(self, tally: Tally, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.net.part_b(inputs) if self.stage.pooled else self.net(inputs)
        loss = F.cross_entropy(logits, targets)
        tally.add(logits, targets, loss)
        self.bar.update(len(targets))
        return loss

    def _row(self, split: str, tally: Tally) -> dict[str, Any]:
        counted = tally.evaluation()
        return {
            "stage": self.stage.number,
            "epoch": self.current_epoch + 1,
            "split": split,
            "loss": counted.loss,
            "accuracy": counted.accuracy,
            "lr": self.trainer.optimizers[0].param_groups[0]["lr"],
            "seconds": tally.seconds,
        }

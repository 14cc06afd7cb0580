"""One stage: what the recipe says trains, all else is frozen (paper 1, section 3.2)."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from timm.layers import convert_sync_batchnorm
from torch import nn
from tqdm import tqdm

from tiaft_plugin.errors import Stopped
from tiaft_plugin.finetune import checkpoint
from tiaft_plugin.finetune.data import Batches, PooledBatches
from tiaft_plugin.finetune.evaluation import Evaluation
from tiaft_plugin.finetune.frozen import frozen_modules, parameter_groups
from tiaft_plugin.finetune.interface import FinetuneJob
from tiaft_plugin.finetune.losses import class_weights, losses_of, weights_of
from tiaft_plugin.finetune.measured import Measured
from tiaft_plugin.finetune.memory import peak_gib
from tiaft_plugin.finetune.optimizers import Driver
from tiaft_plugin.finetune.recipes import Recipe, Stage
from tiaft_plugin.finetune.sets import Sets
from tiaft_plugin.finetune.tally import Outputs, Tally
from tiaft_plugin.network.net import Network
from tiaft_plugin.network.precision import exact_float32, memory_format
from tiaft_plugin.plugins import call_hook
from tiaft_plugin.progress import progress


class StageModule(nn.Module):
    """A network in one stage: from tiles, or Part A's outputs (`pooled`), to logits (N, C).

    With `freeze_batchnorm` the BatchNorm layers of what trains use their running statistics and
    keep them; their scale and shift train all the same. What `frozen` names stays as it is, see
    `frozen_modules`. `precision` is that of training where Part A trains; all else is float32, as
    the model file will be.
    """

    def __init__(
        self,
        net: Network,
        trains: str,
        *,
        freeze_batchnorm: bool = False,
        pooled: bool = False,
        precision: str = "float32",
        frozen: str = "",
    ):
        super().__init__()
        self.net, self.trains, self.precision = net, trains, precision
        self.freeze_batchnorm, self.pooled = freeze_batchnorm, pooled
        self.layout = memory_format(net.part_a)
        net.requires_grad_(False)
        self.trained.requires_grad_(True)
        self.frozen = frozen_modules(net, frozen)
        for part in self.frozen:
            part.requires_grad_(False)

    @property
    def trained(self) -> nn.Module:
        """What trains: a part of the network, or all of it."""
        return self.net if self.trains == "all" else getattr(self.net, self.trains)

    def train(self, mode: bool = True) -> "StageModule":
        """Set the mode of what trains: whoever calls this, frozen means frozen."""
        super().train(False)
        self.training = mode
        self.trained.train(mode)
        if self.freeze_batchnorm:
            for layer in self.trained.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()
        for part in self.frozen:
            part.eval()
        return self

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits (N, C), float32."""
        if self.pooled:
            return self.net.part_b(inputs)
        if self.trains == "part_b":
            with torch.no_grad():
                pooled = self.net.pooled(inputs)
            return self.net.part_b(pooled)
        mixed = self.training and self.precision == "bfloat16"
        pixels = self.net.normalise(inputs).contiguous(memory_format=self.layout)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=mixed):
            return self.net.part_b(self.net.part_a(pixels)).float()


@dataclass(frozen=True)
class StageWork:
    """All that a stage works with; `file` is where its checkpoint is, or goes."""

    net: Network
    stage: Stage
    stages: int
    recipe: Recipe
    job: FinetuneJob
    sets: Sets
    fabric: Fabric
    train: Batches | PooledBatches
    held_out: dict[str, Batches | PooledBatches]  # "val" and "test", where there are such tiles
    file: Path


@dataclass
class Progress:
    """What changes while a stage runs: epochs and batches done, rows of ``metrics.csv``, the best.

    `best` holds epoch, loss and weights of the epoch with the lowest loss on validation tiles.
    """

    epoch: int = 0
    batch: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    stopped: bool = False
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    peak_gib: float = 0.0


def run_stage(work: StageWork) -> Measured:
    """Train the network in place, and return what was measured; goes on from a checkpoint.

    The network comes back on the CPU and in eval mode. Raises Stopped where the loss is no longer
    finite or a tile cannot be read, and KeyboardInterrupt.
    """
    loop = _Loop(work)
    tiles = work.train.tiles + (work.held_out["val"].tiles if "val" in work.held_out else 0)
    label = f"Stage {work.stage.number} of {work.stages}"
    try:
        with progress(tiles * work.stage.epochs, label) as bar:
            loop.resume(bar)
            while loop.progress.epoch < work.stage.epochs and not loop.progress.stopped:
                loop.run_epoch(bar)
        return loop.measured()
    finally:
        for batches in (work.train, *work.held_out.values()):
            batches.close()
        work.net.cpu().eval().requires_grad_(True)


class _Loop:
    """The epochs of a stage."""

    def __init__(self, work: StageWork):
        self.work, self.progress = work, Progress()
        net, recipe, fabric = work.net, work.recipe, work.fabric
        pooled = isinstance(work.train, PooledBatches)
        self.module = StageModule(
            net,
            work.stage.trains,
            freeze_batchnorm=work.job.freeze_batchnorm,
            pooled=pooled,
            precision=work.job.precision,
            frozen=recipe.frozen,
        )
        if not pooled:
            net.part_a.to(memory_format=self.module.layout)  # type: ignore[call-overload]
        fabric.to_device(self.module)
        if fabric.world_size > 1 and fabric.device.type == "cuda" and not pooled:
            net.part_a = convert_sync_batchnorm(net.part_a)  # there is none on CPUs
        self.tally = Tally(fabric.device)
        self.weights: torch.Tensor | None = None
        if recipe.balance == "weights":
            weights = class_weights(work.sets.train.counts)
            self.weights = torch.tensor(weights, dtype=torch.float32, device=fabric.device)
        self.driver: Driver | None = None
        self.forward: nn.Module = self.module
        self.optimizer: Any = None
        if work.stage.epochs:
            trained: list = [p for p in net.parameters() if p.requires_grad]
            if recipe.part_a_lr != 1:
                trained = parameter_groups(net, work.stage.lr, recipe.part_a_lr)
            steps = len(work.train.order) * work.stage.epochs
            self.driver = Driver(recipe, work.stage, trained, steps)
            self.forward, self.optimizer = fabric.setup(self.module, self.driver.optimizer)
        if fabric.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(fabric.device)
        self.saved, self.begun = monotonic(), monotonic()
        self.steps = 0  # since the last checkpoint
        self.last_val: Evaluation | None = None

    def resume(self, bar: tqdm) -> None:
        """Go on from the checkpoint, if there is one."""
        state = checkpoint.load(self.work.file)
        if state is None or self.driver is None:
            return
        self.module.trained.load_state_dict(state["weights"])
        self.driver.load_state_dict(state["driver"])
        self.progress = Progress(**state["progress"])
        if self.work.fabric.global_rank == 0:  # the sums are those of all processes
            self.tally.sums += state["tally"].to(self.tally.sums.device)
        val = self.work.held_out.get("val")
        done = self.work.train.tiles + (val.tiles if val else 0)
        bar.update(self.progress.epoch * done + self.progress.batch * self.work.recipe.batch_size)

    def run_epoch(self, bar: tqdm) -> None:
        """Train on every tile once, measure, and write the epoch down."""
        assert self.driver is not None
        work, state = self.work, self.progress
        self.module.train()
        work.train.order.epoch, work.train.order.start = state.epoch, state.batch
        for number, (inputs, targets, _) in enumerate(work.train, start=state.batch):
            self._step(number, inputs, targets)
            bar.update(work.train.order.size(number))
            state.batch = number + 1
            if state.batch < len(work.train.order):
                self._save_if_due()
        self._clock()
        self.tally.sums = self._over_all(self.tally.sums)
        rows = {"train": self._row("train", self.tally.row())}
        if "val" in work.held_out:
            state.epoch_seconds = 0.0
            self.last_val = self._evaluate("val", bar)
            self._clock()
            rows["val"] = self._row("val", row_of(self.last_val))
        self._refuse_infinite(rows)
        self._end_epoch(rows)
        bar.set_postfix({f"{s} accuracy": f"{row['accuracy']:.3f}" for s, row in rows.items()})

    def _step(self, number: int, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        assert self.driver is not None
        fabric, order = self.work.fabric, self.work.train.order
        # Dropout draws from here: what it draws must not depend on interruptions.
        drawn = (self.work.job.seed, self.work.stage.number, self.progress.epoch, number)
        seed = np.random.SeedSequence((*drawn, fabric.global_rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(seed[0]))
        targets = fabric.to_device(targets)
        logits = self.forward(fabric.to_device(inputs))
        losses = losses_of(logits, targets)
        self.tally.add(logits, targets, losses)
        if self.weights is not None:
            losses = losses * weights_of(targets, self.weights)
        # Processes' gradients are averaged, though their shares of a batch may differ by a tile.
        share = len(targets) * fabric.world_size / order.size(number)
        self.optimizer.zero_grad()
        fabric.backward(losses.mean() * share)
        self.optimizer.step()
        self.driver.step()

    @torch.no_grad()
    def _evaluate(self, name: str, bar: tqdm | None = None) -> Evaluation:
        """Return how tiles of a set fare, in float32: as the model file will do."""
        work = self.work
        self._share_statistics()
        self.module.eval()
        tiles, batches = work.sets.named()[name], work.held_out[name]
        outputs = Outputs(len(tiles), len(work.net.card.classes))
        with exact_float32():
            for inputs, targets, indices in batches:
                targets = work.fabric.to_device(targets)
                logits = self.module(work.fabric.to_device(inputs))
                outputs.add(indices, logits, losses_of(logits, targets))
                if bar is not None:
                    bar.update(len(indices) * work.fabric.world_size)
        outputs.logits = self._over_all(outputs.logits)
        outputs.losses = self._over_all(outputs.losses)
        return outputs.evaluation(work.net.card.classes, tiles.targets)

    def _end_epoch(self, rows: dict[str, dict[str, Any]]) -> None:
        assert self.driver is not None
        state, recipe = self.progress, self.work.recipe
        loss = rows["val"]["loss"] if "val" in rows else None
        state.rows += rows.values()
        state.epoch, state.batch, state.epoch_seconds = state.epoch + 1, 0, 0.0
        self.tally = Tally(self.work.fabric.device)
        better = loss is not None and (state.best is None or loss < state.best["loss"])
        if recipe.keep == "best" and better:
            weights = {k: v.cpu().clone() for k, v in self.module.trained.state_dict().items()}
            state.best = {"epoch": state.epoch, "loss": loss, "weights": weights}
        state.stopped = self.driver.epoch(loss)
        if self.work.fabric.global_rank == 0:
            number = self.work.stage.number
            call_hook("epoch_ended", stage=number, epoch=state.epoch, metrics=rows)
        self._save_if_due()

    def measured(self) -> Measured:
        """Return what was measured, of the network that is kept."""
        state, val = self.progress, self.last_val
        kept = state.epoch
        if state.best is not None and state.best["epoch"] != state.epoch:
            self.module.trained.load_state_dict(state.best["weights"])
            kept, val = state.best["epoch"], None
        found = {"val": val, "test": None}
        for name in self.work.held_out:
            found[name] = found[name] or self._evaluate(name)
        self._clock()
        return Measured(
            rows=state.rows,
            optimizer=type(self.driver.optimizer).__name__ if self.driver else "",
            kept=kept,
            seconds=state.seconds,
            peak_gib=state.peak_gib,
            **found,
        )

    def _save_if_due(self) -> None:
        """Write a checkpoint where enough steps or minutes have gone by."""
        job, fabric = self.work.job, self.work.fabric
        self.steps += 1
        due = monotonic() - self.saved >= 60 * job.checkpoint_minutes
        due |= job.checkpoint_steps is not None and self.steps >= job.checkpoint_steps
        if fabric.world_size > 1:  # the first process's clock counts
            due = bool(fabric.broadcast(due))
        if not due:
            return
        assert self.driver is not None
        self._clock()
        tally = self._over_all(self.tally.sums)
        if fabric.global_rank == 0:
            content = {
                "weights": self.module.trained.state_dict(),
                "driver": self.driver.state_dict(),
                "progress": vars(self.progress),
                "tally": tally,
            }
            checkpoint.save(self.work.file, content)
        self.saved, self.steps = monotonic(), 0

    def _over_all(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes."""
        fabric = self.work.fabric
        if fabric.world_size == 1:
            return values
        # Of GPUs, NCCL adds up what lies there.
        total: Any = fabric.all_reduce(fabric.to_device(values.clone()), reduce_op="sum")
        return total.to(values.device)

    def _share_statistics(self) -> None:
        """Give all processes the first one's BatchNorm statistics: those that are saved."""
        if self.work.fabric.world_size > 1:
            for buffer in self.module.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def _clock(self) -> None:
        """Add the time since the last call, and look at the memory."""
        now = monotonic()
        self.progress.seconds += now - self.begun
        self.progress.epoch_seconds += now - self.begun
        self.begun = now
        self.progress.peak_gib = max(self.progress.peak_gib, peak_gib(self.work.fabric.device))

    def _row(self, split: str, measured: dict[str, float]) -> dict[str, Any]:
        assert self.driver is not None
        return {
            "stage": self.work.stage.number,
            "epoch": self.progress.epoch + 1,
            "split": split,
            "loss": measured["loss"],
            "accuracy": measured["accuracy"],
            "balanced_accuracy": measured.get("balanced_accuracy"),
            "lr": self.driver.lr,
            "seconds": self.progress.epoch_seconds,
        }

    def _refuse_infinite(self, rows: dict[str, dict[str, Any]]) -> None:
        if not all(math.isfinite(row["loss"]) for row in rows.values()):
            stage = self.work.stage
            raise Stopped(
                f"stage {stage.number}, epoch {self.progress.epoch + 1}: the loss is no longer a "
                f"number: lower --lr (now {stage.lr:g}), or look at --mean, --std and --init"
            )


def row_of(evaluation: Evaluation) -> dict[str, float]:
    """Return what ``metrics.csv`` tells of held-out tiles."""
    names = ("loss", "accuracy", "balanced_accuracy")
    return {name: float(getattr(evaluation, name)) for name in names}

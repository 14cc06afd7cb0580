"""Train an attention network on bags: one a step, the best epoch by the training part's own."""

import copy
import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, IterableDataset

from tiaft_extensions.histotransfer.attention import AttentionNet
from tiaft_extensions.histotransfer.bags import Bags
from tiaft_extensions.histotransfer.recipe import Recipe
from tiaft_plugin.probes.folds import make_folds

LEAST_CHOOSING = 2  # bags: one alone chooses nothing


@dataclass(frozen=True)
class Trained:
    """A network, in eval mode and for features as they are, and how it was chosen.

    `epoch` counts from 1; `choosing` (n,) bool are the rows that chose it, none where too few
    groups were there: then it is the last.
    """

    net: AttentionNet
    epoch: int
    choosing: np.ndarray


def train(
    bags: Bags, codes: np.ndarray, classes: int, groups: np.ndarray, seed: int, recipe: Recipe
) -> Trained:
    """Train on bags of classes `codes` (n,) int64, of `groups` (n,); `seed` decides all chance."""
    choosing = choose_rows(codes, groups, recipe.held_out, seed)
    learning = np.flatnonzero(~choosing)
    with _own_chance(seed):
        net = AttentionNet(bags.width, classes, recipe.hidden, recipe.attention, recipe.gated)
    mean, sd = bags[learning].scale() if recipe.standardise else (0.0, 1.0)
    scale = torch.as_tensor(mean, dtype=torch.float32), torch.as_tensor(sd, dtype=torch.float32)
    learner = Learner(net, recipe.lr, scale)
    loaders = [
        _loader(bags, codes, learning, np.random.default_rng([seed, 1])),
        _loader(bags, codes, np.flatnonzero(choosing), None),
    ]
    with _quiet(), _one_thread(), _own_chance(seed), _interruptible():
        trainer = pl.Trainer(
            max_epochs=recipe.epochs,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=1.0 if choosing.any() else 0,
            use_distributed_sampler=False,
        )
        trainer.fit(learner, *loaders)
    epoch = recipe.epochs
    if learner.best is not None:
        epoch, weights = learner.best[2], learner.best[3]
        net.load_state_dict(weights)
    if recipe.standardise:
        net.take_in(torch.as_tensor(mean), torch.as_tensor(sd))
    return Trained(net.eval().requires_grad_(False), epoch, choosing)


def choose_rows(codes: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return which training rows choose the epoch, (n,) bool: whole groups, stratified.

    None where a class would be missing from the rest, or fewer than two bags would choose.
    """
    nobody = np.zeros(len(codes), dtype=bool)
    if len(np.unique(groups)) < folds:
        return nobody
    rows = make_folds(groups, codes, folds=folds, repeats=1, seed=seed)[0] == 0
    rest = np.unique(codes[~rows])
    if rows.sum() < LEAST_CHOOSING or len(rest) < len(np.unique(codes)):
        return nobody
    return rows


class Learner(pl.LightningModule):
    """What Lightning trains; `best` is accuracy, −loss, epoch and weights of the best so far."""

    def __init__(self, net: AttentionNet, lr: float, scale: tuple[torch.Tensor, torch.Tensor]):
        super().__init__()
        self.net, self.lr, self.scale = net, lr, scale
        self.best: tuple[float, float, int, dict[str, torch.Tensor]] | None = None
        self._said: list[tuple[float, float]] = []

    def _logits(self, features: torch.Tensor) -> torch.Tensor:
        mean, sd = self.scale
        return self.net((features - mean) / sd)[0]

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> torch.Tensor:
        """Return a bag's cross-entropy."""
        features, code = batch
        return F.cross_entropy(self._logits(features), code)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> None:
        """Note whether a bag is recognised, and its cross-entropy."""
        features, code = batch
        logits = self._logits(features)
        right = float(logits.argmax() == code)
        self._said.append((right, float(F.cross_entropy(logits, code))))

    def on_validation_epoch_end(self) -> None:
        """Keep the weights if no epoch was better."""
        right, loss = np.array(self._said).mean(axis=0).tolist()
        self._said = []
        if self.best is None or (right, -loss) > self.best[:2]:
            weights = copy.deepcopy(self.net.state_dict())
            self.best = (right, -loss, self.current_epoch + 1, weights)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the paper's optimiser."""
        return torch.optim.Adam(self.net.parameters(), lr=self.lr)


class _Steps(IterableDataset):
    """Bags with their codes, one a step; in another order each epoch where there is a `rng`."""

    def __init__(
        self, bags: Bags, codes: np.ndarray, rows: np.ndarray, rng: np.random.Generator | None
    ):
        self.bags, self.codes, self.rows, self.rng = bags, codes, rows, rng

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rows = self.rows if self.rng is None else self.rng.permutation(self.rows)
        for row in rows:
            yield as_tensor(self.bags.load(int(row))), torch.tensor(int(self.codes[row]))


def as_tensor(features: np.ndarray) -> torch.Tensor:
    """Return a bag as a tensor that shares its memory; nothing may write to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the array is read-only, as it is to be
        return torch.from_numpy(features)


def _loader(
    bags: Bags, codes: np.ndarray, rows: np.ndarray, rng: np.random.Generator | None
) -> Any:
    return DataLoader(_Steps(bags, codes, rows, rng), batch_size=None, num_workers=0)


@contextmanager
def _own_chance(seed: int) -> Iterator[None]:
    """Draw from `seed`, and leave torch's own randomness as it was: loaders draw from it, too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums over several threads differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Hand on Ctrl-C, which Lightning makes an exit of its own, and is deaf to from then on."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from end


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning from telling, hundreds of times, which accelerators there are."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)

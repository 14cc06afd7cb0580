"""What the stages train on: tiles read from disk, or Part A's outputs computed before."""

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from tiaft_plugin.errors import Stopped, TiaftError, first_line
from tiaft_plugin.tiles.images import read_image
from tiaft_plugin.tiles.tileset import TileSet

Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Normalise = Callable[[np.ndarray], np.ndarray]
Where = tuple[int, int]  # epoch and index of a tile: all that its augmentation may depend on
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # inputs, targets, indices of tiles


class Tiles(Dataset):
    """Tiles as uint8 (size, size, 3) with target and index; resized where `size` differs.

    `normalise` is applied to every tile as read; `augment` gets a tile and a random generator that
    `seed` (a tuple), epoch and tile decide, so that neither workers nor order change it.
    """

    def __init__(
        self,
        tiles: TileSet,
        size: int,
        augment: Augment | None = None,
        seed: Sequence[int] = (),
        normalise: Normalise | None = None,
    ):
        self.files: tuple[Path, ...] = tiles.files
        self.targets = torch.tensor(tiles.targets)
        self.size, self.augment, self.seed = size, augment, tuple(seed)
        self.normalise = normalise

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, where: Where) -> tuple[torch.Tensor, torch.Tensor, int] | TiaftError:
        try:
            tile = self._read(*where)
        except TiaftError as error:
            return error  # raised in a worker, it would arrive as a page of traceback
        return torch.from_numpy(tile), self.targets[where[1]], where[1]

    def _read(self, epoch: int, index: int) -> np.ndarray:
        tile = read_image(self.files[index], self.size)
        if self.normalise is not None:
            tile = self.normalise(tile)
        if self.augment is None:
            return tile
        rng = np.random.default_rng((*self.seed, epoch, index))
        try:
            return self.augment(tile, rng)
        except TiaftError as error:
            raise Stopped(f"{self.files[index].name}: {error}") from error


class Order:
    """Batches of (epoch, index), shuffled anew each epoch as `seed` decides, or in order.

    Set `epoch` before iterating, and `start` to the number of batches to leave out, done before
    an interruption. `chances` (N,) draw tiles with replacement. Of `world` processes each, by its
    `rank`, gets every world-th tile of a batch. A last batch too small to give each of them two
    tiles joins the one before, since one tile has no batch statistics.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: Sequence[int] | None = None,
        *,
        chances: np.ndarray | None = None,
        world: int = 1,
    ):
        self.count, self.seed, self.chances = count, seed, chances
        self.rank, self.world = 0, world
        self.epoch = self.start = 0
        starts = list(range(0, count, batch_size))
        if len(starts) > 1 and count - starts[-1] < 2 * world:
            starts.pop()
        self.bounds = list(zip(starts, [*starts[1:], count], strict=True))

    def __len__(self) -> int:
        return len(self.bounds)

    def size(self, batch: int) -> int:
        """Return how many tiles a batch has, in all processes together."""
        start, end = self.bounds[batch]
        return end - start

    def __iter__(self) -> Iterator[list[Where]]:
        order = np.arange(self.count)
        if self.seed is not None:
            rng = np.random.default_rng((*self.seed, self.epoch))
            if self.chances is None:
                order = rng.permutation(self.count)
            else:
                order = rng.choice(self.count, self.count, p=self.chances)
        for start, end in self.bounds[self.start :]:
            chosen = order[start:end][self.rank :: self.world]
            if len(chosen):  # of a few tiles to measure on, a process may get none
                yield [(self.epoch, int(index)) for index in chosen]


class Batches:
    """Batches of tiles read from disk; raises TiaftError where a tile cannot be read."""

    def __init__(self, tiles: Tiles, order: Order, *, workers: int = 0, pin_memory: bool = False):
        self.order, self.tiles = order, len(tiles)
        self.loader: DataLoader = DataLoader(
            tiles,
            batch_sampler=order,
            num_workers=workers,
            collate_fn=_collate,
            worker_init_fn=_ignore_interrupt,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else each loader would draw from the global one
        )
        self._iterator: Any = None

    def __iter__(self) -> Iterator[Batch]:
        self._iterator = iter(self.loader)
        try:
            for batch in self._iterator:
                if isinstance(batch, TiaftError):
                    raise batch
                yield batch
        except RuntimeError as error:  # how torch says that a worker was killed
            if "DataLoader worker (pid" not in str(error):
                raise
            raise Stopped(
                f"a worker that read tiles has ended ({first_line(error)}): where memory was "
                "short, fewer --workers need less; the same command goes on"
            ) from error

    def close(self) -> None:
        """End the workers, and with them the use of these batches.

        Left to the garbage collector, each worker may keep the process waiting for seconds.
        """
        getattr(self._iterator, "_shutdown_workers", lambda: None)()


class PooledBatches:
    """Batches of Part A's outputs, (N, width) float32, memory-mapped: no workers are needed."""

    def __init__(self, pooled: np.ndarray, targets: Sequence, order: Order):
        self.pooled, self.order, self.tiles = pooled, order, len(pooled)
        self.targets = torch.tensor(targets)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.order:
            indices = np.array([index for _, index in batch])
            inputs = torch.from_numpy(self.pooled[indices])
            chosen = torch.from_numpy(indices)
            yield inputs, self.targets[chosen], chosen

    def close(self) -> None:
        """Nothing has to end."""


def _collate(items: list) -> Batch | TiaftError:
    failed = next((item for item in items if isinstance(item, TiaftError)), None)
    return failed if failed is not None else default_collate(items)


def _ignore_interrupt(worker: int) -> None:
    # Ctrl-C reaches workers too; the main process ends them, without a traceback from each.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

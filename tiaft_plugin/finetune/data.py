"""What the stages train on: tiles read from disk, or Part A's outputs computed once."""

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from tiaft_plugin.errors import Stopped, TiaftError, reason
from tiaft_plugin.tiles.images import read_image
from tiaft_plugin.tiles.tileset import TileSet

Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Where = tuple[int, int]  # epoch and index of a tile: all that its augmentation may depend on


class Tiles(Dataset):
    """Tiles as uint8 (size, size, 3) with their class index; resized where `size` differs.

    `augment` gets a tile and a random generator that `seed` (a tuple), epoch and tile decide, so
    that neither workers nor order change it.
    """

    def __init__(
        self,
        tiles: TileSet,
        size: int,
        augment: Augment | None = None,
        seed: Sequence[int] = (),
    ):
        self.files: tuple[Path, ...] = tiles.files
        self.targets = tiles.targets
        self.size, self.augment, self.seed = size, augment, tuple(seed)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, where: Where) -> tuple[torch.Tensor, int] | TiaftError:
        epoch, index = where
        try:
            tile = read_image(self.files[index], self.size)
        except TiaftError as error:
            return error  # raised in a worker, it would arrive as a page of traceback
        if self.augment is not None:
            rng = np.random.default_rng((*self.seed, epoch, index))
            try:
                changed = self.augment(tile, rng)
            except Exception as error:  # anybody's code
                name = self.files[index].name
                return Stopped(f"choose_augmentation's function failed on {name}: {reason(error)}")
            if getattr(changed, "dtype", None) != np.uint8 or changed.shape != tile.shape:
                return Stopped(
                    f"an augmentation made {getattr(changed, 'dtype', type(changed).__name__)} "
                    f"{getattr(changed, 'shape', '')} of a uint8 tile {tile.shape}: "
                    "choose_augmentation must keep shape and dtype"
                )
            tile = np.ascontiguousarray(changed)
        return torch.from_numpy(tile), self.targets[index]


class Pooled(Dataset):
    """Part A's pooled outputs, float32 (N, width), with the tiles' class indices."""

    def __init__(self, pooled: torch.Tensor, targets: Sequence[int]):
        self.pooled, self.targets = pooled, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, where: Where) -> tuple[torch.Tensor, int]:
        return self.pooled[where[1]], self.targets[where[1]]


class Order:
    """Batches of (epoch, index), shuffled anew each epoch as `seed` decides, or in order.

    Set `epoch` before iterating. A last batch of one joins the one before, since one tile has no
    batch statistics.
    """

    def __init__(self, count: int, batch_size: int, seed: Sequence[int] | None = None):
        self.count, self.seed, self.epoch = count, seed, 0
        starts = list(range(0, count, batch_size))
        if len(starts) > 1 and count - starts[-1] == 1:
            starts.pop()
        self.bounds = list(zip(starts, [*starts[1:], count], strict=True))

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[list[Where]]:
        order = np.arange(self.count)
        if self.seed is not None:
            order = np.random.default_rng((*self.seed, self.epoch)).permutation(self.count)
        for start, end in self.bounds:
            yield [(self.epoch, int(index)) for index in order[start:end]]


class Batches:
    """Batches (inputs, int64 targets); raises TiaftError where a tile cannot be read."""

    def __init__(
        self,
        dataset: Tiles | Pooled,
        batch_size: int,
        *,
        shuffle_seed: Sequence[int] | None = None,
        workers: int = 0,
        pin_memory: bool = False,
    ):
        self.order = Order(len(dataset), batch_size, shuffle_seed)
        self.tiles = len(dataset)
        self.loader: DataLoader = DataLoader(
            dataset,
            batch_sampler=self.order,
            num_workers=workers,
            collate_fn=_collate,
            worker_init_fn=_ignore_interrupt,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else each loader would draw from the global one
        )
        self._iterator: Any = None

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self._iterator = iter(self.loader)
        for batch in self._iterator:
            if isinstance(batch, TiaftError):
                raise batch
            yield batch

    def close(self) -> None:
        """End the workers, and with them the use of these batches.

        Left to the garbage collector, each worker may keep the process waiting for seconds.
        """
        getattr(self._iterator, "_shutdown_workers", lambda: None)()


def _collate(items: list) -> tuple[torch.Tensor, torch.Tensor] | TiaftError:
    failed = next((item for item in items if isinstance(item, TiaftError)), None)
    return failed if failed is not None else default_collate(items)


def _ignore_interrupt(worker: int) -> None:
    # Ctrl-C reaches workers too; the main process ends them, without a traceback from each.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

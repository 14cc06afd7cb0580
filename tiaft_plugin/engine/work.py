"""Tiles of a slide through the network, and where the time went."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tiaft_plugin.engine.compute import Compute
from tiaft_plugin.engine.precision import TRIED_ON, earned
from tiaft_plugin.engine.prepare import Prepare, Stain
from tiaft_plugin.engine.reading import ReadingTimes, TileReading
from tiaft_plugin.engine.timing import Timing
from tiaft_plugin.tiles.slide_stain import SlideMacenko, sample_tiles

SEED = 0  # of which tiles a slide's stains are found in


class Work:
    """Reads, prepares and computes batches, one ahead of the other; seconds of each are kept."""

    def __init__(self, reading: TileReading, compute: Compute, prepare: Prepare):
        self.reading, self.compute, self.prepare = reading, compute, prepare
        self.tiles = 0
        self._wrote = 0.0
        self._started, self._before = time.perf_counter(), ReadingTimes()

    def choose_stain(
        self, stain: Stain | SlideMacenko | None, begun: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Find the slide's own stains, where these are wanted; return what a store keeps of them.

        A store that was `begun` (its attributes) stays with those it has.
        """
        if not isinstance(stain, SlideMacenko):
            return {}
        if begun is not None and begun.get("stain_found"):
            fitted = stain.again(begun["stain_found"])
        else:
            fitted = stain.fit(sample_tiles(self._tile, len(self.reading.dataset), SEED))
        self.prepare.stain = fitted.tile
        return {"seed": SEED, "stain_found": fitted.found}

    def choose_precision(
        self, wanted: str, begun: dict[str, Any] | None, *, compiled: bool = False
    ) -> dict[str, Any]:
        """Compute in a precision, for ``auto`` in the one that is earned on this slide's own tiles.

        Returns what a store keeps of the trial. A store that was `begun` stays with what it has.
        """
        trial: dict[str, Any] | None = None
        if wanted == "auto" and begun is not None:
            wanted, trial = begun["precision"], begun.get("precision_trial")
        elif wanted == "auto":
            count = len(self.reading.dataset)
            rows = sorted({round(i) for i in np.linspace(0, count - 1, min(TRIED_ON, count))})
            [(_, batch)] = self.reading.read([rows], self.prepare.batch)
            found = earned(self.compute, batch["image"])
            wanted, trial = found.precision, found.facts
        if begun is not None:
            compiled = begun.get("compute", {}).get("compiled", False)
        self.compute = self.compute.at(wanted, compiled=compiled)
        return {"precision_trial": trial} if trial else {}

    def first(self) -> tuple[int, list[str]]:
        """Return how wide an output is, and the names of what stands beside that of a tile."""
        [(_, batch)] = self.reading.read([[0]], self.prepare.batch)
        image = batch.pop("image")
        return self.compute.width or self.compute(image).shape[1], list(batch)

    def _tile(self, row: int) -> np.ndarray:
        [(_, tiles)] = self.reading.read([[row]])
        return tiles[0]

    def batches(
        self, rows: Iterable[Sequence[int]]
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Give the outputs (n, D) of each batch of rows, and what stands beside them.

        Time is counted from here on.
        """
        self._started, self._before = time.perf_counter(), self.reading.taken()
        waiting: deque[dict[str, np.ndarray]] = deque()

        def images() -> Iterator[np.ndarray]:
            for _, batch in self.reading.read(rows, self.prepare.batch):
                waiting.append(batch)
                yield batch["image"]

        for outputs in self.compute.each(images()):
            self.tiles += len(outputs)
            yield outputs, waiting.popleft()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Count the time of the block as writing."""
        started = time.perf_counter()
        yield
        self._wrote += time.perf_counter() - started

    def timing(self) -> Timing:
        """Return where the time went since the first batch was asked for."""
        took = time.perf_counter() - self._started
        now, before = self.reading.taken(), self._before
        reading, fetching = now.reading - before.reading, now.fetching
        if fetching is not None:
            fetching -= before.fetching or 0.0
        return Timing(
            self.tiles,
            took,
            waiting=now.waiting - before.waiting,
            writing=self._wrote,
            readers=max(self.reading.workers, 1),
            reading=reading if fetching is None else fetching,
            decoding=None if fetching is None else reading - fetching,
            preparing=now.preparing - before.preparing,
        )

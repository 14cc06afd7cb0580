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
from tiaft_plugin.engine.reading import TileReading
from tiaft_plugin.tiles.slide_stain import SlideMacenko, sample_tiles

SEED = 0  # of which tiles a slide's stains are found in
_BOUND = 0.2  # of the time: so much waiting for tiles is worth a remedy


class Work:
    """Reads, prepares and computes batches, one ahead of the other; seconds of each are kept."""

    def __init__(self, reading: TileReading, compute: Compute, prepare: Prepare):
        self.reading, self.compute, self.prepare = reading, compute, prepare
        self.tiles = 0
        self._wrote = self._waited = 0.0
        self._started = time.perf_counter()

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

    def choose_precision(self, wanted: str, begun: dict[str, Any] | None) -> dict[str, Any]:
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
        self.compute = self.compute.at(wanted)
        return {"precision_trial": trial} if trial else {}

    def first(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the output (1, D) of the first tile, and what stands beside it."""
        [(_, batch)] = self.reading.read([[0]], self.prepare.batch)
        return self.compute(batch.pop("image")), batch

    def _tile(self, row: int) -> np.ndarray:
        [(_, tiles)] = self.reading.read([[row]])
        return tiles[0]

    def batches(
        self, rows: Iterable[Sequence[int]]
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Give the outputs (n, D) of each batch of rows, and what stands beside them.

        Time is counted from here on.
        """
        self._started, self._waited = time.perf_counter(), self.reading.times.waiting
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

    def told(self) -> str:
        """Return in one line how fast it was, and what a person can do where reading bounds it."""
        took = max(time.perf_counter() - self._started, 1e-9)
        waited = self.reading.times.waiting - self._waited
        computed = max(took - waited - self._wrote, 1e-9)
        rate = self.tiles / took
        shares = f"waiting for tiles {waited / took:.0%}, computing {computed / took:.0%}"
        told = f"{rate:.3g} tiles/s ({shares}, writing {self._wrote / took:.0%})"
        if waited < _BOUND * took:
            return told
        possible = self.tiles / computed
        more = max(1, round(max(self.reading.workers, 1) * (possible / rate - 1)))
        return f"{told}; reader-bound: {rate:.3g} of {possible:.3g} tiles/s; {more} more --workers"

"""Tiles of a slide through the network, and where the time went."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from tiaft_plugin.engine.compute import Compute
from tiaft_plugin.engine.prepare import Prepare
from tiaft_plugin.engine.reading import TileReading

_BOUND = 0.2  # of the time: so much waiting for tiles is worth a remedy


class Work:
    """Reads, prepares and computes batches, one ahead of the other; seconds of each are kept."""

    def __init__(self, reading: TileReading, compute: Compute, prepare: Prepare):
        self.reading, self.compute, self.prepare = reading, compute, prepare
        self.tiles = 0
        self._wrote = 0.0
        self._started = time.perf_counter()
        self._waited = reading.times.waiting  # before this work

    def batches(
        self, rows: Iterable[Sequence[int]]
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Give the outputs (n, D) of each batch of rows, and what stands beside them."""
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

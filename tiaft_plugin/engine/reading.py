"""Tiles of a slide, read ahead by several threads, in order, exactly as TIAToolbox reads them.

Threads, not processes: what takes time (decoding, resizing) lets other threads run meanwhile,
they share what was decoded, and need not send tiles through a pipe. benchmarks/engine_reading.py
compares both.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_plugin.engine.sources import OneByOne, Source, open_source
from tiaft_plugin.errors import Stopped, TiaftError, reason

PAUSES = (0.0, 1.0, 5.0, 20.0, 60.0)  # seconds before each further try
_TRIES_OF_A_DAMAGED_SLIDE = 2  # of a file that can be reached, more would change nothing
_COMPARED = 8  # tiles a slide
BLOCK = 32  # tiles

_log = logging.getLogger(__name__)


@dataclass
class ReadingTimes:
    """Where the time of reading went, in seconds, and what was read.

    `reading` adds up all threads, `preparing` what was done to tiles in them; `waiting` is how
    long whoever wanted tiles waited for them. `fetching` is the part of `reading` in which the
    file's bytes were waited for; None where a library reads and decodes in one call.
    """

    tiles: int = 0
    reading: float = 0.0
    fetching: float | None = 0.0
    preparing: float = 0.0
    waiting: float = 0.0
    tries_again: int = 0


class TileReading:
    """Reads the tiles of `dataset`, a WSIPatchDataset, batch by batch.

    `workers` threads read ahead by up to `ahead` batches (0 workers: reads when asked). `pauses`
    are the seconds before each further try where a slide cannot be read. `cache` is the memory
    for decoded pieces, in bytes; by default what the slide needs, 1 GiB at most. Raises Stopped
    where the slide cannot be read.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        workers: int = 0,
        ahead: int = 4,
        pauses: Sequence[float] = PAUSES,
        cache: int | None = None,
    ):
        self.dataset, self.workers, self.ahead = dataset, workers, max(ahead, 1)
        self.pauses, self.cache = tuple(pauses), cache
        self.times = ReadingTimes()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._opened = 0  # how often
        self._source: Source | None = None
        self._refused: list[str] = []  # ways that give other pixels
        self._compare()

    @property
    def how(self) -> str:
        """How tiles are read, in words."""
        return self._current()[0].how

    def decoded(self) -> int | None:
        """Return how many compressed pieces were decoded; None where nobody counts."""
        return self._current()[0].decoded()

    def taken(self) -> ReadingTimes:
        """Return the times until now."""
        with self._lock:
            return replace(self.times, fetching=self._fetching())

    def read(
        self, batches: Iterable[Sequence[int]], then: Callable[[np.ndarray], Any] | None = None
    ) -> Iterator[tuple[Sequence[int], Any]]:
        """Give (rows, tiles uint8 (n, H, W, 3)) of each batch of rows, in the order of `batches`.

        With `then`, a function of such tiles that is called in the threads, give what it returns.
        """
        self._stop.clear()
        if self.workers == 0:
            for rows in batches:
                started = time.perf_counter()
                done = self._batch(rows, then)
                self.times.waiting += time.perf_counter() - started
                yield rows, done
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="tiles")
        waiting: deque[tuple[Sequence[int], Future]] = deque()
        try:
            for rows in batches:
                waiting.append((rows, pool.submit(self._batch, rows, then)))
                if len(waiting) >= self.ahead + self.workers:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)
        finally:
            self._stop.set()  # ends pauses
            pool.shutdown(wait=True, cancel_futures=True)

    def _next(self, waiting: deque[tuple[Sequence[int], Future]]) -> tuple[Sequence[int], Any]:
        started = time.perf_counter()
        rows, future = waiting.popleft()
        done = future.result()
        self.times.waiting += time.perf_counter() - started
        return rows, done

    def _batch(self, rows: Sequence[int], then: Callable[[np.ndarray], Any] | None) -> Any:
        started = time.perf_counter()
        tiles = np.stack(self._tiles(rows))
        read = time.perf_counter()
        done: Any = tiles if then is None else then(tiles)
        with self._lock:
            self.times.tiles += len(tiles)
            self.times.reading += read - started
            self.times.preparing += time.perf_counter() - read
        return done

    def _tiles(self, rows: Sequence[int], *, own: bool = False) -> list[np.ndarray]:
        """Read tiles; where that fails, open the slide anew and try again, after each pause.

        `own` reads them as TIAToolbox does.
        """
        tries = 0
        for pause in (*self.pauses, None):
            opened = 0
            try:
                source, opened = (OneByOne(self.dataset), 0) if own else self._current()
                return source.tiles(rows)
            except MemoryError:
                raise
            except Exception as error:  # slide libraries raise whatever they like
                damaged = is_there(self.dataset.img_path) and not isinstance(error, OSError)
                tries += damaged
                if pause is None or tries >= _TRIES_OF_A_DAMAGED_SLIDE or self._stop.wait(pause):
                    return self._last_try(rows, error)
                _log.warning("%s: %s; trying again", self.dataset.img_path, reason(error))
                self._open_anew(opened)
        raise AssertionError  # the last pause is None

    def _last_try(self, rows: Sequence[int], error: Exception) -> list[np.ndarray]:
        """Leave it to TIAToolbox whether tiles can be read; raise Stopped if they cannot."""
        path, tiles = self.dataset.img_path, []
        if not is_there(path):
            raise Stopped(
                f"{path} is not to be reached any more: run the same command again when it is"
            ) from error
        source = OneByOne(self.dataset)
        for row in rows:
            try:
                tiles += source.tiles([row])
            except Exception as own:  # as above
                x, y = (int(value) for value in self.dataset.inputs[row][:2])
                raise Stopped(
                    f"{path}: the tile at ({x}, {y}) cannot be read ({reason(own)}): "
                    "is the file whole?"
                ) from error
        return tiles

    def _current(self) -> tuple[Source, int]:
        with self._lock:
            if self._source is None:
                self._source = self._open()
                self._opened += 1
            return self._source, self._opened

    def _open(self) -> Source:
        try:
            return open_source(self.dataset, self.cache, self._refused)
        except TiaftError as error:
            return OneByOne(self.dataset, str(error))

    def _open_anew(self, opened: int) -> None:
        """Have the slide opened anew, unless another thread has had it already."""
        with self._lock:
            self.times.tries_again += 1
            if self._opened == opened:
                self.times.fetching, self._source = self._fetching(), None

    def _fetching(self) -> float | None:
        """Return the seconds of this source and of those before it, in the lock."""
        now, before = self._source.fetching() if self._source else 0.0, self.times.fetching
        return None if now is None or before is None else before + now

    def _compare(self) -> None:
        """Compare some tiles with TIAToolbox's own; take another way where they are not the same.

        A way that differs (another libjpeg, say) does so everywhere: it is seen in a few tiles.
        """
        count = len(self.dataset)
        rows = sorted({round(i * (count - 1) / (_COMPARED - 1)) for i in range(_COMPARED)})
        own: list[np.ndarray] = []
        while True:
            found, (source, _) = self._tiles(rows), self._current()
            if isinstance(source, OneByOne):
                return
            own = own or self._tiles(rows, own=True)
            if all(map(np.array_equal, found, own)):
                return
            _log.info("%s: %s: other pixels than TIAToolbox's", self.dataset.img_path, source.how)
            self._refused.append(source.how)
            self._source = None


def read_tiles(
    dataset: Any,
    rows: Sequence[int],
    *,
    workers: int,
    ahead: int,
    block: int = BLOCK,
    pauses: Sequence[float] = PAUSES,
) -> Iterator[tuple[Sequence[int], np.ndarray]]:
    """Give (rows, tiles uint8 (n, H, W, 3)) in the order of `rows`, `block` tiles at a time.

    Tiles are those of ``dataset[row]["image"]`` without preprocessing. See TileReading.
    """
    reading = TileReading(dataset, workers=workers, ahead=ahead, pauses=pauses)
    yield from reading.read(rows[start : start + block] for start in range(0, len(rows), block))


def is_there(path: Path) -> bool:
    """Whether a slide's file, or folder, can be reached now: some of it is read."""
    try:
        if path.is_dir():
            return any(path.iterdir())
        with path.open("rb") as file:
            return bool(file.read(1))
    except OSError:
        return False

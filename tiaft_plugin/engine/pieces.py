"""Levels of a slide put together of its own compressed pieces, each decoded once."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any

import numpy as np


class PieceCache:
    """The pieces decoded last, up to `budget` bytes; any number of threads may ask for the same.

    `decoded` counts how many were decoded, those that had been dropped meanwhile again; `fetching`
    adds up the seconds in which threads waited for a file's bytes, where `decode` says them.
    """

    def __init__(self, budget: int):
        self.budget, self.held, self.decoded = budget, 0, 0
        self._pieces: OrderedDict[Hashable, Future[np.ndarray]] = OrderedDict()
        self.fetching = 0.0
        self._lock = threading.Lock()

    def fetched(self, seconds: float) -> None:
        """Count seconds in which a thread waited for a file's bytes."""
        with self._lock:
            self.fetching += seconds

    def get(self, key: Hashable, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """Return a piece, decoded by whoever asks first; what `decode` raises, all get."""
        with self._lock:
            known = self._pieces.get(key)
            if known is not None:
                self._pieces.move_to_end(key)
            else:
                mine = self._pieces[key] = Future()
        if known is not None:
            return known.result()
        try:
            piece = decode()
        except BaseException as error:
            with self._lock:
                del self._pieces[key]
            mine.set_exception(error)
            raise
        mine.set_result(piece)
        with self._lock:
            self.decoded += 1
            self.held += piece.nbytes
            self._drop_oldest()
        return piece

    def _drop_oldest(self) -> None:
        while self.held > self.budget:
            key = next((key for key, piece in self._pieces.items() if piece.done()), None)
            if key is None:
                return
            self.held -= self._pieces.pop(key).result().nbytes


class Mosaic:
    """A level as an array (H, W, C) that can be sliced, made of pieces of `piece` (h, w) px.

    `decode(row, column)` returns a piece, uint8 (h, w, C), at least as large as it is inside the
    level; `cache` keeps it under (`name`, row, column).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        piece: tuple[int, int],
        decode: Callable[[int, int], np.ndarray],
        cache: PieceCache,
        name: Hashable = 0,
    ):
        self.shape, self.piece, self.decode, self.cache, self.name = (
            shape,
            piece,
            decode,
            cache,
            name,
        )

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return a copy of ``[top:bottom, left:right]``."""
        (top, bottom, step_y), (left, right, step_x) = (
            part.indices(limit) for part, limit in zip(index[:2], self.shape[:2], strict=True)
        )
        height, width = self.piece
        out = np.empty((max(bottom - top, 0), max(right - left, 0), self.shape[2]), dtype=np.uint8)
        for row in range(top // height, -(-bottom // height)):
            y0, y1 = max(top, row * height), min(bottom, (row + 1) * height)
            for column in range(left // width, -(-right // width)):
                x0, x1 = max(left, column * width), min(right, (column + 1) * width)
                piece = self._piece(row, column)
                y, x = y0 - row * height, x0 - column * width
                part = piece[y : y + y1 - y0, x : x + x1 - x0]
                out[y0 - top : y1 - top, x0 - left : x1 - left] = part
        return out[::step_y, ::step_x]

    def _piece(self, row: int, column: int) -> np.ndarray:
        return self.cache.get((self.name, row, column), lambda: self.decode(row, column))

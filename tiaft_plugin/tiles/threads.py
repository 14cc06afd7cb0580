"""Doing one thing to many files at once."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tiaft_plugin.progress import progress

T = TypeVar("T")
R = TypeVar("R")


def in_threads(function: Callable[[T], R], items: Sequence[T], label: str) -> Iterator[R]:
    """Yield ``function(item)`` in the order of `items`, with a bar on terminals."""
    executor = ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1)))
    try:
        with progress(len(items), label, wanted=None) as bar:
            for result in executor.map(function, items):
                yield result
                bar.update()
    finally:  # an interrupt must not wait for the other hundred thousand
        executor.shutdown(cancel_futures=True)

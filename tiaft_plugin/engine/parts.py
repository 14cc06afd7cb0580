"""Parts of a large slide: ranges of chunks of one store, each made by another worker.

Whoever makes a part writes only files of its own, and marks chunks in files of its own
(`store.MARKS`); a store's attributes change only under its lock. All workers may so write at once,
on a network share, too.
"""

import glob
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tiaft_plugin.engine.timing import Timing
from tiaft_plugin.files import locked

_PATIENCE = 60.0  # seconds that another part may take to open the store
_PART = ".part-"  # in the names of parts' locks


@dataclass(frozen=True)
class Part:
    """Chunks of a store that was begun, or all that it lacks still (None).

    `timing` is what was noted of the parts that are made.
    """

    store: Path
    chunks: range | None = None
    timing: Timing | None = None


def parts_of(missing: Sequence[int], *, block: int, most: int) -> list[range]:
    """Return ranges of chunks that hold all `missing` ones, `most` of these in each, about.

    They begin and end where blocks of `block` chunks do, so that no two have marks in one file,
    and are nearly equal: the last worker is not to end long after the others.
    """
    blocks = sorted({number // block for number in missing})
    count = min(-(-len(missing) // most), len(blocks))
    ends = [round(len(blocks) * part / count) for part in range(count + 1)]
    return [
        range(blocks[first] * block, (blocks[end - 1] + 1) * block) for first, end in pairwise(ends)
    ]


@contextmanager
def kept_from_others(path: Path, part: Part | None) -> Iterator[None]:
    """Keep other processes away from a store, or from a part of it, while the block runs.

    Raises TiaftError where another one has it: all of it, or, where all is wanted, any part.
    """
    with ExitStack() as stack:
        if part is not None and part.chunks is not None:
            mine = path.with_name(f"{path.name}{_PART}{part.chunks.start}")
            stack.enter_context(locked(mine, wait=False))
        else:
            stack.enter_context(locked(path, wait=False))
            for other in _locks_of_parts(path):
                stack.enter_context(locked(other, wait=False))
        yield


@contextmanager
def opening(path: Path, part: Part | None) -> Iterator[None]:
    """Keep others from the attributes of a store that only a part is to be made of.

    Whoever wants all of it takes this lock first, and then looks for parts: of the two, one sees
    the other. Raises TiaftError where another process has all of it.
    """
    with ExitStack() as stack:
        if part is not None and part.chunks is not None:
            stack.enter_context(locked(path, wait=_PATIENCE))
        yield


def _locks_of_parts(path: Path) -> list[Path]:
    """Return what is locked of a store's parts, and what killed workers have left of locks."""
    found = path.parent.glob(f".{glob.escape(path.name + _PART)}*.lock")
    return [path.with_name(file.name.removeprefix(".").removesuffix(".lock")) for file in found]

"""Progress bars: all of them look alike and go to stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

_hidden = False


def progress(
    total: int | None, what: str, unit: str = "tile", *, wanted: bool | None = True
) -> tqdm:
    """Return a bar for `total` things; ``with`` closes it, ``bar.update(n)`` moves it on.

    `wanted` False gives one that shows nothing, None one that shows on terminals only.
    """
    # A log file keeps each state of the bar: a cluster's need not hold two a second.
    pause = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(
        desc=what,
        total=total,
        unit=f" {unit}s",
        disable=_hidden or (None if wanted is None else not wanted),
        mininterval=pause,
        maxinterval=max(pause, 10.0),  # after which tqdm redraws a slow bar
    )


@contextmanager
def hide_progress() -> Iterator[None]:
    """Show no bar while the block runs: of several processes at one work, the first has it."""
    global _hidden
    before, _hidden = _hidden, True
    try:
        yield
    finally:
        _hidden = before

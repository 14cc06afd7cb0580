"""Many small pieces of work: on several cores or a cluster, kept as they come, resumable."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_plugin.errors import Stopped, TiaftError, reason
from tiaft_plugin.files import write_atomically
from tiaft_plugin.progress import progress

Piece = tuple[Any, ...]  # what names a piece, and all that decides its result
_ALONE = threading.Lock()


def run_pieces(
    compute: Callable[[Any, Piece], np.ndarray],
    context: Any,
    pieces: Iterable[Piece],
    *,
    kept: Path | None,
    workers: int = 1,
    cluster: str | None = None,
    what: str = "probe",
    wanted: bool | None = True,
) -> dict[Piece, np.ndarray]:
    """Return ``compute(context, piece)`` for each piece, in the order of `pieces`.

    What an earlier run left in the folder `kept` is not computed again; each result is written
    there when it comes. `workers` processes compute, or the Dask cluster at the address `cluster`.
    Every piece is computed with one thread, so that no number of workers changes a bit of it.
    """
    pieces = list(pieces)
    found = {piece: array for piece in pieces if (array := _load(kept, piece)) is not None}
    missing = [piece for piece in pieces if piece not in found]
    with progress(len(pieces), what, "round", wanted=wanted) as bar:
        bar.update(len(found))
        bar.initial = len(found)  # so that the rate, and the time left, are those of this run
        for piece, array in _computed(compute, context, missing, workers, cluster):
            if kept is not None:
                _keep(kept, piece, array)
            found[piece] = array
            bar.update(1)
    return {piece: found[piece] for piece in pieces}


def _computed(
    compute: Callable, context: Any, pieces: list[Piece], workers: int, cluster: str | None
) -> Iterator[tuple[Piece, np.ndarray]]:
    if not pieces:
        return
    from joblib import Parallel, delayed

    with _backend(cluster, context):
        parent = os.getpid() if cluster is None else None
        jobs = (delayed(_one)(compute, context, piece, parent) for piece in pieces)
        count = workers if cluster is None else -1
        try:
            yield from Parallel(n_jobs=count, return_as="generator_unordered")(jobs)
        except BrokenProcessPool as error:
            raise Stopped(
                "a worker was ended from outside, most often for lack of memory: pass fewer "
                "--workers; the same command goes on where this one stopped"
            ) from error


def _one(
    compute: Callable, context: Any, piece: Piece, parent: int | None = None
) -> tuple[Piece, np.ndarray]:
    """Compute a piece with one thread: sums over several threads differ in their last bits.

    A Dask worker may have several threads: there one computes at a time, for liblinear draws from
    one random state for all threads. `parent` is the process without which nobody waits for the
    result.
    """
    from threadpoolctl import threadpool_limits

    if parent is not None and os.getppid() == parent:
        _end_with(parent)
    with _ALONE, threadpool_limits(1):
        return piece, compute(context, piece)


@cache
def _end_with(parent: int) -> None:
    """End this process when its parent is gone: joblib's would wait for minutes for more work."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _backend(cluster: str | None, context: Any) -> Iterator[None]:
    """Let joblib work here, or on the Dask cluster at an address, whose workers get `context`."""
    if cluster is None:
        yield
        return
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise TiaftError(
            "--cluster needs dask.distributed: pip install 'tiaft_plugin[cluster]'"
        ) from error
    from joblib import parallel_config

    try:
        client = Client(cluster, timeout="10s")
    except (OSError, TimeoutError, ValueError) as error:
        raise TiaftError(f"no Dask scheduler answers at {cluster}: {reason(error)}") from error
    # Without scatter all features would travel with each of thousands of pieces.
    with client, parallel_config(backend="dask", scatter=[context]):
        yield


def _name(piece: Piece) -> str:
    """Return a file name for a piece: its parts are short and plain."""
    return "-".join(str(part) for part in piece) + ".npy"


def _load(kept: Path | None, piece: Piece) -> np.ndarray | None:
    if kept is None or not (path := kept / _name(piece)).is_file():
        return None
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError):  # damaged: it is computed again
        return None


def _keep(kept: Path, piece: Piece, array: np.ndarray) -> None:
    try:
        with write_atomically(kept / _name(piece)) as part, part.open("wb") as file:
            np.save(file, array, allow_pickle=False)
    except OSError as error:
        raise Stopped(
            f"{kept}: {error.strerror or error}: nothing that was computed is lost; run the same "
            "command again when this is put right"
        ) from error

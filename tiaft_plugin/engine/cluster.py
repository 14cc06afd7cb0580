"""Workers for a cohort: processes of this computer, or those of a dask scheduler anywhere."""

import logging
import multiprocessing
import os
import signal
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tiaft_plugin.errors import Stopped, TiaftError, first_line

_DEATHS = 1  # of workers at one slide that are nobody's fault; at the next one it is a suspect
_DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"  # Ctrl-C is the run's alone
_PATIENCE = 10  # seconds to find a scheduler


@contextmanager
def local_cluster(workers: int) -> Iterator[Any]:
    """Give a dask client of `workers` processes on this computer; they end with the block.

    They take one slide at a time. Only this user's processes can talk to them: what a dask worker
    is sent, it runs. A script that calls this needs ``if __name__ == "__main__":`` around it.
    Raises TiaftError without dask.distributed.
    """
    distributed = _distributed()
    import dask

    before = dask.config.get("distributed.nanny.pre-spawn-environ")
    settings = {
        "distributed.worker.multiprocessing-method": _start_method(),
        "distributed.scheduler.allowed-failures": _DEATHS,
        "distributed.worker.daemon": False,  # a daemon may not have processes that read tiles
        "distributed.nanny.pre-spawn-environ": {**before, "DASK_LOGGING__DISTRIBUTED": "critical"},
    }
    with _quiet(), dask.config.set(settings), TemporaryDirectory(prefix="tiaft-") as scratch:
        _preload()
        cluster = distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=0,  # dask would pause workers for memory that torch holds
            dashboard_address=None,
            security=True,
            local_directory=scratch,
            preload=_DEAF,
        )
        with cluster, distributed.Client(cluster) as client:
            try:
                yield client
            finally:
                _kill(cluster)


@contextmanager
def remote_cluster(address: str) -> Iterator[Any]:
    """Give a dask client of a scheduler. Raises TiaftError where there is none, or unfit workers.

    `address` is ``tcp://HOST:PORT`` or a file that ``dask scheduler --scheduler-file`` wrote.
    Certificates are dask's own settings. What runs there when the block ends, ends by itself.
    """
    distributed = _distributed()
    where = {"address": address} if "://" in address else {"scheduler_file": address}
    if "scheduler_file" in where and not Path(address).is_file():  # dask would wait for it
        raise TiaftError(f"{address} is no address (tcp://HOST:PORT) and no scheduler file")
    try:
        client = distributed.Client(**where, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise TiaftError(f"no dask scheduler at {address}: {first_line(error)}") from error
    with client:
        for worker, about in client.scheduler_info(n_workers=-1)["workers"].items():
            if about["nthreads"] > 1:
                raise TiaftError(
                    f"worker {worker} takes {about['nthreads']} slides at once: start it with "
                    "--nthreads 1 (how many threads work on a slide, --threads says)"
                )
        yield client


def run_tasks(
    client: Any,
    function: Callable[..., Any],
    tasks: Sequence[tuple],
    *,
    say: Callable[[str], None],
) -> Iterator[tuple[int, Any]]:
    """Run ``function(*task)`` for each task on the workers; give (number, what it returned).

    Tasks that are added to `tasks` meanwhile are run before those that wait. A task whose worker
    dies is run again on another. One whose workers died again is a suspect, and may be innocent:
    dask blames all that a worker had before it. Suspects are run at the end, one by one; the
    result of one that ends its workers even then is the error. Raises Stopped where the scheduler
    is gone.
    """
    given = _Given(client, function, tasks)
    suspects: list[int] = []
    alone: list[int] = []
    with _deaths_said(client, say):
        while True:
            for number, result in given.ends(alone):
                if _is_killed(result) and number not in alone:
                    suspects.append(number)
                else:
                    yield number, result
            if not suspects:
                return
            alone = [suspects.pop(0)]


class _Given:
    """Tasks given to workers, of a list that may grow meanwhile."""

    def __init__(self, client: Any, function: Callable[..., Any], tasks: Sequence[tuple]):
        self.client, self.function, self.tasks = client, function, tasks
        self.first, self.count = len(tasks), 0

    def ends(self, again: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Give tasks of numbers `again`, and new ones, to workers; give (number, result) of each.

        What a worker dies of is the result, as is any other error.
        """
        from distributed import as_completed

        futures: dict[Any, int] = {}
        ended = as_completed(loop=self.client.loop)

        def give(numbers: Sequence[int]) -> None:
            for number in numbers:
                future = self._submit(number)
                futures[future] = number
                ended.add(future)

        try:
            give(again)
            give(self._new())
            for future in ended:
                result = _result_of(future)
                number = futures.pop(future)
                # Else it would be run again where the worker that holds the result dies later.
                future.release()
                yield number, result
                give(self._new())
        finally:
            self.client.cancel(list(futures))

    def _new(self) -> range:
        numbers = range(self.count, len(self.tasks))
        self.count = len(self.tasks)
        return numbers

    def _submit(self, number: int) -> Any:
        # What was added goes on with what was begun: the last one is the first.
        priority = number if number >= self.first else -number
        task = self.tasks[number]
        return self.client.submit(self.function, *task, pure=False, priority=priority)


def _result_of(future: Any) -> Any:
    """Return what a task gave back, or the error it ended with. Raises Stopped."""
    try:
        # Of a worker that died with a result, this waits until another has it again.
        result = future.result()
    except Exception as error:
        result = error
    except CancelledError:
        result = None
    if future.status == "cancelled":
        raise Stopped(
            "the scheduler is gone, and with it what was not begun: run the same command "
            "again, it goes on where it stopped"
        )
    return result


@contextmanager
def _deaths_said(client: Any, say: Callable[[str], None]) -> Iterator[None]:
    """Say which workers die while the block runs: all goes on, but slower, and has a cause."""

    def heard(event: tuple[float, Any]) -> None:
        what = event[1]
        if not isinstance(what, dict) or what.get("action") != "remove-worker":
            return
        if not what.get("expected") and what.get("processing-tasks"):
            say(f"worker {what['worker']} died: another one goes on with its slide")

    client.subscribe_topic("all", heard)
    try:
        yield
    finally:
        client.unsubscribe_topic("all")


def _start_method() -> str:
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def _preload() -> None:
    """Let workers be forked from a process that has imported all they need.

    It takes one processor many seconds, and would for each worker, and again when one has died.
    """
    from distributed.utils import get_mp_context

    context = get_mp_context()  # which sets dask's own list, once
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["distributed", "tiaft_plugin.engine.run"])


def _kill(cluster: Any) -> None:
    """End workers at once: asked nicely, they would go on with their slides."""
    for nanny in cluster.workers.values():
        nanny.auto_restart = False
        with suppress(ProcessLookupError):
            if nanny.pid:
                os.kill(nanny.pid, getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has one


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep dask's log to itself while the block runs: what matters of it, `run_tasks` says.

    So does the process that tidies up after killed ones, and would call that a leak.
    """
    log = logging.getLogger("distributed")
    level, warn = log.level, os.environ.get("PYTHONWARNINGS")
    log.setLevel(logging.CRITICAL)
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    try:
        resource_tracker.ensure_running()
    finally:
        os.environ.pop("PYTHONWARNINGS")
        if warn is not None:
            os.environ["PYTHONWARNINGS"] = warn
    try:
        yield
    finally:
        log.setLevel(level)


def _is_killed(result: Any) -> bool:
    from distributed.scheduler import KilledWorker

    return isinstance(result, KilledWorker)


def _distributed() -> Any:
    try:
        import cryptography  # noqa: F401  # for workers that only this user can talk to
        import distributed
    except ImportError as error:
        raise TiaftError(
            'cohorts need dask.distributed: pip install "tiaft_plugin[cluster]"'
        ) from error
    return distributed

"""What a worker does of a cohort: one slide after the other, with an engine that it keeps."""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from tiaft_plugin import __version__
from tiaft_plugin.engine.jobs import SlideJob, SlideResult
from tiaft_plugin.errors import Stopped, TiaftError, reason
from tiaft_plugin.progress import hide_progress

BUSY = "another run is working on it"  # as `files.locked` says it
_PAUSES = (1.0, 2.0, 5.0, 10.0)  # seconds: readers of a killed worker keep its lock so much longer
_one_at_a_time = Lock()  # whatever number of threads a worker was started with
_engines: dict[str, Any] = {}  # the last plan's


@dataclass(frozen=True)
class Plan:
    """What is to be made of a cohort's slides.

    `kind` is ``features`` or ``predictions``, `model` a name or a model file, `engine` holds
    further arguments of `run.make_engine`, `sinks` names as in ``tiaft predict --to``; `threads`
    is how many threads of each worker compute (None: as its environment says). A slide that lacks
    more tiles than `split` is made in parts, by any number of workers (None: never). `prepare`, a
    function of a module, is called in each worker first.
    """

    kind: str
    model: str
    engine: dict[str, Any] = field(default_factory=dict)
    sinks: tuple[str, ...] = ()
    threads: int | None = None
    split: int | None = None
    overwrite: bool = False
    prepare: Callable[[], object] = field(default=dict, repr=False)
    model_sha256: str = ""  # this and the next are the run's to fill in
    version: str = ""


@dataclass(frozen=True)
class TaskEnd:
    """What a task gives back: results, or why the whole run must stop."""

    results: list[SlideResult]
    stop: TiaftError | None = None


def work_on(plan: Plan, jobs: Sequence[SlideJob], out: Path) -> TaskEnd:
    """Work on slides, in a worker. What is wrong with one becomes its reason, and never raises."""
    plan.prepare()
    with _one_at_a_time, hide_progress():
        try:
            _refuse_other_version(plan)
            engine = _engine(plan)
        except TiaftError as error:
            return TaskEnd([], error)
        try:
            return TaskEnd(_work(engine, plan, jobs, out))
        except Stopped as error:
            return TaskEnd([], error)
        except Exception as error:
            return TaskEnd([SlideResult(job.slide, "failed", reason=reason(error)) for job in jobs])


def _work(engine: Any, plan: Plan, jobs: Sequence[SlideJob], out: Path) -> list[SlideResult]:
    from tiaft_plugin.engine.run import run_slides
    from tiaft_plugin.engine.sinks import named_sinks

    # A place for all slides is not for several processes at once: the run itself writes there.
    sinks = [outlet for outlet in named_sinks(plan.sinks) if outlet.target is None]
    for pause in (*_PAUSES, None):
        results = list(run_slides(engine, jobs, out, sinks=sinks, overwrite=plan.overwrite))
        busy = any(BUSY in result.reason for result in results)
        if pause is None or not busy:
            break
        time.sleep(pause)
    return results


def _engine(plan: Plan) -> Any:
    """Return the plan's engine, made once; the model is loaded and ready. Raises TiaftError."""
    import torch

    from tiaft_plugin.engine.run import make_engine

    key = repr(plan)  # of one run, one plan
    if key not in _engines:
        _engines.clear()
        if plan.threads is not None:
            torch.set_num_threads(plan.threads)
        settings = {**plan.engine, "device": _device(plan.engine.get("device", "auto"))}
        engine = make_engine(plan.kind, plan.model, **settings)
        engine.verbose, engine.split = False, plan.split
        sha256 = engine.model_facts["sha256"]
        if plan.model_sha256 and sha256 != plan.model_sha256:
            raise TiaftError(
                f"a worker has another {plan.model} (SHA-256 {sha256[:8]}…, not "
                f"{plan.model_sha256[:8]}…): give all workers the same"
            )
        _engines[key] = engine
    return _engines[key]


def _device(asked: str) -> str:
    """Return the device of this worker: of several GPUs of a computer, each has its own."""
    import torch
    from distributed import get_worker

    count = torch.cuda.device_count()
    name = get_worker().name  # a number where `local_cluster` started it
    if asked == "auto" and count > 1 and isinstance(name, int):
        return f"cuda:{name % count}"
    return asked


def _refuse_other_version(plan: Plan) -> None:
    if plan.version != __version__:
        raise TiaftError(
            f"a worker ({platform.node()}) has tiaft_plugin {__version__}, not {plan.version}: "
            "install the same on all"
        )

"""Many slides on many workers: a table in; out, a store a slide and a table of what became of each.

Each slide is a task, or several where it is large. What makes a run resumable is the store: a
worker killed in the middle of a slide leaves one that the next worker goes on with.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tiaft_plugin import __version__
from tiaft_plugin.engine.cluster import run_tasks
from tiaft_plugin.engine.cohort_table import (
    CohortLine,
    line_of,
    read_lines,
    standing_result,
    write_lines,
)
from tiaft_plugin.engine.cohort_tasks import CohortTasks
from tiaft_plugin.engine.cohort_worker import Plan, work_on
from tiaft_plugin.engine.jobs import SlideJob, SlideResult
from tiaft_plugin.engine.sinks import Outlet, named_sinks, write_sinks
from tiaft_plugin.errors import Stopped, TiaftError, reason
from tiaft_plugin.files import locked, sha256_of
from tiaft_plugin.progress import progress

TABLE = "cohort.csv"
_CIRCUMSTANCES = ("batch_size", "workers", "device")  # they change nothing of what a store holds
Say = Callable[[str], None]
Workers = Callable[[], AbstractContextManager[Any]]


@dataclass
class Cohort:
    """Slides, what is to be made of them (`plan`), and the folder that it goes to."""

    plan: Plan
    jobs: Sequence[SlideJob]
    out: Path
    outlets: list[Outlet] = field(init=False)
    lines: dict[Path, CohortLine] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.plan = _sealed(self.plan)
        self.outlets = named_sinks(self.plan.sinks)

    @property
    def table(self) -> Path:
        """Where it is written what became of each slide."""
        return self.out / TABLE

    def run(self, workers: Workers, *, say: Say = print) -> Iterator[SlideResult]:
        """Work through the slides, those that are left; give each result as it comes.

        Writes stores, the files of sinks, and ``cohort.csv`` anew after each slide. What an
        earlier run completed "exists" at once where slide, mask, model and settings are the same.
        `workers` gives a dask client, such as ``lambda: local_cluster(2)``, and is called if any
        slide is left; `say` takes lines for people. Raises TiaftError where another run has this
        folder, Stopped where nothing can go on.
        """
        with locked(self.table, wait=False):
            standing = [self._noted(result) for result in self._begin()]
            write_lines(self.table, self.lines.values())
            yield from standing
            there = {result.slide for result in standing}
            left = [job for job in self.jobs if job.slide not in there]
            if left:
                with progress(len(left), "Cohort", "slide") as bar:
                    for result in self._work(left, workers, say):
                        done = self._noted(result)
                        write_lines(self.table, self.lines.values())
                        bar.update()
                        yield done

    def _begin(self) -> list[SlideResult]:
        """Make a line for each slide; return the results that earlier runs left."""
        earlier = read_lines(self.table)
        standing = []
        for job in self.jobs:
            made_from = _made_from(self.plan, job)
            line = earlier.get(str(job.slide))
            if line and line.made_from == made_from and not self.plan.overwrite:
                result = standing_result(line, self.out)
                if result and all(file.exists() for file in self._files_of(result)):
                    standing.append(result)
            self.lines[job.slide] = CohortLine(
                str(job.slide), job.patient or "", made_from=made_from
            )
        return standing

    def _files_of(self, result: SlideResult) -> list[Path]:
        """Return the files that sinks write beside a slide's store."""
        own = [outlet for outlet in self.outlets if outlet.target is None]
        return [outlet.path(result.store) for outlet in own if result.store]

    def _work(self, left: list[SlideJob], workers: Workers, say: Say) -> Iterator[SlideResult]:
        groups = _groups(self.jobs, {job.slide for job in left})
        wanted = {job.slide for job in left}
        tasks = CohortTasks(self.plan, groups, self.out.absolute())
        with workers() as client:
            say(f"scheduler at {client.scheduler.address}")
            if not client.scheduler_info(n_workers=-1)["workers"]:
                say("no worker is there yet: waiting for the first")
            for number, end in run_tasks(client, work_on, tasks.given, say=say):
                if isinstance(end, Exception):
                    end = _failed(tasks.jobs(number), end)
                elif end.stop is not None:
                    raise end.stop
                else:
                    end = end.results
                through = tasks.ended(number, end)
                yield from (result for result in through if result.slide in wanted)

    def _noted(self, result: SlideResult) -> SlideResult:
        """Write what one place takes of all slides; note the result in the slide's line."""
        if result.store is not None:
            result = replace(result, store=self.out / result.store.name)
        targets = [outlet for outlet in self.outlets if outlet.target is not None]
        result = write_sinks(result, targets, set(), overwrite=self.plan.overwrite)
        line = self.lines[result.slide]
        self.lines[result.slide] = line_of(result, line.patient, line.made_from)
        return result


def _groups(jobs: Sequence[SlideJob], left: set[Path]) -> list[list[SlideJob]]:
    """Return the jobs of each task, the largest slides first: the last to end is a small one.

    Slides of one name share a task, since their stores' names depend on each other.
    """
    by_name: dict[str, list[SlideJob]] = {}
    for job in jobs:
        by_name.setdefault(job.slide.stem, []).append(job)
    groups = [group for group in by_name.values() if any(job.slide in left for job in group)]
    return sorted(groups, key=lambda group: -sum(_size(job.slide) for job in group))


def _failed(group: Sequence[SlideJob], error: Exception) -> list[SlideResult]:
    """Return the results of a task whose workers died. Raises Stopped for any other error."""
    if type(error).__name__ != "KilledWorker":
        raise Stopped(
            f"a worker cannot work on {group[0].slide} ({reason(error)}): does it have "
            f"tiaft_plugin {__version__}?"
        ) from error
    text = (
        "every worker that worked on it died: they need more memory, or a library fails on this "
        "file"
    )
    return [SlideResult(job.slide, "failed", reason=text) for job in group]


def _sealed(plan: Plan) -> Plan:
    """Return a plan that says which model and version it is for, so that workers can tell."""
    from tiaft_plugin.zoo.names import find

    file: Path | None = Path(plan.model)
    if not plan.model.endswith(".safetensors"):
        named = find(plan.model)
        file = named.file if named else None
    elif not Path(plan.model).is_file():
        raise TiaftError(f"{plan.model}: no such model file")
    else:
        plan = replace(plan, model=str(Path(plan.model).absolute()))
    sha256 = sha256_of(file) if file and file.is_file() else ""
    return replace(plan, model_sha256=sha256, version=__version__)


def _made_from(plan: Plan, job: SlideJob) -> str:
    """Return a hash of what decides a slide's result, as far as it shows without opening it."""
    mask = getattr(job.mask, "path", job.mask)
    settings = {key: value for key, value in plan.engine.items() if key not in _CIRCUMSTANCES}
    facts = {
        "kind": plan.kind,
        "model": plan.model_sha256 or plan.model,
        "engine": {key: getattr(value, "facts", value) for key, value in settings.items()},
        "sinks": sorted(plan.sinks),
        "slide": _state(job.slide),
        "mask": [repr(job.mask), _state(mask) if isinstance(mask, Path) else None],
        "mpp": job.mpp,
        "patient": job.patient,
    }
    text = json.dumps(facts, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _state(path: Path) -> list[tuple[str, int, int]]:
    """Return names, sizes and times of a file, or of all files of a folder; none if not there."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    try:
        stats = [(file.name, file.stat()) for file in files]
    except OSError:
        return []
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _size(path: Path) -> int:
    return sum(size for _, size, _ in _state(path))

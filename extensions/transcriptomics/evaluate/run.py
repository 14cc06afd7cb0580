"""Evaluate models by a table of tasks: one probe a task and model, kept, gone on with."""

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from tiaft_extensions.transcriptomics.evaluate.features import FeatureCache, plain
from tiaft_extensions.transcriptomics.evaluate.finished import read_learnt
from tiaft_extensions.transcriptomics.evaluate.measures import (
    Mean,
    Measured,
    difference,
    mean_difference,
    measured,
)
from tiaft_extensions.transcriptomics.evaluate.models import Candidate
from tiaft_extensions.transcriptomics.evaluate.rows import (
    read_rows,
    read_targets,
    targets_of,
    without,
)
from tiaft_extensions.transcriptomics.evaluate.tasks import Task
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.probes.interface import FeatureTable, Targets
from tiaft_plugin.probes.outputs import read_result
from tiaft_plugin.probes.run import find_probe, run_probe, versions
from tiaft_plugin.probes.settings import COLOUR
from tiaft_plugin.probes.statistics import Difference

FEATURES, PROBES = "features", "probes"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Protocol:
    """What all tasks share of the probes' protocol; `folds` and `repeats` are the tasks' own."""

    seed: int = 0
    draws: int = 2000
    permutations: int = 0
    unmatched: Any = "refuse"
    missing: Any = "refuse"


@dataclass(frozen=True)
class Cell:
    """A task by a model. `folder` is the probe's; `failed` says why there is nothing else.

    `delta` is what the model scores more than its base, None where it has none; `colour` what
    colour alone scores; `warnings` are the probe's, `notes` those on features and patients.
    """

    task: Task
    model: Candidate
    folder: Path | None = None
    score: Measured | None = None
    colour: Measured | None = None
    delta: Difference | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    failed: str = ""


@dataclass(frozen=True)
class Evaluation:
    """All cells, by task and model; the mean difference of each model that has a base.

    `left_out` is how many names, of patients and their slides, were to be left out.
    """

    tasks: Sequence[Task]
    models: Sequence[Candidate]
    protocol: Protocol
    cells: dict[tuple[str, str], Cell]
    means: dict[str, Mean]
    notes: Sequence[str]
    left_out: int = 0

    @property
    def failed(self) -> list[str]:
        """What failed, and why."""
        return [
            f"{cell.task.name} by {cell.model.name}: {cell.failed}"
            for cell in self.cells.values()
            if cell.failed
        ]


def evaluate(
    tasks: Sequence[Task],
    models: Sequence[Candidate],
    out: Path,
    protocol: Protocol,
    cache: FeatureCache,
    *,
    leave_out: Collection[str] = (),
    workers: int = 1,
    say: Say | None = None,
) -> Evaluation:
    """Probe every task by every model, what is in `out` already left as it is.

    All that can be refused is refused first. Killed at any moment, the same call goes on. What a
    probe was given is in its folder's name, so that other labels or features are probed anew. A
    task that fails by one model does not stop the others. Patients of `leave_out`, whom models have
    learnt from, are asked about in no task and by no model; of tasks without patients, slides of
    these names. Raises TiaftError.
    """
    say = say or (lambda line: None)
    targets = {task.name: _targets(task) for task in tasks}
    for task in tasks:
        for model in models:
            cache.check(task, model)
    cells: dict[tuple[str, str], Cell] = {}
    for task in tasks:
        for model in models:
            cell = _cell(task, model, targets[task.name], out, protocol, cache, leave_out, workers)
            cells[task.name, model.name] = cell
            value = cell.failed or f"{cell.score.value:.3f}"  # type: ignore[union-attr]
            say(f"{task.name} by {model.name}: {value}")
    with threadpool_limits(1):  # sums over several threads differ in their last bits
        cells = {key: _against_base(cell, cells) for key, cell in cells.items()}
        means = {model.name: _mean(model, tasks, cells, protocol) for model in models if model.base}
    known = {name: mean for name, mean in means.items() if mean is not None}
    notes = dict.fromkeys(note for cell in cells.values() for note in cell.notes)
    return Evaluation(tasks, models, protocol, cells, known, tuple(notes), len(leave_out))


def _targets(task: Task) -> Targets | None:
    try:
        return read_targets(task)
    except TiaftError as error:
        raise TiaftError(f"{task.where}: {error}") from error


def _cell(
    task: Task,
    model: Candidate,
    targets: Targets | None,
    out: Path,
    protocol: Protocol,
    cache: FeatureCache,
    leave_out: Collection[str],
    workers: int,
) -> Cell:
    """Probe a task by a model, or read what an earlier run found."""
    try:
        table = replace(read_rows(task, cache.of(task, model), model.name), unit=task.level)
        wanted = targets_of(task, table, targets)
        table, wanted = without(table, wanted, leave_out)
        name = f"{plain(model.name)}-{_sha256(task, table, wanted, protocol)[:8]}"
        folder = out / PROBES / plain(task.name) / name
        if (folder / "summary.json").is_file():  # a probe writes it last
            result = read_result(folder)
        else:
            result = run_probe(
                task.probe,
                [table],
                wanted,
                folder,
                folds=task.folds,
                repeats=task.repeats,
                workers=workers,
                leak_control=protocol.permutations > 0,
                **vars(protocol),
            )
        with threadpool_limits(1):
            score = measured(result, task.metric, model.name)
            has_colour = f"average/{COLOUR}/0/0" in result.predictions
            colour = measured(result, task.metric, COLOUR) if has_colour else None
    except TiaftError as error:
        return Cell(task, model, failed=str(error))
    warnings = tuple(result.summary["warnings"])
    notes = (*table.source.get("about", {}).get("warnings", ()), *_familiar(task, model, score))
    return Cell(task, model, folder, score, colour, warnings=warnings, notes=notes)


def _familiar(task: Task, model: Candidate, score: Measured) -> list[str]:
    """Return a sentence on patients that a model has learnt from, where there are such."""
    learnt = read_learnt(model.run) if model.run else frozenset()
    count = len(learnt & set(score.problem.groups.tolist()))
    if not count:
        return []
    return [
        f"{task.name}: {model.name} has learnt from {count} of the {score.problem.clusters} "
        f"patients: --leave-out {model.run} leaves them out"
    ]


def _sha256(task: Task, table: FeatureTable, targets: Targets, protocol: Protocol) -> str:
    """Return a hash of all that decides what a probe finds."""
    probe = find_probe(task.probe)
    about = [
        [probe.name, probe.plugin, dict(probe.thing.settings), versions(probe.plugin)],
        [task.level, task.folds, task.repeats, vars(protocol), list(targets.names)],
    ]
    found = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    arrays = (table.keys, table.values, table.groups, table.colour)
    for array in (*arrays, targets.keys, targets.values, targets.groups):
        if array is not None:
            found.update(str((array.dtype, array.shape)).encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _against_base(cell: Cell, cells: dict[tuple[str, str], Cell]) -> Cell:
    if not cell.model.base or cell.score is None:
        return cell
    base = cells[cell.task.name, cell.model.base].score
    if base is None:
        return cell
    try:
        return replace(cell, delta=difference(cell.score, base))
    except TiaftError as error:
        return replace(cell, failed=str(error))


def _mean(
    model: Candidate, tasks: Sequence[Task], cells: dict[tuple[str, str], Cell], protocol: Protocol
) -> Mean | None:
    pairs = []
    for task in tasks:
        own, base = cells[task.name, model.name], cells[task.name, model.base]
        if own.delta is not None and own.score is not None and base.score is not None:
            pairs.append((own.score, base.score))
    return mean_difference(pairs, protocol.draws, protocol.seed) if pairs else None

"""Evaluate models by a table of tasks: one probe a task and model, kept, gone on with."""

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from tiaft_extensions.transcriptomics.evaluate.features import FeatureCache, plain
from tiaft_extensions.transcriptomics.evaluate.finished import read_learnt
from tiaft_extensions.transcriptomics.evaluate.held_out import run_held_out, split_table
from tiaft_extensions.transcriptomics.evaluate.measures import (
    Mean,
    Measured,
    Pair,
    comparable,
    difference,
    gain_difference,
    mean_difference,
    measure_scores,
    measured,
)
from tiaft_extensions.transcriptomics.evaluate.models import Candidate
from tiaft_extensions.transcriptomics.evaluate.rows import (
    read_rows,
    read_split,
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

    `gains` are by (model, other): what the one gains over its base less what the other does, over
    the tasks that both have. `left_out` is how many names, of patients and their slides, were to
    be left out.
    """

    tasks: Sequence[Task]
    models: Sequence[Candidate]
    protocol: Protocol
    cells: dict[tuple[str, str], Cell]
    means: dict[str, Mean]
    gains: dict[tuple[str, str], Mean]
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
    targets = {task.name: _read(task, read_targets) for task in tasks}
    splits = {task.name: _read(task, read_split) if task.split else None for task in tasks}
    for task in tasks:
        for model in models:
            cache.check(task, model)
    cells: dict[tuple[str, str], Cell] = {}
    for task in tasks:
        for model in models:
            labels = targets[task.name], splits[task.name]
            cell = _cell(task, model, *labels, out, protocol, cache, leave_out, workers)
            cells[task.name, model.name] = cell
            value = cell.failed or f"{cell.score.value:.3f}"  # type: ignore[union-attr]
            say(f"{task.name} by {model.name}: {value}")
    with threadpool_limits(1):  # sums over several threads differ in their last bits
        cells = {key: _against_base(cell, cells) for key, cell in cells.items()}
        means = {model.name: _mean(model, tasks, cells, protocol) for model in models if model.base}
        gains = {
            (model.name, other.name): _gain(model, other, tasks, cells, protocol)
            for other, model in combinations([model for model in models if model.base], 2)
        }
    known = {name: mean for name, mean in means.items() if mean is not None}
    more = {names: mean for names, mean in gains.items() if mean is not None}
    notes = dict.fromkeys(note for cell in cells.values() for note in cell.notes)
    return Evaluation(tasks, models, protocol, cells, known, more, tuple(notes), len(leave_out))


def _read(task: Task, read: Callable[[Task], Targets | None]) -> Targets | None:
    try:
        return read(task)
    except TiaftError as error:
        raise TiaftError(f"{task.where}: {error}") from error


def _cell(
    task: Task,
    model: Candidate,
    targets: Targets | None,
    split: Targets | None,
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
        if split is not None:
            table, wanted = split_table(table, wanted, targets_of(task, table, split))
        name = f"{plain(model.name)}-{_sha256(task, table, wanted, protocol)[:8]}"
        folder = out / PROBES / plain(task.name) / name
        if split is not None:
            return _held_out(task, model, table, wanted, folder, protocol)
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


def _held_out(
    task: Task,
    model: Candidate,
    table: FeatureTable,
    targets: Targets,
    folder: Path,
    protocol: Protocol,
) -> Cell:
    """Measure a task on its own test rows. Raises TiaftError."""
    with threadpool_limits(1):
        found = run_held_out(task, table, targets, folder, protocol)
        score, colour = (
            measure_scores(found.problem, found.scores[name], task.metric, protocol.draws,
                           protocol.seed) if name in found.scores else None
            for name in (model.name, COLOUR)
        )  # fmt: skip
    assert score is not None
    notes = (*table.source.get("about", {}).get("warnings", ()), *_familiar(task, model, score))
    return Cell(task, model, None, score, colour, warnings=found.warnings, notes=notes)


def _familiar(task: Task, model: Candidate, score: Measured) -> list[str]:
    """Return a sentence on patients that a model has learnt from, where there are such."""
    run = model.run
    if run is None and model.on_expression:
        return [
            f"{model.name} was fine-tuned on expression of patients that its file does not name: "
            "--leave-out RUN, the folder of its `tune`, leaves them out"
        ]
    learnt = read_learnt(run) if run else frozenset()
    count = len(learnt & set(score.problem.groups.tolist()))
    if not count:
        return []
    return [
        f"{task.name}: {model.name} has learnt from {count} of the {score.problem.clusters} "
        f"patients: --leave-out {run} leaves them out"
    ]


def _sha256(task: Task, table: FeatureTable, targets: Targets, protocol: Protocol) -> str:
    """Return a hash of all that decides what a probe finds."""
    probe = find_probe(task.probe)
    about = [
        [probe.name, probe.plugin, dict(probe.thing.settings), versions(probe)],
        [task.level, task.folds, task.repeats, vars(protocol), list(targets.names)],
    ]
    found = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    arrays = (table.keys, table.values, table.groups, table.colour, *_parts(task, table))
    for array in (*arrays, targets.keys, targets.values, targets.groups):
        if array is not None:
            found.update(str((array.dtype, array.shape)).encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _parts(task: Task, table: FeatureTable) -> tuple[np.ndarray | None, ...]:
    return (table.labels,) if task.split else ()


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
    pairs = [pair for task in tasks if (pair := _pair(model, task, cells)) is not None]
    return mean_difference(pairs, protocol.draws, protocol.seed) if pairs else None


def _gain(
    model: Candidate,
    other: Candidate,
    tasks: Sequence[Task],
    cells: dict[tuple[str, str], Cell],
    protocol: Protocol,
) -> Mean | None:
    pairs = []
    for task in tasks:
        own, its = _pair(model, task, cells), _pair(other, task, cells)
        if own is not None and its is not None and comparable(own[0], its[0]):
            pairs.append((own, its))
    return gain_difference(pairs, protocol.draws, protocol.seed) if pairs else None


def _pair(model: Candidate, task: Task, cells: dict[tuple[str, str], Cell]) -> Pair | None:
    """Return what a model and its base score in a task, where there is a difference."""
    own, base = cells[task.name, model.name], cells[task.name, model.base]
    if own.delta is None or own.score is None or base.score is None:
        return None
    return own.score, base.score

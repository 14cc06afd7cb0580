"""A data set's own split: learnt from its training rows, and measured on its test rows, once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_extensions.transcriptomics.evaluate.tasks import TEST, TRAIN, Task
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_atomically
from tiaft_plugin.probes.crossval import Problem, predict_repeat
from tiaft_plugin.probes.interface import Experiment, FeatureTable, Targets
from tiaft_plugin.probes.matching import match
from tiaft_plugin.probes.run import find_probe
from tiaft_plugin.probes.settings import COLOUR
from tiaft_plugin.tiles.words import some

FILE = "held_out.npz"
# Of what is noted of rows, that on folds, of which there are none; files may be called so, too.
_ON_FOLDS = ("both sides of a fold,", "folds are of very", "folds of groups never")


@dataclass(frozen=True)
class HeldOut:
    """What was predicted of test rows: `scores` (n, C) of each feature set, and of colour.

    `problem` is of the test rows alone, one fold; `warnings` are sentences.
    """

    problem: Problem
    scores: Mapping[str, np.ndarray]
    warnings: tuple[str, ...]


def split_table(
    table: FeatureTable, targets: Targets, split: Targets
) -> tuple[FeatureTable, Targets]:
    """Return the rows and targets that have a part of the split, which is the rows' label then.

    Raises TiaftError where a part has no row.
    """
    part = dict(zip(split.keys.tolist(), split.values.tolist(), strict=True))
    # What has no label either is for `match` to refuse, or to leave out.
    parts = np.array([part.get(key, TRAIN) for key in table.keys.tolist()], dtype=str)
    for wanted in (TRAIN, TEST):
        if not (parts == wanted).any():
            raise TiaftError(f"the split has no {wanted} row that has features")
    keep, stay = parts != "", np.array([bool(part.get(key)) for key in targets.keys.tolist()])
    arrays: dict[str, Any] = {
        name: None if (array := getattr(table, name)) is None else array[keep]
        for name in ("keys", "values", "groups", "colour")
    }
    its: dict[str, Any] = {name: getattr(targets, name)[stay] for name in ("keys", "values")}
    its["groups"] = None if targets.groups is None else targets.groups[stay]
    source, count = dict(targets.source), int((~keep).sum())
    if count:
        note = f"{count} row{'s have' if count > 1 else ' has'} no part of the split: left out"
        source["notes"] = [*source.get("notes", ()), note]
    return replace(table, labels=parts[keep], **arrays), replace(targets, source=source, **its)


def run_held_out(
    task: Task, table: FeatureTable, targets: Targets, folder: Path, protocol: Any
) -> HeldOut:
    """Fit a task's probe to the training rows, and keep what it says of the test rows.

    `table` and `targets` are those of `split_table`. What `folder` has already is read. Raises
    TiaftError.
    """
    if (folder / FILE).is_file():
        return _read(folder / FILE)
    experiment = match(
        [table], targets, unit=task.level, unmatched=protocol.unmatched, missing=protocol.missing
    )
    assert table.labels is not None
    part = dict(zip(table.keys.tolist(), table.labels.tolist(), strict=True))
    tested = np.array([part[key] == TEST for key in experiment.keys.tolist()])
    if tested.all() or not tested.any():
        raise TiaftError(f"no {TRAIN if tested.all() else TEST} row is left")
    codes = np.array([experiment.names.index(label) for label in experiment.values.tolist()])
    # What stands in no fold is never tested, and always among the rows that are learnt from.
    folds = np.where(tested, 0, -1).astype(np.int16)
    rows = np.arange(len(codes))
    whole = Problem("", "classes", rows, codes, experiment.groups, folds[None], experiment.names)
    sets = dict(experiment.features)
    if experiment.colour is not None:
        sets[COLOUR] = experiment.colour
    probe = find_probe(task.probe).thing
    scores = {
        name: predict_repeat(probe, values, whole, folds, protocol.seed)[tested]
        for name, values in sets.items()
    }
    arrays = {f"scores/{name}": values for name, values in scores.items()}
    with write_atomically(folder / FILE) as part_file, part_file.open("wb") as file:
        np.savez_compressed(
            file,
            allow_pickle=False,
            keys=experiment.keys[tested],
            groups=experiment.groups[tested],
            observed=codes[tested],
            names=np.array(experiment.names),
            warnings=np.array(_warnings(experiment, codes, tested, protocol), dtype=str),
            **arrays,
        )
    return _read(folder / FILE)


def _warnings(
    experiment: Experiment, codes: np.ndarray, tested: np.ndarray, protocol: Any
) -> list[str]:
    """Return what a reader should know of a split; notes on folds are of none here."""
    found = [note for note in experiment.notes if not any(text in note for text in _ON_FOLDS)]
    if not experiment.grouped:
        found.append(
            "no slide or patient is known of the rows: nothing says whether one stands in train "
            "and test, and the interval takes each row for a patient of its own"
        )
    shared = sorted(
        set(experiment.groups[tested].tolist()) & set(experiment.groups[~tested].tolist())
    )
    if shared:
        found.append(
            f"{len(shared)} patients stand in train and test, and results look better than they "
            f"are: {some(shared)}"
        )
    new = [experiment.names[code] for code in sorted({*codes[tested]} - {*codes[~tested]})]
    if new:
        found.append(f"classes of which no row is learnt from: {some(new)}")
    if protocol.permutations:
        found.append("labels are not permuted, and leaks not controlled for: it has its own split")
    return found


def _read(path: Path) -> HeldOut:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        groups, names = arrays["groups"], tuple(arrays["names"].tolist())
        rows, folds = np.arange(len(groups)), np.zeros((1, len(groups)), np.int16)
        problem = Problem("", "classes", rows, arrays["observed"], groups, folds, names)
        warnings = tuple(arrays["warnings"].tolist())
    except Exception as error:  # zip, numpy and a missing array, each their own
        raise TiaftError(f"{path} is damaged: remove it, and the same command makes it") from error
    scores = {
        name.removeprefix("scores/"): values
        for name, values in arrays.items()
        if name.startswith("scores/")
    }
    return HeldOut(problem, scores, warnings)

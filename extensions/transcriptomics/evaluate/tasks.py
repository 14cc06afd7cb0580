"""The table of an evaluation: a row a task, what is predicted from which tiles or slides."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.probes.tables import read_table
from tiaft_plugin.tiles.words import some

PEARSON = "mean Pearson"
METRICS = ("balanced accuracy", "accuracy", "macro F1", "AUROC", "AUPRC", PEARSON)
LEVELS = ("tile", "slide", "patient")
SOURCES = ("tiles", "slides", "features")
TRAIN, TEST = "train", "test"  # the parts of a split
MODEL = "{model}"  # in a path of features: the model's name
COLUMNS = (
    "task", *SOURCES, "labels", "column", "split", "genes", "metric", "level", "patients",
    "folds", "repeats", "note",
)  # fmt: skip
FOLDS, REPEATS = 5, 10


@dataclass(frozen=True)
class Task:
    """One row: `path` is of tiles, of a table of slides, or of features, by `source`.

    `column` of `labels` holds the classes; of `mean Pearson`, every column is a gene, or those that
    `genes` lists. A row of the probe is what `level` says; folds keep patients together. `split`
    is the column of `labels` that has a part for each row, in place of folds, "" where none has.
    `where` is what messages begin with.
    """

    where: str
    name: str
    source: str
    path: Path
    metric: str
    level: str
    labels: Path | None = None
    column: str = "label"
    split: str = ""
    genes: Path | None = None
    patients: Path | None = None
    folds: int = FOLDS
    repeats: int = REPEATS

    @property
    def probe(self) -> str:
        """The probe that answers: paper 1's, linear for classes, of expression for genes."""
        return "expression" if self.metric == PEARSON else "tissue"


def read_tasks(path: Path, *, folds: int = FOLDS, repeats: int = REPEATS) -> list[Task]:
    """Read the table of tasks; paths are relative to it.

    `folds` and `repeats` are those of rows without. Raises TiaftError, with row and task, for what
    is unknown, missing, or does not go together.
    """
    table = read_table(path, lambda columns: columns)
    unknown = [name for name in table.texts if name not in COLUMNS]
    if unknown:
        raise TiaftError(
            f"{path}: no column of a task is called {some(unknown)}: there is {', '.join(COLUMNS)}"
        )
    count = len(next(iter(table.texts.values())))
    tasks = [
        _task(path, row + 2, {name: str(cells[row]) for name, cells in table.texts.items()},
              folds, repeats) for row in range(count)
    ]  # fmt: skip
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TiaftError(f"{path}: two tasks are called {some(twice)}: name them apart")
    return tasks


def _task(table: Path, row: int, cells: dict[str, str], folds: int, repeats: int) -> Task:
    name = cells.get("task", "")
    if not name:
        raise TiaftError(f"{table}, row {row}: the task has no name (column task)")
    where = f"{table}, row {row}, task {name}"
    given = [source for source in SOURCES if cells.get(source)]
    if len(given) != 1:
        raise TiaftError(
            f"{where}: one of the columns {', '.join(SOURCES)} names what there is to look at, "
            f"here {' and '.join(given) or 'none'} does"
        )
    paths = {
        name: table.absolute().parent / cells[name] if cells.get(name) else None
        for name in (given[0], "labels", "genes", "patients")
    }
    for column, file in paths.items():
        if file is not None and MODEL not in str(file) and not file.exists():
            raise TiaftError(f"{where}: {column} {file}: no such file or folder")
    path = paths[given[0]]
    assert path is not None
    task = Task(
        where,
        name,
        given[0],
        path,
        metric=_known(where, "metric", cells.get("metric", "") or METRICS[0], METRICS),
        level=_known(where, "level", cells.get("level", "") or LEVELS[0], LEVELS),
        labels=paths["labels"],
        column=cells.get("column", "") or "label",
        split=cells.get("split", ""),
        genes=paths["genes"],
        patients=paths["patients"],
        folds=_count(where, "folds", cells.get("folds", ""), folds, 2),
        repeats=_count(where, "repeats", cells.get("repeats", ""), repeats, 1),
    )
    folded = [name for name in ("folds", "repeats") if cells.get(name)]
    if task.split and folded:
        raise TiaftError(f"{where}: {folded[0]} of which split? Column split takes their place")
    _refuse_misfits(task, bool(cells.get("column")))
    return task


def _known(where: str, what: str, text: str, known: Sequence[str]) -> str:
    found = next((name for name in known if name.casefold() == text.casefold()), None)
    if found is None:
        raise TiaftError(f"{where}: no {what} is called {text!r}: there is {', '.join(known)}")
    return found


def _count(where: str, what: str, text: str, default: int, least: int) -> int:
    if not text:
        return default
    if not text.isdecimal() or int(text) < least:
        raise TiaftError(f"{where}: {what} is {text!r}: {least} or more, a whole number")
    return int(text)


def _refuse_misfits(task: Task, column: bool) -> None:
    """Raise TiaftError for what does not go together."""
    of_genes = task.metric == PEARSON
    wrong = ""
    if task.source == "features" and MODEL not in str(task.path):
        wrong = (
            f"features {task.path} are the same for all models: {MODEL} stands for a model's name"
        )
    elif task.source == "slides" and task.level == "tile":
        wrong = "tiles of slides have no labels: level slide or patient"
    elif task.labels is None and (of_genes or task.level != "tile"):
        wrong = f"{task.metric} by {task.level} needs labels, a table with a row a {task.level}"
    elif task.labels is None and column:
        wrong = f"column {task.column} is of which table? labels names none"
    elif task.split and task.labels is None:
        wrong = f"split {task.split} is a column of labels, and labels names no table"
    elif task.split and of_genes:
        wrong = f"split is for classes: {PEARSON} is measured by folds"
    elif of_genes and task.level != "patient":
        wrong = f"{PEARSON} is of genes, and a row a patient: level patient, not {task.level}"
    elif of_genes and column:
        wrong = f"{PEARSON} takes every column of labels, or those that genes lists, not column"
    elif task.genes and not of_genes:
        wrong = f"genes are for {PEARSON}, not for {task.metric}"
    if wrong:
        raise TiaftError(f"{task.where}: {wrong}")

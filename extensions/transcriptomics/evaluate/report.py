"""The table of an evaluation: for other programs, for the terminal, and as a page."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tiaft_extensions.transcriptomics.evaluate.figures import draw_deltas
from tiaft_extensions.transcriptomics.evaluate.measures import Measured
from tiaft_extensions.transcriptomics.evaluate.run import Cell, Evaluation
from tiaft_extensions.transcriptomics.evaluate.tasks import PEARSON, Task
from tiaft_plugin.files import write_atomically
from tiaft_plugin.page import page, shown, table

TABLE, MEANS, REPORT = "evaluation.csv", "means.csv", "report.html"
COLUMNS = (
    "task", "metric", "level", "rows", "patients", "model", "base", "value", "low", "high",
    "delta", "delta_low", "delta_high", "delta_p", "failed",
)  # fmt: skip
MEAN_COLUMNS = (
    "model", "base", "tasks", "delta", "low", "high", "p", "tasks_low", "tasks_high", "tasks_p",
)  # fmt: skip
HOW = (
    "A difference is a model's score less its base's, on the same rows and folds; its interval is "
    "of a bootstrap of patients, drawn for both at once, and widened as the probes do it, because "
    "predictions of cross-validation are not independent. The mean difference counts each task "
    "once. Its first interval is for these tasks and other patients: patients are drawn in every "
    "task, those that tasks share in all of them at once. Its second is for other tasks: Student's "
    "t over the tasks' differences."
)


def write_evaluation(out: Path, found: Evaluation) -> Path:
    """Write ``evaluation.csv``, ``means.csv`` and ``report.html``; return the last."""
    write_table(out / TABLE, COLUMNS, _rows(found))
    write_table(out / MEANS, MEAN_COLUMNS, _mean_rows(found))
    with write_atomically(out / REPORT) as part:
        part.write_text(_page(out, found), encoding="utf-8")
    return out / REPORT


def lines(found: Evaluation) -> list[str]:
    """Return the table as the terminal shows it."""
    return aligned([head(found), *body(found)])


def head(found: Evaluation) -> list[str]:
    """Return what stands above the columns."""
    own = [f"{m.name} − {m.base}" if m.base else m.name for m in found.models]
    return ["task", "", "rows", "patients", "colour", *own]


def body(found: Evaluation) -> list[list[str]]:
    """Return a row a task, and the means: the score of what has no base, else the difference."""
    rows = []
    for task in found.tasks:
        cells = [found.cells[task.name, model.name] for model in found.models]
        first = next((cell.score for cell in cells if cell.score is not None), None)
        colour = next((cell.colour for cell in cells if cell.colour is not None), None)
        rows.append([task.name, _what(task, first), *_sizes(first), _value(colour),
                     *map(_cell, cells)])  # fmt: skip
    for title, kind in (("mean, other patients", "patients"), ("mean, other tasks", "tasks")):
        means = [found.means.get(model.name) for model in found.models]
        own = ["" if mean is None else _signed(getattr(mean, kind)) for mean in means]
        if any(own):
            rows.append([title, "", "", "", "", *own])
    return rows


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines, with their columns one under the other."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def write_table(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as CSV, atomically: numbers in as few digits as tell them from all others."""
    with write_atomically(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_plain(row.get(name)) for name in columns] for row in rows)


def _rows(found: Evaluation) -> Iterable[dict[str, Any]]:
    for cell in found.cells.values():
        row: dict[str, Any] = {
            "task": cell.task.name, "metric": cell.task.metric, "level": cell.task.level,
            "model": cell.model.name, "base": cell.model.base, "failed": cell.failed,
        }  # fmt: skip
        if cell.score is not None:
            low, high = cell.score.interval
            rows, patients = _sizes(cell.score)
            row |= {"rows": rows, "patients": patients}
            row |= {"value": cell.score.value, "low": low, "high": high}
        if cell.delta is not None:
            names = ("delta", "delta_low", "delta_high", "delta_p")
            row |= dict(zip(names, cell.delta, strict=True))
        yield row


def _mean_rows(found: Evaluation) -> Iterable[dict[str, Any]]:
    for model in found.models:
        if (mean := found.means.get(model.name)) is not None:
            yield {
                "model": model.name, "base": model.base, "tasks": mean.number, "delta": mean.value,
                "low": mean.patients.low, "high": mean.patients.high, "p": mean.patients.p,
                "tasks_low": mean.tasks.low, "tasks_high": mean.tasks.high,
                "tasks_p": mean.tasks.p,
            }  # fmt: skip


def _page(out: Path, found: Evaluation) -> str:
    protocol = {**vars(found.protocol), "names of patients and slides to leave out": found.left_out}
    warnings = {
        f"{task.name}: {text}": None
        for task in found.tasks
        for text in found.cells[task.name, found.models[0].name].warnings
    }
    parts = [
        "<h1>Models by tasks</h1>",
        *(f'<p class="warning">{shown(text)}</p>' for text in (*found.failed, *found.notes)),
        f'<div class="scroll">{table(head(found), body(found))}</div>',
        f"<p>{shown(HOW)}</p>",
        draw_deltas(found),
        "<h2>The probes</h2>",
        "<p>Each task by each model, with what the probe itself says of it.</p>",
        _links(out, found),
        "<h2>Warnings</h2>",
        *(f"<p>{shown(text)}</p>" for text in warnings),
        "<h2>Settings</h2>",
        table(("setting", "value"), protocol.items()),
    ]
    return page("Models by tasks", parts)


def _links(out: Path, found: Evaluation) -> str:
    """Return a table of the probes' own pages."""
    rows = []
    for task in found.tasks:
        cells = []
        for model in found.models:
            cell = found.cells[task.name, model.name]
            text = _value(cell.score)
            if cell.folder is not None:
                place = (cell.folder / "report.html").relative_to(out).as_posix()
                text = f'<a href="{shown(place)}">{text} {_span(cell.score)}</a>'
            cells.append(f"<td>{text}</td>")
        about = f"{task.folds} folds, {task.repeats} repeats"
        rows.append(f"<tr><td>{shown(task.name)}</td><td>{about}</td>{''.join(cells)}</tr>")
    heads = "".join(f"<th>{shown(m.name)}</th>" for m in found.models)
    return (
        f'<div class="scroll"><table><tr><th>task</th><th></th>{heads}</tr>{"".join(rows)}'
        "</table></div>"
    )


def _what(task: Task, score: Measured | None) -> str:
    if score is None:
        return task.metric
    count = score.problem.targets.shape[1] if task.metric == PEARSON else len(score.problem.classes)
    return f"{task.metric}, {count} {'genes' if task.metric == PEARSON else 'classes'}"


def _sizes(score: Measured | None) -> tuple[str, str]:
    if score is None:
        return "", ""
    return str(len(score.problem.rows)), str(score.problem.clusters)


def _cell(cell: Cell) -> str:
    if cell.failed:
        return "failed"
    if cell.model.base:
        return "–" if cell.delta is None else _signed(cell.delta)
    return _value(cell.score)


def _value(score: Measured | None) -> str:
    return "–" if score is None else f"{score.value:.3f}"


def _span(score: Measured | None) -> str:
    return "" if score is None else "({:.3f} to {:.3f})".format(*score.interval)


def _signed(delta: Any) -> str:
    span = "no interval" if delta.low != delta.low else f"{delta.low:+.3f} to {delta.high:+.3f}"
    return f"{delta.value:+.3f} ({span})"


def _plain(value: Any) -> Any:
    if value is None or value != value:
        return ""
    return repr(float(value)) if isinstance(value, float) else value

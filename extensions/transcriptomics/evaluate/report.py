"""The table of an evaluation: for other programs, for the terminal, and as a page."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tiaft_extensions.transcriptomics.evaluate.figures import draw_deltas
from tiaft_extensions.transcriptomics.evaluate.measures import Mean, Measured
from tiaft_extensions.transcriptomics.evaluate.run import Cell, Evaluation
from tiaft_extensions.transcriptomics.evaluate.tasks import PEARSON, Task
from tiaft_plugin.files import write_atomically, write_csv
from tiaft_plugin.page import page, shown, table

TABLE, MEANS, GAINS = "evaluation.csv", "means.csv", "gains.csv"
SUMMARY, REPORT = "evaluation.json", "report.html"
COLUMNS = (
    "task", "metric", "level", "rows", "patients", "model", "base", "value", "low", "high",
    "delta", "delta_low", "delta_high", "delta_p", "failed",
)  # fmt: skip
MEAN_COLUMNS = (
    "model", "base", "tasks", "delta", "low", "high", "p", "tasks_low", "tasks_high", "tasks_p",
)  # fmt: skip
GAIN_COLUMNS = (
    "model", "base", "other", "other_base", "tasks", "difference", *MEAN_COLUMNS[4:],
)  # fmt: skip
KINDS = ("patients", "tasks")  # of whom a mean has an interval
GAIN_HEAD = ("difference of gains", "tasks", "mean, other patients", "mean, other tasks")
HOW = (
    "A difference is a model's score less its base's, on the same rows and folds; its interval is "
    "of a bootstrap of patients, drawn for both at once, and widened as the probes do it, because "
    "predictions of cross-validation are not independent. The mean difference counts each task "
    "once. Its first interval is for these tasks and other patients: patients are drawn in every "
    "task, those that tasks share in all of them at once. Its second is for other tasks: Student's "
    "t over the tasks' differences."
)
SPLIT = (
    "Tasks with a split of their own are learnt from its training rows, and measured on its test "
    "rows once: their intervals are for other test patients, not for other training rows."
)
MORE = (
    "Which of two models gained more: in each task, what the one scores more than its base, less "
    "what the other scores more than its own, and of these the mean over the tasks that both have. "
    "Intervals and p values (two-sided) are those of the mean difference, on the same rows, folds "
    "and drawn patients for all of them."
)


def write_evaluation(out: Path, found: Evaluation) -> Path:
    """Write the tables as CSV, all of them as ``evaluation.json``, and the page; return this."""
    write_table(out / TABLE, COLUMNS, _rows(found))
    write_table(out / MEANS, MEAN_COLUMNS, _mean_rows(found))
    write_table(out / GAINS, GAIN_COLUMNS, _gain_rows(found))
    with write_atomically(out / SUMMARY) as part:
        part.write_text(json.dumps(_summary(found), indent=1) + "\n", encoding="utf-8")
    with write_atomically(out / REPORT) as part:
        part.write_text(_page(out, found), encoding="utf-8")
    return out / REPORT


def lines(found: Evaluation) -> list[str]:
    """Return the tables as the terminal shows them."""
    gains = aligned([GAIN_HEAD, *gained(found)]) if found.gains else []
    return [*aligned([head(found), *body(found)]), *([""] if gains else []), *gains]


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
    for title, kind in zip(GAIN_HEAD[2:], KINDS, strict=True):
        means = [found.means.get(model.name) for model in found.models]
        own = ["" if mean is None else _mean_cell(mean, kind) for mean in means]
        if any(own):
            rows.append([title, "", "", "", "", *own])
    return rows


def gained(found: Evaluation) -> list[list[str]]:
    """Return a row for each two models that have a base: what the one gained more, and p."""
    rows = []
    for row, mean in zip(_gain_rows(found), found.gains.values(), strict=True):
        label = f"({row['model']} − {row['base']}) − ({row['other']} − {row['other_base']})"
        if row["base"] == row["other_base"]:
            label = f"{row['model']} − {row['other']}, both from {row['base']}"
        rows.append([label, str(mean.number), *(_mean_cell(mean, kind, p=True) for kind in KINDS)])
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
    write_csv(path, columns, ([_plain(row.get(name)) for name in columns] for row in rows))


def _rows(found: Evaluation) -> Iterable[dict[str, Any]]:
    for cell in found.cells.values():
        row: dict[str, Any] = {
            "task": cell.task.name, "metric": cell.task.metric, "level": cell.task.level,
            "model": cell.model.name, "base": cell.model.base, "failed": cell.failed,
        }  # fmt: skip
        if cell.score is not None:
            low, high = cell.score.interval
            rows, patients = map(int, _sizes(cell.score))
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
                **_intervals(mean),
            }  # fmt: skip


def _gain_rows(found: Evaluation) -> Iterable[dict[str, Any]]:
    base = {model.name: model.base for model in found.models}
    for (model, other), mean in found.gains.items():
        yield {
            "model": model, "base": base[model], "other": other, "other_base": base[other],
            "tasks": mean.number, "difference": mean.value, **_intervals(mean),
        }  # fmt: skip


def _intervals(mean: Mean) -> dict[str, float]:
    """Return both intervals and p values of a mean, in columns."""
    return dict(zip(MEAN_COLUMNS[4:], (*mean.patients[1:], *mean.tasks[1:]), strict=True))


def _summary(found: Evaluation) -> dict[str, Any]:
    """Return the three tables and what was said; a number that there is not is null."""
    tables = {"tasks": _rows(found), "means": _mean_rows(found), "gains": _gain_rows(found)}
    return {
        "schema": "tiaft-evaluation",
        "version": 1,
        "protocol": vars(found.protocol),
        "models": [{"name": m.name, "base": m.base} for m in found.models],
        "notes": [*found.failed, *found.notes],
        **{
            name: [{k: None if v != v else v for k, v in row.items()} for row in rows]
            for name, rows in tables.items()
        },
    }


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
        *([f"<p>{shown(SPLIT)}</p>"] if any(task.split for task in found.tasks) else []),
        draw_deltas(found),
        *_gains_of(found),
        "<h2>The probes</h2>",
        "<p>Each task by each model, with what the probe itself says of it.</p>",
        _links(out, found),
        "<h2>Warnings</h2>",
        *(f"<p>{shown(text)}</p>" for text in warnings),
        "<h2>Settings</h2>",
        table(("setting", "value"), protocol.items()),
    ]
    return page("Models by tasks", parts)


def _gains_of(found: Evaluation) -> list[str]:
    """Return the part of the page on which of the models gained more, where there are two."""
    if not found.gains:
        return []
    rows = table(GAIN_HEAD, gained(found))
    return ["<h2>Which gained more</h2>", f'<div class="scroll">{rows}</div>', f"<p>{MORE}</p>"]


def _links(out: Path, found: Evaluation) -> str:
    """Return a table of the probes' own pages."""
    rows = []
    for task in found.tasks:
        cells = []
        for model in found.models:
            cell = found.cells[task.name, model.name]
            text = f"{_value(cell.score)} {_span(cell.score)}"
            if cell.folder is not None:
                place = (cell.folder / "report.html").relative_to(out).as_posix()
                text = f'<a href="{shown(place)}">{text}</a>'
            cells.append(f"<td>{text}</td>")
        about = f"{task.folds} folds, {task.repeats} repeat{'s' * (task.repeats > 1)}"
        if task.split:
            about = "train and test"
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


def _mean_cell(mean: Mean, kind: str, *, p: bool = False) -> str:
    """Return a mean with one of its intervals, and its p value where that is asked for."""
    delta = getattr(mean, kind)
    if kind == "tasks" and mean.number == 1:
        return f"{delta.value:+.3f} (one task: no interval)"
    return _signed(delta) + (f", p {delta.p:.2g}" if p and delta.p == delta.p else "")


def _plain(value: Any) -> Any:
    if value is None or value != value:
        return ""
    return repr(float(value)) if isinstance(value, float) else value

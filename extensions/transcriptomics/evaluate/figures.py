"""The picture of an evaluation: what each model gains over its base, task by task."""

import math
from typing import TYPE_CHECKING, Any

from tiaft_plugin.page import COLOURS, drawing, svg, visible

if TYPE_CHECKING:
    from tiaft_extensions.transcriptomics.evaluate.run import Evaluation


def draw_deltas(found: "Evaluation") -> str:
    """Points with intervals, a line a task, the mean below; nothing where no model has a base."""
    from matplotlib.figure import Figure

    models = [model for model in found.models if model.name in found.means]
    if not models:
        return ""
    names = [task.name for task in found.tasks] + ["mean"]
    with drawing():
        height = 1.2 + (0.2 + 0.16 * len(models)) * len(names)
        figure = Figure(figsize=(8, height), layout="constrained")
        axes = figure.add_subplot()
        for number, model in enumerate(models):
            shift = 0.16 * (number - (len(models) - 1) / 2)
            colour = COLOURS[number % len(COLOURS)]
            label = f"{model.name} − {model.base}"
            for row, task in enumerate(found.tasks):
                _point(axes, found.cells[task.name, model.name].delta, row + shift, colour, "o")
            mean = found.means[model.name].patients
            _point(axes, mean, len(names) - 1 + shift, colour, "D", visible(label))
        axes.axvline(0, color="#333333", linewidth=0.8)
        axes.axhline(len(names) - 1.5, color="#cccccc", linewidth=0.8)
        axes.set_yticks(range(len(names)), [visible(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel("difference from the base, and its 95 % interval over patients")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return svg(figure, "Differences from the base by task")


def _point(axes: Any, delta: Any, y: float, colour: str, marker: str, label: str = "") -> None:
    if delta is None:
        return
    if math.isfinite(delta.low):
        axes.plot([delta.low, delta.high], [y, y], color=colour, linewidth=1.4)
    axes.plot([delta.value], [y], marker, color=colour, markersize=5, label=label or None)

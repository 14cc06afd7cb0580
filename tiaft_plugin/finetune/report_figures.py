"""The figures of a run's report, as SVG: the same for the same numbers."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from tiaft_plugin.finetune.evaluation import BINS, Evaluation
from tiaft_plugin.page import BLUE, COLOURS, ORANGE, drawing, svg

_LINES = (("train", BLUE, "training"), ("val", ORANGE, "validation"))
_KEPT, _GREY = COLOURS[2], "#777777"
# Fixed, since finding them costs matplotlib half the time of a report.
_MARGINS = {"left": 0.16, "right": 0.98, "bottom": 0.15, "top": 0.91}
_SIZE = (4.4, 3.3)  # inches: three side by side on a wide page, each readable on a narrow one


def draw_curves(rows: Sequence[Mapping[str, Any]], kept: Mapping[int, int]) -> list[str]:
    """Draw loss, accuracy and learning rate over the epochs of all stages.

    `rows` are those of ``metrics.csv``; `kept` is each stage's epoch that was kept (0: none).
    """
    epochs = sorted({(row["stage"], row["epoch"]) for row in rows})
    place = {key: number for number, key in enumerate(epochs, start=1)}
    begins = [place[b] - 0.5 for a, b in pairwise(epochs) if a[0] != b[0]]
    marks = [place[key] for key in kept.items() if key in place]
    drawn = []
    with drawing():
        for name, label in (("loss", "loss"), ("accuracy", "accuracy"), ("lr", "learning rate")):
            figure, axes = _figure()
            for split, colour, words in _LINES if name != "lr" else _LINES[:1]:
                chosen = [row for row in rows if row["split"] == split]
                x = [place[row["stage"], row["epoch"]] for row in chosen]
                values = [row[name] for row in chosen]
                if chosen:
                    steps = "steps-mid" if name == "lr" else "default"
                    axes.plot(x, values, ".-", color=colour, label=words, drawstyle=steps)
            for number, begin in enumerate(begins):
                label_once = None if number else "next stage"
                axes.axvline(begin, color=_GREY, linestyle=":", label=label_once)
            for number, mark in enumerate(marks):
                label_once = None if number else "epoch kept"
                axes.axvline(mark, color=_KEPT, linewidth=5, alpha=0.3, zorder=0, label=label_once)
            axes.set(xlabel="epoch", title=label)
            axes.xaxis.get_major_locator().set_params(integer=True)
            if name == "lr":
                _scale_rates(axes, sorted({row["lr"] for row in rows if row["split"] == "train"}))
            if name == "loss":
                axes.legend(frameon=False)
            drawn.append(svg(figure, f"{label} over the epochs"))
    return drawn


def draw_calibration(found: Evaluation) -> str:
    """Draw how often the model is right against how sure it is, and how often it is how sure."""
    from matplotlib.figure import Figure

    calibration = found.calibration
    middles = (np.arange(BINS) + 0.5) / BINS
    with drawing():
        figure = Figure(figsize=(4.6, 4.6))
        figure.subplots_adjust(**_MARGINS | {"bottom": 0.11, "top": 0.98, "right": 0.96})
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        top.plot([0, 1], [0, 1], "--", color=_GREY, label="as it should be")
        there = calibration.counts > 0
        top.plot(calibration.claimed[there], calibration.right[there], "o-", color=BLUE,
                 label="this model")  # fmt: skip
        top.set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.02))
        top.legend(frameon=False, loc="upper left")
        bottom.bar(middles, calibration.counts, width=0.9 / BINS, color=BLUE)
        what = "probability of a label" if found.multilabel else "probability that the model gives"
        bottom.set(xlabel=what, ylabel="labels" if found.multilabel else "tiles")
        for axes in (top, bottom):
            _plain(axes)
        return svg(figure, "share that is right against the probability that the model gives")


def _scale_rates(axes: Any, rates: Sequence[float]) -> None:
    """Name the learning rates that there were, where they are few."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    if rates and rates[0] > 0 and rates[-1] > 2 * rates[0]:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:.3g}"))
    if 0 < len(rates) <= 6:
        axes.set_yticks(rates)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE)
    figure.subplots_adjust(**_MARGINS)
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)

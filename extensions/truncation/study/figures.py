"""The figures of paper 3 (the seed's 3 to 8), redrawn from a study's own numbers as SVG."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tiaft_extensions.truncation.study.costs import Cost
from tiaft_extensions.truncation.study.grid import Variant
from tiaft_extensions.truncation.study.measures import MEAN
from tiaft_plugin.page import COLOURS, drawing, svg, visible

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
NAMES = {"auroc": "AUROC", "auprc": "AUPRC"}
GUESSING = "#333333"


class Table:
    """Rows of a summary, found by what they are of."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]):
        self._rows = {
            (Variant(r["strategy"], r["backbone"], r["cut"], r["init"]), r["percent"], r["class"],
             r["metric"]): r for r in rows
        }  # fmt: skip
        self.percents = sorted({r["percent"] for r in rows})
        self.classes = list(dict.fromkeys(r["class"] for r in rows if r["class"] != MEAN))

    def get(self, variant: Variant, percent: float, metric: str, name: str = MEAN) -> dict | None:
        """Return a row, or None."""
        found = self._rows.get((variant, percent, name, metric))
        return None if found is None else dict(found)


def draw_fractions(table: Table, variants: Sequence[Variant], label: str) -> str:
    """Figures 4 and 6: AUROC and AUPRC over the share of training tiles, a line a variant."""
    from matplotlib.figure import Figure

    with drawing():
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        panels = figure.subplots(1, 2)
        for axes, metric in zip(panels, NAMES, strict=True):
            for number, variant in enumerate(variants):
                rows = [table.get(variant, percent, metric) for percent in table.percents]
                _line(axes, [row for row in rows if row], number, variant.title)
            axes.set_xscale("log")
            axes.set_xticks(table.percents, [f"{percent:g}" for percent in table.percents])
            axes.minorticks_off()
            axes.set_xlabel("training tiles, % of all")
            axes.set_ylabel(f"{NAMES[metric]}, mean over classes")
            axes.grid(color="#d4d4d4", linewidth=0.6)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3,
                      frameon=False)  # fmt: skip
        return svg(figure, label)


def _line(axes: Any, rows: Sequence[Mapping[str, Any]], number: int, name: str) -> None:
    if not rows:
        return
    # Beside each other, so that none hides another's interval.
    x = [row["percent"] * 1.025 ** (number - 2) for row in rows]
    y = [row["mean"] for row in rows]
    low = [max(0.0, m - row["low"]) if _there(row) else 0 for m, row in zip(y, rows, strict=True)]
    high = [max(0.0, row["high"] - m) if _there(row) else 0 for m, row in zip(y, rows, strict=True)]
    axes.errorbar(
        x, y, yerr=(low, high), color=COLOURS[number % len(COLOURS)], linewidth=1.4,
        marker=MARKERS[number % len(MARKERS)], markersize=5, elinewidth=0.8, label=visible(name),
        linestyle="-" if number < len(COLOURS) else "--",
    )  # fmt: skip


def _there(row: Mapping[str, Any]) -> bool:
    return math.isfinite(row["low"]) and math.isfinite(row["high"])


def draw_classes(table: Table, variants: Sequence[Variant], percent: float, label: str) -> str:
    """Figures 3 and 7: a line a class, AUROC and AUPRC, variants side by side.

    A tick in the panel of AUPRC is the class's share of tiles: what guessing gives.
    """
    from matplotlib.figure import Figure

    names = [MEAN, *table.classes]
    with drawing():
        height = 1.3 + len(names) * (0.18 + 0.15 * len(variants))
        figure = Figure(figsize=(10, height), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, metric in zip(panels, NAMES, strict=True):
            for line, name in enumerate(names):
                if line % 2:
                    axes.axhspan(line - 0.5, line + 0.5, color="#f3f3f3", linewidth=0, zorder=0)
                _class_line(axes, table, variants, percent, metric, name, line)
            axes.set_xlabel(NAMES[metric])
            axes.grid(axis="x", color="#d4d4d4", linewidth=0.6)
            axes.tick_params(axis="y", length=0)
        panels[0].axvline(0.5, color=GUESSING, linewidth=1)
        shown = ["mean over classes", *(visible(name) for name in table.classes)]
        panels[0].set_yticks(range(len(names)), shown)
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        handles, texts = panels[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=3, frameon=False)
        return svg(figure, label)


def _class_line(
    axes: Any, table: Table, variants: Sequence[Variant], percent: float, metric: str, name: str,
    line: int,
) -> None:  # fmt: skip
    for number, variant in enumerate(variants):
        row = table.get(variant, percent, metric, name)
        if row is None:
            continue
        place = line + (number + 0.5) / len(variants) * 0.8 - 0.4
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        if _there(row):
            axes.plot([row["low"], row["high"]], [place] * 2, color=colour, linewidth=1.4)
        label = visible(variant.title) if name == MEAN else None
        axes.plot([row["mean"]], [place], marker, color=colour, markersize=5, label=label)
    guess = table.get(variants[0], percent, "prevalence", name) if variants else None
    if metric == "auprc" and guess:
        axes.plot([guess["mean"]] * 2, [line - 0.45, line + 0.45], color=GUESSING, linewidth=1)


def draw_costs(costs: Mapping[str, Cost], label: str) -> str:
    """Figure 5: what is left at each cut: features, weights, multiply-accumulates, tiles/s."""
    from matplotlib.figure import Figure

    panels = {
        "features": [cost.width for cost in costs.values()],
        "million weights": [cost.parameters / 1e6 for cost in costs.values()],
        "GMACs a tile": [cost.macs / 1e9 for cost in costs.values()],
        "tiles/s": [cost.tiles_per_second or 0 for cost in costs.values()],
    }
    with drawing():
        figure = Figure(figsize=(10, 1 + 0.34 * len(costs)), layout="constrained")
        every = figure.subplots(1, len(panels), sharey=True)
        for axes, (name, values) in zip(every, panels.items(), strict=True):
            bars = axes.barh(range(len(costs)), values, color=COLOURS[0], height=0.6)
            axes.bar_label(bars, [_short(value) for value in values], padding=3, fontsize=8)
            axes.set_xlim(0, max(values) * 1.35 or 1)
            axes.set_xlabel(name)
            axes.tick_params(axis="y", length=0)
            axes.spines[["top", "right"]].set_visible(False)
        every[0].set_yticks(range(len(costs)), [visible(name) for name in costs])
        every[0].set_ylim(len(costs) - 0.5, -0.5)
        return svg(figure, label)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def draw_both(table: Table, variant: Variant, percent: float, label: str) -> str:
    """Figure 8: each class's AUPRC beside its AUROC, and the share of tiles that guessing gives."""
    from matplotlib.figure import Figure

    rows = [(name, [table.get(variant, percent, metric, name) for metric in (*NAMES, "prevalence")])
            for name in table.classes]  # fmt: skip
    known = [(name, [row["mean"] for row in each if row]) for name, each in rows if all(each)]
    with drawing():
        figure = Figure(figsize=(9, 1.2 + 0.34 * len(known)), layout="constrained")
        axes = figure.subplots()
        for line, (_, (auroc, auprc, prevalence)) in enumerate(known):
            axes.plot([auprc, auroc], [line] * 2, color="#bbbbbb", linewidth=2, zorder=1)
            for value, colour, marker, text in (
                (auroc, COLOURS[0], "o", "AUROC"),
                (auprc, COLOURS[1], "s", "AUPRC"),
                (prevalence, GUESSING, "|", "share of tiles (AUPRC of guessing)"),
            ):
                axes.plot([value], [line], marker, color=colour, markersize=8, zorder=2,
                          label=None if line else text)  # fmt: skip
        axes.set_yticks(range(len(known)), [visible(name) for name, _ in known])
        axes.set_ylim(len(known) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.grid(axis="x", color="#d4d4d4", linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        return svg(figure, label)


def draw_choice(rows: Sequence[Mapping[str, Any]], least: float, label: str) -> str:
    """Accuracy on validation tiles over size: what lies above the line is enough."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    with drawing():
        figure = Figure(figsize=(10, 5), layout="constrained")
        axes = figure.subplots()
        kinds = list(dict.fromkeys((row["strategy"], row["init"]) for row in rows))
        for row in rows:
            number = kinds.index((row["strategy"], row["init"]))
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            error = row["val_auprc_se"] if math.isfinite(row["val_auprc_se"]) else 0
            place = (row["parameters"] / 1e6, row["val_auprc"])
            axes.errorbar(*place, yerr=error, color=colour, marker=marker, markersize=6,
                          elinewidth=0.8)  # fmt: skip
            axes.annotate(visible(row["cut"]), place, xytext=(5, 4), textcoords="offset points",
                          fontsize=8, color=colour)  # fmt: skip
            if row["chosen"]:
                axes.plot(*place, "o", markersize=15, markerfacecolor="none", color="#000000")
        for number, (strategy, init) in enumerate(kinds):
            name = init if strategy == "ttl" else strategy.upper()
            axes.plot([], [], MARKERS[number % len(MARKERS)], color=COLOURS[number % len(COLOURS)],
                      label=visible(name))  # fmt: skip
        axes.axhline(least, color=GUESSING, linewidth=1, linestyle=":",
                     label="one standard error below the best")  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_xlabel("million weights of the backbone")
        axes.set_ylabel("AUPRC on validation tiles, mean over classes")
        axes.grid(color="#d4d4d4", linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
        return svg(figure, label)

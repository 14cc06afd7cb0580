"""The paper's figures 2 to 6, redrawn from a run's own numbers as SVG."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tiaft_plugin.page import COLOURS, drawing, shown, svg, visible
from tiaft_plugin.probes.cells import Scores, metric_name, number
from tiaft_plugin.probes.settings import COLOUR

MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#8a8a8a"  # of the baseline that knows colour only
GUESSING = "#333333"
FEWEST_LINES = 40  # up to here each gene has its name beside its bar
MOST_POINTS = 500  # patients drawn a panel; more would be a blot of megabytes


def looks_of(sets: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return a colour and a marker for each feature set, the same in every figure of a page."""
    asked = [name for name in sets if name != COLOUR]
    looks = {
        name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(asked)
    }
    return {name: looks.get(name, (GREY, "X")) for name in sets}


def short(name: str, most: int = 30) -> str:
    """Return a name for an axis: both ends of one that is too long."""
    name = visible(name)
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def draw_overall(scores: Scores, repeats: Mapping[str, Sequence[float]], metric: str) -> str:
    """Figure 2: the overall score of each set with its interval; a point for each repeat."""
    from matplotlib.figure import Figure

    looks = looks_of(scores.asked)  # colour is far away, and the others would be one blot
    with drawing():
        figure = Figure(figsize=(8, 0.9 + 0.55 * len(looks)), layout="constrained")
        axes = figure.subplots()
        for place, (name, (colour, marker)) in enumerate(looks.items()):
            points = np.array(repeats.get(name, ()), float)
            # Spread by the golden ratio: even, and the same each time.
            spread = place + 0.28 + 0.14 * ((np.arange(len(points)) * 0.618034) % 1 - 0.5)
            axes.plot(
                points, spread, ".", color=colour, alpha=0.55, markersize=7, markeredgewidth=0
            )
            _whisker(axes, scores.get(name, "", metric), place, colour, marker)
        _name_lines(axes, [short(name) for name in looks])
        _ruled(axes)
        axes.set_xlabel(metric_name(metric))
        return svg(figure, f"{metric_name(metric)} of each feature set")


def draw_forest(
    scores: Scores, targets: Sequence[str], metrics: Sequence[str], variant: str = ""
) -> str:
    """Figures 3 and 6: a line for each class or gene, a panel for each metric, sets side by side.

    A line stands at AUROC 0.5, and a tick at each prevalence for AUPRC: what guessing gives.
    """
    from matplotlib.figure import Figure

    looks = looks_of(scores.sets)
    with drawing():
        height = 0.9 + len(targets) * (0.16 + 0.17 * len(looks))
        width = 10 if len(metrics) > 1 else 8
        figure = Figure(figsize=(width, height), layout="constrained")
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            for line, target in enumerate(targets):
                _line_of_target(axes, scores, target, metric, variant, line, looks)
            if metric == "auroc":
                axes.axvline(0.5, color=GUESSING, linewidth=1)
            axes.set_xlabel(metric_name(metric))
            _ruled(axes)
        _name_lines(panels[0], [short(target) for target in targets])
        names = ", ".join(metric_name(metric) for metric in metrics)
        return svg(figure, f"{names} of each of {len(targets)} targets and each feature set")


def _line_of_target(
    axes: Any,
    scores: Scores,
    target: str,
    metric: str,
    variant: str,
    line: int,
    looks: Mapping[str, tuple[str, str]],
) -> None:
    if line % 2:
        axes.axhspan(line - 0.5, line + 0.5, color="#f3f3f3", linewidth=0, zorder=0)
    for number_, (name, (colour, marker)) in enumerate(looks.items()):
        row = scores.get(name, target, metric, variant)
        place = line + (number_ + 0.5) / len(looks) * 0.8 - 0.4
        _whisker(axes, row, place, colour, marker)
        prevalence = scores.prevalence(name, target, metric, variant)
        if math.isfinite(prevalence):
            axes.plot([prevalence] * 2, [line - 0.45, line + 0.45], color=GUESSING, linewidth=1)


def _whisker(axes: Any, row: Mapping[str, Any], place: float, colour: str, marker: str) -> None:
    value, low, high = (number(row.get(name)) for name in ("value", "low", "high"))
    if math.isfinite(low) and math.isfinite(high):
        axes.plot([low, high], [place, place], color=colour, linewidth=1.8, zorder=2)
    if math.isfinite(value):
        axes.plot([value], [place], marker, color=colour, markersize=6, zorder=3)


def _name_lines(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _ruled(axes: Any) -> None:
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#d4d4d4", linewidth=0.6)
    axes.set_axisbelow(True)


def draw_difference(
    scores: Scores, a: str, b: str, selected: Sequence[str], others: Sequence[str]
) -> str:
    """Figure 4: b's correlation minus a's for each selected gene, sorted; and b's against a's.

    Genes of `others`, which were not selected, are small and grey.
    """
    from matplotlib.figure import Figure

    looks = looks_of(scores.sets)
    pairs = {
        gene: (scores.value(a, gene, "r"), scores.value(b, gene, "r"))
        for gene in (*selected, *others)
    }
    kept = [gene for gene in selected if np.isfinite(pairs[gene]).all()]
    kept.sort(key=lambda gene: pairs[gene][1] - pairs[gene][0])
    with drawing():
        named = 0 < len(kept) <= FEWEST_LINES
        height = max(4.3, 0.9 + 0.18 * len(kept)) if named else 4.3
        figure = Figure(figsize=(10, height), layout="constrained")
        left, right = figure.subplots(1, 2)
        differences = [pairs[gene][1] - pairs[gene][0] for gene in kept]
        colours = [looks[b if d > 0 else a][0] if d else GREY for d in differences]
        _bars(left, differences, colours, [short(gene, 16) for gene in kept] if named else None)
        left.set_title(f"{short(b)} minus {short(a)}", fontsize=10)
        grey = [pairs[gene] for gene in others]
        _against(right, [pairs[gene] for gene in kept], colours, grey)
        right.set(xlabel=f"r, {short(a)}", ylabel=f"r, {short(b)}")
        return svg(figure, f"correlations of {visible(b)} and of {visible(a)} for each gene")


def _bars(
    axes: Any, lengths: Sequence[float], colours: Sequence[str], names: Sequence[str] | None
) -> None:
    places = np.arange(len(lengths))
    if names:
        axes.barh(places, lengths, color=colours, height=0.75)
        axes.set_yticks(places, names, fontsize=8)
        axes.set_ylim(-0.7, len(lengths) - 0.3)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("difference in correlation")
    else:
        width = 280 / max(len(lengths), 40)  # points: the panel is about 280 wide
        axes.vlines(places, 0, lengths, colors=colours, linewidth=width)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(xlabel="selected genes, sorted", ylabel="difference in correlation")


def _against(
    axes: Any,
    pairs: Sequence[tuple[float, float]],
    colours: Sequence[str],
    grey: Sequence[tuple[float, float]],
) -> None:
    for points, colour, size in ((grey, "#c8c8c8", 5), (pairs, colours, 16)):
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, c=colour, s=size, linewidths=0)
    ends = [value for pair in (*pairs, *grey) for value in pair if math.isfinite(value)] or [0, 1]
    low, high = min(ends) - 0.03, max(ends) + 0.03
    axes.plot([low, high], [low, high], color="black", linewidth=0.8, linestyle="--")
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")


def draw_observed(
    observed: np.ndarray,
    predicted: np.ndarray,
    titles: Sequence[str],
    ends: Sequence[tuple[float, float]],
    look: tuple[str, str],
) -> str:
    """Figure 5: predicted (n, k) against observed (n, k), a panel for each of k genes.

    `ends` are those of each gene's vertical axis, the same for every feature set.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(titles))
    lines = -(-len(titles) // columns)
    step = -(-len(observed) // MOST_POINTS)
    colour, marker = look
    with drawing():
        width, height = 1.9 * columns + 0.35, 1.8 * lines + 0.35
        figure = Figure(figsize=(width, height))
        # Margins by hand: to fit them takes matplotlib a second a figure.
        figure.subplots_adjust(
            left=0.65 / width,
            right=1 - 0.1 / width,
            bottom=0.55 / height,
            top=1 - 0.25 / height,
            wspace=0.32,
            hspace=0.42,
        )
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, x, y, title, (low, high) in zip(
            panels, observed.T, predicted.T, titles, ends, strict=False
        ):
            known = np.isfinite(x) & np.isfinite(y)
            axes.plot(
                x[known][::step], y[known][::step], marker, color=colour, markersize=2.2,
                alpha=0.6, markeredgewidth=0,
            )  # fmt: skip
            axes.set_ylim(low, high)
            axes.set_title(title, fontsize=8.5)
            axes.tick_params(labelsize=7)
            axes.locator_params(nbins=4)
        for axes in panels[len(titles) :]:
            axes.set_axis_off()
        figure.supxlabel("observed", fontsize=9, y=0.08 / height)
        figure.supylabel("predicted", fontsize=9, x=0.08 / width)
        return svg(figure, "predicted against observed values of each gene")


def legend(looks: Mapping[str, tuple[str, str]], *, line: str = "") -> str:
    """Return the legend as HTML, where long names wrap; `line` is what the grey line means."""
    signs = {
        "o": '<circle cx="7" cy="7" r="5"/>',
        "s": '<path d="M2 2h10v10H2z"/>',
        "^": '<path d="M7 2l6 10H1z"/>',
        "D": '<path d="M7 1l6 6-6 6-6-6z"/>',
        "v": '<path d="M7 12L1 2h12z"/>',
        "P": '<path d="M5 1h4v4h4v4H9v4H5V9H1V5h4z"/>',
        "X": '<path d="M2 4l2-2 3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3z"/>',
    }
    entries = [(signs[marker], colour, name) for name, (colour, marker) in looks.items()]
    if line:
        entries.append(('<path d="M6 0h2v14H6z"/>', GUESSING, line))
    spans = "".join(
        f'<span><svg width="14" height="14" fill="{colour}">{sign}</svg> {shown(name)}</span> '
        for sign, colour, name in entries
    )
    return f'<p class="legend">{spans}</p>'

"""The pictures of the concept study: figure 3 of the paper, and what concepts do to classes."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np

from tiaft_extensions.interpretability.concepts.regression import RIDGE
from tiaft_extensions.interpretability.concepts.study import Row, Study
from tiaft_extensions.interpretability.subject import FINE_TUNED
from tiaft_plugin.page import BLUE, COLOURS, ORANGE, drawing, svg, visible

# Figure 3's red, blue and green, in shades that colour-blind readers tell apart.
LOOKS = {"random": (ORANGE, "o"), "pretrained": (BLUE, "s"), "fine-tuned": (COLOURS[2], "^")}
GREY = "#666666"
DEEPEST = -1.0  # R² below is drawn there: how far below says nothing
SIGNIFICANT = 0.05


def draw_r2(study: Study, how: str = RIDGE) -> tuple[str, bytes]:
    """Figure 3: R² of each concept over the layers, one line a network, as SVG and as PNG.

    In-sample above, as in the paper, with the mean R² of meaningless values; held out below, by
    the way of regression `how`. Bars are standard errors over the splits.
    """
    from matplotlib.figure import Figure

    names = study.concepts.names
    with drawing():
        figure = Figure(figsize=(1 + 3.1 * len(names), 6.4), layout="constrained")
        panels = figure.subplots(2, len(names), sharex=True, sharey="row", squeeze=False)
        held = "ridge" if how == RIDGE else "held_out"
        for column, concept in enumerate(names):
            rows = [row for row in study.r2 if row["concept"] == concept]
            for axes, which in zip(panels[:, column], ("in_sample", held), strict=True):
                _lines(axes, study.layers, rows, which)
            panels[0, column].set_title(visible(concept))
            _name_layers(panels[1, column], study.layers)
        panels[0, 0].set_ylabel("R², in-sample (the paper's)")
        panels[1, 0].set_ylabel("R², held out")
        lowest = min(row[f"r2_{held}"] for row in study.r2)
        panels[1, 0].set_ylim(max(DEEPEST, min(lowest, 0)) - 0.08, 1.05)
        signs = panels[0, 0].get_legend_handles_labels()
        figure.legend(*signs, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
        return _both(figure, "R² of each concept at each layer of each network")


def draw_relevance(study: Study) -> tuple[str, bytes]:
    """Br and TCAV of each concept (a panel), class (a row) and layer, as colours and numbers.

    A star stands where it differs from directions of permuted values.
    """
    from matplotlib.figure import Figure

    names, classes = study.concepts.names, list(dict.fromkeys(r["class"] for r in study.relevance))
    most = max((abs(row["br"]) for row in study.relevance if np.isfinite(row["br"])), default=1)
    scales = {"br": (-most or -1, most or 1), "tcav": (0, 1)}
    with drawing():
        size = (1.6 + 0.62 * len(study.layers) * len(names), 1.6 + 0.68 * len(classes))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(2, len(names), sharex=True, sharey=True, squeeze=False)
        for line, (what, ends) in zip(panels, scales.items(), strict=True):
            for axes, concept in zip(line, names, strict=True):
                rows = [row for row in study.relevance if row["concept"] == concept]
                _coloured(axes, study.layers, classes, rows, what, ends)
                axes.set_title(f"{'Br' if what == 'br' else 'TCAV'}, {visible(concept)}")
        for axes in panels[1]:
            _name_layers(axes, study.layers)
        for axes in panels[:, 0]:
            axes.set_yticks(range(len(classes)), [visible(cls) for cls in classes], fontsize=8)
        panels[0, 0].invert_yaxis()
        return _both(figure, "Br and TCAV of each concept for each class at each layer")


def _coloured(
    axes: Any,
    layers: Sequence[str],
    classes: Sequence[str],
    rows: Sequence[Row],
    what: str,
    ends: tuple[float, float],
) -> None:
    values = np.full((len(classes), len(layers)), np.nan)
    for row in rows:
        y, x = classes.index(row["class"]), layers.index(row["layer"])
        values[y, x] = row[what]
        star = "*" if row[f"{what}_q"] < SIGNIFICANT else ""
        digits = 1 if what == "br" else 2
        value = round(row[what], digits) + 0.0  # no -0.0
        text = f"{value:.{digits}f}{star}" if np.isfinite(value) else "–"
        far = abs((row[what] - ends[0]) / (ends[1] - ends[0]) - 0.5) > 0.35
        axes.text(x, y, text, ha="center", va="center", fontsize=7, color="w" if far else "k")
    # Purple speaks against a class, orange for it; colour-blind readers tell them apart.
    places = np.arange(len(layers)), np.arange(len(classes))
    axes.pcolormesh(
        *places, values, cmap="PuOr_r", vmin=ends[0], vmax=ends[1], edgecolors="w",
        shading="nearest",
    )  # fmt: skip
    axes.tick_params(length=0)


def _lines(axes: Any, layers: Sequence[str], rows: Sequence[Row], which: str) -> None:
    places = np.arange(len(layers))
    if which == "in_sample":
        null = _over(layers, [row for row in rows if row["network"] == FINE_TUNED], "r2_null")
        axes.plot(places, null, "--", color=GREY, linewidth=1.2, label="meaningless values")
    else:
        axes.axhline(0, color=GREY, linewidth=0.8)
    for number, (network, (colour, marker)) in enumerate(LOOKS.items()):
        own = [row for row in rows if row["network"] == network]
        if own:
            axes.errorbar(
                places + (number - 1) * 0.09,  # else equal ones hide each other
                np.maximum(_over(layers, own, f"r2_{which}"), DEEPEST),
                yerr=_over(layers, own, f"se_{which}"),
                color=colour, marker=marker, markersize=5, capsize=2.5, label=network,
            )  # fmt: skip
    if which == "in_sample":
        axes.set_ylim(0, 1.05)
    axes.grid(axis="y", color="#e2e2e2", linewidth=0.6)


def _over(layers: Sequence[str], rows: Sequence[Row], what: str) -> np.ndarray:
    by_layer = {row["layer"]: row[what] for row in rows}
    return np.array([by_layer[layer] for layer in layers], float)


def _name_layers(axes: Any, layers: Sequence[str]) -> None:
    axes.set_xticks(range(len(layers)), layers, rotation=40, ha="right", fontsize=8)


def _both(figure: Any, label: str) -> tuple[str, bytes]:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # once is enough: it takes matplotlib longer than drawing
    buffer = BytesIO()
    drawn = svg(figure, label)
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return drawn, buffer.getvalue()

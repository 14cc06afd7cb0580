"""The pictures of a comparison: CKA of all pairs of layers, and of each layer with its own."""

from io import BytesIO
from typing import Any

import numpy as np

from tiaft_extensions.histotransfer.cka.study import MINIBATCH, PLAIN, UNBIASED, Comparison
from tiaft_plugin.page import BLUE, COLOURS, ORANGE, drawing, svg, visible

SHOWN = {PLAIN: "plain", UNBIASED: "unbiased", MINIBATCH: "unbiased, by minibatches"}
# Of equal ones, the thick line is still seen below the other.
LOOKS = {PLAIN: (ORANGE, "", 4.0), UNBIASED: (BLUE, "o", 1.4), MINIBATCH: (COLOURS[2], "^", 1.4)}
NUMBERS = 12  # layers a side, of whose CKA the numbers still can be read


def draw_pairs(found: Comparison) -> tuple[str, bytes]:
    """Heat maps of CKA, layers of A upwards and of B to the right, shallow to deep: SVG and PNG.

    One is of the plain CKA and one of the unbiased, or there is one by minibatches.
    """
    from matplotlib.figure import Figure

    kinds = _kinds(found)
    rows, columns = len(found.a.layers), len(found.b.layers)
    side = 0.56 if max(rows, columns) <= NUMBERS else 0.3
    with drawing():
        size = (2.6 + len(kinds) * (0.5 + side * columns), 1.9 + side * rows)
        figure = Figure(figsize=size)
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)  # inches
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            mesh = _coloured(axes, found, found.cka[kind])
            axes.set_title(SHOWN[kind], fontsize=10)
            axes.set_xlabel(visible(found.b.name))
        panels[0].set_ylabel(visible(found.a.name))
        panels[0].set_yticks(range(rows), [visible(n) for n in found.a.layers], fontsize=8)
        bar = figure.colorbar(mesh, ax=list(panels), shrink=0.9, aspect=25)
        bar.set_label("CKA")
        label = f"CKA between layers of {found.a.name} and of {found.b.name}"
        return _both(figure, label)


def draw_common(found: Comparison) -> tuple[str, bytes]:
    """A line over the layers that both models have: CKA of each with the same of the other."""
    from matplotlib.figure import Figure

    common = found.common
    places = np.arange(len(common))
    with drawing():
        figure = Figure(figsize=(2.2 + 0.6 * len(common), 3.6), layout="constrained")
        axes = figure.subplots()
        for kind in reversed(_kinds(found)):
            colour, marker, width = LOOKS[kind]
            y = [found.cka[kind][a, b] for _, a, b in common]
            axes.plot(places, y, color=colour, marker=marker, linewidth=width, label=SHOWN[kind])
        if found.interval:
            ends = found.interval.low, found.interval.high
            low, high = ([end[a, b] for _, a, b in common] for end in ends)
            axes.vlines(places, low, high, color=LOOKS[UNBIASED][0], label="its 95 % interval")
        _name(axes, [name for name, _, _ in common])
        axes.set_ylim(min(0, axes.get_ylim()[0]), 1.03)
        axes.set_ylabel("CKA of a layer with its own")
        axes.grid(axis="y", color="#e2e2e2", linewidth=0.6)
        axes.legend(fontsize=8, frameon=False)
        return _both(figure, f"CKA of the same layer of {found.a.name} and {found.b.name}")


def _kinds(found: Comparison) -> list[str]:
    return [kind for kind in (UNBIASED, PLAIN) if kind in found.cka] or [MINIBATCH]


def _coloured(axes: Any, found: Comparison, values: np.ndarray) -> Any:
    rows, columns = values.shape
    mesh = axes.pcolormesh(
        np.arange(columns), np.arange(rows), values, cmap="viridis", vmin=0, vmax=1,
        shading="nearest", edgecolors="w", linewidth=0.4,
    )  # fmt: skip
    for (row, column), value in np.ndenumerate(values):
        if max(rows, columns) > NUMBERS:
            break
        text = f"{round(value, 2) + 0.0:.2f}" if np.isfinite(value) else "–"  # no -0.0
        colour = "k" if not value < 0.6 else "w"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_aspect("equal")
    _name(axes, found.b.layers)
    axes.tick_params(length=0)
    return mesh


def _name(axes: Any, layers: Any) -> None:
    names = [visible(layer) for layer in layers]
    axes.set_xticks(range(len(names)), names, rotation=50, ha="right", rotation_mode="anchor",
                    fontsize=8)  # fmt: skip


def _both(figure: Any, label: str) -> tuple[str, bytes]:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # once is enough: it takes matplotlib longer than drawing
    buffer = BytesIO()
    drawn = svg(figure, label)
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return drawn, buffer.getvalue()

"""The picture of a comparison: AUROC over what an encoder costs."""

import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from tiaft_extensions.histotransfer.compare.rows import MAIN, Row
from tiaft_plugin.page import COLOURS, drawing, svg, visible
from tiaft_plugin.probes.figures import GREY, GUESSING, MARKERS

PANELS = {"parameters": ("million parameters", 1e6), "macs": ("GMACs a tile", 1e9)}


def draw_costs(rows: Sequence[Row]) -> tuple[str, bytes]:
    """AUROC with its 95 % interval over parameters and over multiply-accumulates: SVG and PNG.

    A colour is a kind of weights, a marker a backbone; a line joins the cuts of one. Encoders
    whose cost is not known, and colour alone, stand at the right.
    """
    from matplotlib.figure import Figure

    looks = _looks(rows)
    with drawing():
        figure = Figure(figsize=(10, 5), layout="constrained")
        panels = figure.subplots(1, len(PANELS), sharey=True)
        for axes, (cost, (label, unit)) in zip(panels, PANELS.items(), strict=True):
            _panel(axes, rows, cost, unit, looks)
            axes.set_xlabel(label)
        panels[0].set_ylabel(f"{MAIN} of slides or patients, 95 % interval")
        handles = _legend(panels[0], rows, looks)
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
        drawn = svg(figure, "AUROC over what an encoder costs")
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return drawn, buffer.getvalue()


def _looks(rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Return the colours of weights, and the markers of backbones, in the order of their names."""
    weights = sorted({row.encoder.weights for row in rows if row.encoder.weights})
    backbones = sorted({row.encoder.backbone for row in rows if row.encoder.backbone})
    colours = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(weights)}
    markers = {name: MARKERS[n % len(MARKERS)] for n, name in enumerate(backbones)}
    return {"weights": {**colours, "": GREY}, "backbone": {**markers, "": "X"}}


def _panel(axes: Any, rows: Sequence[Row], cost: str, unit: float, looks: dict) -> None:
    places = {row.encoder.name: getattr(row.cost, cost) for row in rows}
    known = [row for row in rows if places[row.encoder.name]]
    for its in _chains(known):
        ordered = sorted(its, key=lambda row: places[row.encoder.name])
        colour = looks["weights"][its[0].encoder.weights]
        x = [_beside(row, places[row.encoder.name] / unit, looks) for row in ordered]
        y = [row.auroc.value for row in ordered]
        axes.plot(x, y, color=colour, linewidth=1, alpha=0.6, zorder=1)
    for row in known:
        _point(axes, row, _beside(row, places[row.encoder.name] / unit, looks), looks)
    for row in rows:
        if row not in known and math.isfinite(row.auroc.value):
            axes.axhline(row.auroc.value, color=looks["weights"][row.encoder.weights],
                         linewidth=1, linestyle="--", zorder=0)  # fmt: skip
            axes.annotate(visible(row.encoder.name), (1, row.auroc.value), xytext=(-4, 3),
                          xycoords=("axes fraction", "data"), textcoords="offset points",
                          ha="right", fontsize=8, color=GUESSING)  # fmt: skip
    if known:
        axes.set_xscale("log")
        _plain_ticks(axes)
    axes.grid(color="#e2e2e2", linewidth=0.6)


def _point(axes: Any, row: Row, x: float, looks: dict) -> None:
    value, encoder = row.auroc, row.encoder
    colour, marker = looks["weights"][encoder.weights], looks["backbone"][encoder.backbone]
    if math.isfinite(value.low) and math.isfinite(value.high):
        axes.plot([x, x], [value.low, value.high], color=colour, linewidth=1.2, zorder=2)
    face = "white" if encoder.cut else colour
    axes.plot([x], [value.value], marker, color=colour, markerfacecolor=face, markersize=7,
              zorder=3)  # fmt: skip
    axes.annotate(visible(encoder.cut or encoder.backbone or encoder.name), (x, value.value),
                  xytext=(6, 4), textcoords="offset points", fontsize=8, color=colour)  # fmt: skip


def _beside(row: Row, place: float, looks: dict) -> float:
    """Return a place beside those of equal cost with other weights: else intervals hide others."""
    weights = list(looks["weights"])
    return place * 1.03 ** (weights.index(row.encoder.weights) - (len(weights) - 2) / 2)


def _plain_ticks(axes: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_xlim()
    axes.set_xlim(low / 1.1, high * max(1.5, (high / low) ** 0.3))  # room for the names


def _chains(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows of one backbone with one kind of weights together."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.encoder.backbone:
            found.setdefault((row.encoder.backbone, row.encoder.weights), []).append(row)
    return list(found.values())


def _legend(axes: Any, rows: Sequence[Row], looks: dict) -> list[Any]:
    """Return what colours, markers and their filling mean."""
    from matplotlib.lines import Line2D

    def entry(label: str, **look: Any) -> Any:
        return Line2D([], [], linestyle="", markersize=7, label=visible(label), **look)

    handles = [
        entry(f"{name} weights", marker="o", color=colour)
        for name, colour in looks["weights"].items()
        if name
    ]
    backbones = {name: marker for name, marker in looks["backbone"].items() if name}
    if len(backbones) > 1:
        handles += [
            entry(name, marker=marker, color=GUESSING) for name, marker in backbones.items()
        ]
    if any(row.encoder.cut for row in rows):
        handles.append(entry("cut off", marker="o", color=GUESSING, markerfacecolor="white"))
    return handles

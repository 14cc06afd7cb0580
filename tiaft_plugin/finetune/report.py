"""The report of a run: one self-contained HTML page, the same bytes for the same run."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from tiaft_plugin.finetune.evaluation import Evaluation
from tiaft_plugin.network.card import Card
from tiaft_plugin.page import BLUE, ORANGE, confusion_table, drawing, page, svg, table

_LINES = (("train", BLUE, "training"), ("val", ORANGE, "held out"))


def build_report(
    card: Card,
    rows: Sequence[Mapping[str, Any]],
    held_out: Sequence[Evaluation | None],
    counts: Mapping[str, int],
    warnings: Iterable[str],
) -> str:
    """Return the page: `rows` of ``metrics.csv``, an evaluation a stage, training tiles a class."""
    parts = [
        f"<h1>Fine-tuned {escape(card.backbone)}</h1>",
        f"<p>{escape(card.source)}. {escape(card.licence)}</p>",
        *(f'<p class="warning">{escape(text)}</p>' for text in warnings),
        _headline(held_out, counts),
        "<h2>Curves</h2>" + _curves(rows) if rows else "<p>No epoch was trained.</p>",
        _confusion(held_out[-1]) if held_out[-1] else "",
        _trained_on(card, counts),
        _settings(card),
    ]
    return page(f"tiaft finetune: {card.backbone}", parts)


def _headline(held_out: Sequence[Evaluation | None], counts: Mapping[str, int]) -> str:
    measured = [(n, e.metrics(counts)) for n, e in enumerate(held_out, start=1) if e]
    if not measured:
        return ""
    rows = [
        [f"after stage {n}", *(f"{m[k]:.3f}" for k in ("accuracy", "balanced_accuracy", "loss"))]
        for n, m in measured
    ]
    baseline = measured[-1][1]["majority_baseline"]
    present = len(held_out[-1].recalls) if held_out[-1] else 1
    rows.append(["always the commonest class", f"{baseline:.3f}", f"{1 / present:.3f}", ""])
    return "<h2>Held-out tiles</h2>" + table(["", "accuracy", "balanced accuracy", "loss"], rows)


def _confusion(held_out: Evaluation) -> str:
    return (
        "<h2>Confusion matrix</h2><p>True classes in rows, predicted ones in columns.</p>"
        + confusion_table(held_out.classes, held_out.confusion)
    )


def _trained_on(card: Card, counts: Mapping[str, int]) -> str:
    held_out = card.data.get("held_out", {})
    rows = [[name, counts[name], held_out.get("tiles", {}).get(name, "")] for name in card.classes]
    rows.append(["all", sum(counts.values()), sum(held_out.get("tiles", {}).values()) or ""])
    text = f"Tiles of {card.tile_size} px at {_resolution(card.mpp)}"
    if "resized" in card.data:
        before = card.data["resized"]
        text += f", resized from {before['from_px']} px at {_resolution(before['from_mpp'])}"
    groups = [
        f"<p>{label}: {escape(about['name'])}; slides or patients: "
        f"{about['groups'] or 'not given'}.<br>"
        f"<small>fingerprint {about['fingerprint']}</small></p>"
        for label, about in (("Trained on", card.data), ("Held out", held_out))
        if about
    ]
    counted = table(["class", "training tiles", "held-out tiles"], rows)
    return f"<h2>Tiles</h2><p>{text}.</p>{''.join(groups)}{counted}"


def _resolution(mpp: float | None) -> str:
    return f"{mpp:.4g} µm/px" if mpp else "unknown resolution"


def _settings(card: Card) -> str:
    model = {
        "backbone": card.backbone,
        "backbone_args": card.backbone_args,
        "hidden": card.hidden,
        "mean": card.mean,
        "std": card.std,
    }
    text = json.dumps(model | card.training, indent=2, sort_keys=True, ensure_ascii=False)
    return f"<h2>Settings</h2><pre>{escape(text)}</pre>"


def _curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw loss and accuracy over the epochs of both stages as SVG, the same for the same rows."""
    from matplotlib.figure import Figure

    epochs = sorted({(row["stage"], row["epoch"]) for row in rows})
    place = {key: number for number, key in enumerate(epochs, start=1)}
    boundary = sum(stage == 1 for stage, _ in epochs) + 0.5
    with drawing():
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for split, colour, label in _LINES:
                chosen = [row for row in rows if row["split"] == split]
                x = [place[row["stage"], row["epoch"]] for row in chosen]
                if chosen:
                    axes.plot(x, [row[name] for row in chosen], ".-", color=colour, label=label)
            if 1 < boundary < len(epochs):
                axes.axvline(boundary, color="grey", linestyle=":", label="stage 2 begins")
            axes.set(xlabel="epoch", ylabel=name)
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        return svg(figure)

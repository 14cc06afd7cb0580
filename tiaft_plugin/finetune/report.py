"""The report of a run: one self-contained HTML page, the same bytes for the same run."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from tiaft_plugin.finetune.evaluation import Evaluation
from tiaft_plugin.network.card import Card

_LINES = (("train", "#0072b2", "training"), ("val", "#d55e00", "held out"))
_STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } svg { max-width: 100%; height: auto }
th, td { padding: .25em .6em; border: 1px solid #ccc; text-align: right }
th:first-child, td:first-child { text-align: left } .scroll { overflow-x: auto }
.warning { background: #fff3cd; padding: .4em .8em; margin: .4em 0 } small { color: #555 }
"""


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
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>tiaft finetune: {escape(card.backbone)}</title><style>{_STYLE}</style></head>\n"
        "<body>\n" + "\n".join(part for part in parts if part) + "\n</body></html>\n"
    )


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
    return "<h2>Held-out tiles</h2>" + _table(["", "accuracy", "balanced accuracy", "loss"], rows)


def _confusion(held_out: Evaluation) -> str:
    totals = held_out.confusion.sum(axis=1)
    lines = []
    for name, row, total in zip(held_out.classes, held_out.confusion, totals, strict=True):
        cells = "".join(
            f'<td style="background:rgba(0,114,178,{n / max(total, 1) * 0.6:.2f})">{n}</td>'
            for n in row
        )
        right = f"{held_out.recalls[name]:.3f}" if name in held_out.recalls else "–"
        lines.append(f"<tr><td>{escape(name)}</td>{cells}<td>{total}</td><td>{right}</td></tr>")
    heads = "".join(f"<th>{escape(name)}</th>" for name in held_out.classes)
    return (
        "<h2>Confusion matrix</h2><p>True classes in rows, predicted ones in columns.</p>"
        f'<div class="scroll"><table><tr><th></th>{heads}<th>tiles</th><th>right</th></tr>'
        + "".join(lines)
        + "</table></div>"
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
    table = _table(["class", "training tiles", "held-out tiles"], rows)
    return f"<h2>Tiles</h2><p>{text}.</p>{''.join(groups)}{table}"


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
    import matplotlib
    from matplotlib.figure import Figure

    epochs = sorted({(row["stage"], row["epoch"]) for row in rows})
    place = {key: number for number, key in enumerate(epochs, start=1)}
    boundary = sum(stage == 1 for stage, _ in epochs) + 0.5
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # else a reader's matplotlibrc would change the bytes
        matplotlib.rcParams.update({"svg.hashsalt": "tiaft", "svg.fonttype": "none"})
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
        return _svg(figure)


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    heads = "".join(f"<th>{escape(text)}</th>" for text in head)
    lines = ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
    return f"<table><tr>{heads}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"

"""What a comparison leaves: report.html, comparison.csv, differences.csv, comparison.png."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiaft_extensions.histotransfer.compare.costs import BATCH
from tiaft_extensions.histotransfer.compare.figures import draw_costs
from tiaft_extensions.histotransfer.compare.questions import Answer
from tiaft_extensions.histotransfer.compare.rows import COLOUR_ONLY, METRICS, Row, Value, as_cells
from tiaft_extensions.histotransfer.compare.study import SCHEMA, STUDY, TOGETHER, Compared, Settings
from tiaft_plugin.files import write_atomically, write_csv
from tiaft_plugin.page import page, shown, table
from tiaft_plugin.probes.cells import MISSING, decimals, interval, p_value

REPORT, TABLE, DIFFERENCES, PICTURE = (
    "report.html", "comparison.csv", "differences.csv", "comparison.png",
)  # fmt: skip
_STYLE = """
body { max-width: 90em } .scroll table { font-size: .85em } .scroll td { padding: .25em .45em }
td:nth-child(2), td:nth-child(3), th:nth-child(2), th:nth-child(3) { text-align: left }
"""


def write_comparison(out: Path, found: Compared, settings: Settings) -> None:
    """Write a comparison into the folder OUT; its summary comes last."""
    drawn, png = draw_costs(found.rows)
    _write_rows(out / TABLE, [as_cells(row) for row in found.rows])
    _write_rows(out / DIFFERENCES, _differences(found.answers))
    with write_atomically(out / PICTURE) as part:
        part.write_bytes(png)
    with write_atomically(out / REPORT) as part:
        part.write_text(_page(found, drawn, settings), encoding="utf-8")
    with write_atomically(out / STUDY) as part:
        text = json.dumps(_summary(found, settings), indent=1, ensure_ascii=False)
        part.write_text(text + "\n", encoding="utf-8")


def main_table(found: Compared) -> tuple[list[str], list[list[str]]]:
    """Return head and rows, for people."""
    head = ["encoder", "network", "weights", "features", "million parameters", "GMACs", "MB"]
    head += ["tiles/s", *METRICS, f"against {found.reference}", "mean pooling"]
    return head, [_cells(row, found.reference) for row in found.rows]


def _cells(row: Row, reference: str) -> list[str]:
    encoder, stored, cost = row.encoder, row.stored, row.cost
    speed = stored.tiles_per_second if stored else None
    itself = encoder.name == reference or encoder.name == COLOUR_ONLY
    return [
        encoder.name,
        encoder.network or MISSING,
        encoder.weights or MISSING,
        str(stored.width) if stored else MISSING,
        _scaled(cost.parameters, 1e6, 3),
        _scaled(cost.macs, 1e9, 3),
        _scaled(cost.memory, 1e6, 0),
        MISSING if speed is None else f"{speed:.3g}",
        *(_with_interval(row.metrics[metric]) for metric in METRICS),
        MISSING if itself else _with_interval(row.difference, sign=True),
        decimals(row.mean_pooling.value),
    ]


def _scaled(value: int | None, unit: float, digits: int) -> str:
    return MISSING if value is None else f"{value / unit:,.{digits}f}"


def _with_interval(value: Value, sign: bool = False) -> str:
    between = interval(vars(value), sign)
    text = decimals(value.value, sign)
    return text if between == MISSING else f"{text} ({between})"


def _page(found: Compared, drawn: str, settings: Settings) -> str:
    data = found.result.summary["data"]
    unit = data["unit"]
    head, rows = main_table(found)
    parts = [
        "<h1>Encoders compared</h1>",
        f"<p>{len([row for row in found.rows if row.stored])} encoders of tiles, each under the "
        f"same attention pooling, for {data['rows']} {unit}s: "
        f"{shown(', '.join(f'{n} {name}' for name, n in data['counts'].items()))}.</p>",
        *(_answer(each) for each in found.answers),
        *(f'<p class="warning">{shown(note)}</p>' for note in found.notes),
        "<h2>All encoders</h2>",
        f'<div class="scroll">{table(head, rows)}</div>',
        f"<p>{_told(found)}</p>",
        "<h2>What the cost buys</h2>",
        drawn,
        "<p>Filled: whole networks; open: cut off, a line joins the cuts of one network. Dashed: "
        "no network, or one whose cost is not known.</p>",
        "<h2>Differences</h2>",
        _pairs(found.answers),
        "<h2>How it was done</h2>",
        _how(found, settings),
    ]
    return page("Encoders compared", parts, _STYLE)


def _answer(answer: Answer) -> str:
    sentences = "".join(f"<li>{shown(text)}</li>" for text in answer.sentences)
    return f"<h2>{shown(answer.question)}</h2><ul>{sentences}</ul>"


def _told(found: Compared) -> str:
    devices = sorted({row.stored.device for row in found.rows if row.stored} - {""})
    return (
        "AUROC, AUPRC and balanced accuracy with their 95 % intervals; several classes: the mean "
        "over them. GMACs: thousand million multiply-accumulates of a tile, of convolutions and "
        f"matrix products. MB: weights and, for {BATCH} tiles, the most that maps take at a time "
        "in float32; what libraries need comes on top. Tiles/s as the features were extracted, "
        f"reading included{f' ({shown(chr(44).join(devices))})' if devices else ''}. Mean "
        "pooling: AUROC of a logistic regression on each bag's mean tile."
    )


def _pairs(answers: Sequence[Answer]) -> str:
    pairs = [(answer.question, pair) for answer in answers for pair in answer.pairs]
    if not pairs:
        return "<p>No two encoders differ in one thing only: in weights, size or cut.</p>"
    rows = [
        (
            question,
            f"{pair.b} − {pair.a}",
            _with_interval(pair.difference, sign=True),
            p_value(pair.p),
        )
        for question, pair in pairs
    ]
    return table(("question", "AUROC of", "difference", "p"), rows) + (
        "<p>Paired: the same bags, folds and bootstrap of patients. Intervals and p values are not "
        "corrected for their number; the best of many encoders looks better than it is.</p>"
    )


def _how(found: Compared, settings: Settings) -> str:
    summary = found.result.summary
    rows = [
        ("labels", settings.labels.name),
        ("aggregation", summary["probe"]["settings"]["model"]),
        ("folds × repeats", f"{settings.folds} × {settings.repeats}, by patient, stratified"),
        ("bootstrap", f"{settings.draws} draws of patients"),
        ("permutations of labels", settings.permutations),
        ("margin", f"{settings.margin:g} of AUROC"),
        ("seed", settings.seed),
        ("in full", f"{TOGETHER}/report.html"),
    ]
    return table(("", ""), [(name, str(value)) for name, value in rows])


def _summary(found: Compared, settings: Settings) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "version": 1,
        "reference": found.reference,
        "answers": [
            {"question": answer.question, "sentences": answer.sentences} for answer in found.answers
        ],
        "warnings": found.notes,
        "encoders": [row.encoder.name for row in found.rows if row.stored],
        "protocol": {"probe": settings.probe, **settings.protocol, "margin": settings.margin},
    }


def _differences(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    none = {"question": "", "a": "", "b": "", "difference": "", "low": "", "high": "", "p": ""}
    return [
        {
            "question": answer.question,
            "a": pair.a,
            "b": pair.b,
            "difference": pair.difference.value,
            "low": pair.difference.low,
            "high": pair.difference.high,
            "p": pair.p,
        }
        for answer in answers
        for pair in answer.pairs
    ] or [none]


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_csv(path, rows[0], ([_plain(row.get(name)) for name in rows[0]] for row in rows))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else value

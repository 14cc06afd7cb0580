"""What the concept study leaves on disk: tables, pictures, and its part of the report."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_extensions.interpretability.concepts.figures import draw_r2, draw_relevance
from tiaft_extensions.interpretability.concepts.regression import RIDGE
from tiaft_extensions.interpretability.concepts.study import Asked, Row, Study
from tiaft_extensions.interpretability.report import SECTION, picture
from tiaft_extensions.interpretability.subject import Subject
from tiaft_plugin.files import write_csv
from tiaft_plugin.page import shown, table
from tiaft_plugin.tiles.fingerprint import fingerprint
from tiaft_plugin.tiles.images import read_image

SHOWN = 5  # tiles of each concept, from low to high
SAID = {
    "asm": "high where a tile is of one grey, low where there is much going on",
    "contrast": "high where neighbouring pixels differ much",
    "correlation": "high where structures are larger than a pixel, low in noise",
    "energy": "the square root of asm",
    "dissimilarity": "like contrast, with less weight on the strongest edges",
    "nuclei_count": "how many nuclei have their centre in the tile",
    "nuclei_area": "their mean area",
    "nuclei_eccentricity": "their mean eccentricity: 0 round, near 1 long",
}


def write_study(folder: Path, study: Study, subject: Subject, asked: Asked) -> None:
    """Write concepts.csv, r2.csv, relevance.csv, figures, about.json and section.html."""
    rows = zip(study.tiles.files, study.tiles.labels, study.tiles.groups, strict=True)
    known = [
        {"file": study.tiles.shown(file), "label": label, "group": group or ""}
        | dict(zip(study.concepts.names, values, strict=True))
        for (file, label, group), values in zip(rows, study.concepts.values.tolist(), strict=True)
    ]
    _write_rows(folder / "concepts.csv", known)
    _write_rows(folder / "r2.csv", study.r2)
    figures = {"figure3": draw_r2(study, asked.how)}
    if study.relevance:
        _write_rows(folder / "relevance.csv", study.relevance)
        figures["relevance"] = draw_relevance(study)
    for name, (_, png) in figures.items():
        (folder / f"{name}.png").write_bytes(png)
    about = {
        "model": subject.name,
        "tiles": {"name": study.tiles.name, "fingerprint": fingerprint(study.tiles)},
        **asdict(asked),
        "pretrained": asked.pretrained and Path(asked.pretrained).name,
        "layers": study.layers,
        "notes": study.notes,
    }
    text = json.dumps(about, indent=2, ensure_ascii=False)
    (folder / "about.json").write_text(text + "\n", encoding="utf-8")
    drawn = {name: svg for name, (svg, _) in figures.items()}
    (folder / SECTION).write_text(_section(study, subject, asked, drawn), encoding="utf-8")


def r2_table(study: Study) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of a table for people: R² of each concept at each layer."""
    head = ["concept", "layer", "channels", "network", "in-sample", "meaningless values",
            "held out, least squares", "held out, ridge"]  # fmt: skip
    rows = []
    for name in study.concepts.names:
        for layer in study.layers:
            rows += [
                [name, layer, row["channels"], row["network"], _with_error(row, "in_sample"),
                 f"{row['r2_null']:.3f}", _with_error(row, "held_out"), _with_error(row, "ridge")]
                for row in study.r2
                if row["concept"] == name and row["layer"] == layer
            ]  # fmt: skip
    return head, rows


def _section(study: Study, subject: Subject, asked: Asked, drawn: dict[str, str]) -> str:
    held = "ridge regression" if asked.how == RIDGE else "least squares"
    whole = " of whole slides" if any(study.tiles.groups) else ""
    parts = [
        "<h2>Concepts: what the layers can tell</h2>",
        f"<p>A concept is one number a tile. For {shown(len(study.tiles))} tiles of "
        f"{shown(study.tiles.name)} these were measured:</p>",
        *[_scale(study, place) for place in range(len(study.concepts.names))],
        *[f'<p class="warning">{shown(note)}</p>' for note in study.notes],
        "<h3>How well a layer tells a concept</h3>",
        f"<p>Each concept is regressed on the mean of each channel of a layer, in {asked.splits} "
        f"random splits into three folds{whole}, each held out once. R² is 1 where the layer tells "
        "the concept exactly. <b>In-sample</b> is the paper's measure (figure 3): it rises with "
        "the number of channels even for <b>meaningless values</b> (grey, dashed), so that only "
        "what lies above the grey line counts. <b>Held out</b> is R² on tiles that the regression "
        f"never saw (here by {held}); at 0 or below the layer tells nothing that holds for other "
        "tiles. Bars are standard errors over the splits.</p>",
        drawn["figure3"],
        "<details><summary>As numbers</summary>",
        table(*r2_table(study)),
        "</details>",
    ]
    if study.relevance:
        parts += _relevance(study, subject, asked, drawn["relevance"])
    return "\n".join(parts) + "\n"


def _relevance(study: Study, subject: Subject, asked: Asked, drawn: str) -> list[str]:
    head = ["class", "concept", "layer", "tiles", "TCAV", "q", "Br", "q", "agreement"]
    rows = [
        [row["class"], row["concept"], row["layer"], row["tiles"], _number(row["tcav"], 2),
         _number(row["tcav_q"], 3), _number(row["br"]), _number(row["br_q"], 3),
         _number(row["agreement"], 2)]
        for row in sorted(study.relevance, key=lambda row: (row["class"], row["concept"]))
    ]  # fmt: skip
    return [
        "<h3>What concepts do to the classes</h3>",
        f"<p>Where the activations of a layer are pushed towards more of a concept, does "
        f"{shown(subject.name)} become surer of a class? Asked of tiles that it is sure of "
        f"(p &gt; {asked.at_least:g}, at most {asked.tiles_a_class} a class). <b>TCAV</b> is the "
        "share of tiles where it does: 0.5 says nothing. <b>Br</b> also weighs how alike the tiles "
        "react and how well the layer tells the concept: above 0 the concept speaks for the class, "
        "below against it, and near 0 it does not matter. Stars (*) differ from directions of "
        f"{asked.permutations} random permutations of the same values (q &lt; 0.05 by Benjamini "
        "and Hochberg); the others may be chance. Behind a layer that only linear ones follow, "
        "every direction has TCAV 0 or 1, and no Br. Agreement is the mean cosine of a direction "
        "with those of parts of the tiles: near 1 it is stable. The paper's t tests are in "
        "relevance.csv; their repetitions share tiles, so that their p are too small.</p>",
        drawn,
        "<details><summary>As numbers</summary>",
        table(head, rows),
        "</details>",
    ]


def _scale(study: Study, place: int) -> str:
    """Return a row of tiles from the lowest to the highest value of a concept."""
    values, name = study.concepts.values[:, place], study.concepts.names[place]
    order = np.argsort(values, kind="stable")
    rows = order[np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int)]
    tiles = [
        picture(read_image(study.tiles.files[row]), f"{values[row]:.3g}", width=110) for row in rows
    ]
    said = f": {SAID[name]}" if name in SAID else ""
    return f"<div><b>{shown(name)}</b>{shown(said)}<br>{''.join(tiles)}</div>"


def _with_error(row: Row, what: str) -> str:
    return f"{_number(row[f'r2_{what}'])} ± {_number(row[f'se_{what}'])}"


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_csv(path, rows[0], ([_cell(row[name]) for name in rows[0]] for row in rows))


def _cell(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return f"{value:.8g}" if math.isfinite(value) else ""
    return value

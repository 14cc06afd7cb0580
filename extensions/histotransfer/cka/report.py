"""What a comparison leaves on disk: cka.csv, pictures, summary.json and report.html."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_extensions.histotransfer.cka.figures import SHOWN, draw_common, draw_pairs
from tiaft_extensions.histotransfer.cka.study import (
    MINIBATCH,
    PLAIN,
    UNBIASED,
    Comparison,
    Interval,
    Side,
)
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import (
    refuse_existing,
    refuse_unwritable,
    write_csv,
    write_folder_atomically,
)
from tiaft_plugin.page import page, shown, table
from tiaft_plugin.tiles.fingerprint import fingerprint

TABLE, SUMMARY, REPORT = "cka.csv", "summary.json", "report.html"


def check_out(out: Path, *, overwrite: bool = False) -> None:
    """Raise TiaftError, before long work, where OUT may not be written."""
    refuse_unwritable(out)
    if not overwrite:
        refuse_existing(out)
    elif out.exists() and not (out / TABLE).is_file():
        raise TiaftError(f"{out} is not of `tiaft histotransfer cka`: it is left alone")


def write_comparison(
    out: Path, found: Comparison, *, seed: int = 0, overwrite: bool = False
) -> Path:
    """Write the folder OUT, all of it or nothing; return its report. Raises TiaftError."""
    check_out(out, overwrite=overwrite)
    with write_folder_atomically(out, overwrite=overwrite) as folder:
        rows = _rows(found)
        write_csv(folder / TABLE, next(rows), rows)
        figures = {"cka": draw_pairs(found)}
        if found.common:
            figures["by_layer"] = draw_common(found)
        for name, (_, png) in figures.items():
            (folder / f"{name}.png").write_bytes(png)
        text = json.dumps(_summary(found, seed), indent=2, ensure_ascii=False)
        (folder / SUMMARY).write_text(text + "\n", encoding="utf-8")
        drawn = {name: svg for name, (svg, _) in figures.items()}
        (folder / REPORT).write_text(_page(found, drawn, seed), encoding="utf-8")
    return out / REPORT


def common_table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return head and rows, for people, of the layers that both models have."""
    head = ["layer", "channels", *(f"CKA, {SHOWN[kind]}" for kind in found.cka)]
    rows = [
        [name, str(found.a.channels[a]), *(_three(cka[a, b]) for cka in found.cka.values())]
        for name, a, b in found.common
    ]
    if found.interval:
        place = head.index(f"CKA, {SHOWN[UNBIASED]}") + 1
        head.insert(place, "95 % interval")
        for row, (_, a, b) in zip(rows, found.common, strict=True):
            row.insert(place, _between(found.interval, a, b))
    return head, rows


def nearest_table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return head and rows, for people, of the layer of B that is most like each layer of A."""
    head = [f"layer of {found.a.name}", f"most like it in {found.b.name}", "CKA"]
    head += ["95 % interval"] if found.interval else []
    rows = []
    for a, (name, values) in enumerate(zip(found.a.layers, found.best, strict=True)):
        if np.isfinite(values).any():
            place = int(np.nanargmax(values))
            between = [_between(found.interval, a, place)] if found.interval else []
            rows.append([name, found.b.layers[place], _three(values[place]), *between])
    return head, rows


def _between(interval: Interval, a: int, b: int) -> str:
    ends = [_three(end[a, b]) for end in (interval.low, interval.high)]
    return " to ".join(ends) if "–" not in ends else "–"


def _rows(found: Comparison) -> Iterator[list[Any]]:
    kinds = dict(found.cka)
    if found.interval:
        kinds |= {"unbiased_low": found.interval.low, "unbiased_high": found.interval.high}
    yield ["layer_a", "channels_a", "layer_b", "channels_b", *(f"cka_{kind}" for kind in kinds)]
    for a, (layer_a, channels_a) in enumerate(zip(found.a.layers, found.a.channels, strict=True)):
        for b, (name, channels) in enumerate(zip(found.b.layers, found.b.channels, strict=True)):
            values = [cka[a, b] for cka in kinds.values()]
            cells = [f"{value:.8g}" if math.isfinite(value) else "" for value in values]
            yield [layer_a, channels_a, name, channels, *cells]


def _summary(found: Comparison, seed: int) -> dict[str, Any]:
    return {
        "a": _about(found.a),
        "b": _about(found.b),
        "tiles": {
            "name": found.tiles.name,
            "number": len(found.tiles),
            "fingerprint": fingerprint(found.tiles),
        },
        "batches": list(found.batches),
        "interval": f"jackknife, {found.interval.left_out}" if found.interval else None,
        "seed": seed,
        "notes": found.notes,
    }


def _about(side: Side) -> dict[str, Any]:
    subject = side.subject
    return {
        "model": side.name,
        "sha256": subject.sha256 or None,
        "tile_size": subject.tile_size,
        "mpp": subject.mpp,
        "layers": dict(zip(side.layers, side.channels, strict=True)),
    }


def _page(found: Comparison, drawn: dict[str, str], seed: int) -> str:
    a, b = found.a.name, found.b.name
    parts = [
        f"<h1>How alike {shown(a)} and {shown(b)} are</h1>",
        f"<p>Both looked at the same {len(found.tiles)} tiles of {shown(found.tiles.name)}. "
        "<b>CKA</b> (centred kernel alignment) asks of a layer which tiles are alike to it, and "
        "compares that with what is alike to another layer: 1 where both agree on all pairs of "
        "tiles (even when one is the other's rotation, shift or multiple), 0 where one says "
        "nothing about the other. It does not say which of two layers is better.</p>",
        *(f'<p class="warning">{shown(note)}</p>' for note in found.notes),
    ]
    if found.common:
        parts += [
            "<h2>Layer by layer</h2>",
            f"<p>Each layer of {shown(a)} with the same layer of {shown(b)}, shallow to deep. "
            "Where one model was fine-tuned from the other, a low value shows where training "
            "changed what the network sees.</p>",
            drawn["by_layer"],
            table(*common_table(found)),
        ]
    parts += [
        "<h2>All layers</h2>",
        f"<p>Layers of {shown(a)} upwards, of {shown(b)} to the right, shallow to deep.</p>",
        drawn["cka"],
        table(*nearest_table(found)),
        "<h2>How it was computed</h2>",
        _told(found, seed),
    ]
    return page(f"CKA of {a} and {b}", parts)


def _told(found: Comparison, seed: int) -> str:
    kinds = {
        PLAIN: "<b>Plain</b> CKA is ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) of centred features. Where a "
        "layer has many channels and tiles are few it is biased: even unrelated layers then seem "
        "alike.",
        UNBIASED: "<b>Unbiased</b> CKA uses HSIC₁, which has no such bias: unrelated layers have "
        "0 on average, and a single value may lie a little below.",
        MINIBATCH: "<b>By minibatches</b>, HSIC₁ is averaged over "
        f"{len(found.batches)} random batches of {_range(found.batches)} tiles: an estimate of "
        "the unbiased one.",
    }
    said = " ".join(text for kind, text in kinds.items() if kind in found.cka)
    return (
        f"<p>{said} What a layer gives is averaged over its map; what a transformer's block gives, "
        "over its tokens, the class token and others before the tile's own among them. "
        f"{_spread(found.interval)} Seed {seed}. cka.csv has all pairs.</p>"
    )


def _spread(interval: Interval | None) -> str:
    if interval is None:
        return (
            "These numbers have no interval: it needs --exact, more tiles, or fewer tiles and "
            "layers than took too much memory; other tiles give others."
        )
    return (
        "The 95 % interval is of the unbiased CKA, by a jackknife that leaves out one of "
        f"{interval.left_out} at a time: so far other such tissue may give others. Intervals of "
        "two layers are not independent: the same tiles are in both."
    )


def _range(sizes: tuple[int, ...]) -> str:
    least, most = min(sizes), max(sizes)
    return str(least) if least == most else f"{least} or {most}"  # array_split's differ by one


def _three(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}" if math.isfinite(value) else "–"

"""What `tiaft histotransfer maps` leaves on disk: pictures, tables and a page."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from tiaft_extensions.histotransfer.kept import AttentionRun
from tiaft_extensions.histotransfer.maps.figures import draw_map, draw_tiles
from tiaft_extensions.histotransfer.maps.study import SlideAttention
from tiaft_extensions.interpretability.report import STYLE
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import refuse_existing, refuse_unwritable, write_csv
from tiaft_plugin.page import page, shown, table

SLIDES, TILES, REPORT = "slides.csv", "tiles.csv", "report.html"
PICTURED = 12  # slides in the page: it stands for itself, and must not become too large
WIDEST = 900  # px, of a picture in the page


@dataclass(frozen=True)
class Written:
    """A slide whose files are written: its lines of the tables, and its part of the page."""

    line: list[str]
    tiles: list[list[str]]
    html: str


def check_out(out: Path, *, overwrite: bool = False) -> None:
    """Raise TiaftError, before long work, where OUT may not be written."""
    refuse_unwritable(out)
    if not overwrite:
        refuse_existing(out)
    elif out.exists() and not all((out / name).is_file() for name in (SLIDES, TILES, REPORT)):
        raise TiaftError(f"{out} is not of `tiaft histotransfer maps`: it is left alone")


def write_pictures(
    folder: Path, found: SlideAttention, *, count: int, pictured: bool = True
) -> Written:
    """Write a slide's heat map, and its `count` tiles with the most attention, into `folder`.

    Without the slide there is no picture of tiles, and of a folder of tiles, which lie nowhere, no
    map. `pictured` slides stand in the page.
    """
    rows = found.order[:count].tolist()
    drawn = {}
    if found.source is None or found.slide is not None:
        drawn[f"{found.stem}-map.png"] = draw_map(found)
    if found.source is not None:
        drawn[f"{found.stem}-tiles.png"] = draw_tiles(found, rows, found.pixels(rows))
    for name, png in drawn.items():
        (folder / name).write_bytes(png)
    html = ""
    if pictured:
        seen = [_figure(png, f"Attention to {found.name}") for png in drawn.values()]
        html = "\n".join([f"<h3>{shown(found.name)}</h3>", f"<p>{_caption(found)}</p>", *seen])
    return Written(_line(found, list(drawn)), list(_tile_lines(found, rows)), html)


def write_tables(
    folder: Path, run: AttentionRun, written: Sequence[Written], notes: Sequence[str]
) -> None:
    """Write slides.csv, tiles.csv and report.html of all slides."""
    write_csv(folder / SLIDES, _HEAD, [each.line for each in written])
    write_csv(folder / TILES, _TILE_HEAD, [line for each in written for line in each.tiles])
    (folder / REPORT).write_text(_page(run, written, notes), encoding="utf-8")


_HEAD = [
    "slide", "bag", "patient", "label", "predicted", "fold", "tiles", "share_of_bag",
    "tiles_with_half", "pictures",
]  # fmt: skip
_TILE_HEAD = [
    "slide", "rank", "x", "y", "width", "height", "attention", "times_mean", "percentile", "logit",
]  # fmt: skip


def _line(found: SlideAttention, files: Sequence[str]) -> list[str]:
    return [
        found.name, found.tiles.bag, found.patient, found.label, found.predicted,
        str(found.tiles.fold), str(len(found.times)), f"{found.share:.6g}", str(found.half),
        ";".join(files),
    ]  # fmt: skip


def _tile_lines(found: SlideAttention, rows: Sequence[int]) -> Iterator[list[str]]:
    percentile = found.percentile
    for rank, row in enumerate(rows, start=1):
        x0, y0, x1, y1 = found.bounds[row]
        place = [x0, y0, x1 - x0, y1 - y0]
        numbers = [found.tiles.attention[row], found.times[row], percentile[row]]
        numbers.append(found.tiles.held_out[row])
        told = [f"{value:.10g}" for value in place] + [f"{value:.6g}" for value in numbers]
        yield [found.name, str(rank), *told]


def _figure(png: bytes, words: str) -> str:
    """Return a picture for the page: smaller, and as JPEG, a tenth of its bytes."""
    from PIL import Image

    small, buffer = Image.open(BytesIO(png)).convert("RGB"), BytesIO()
    small.thumbnail((WIDEST, WIDEST))
    small.save(buffer, format="JPEG", quality=85)
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<p><img src="data:image/jpeg;base64,{text}" alt="{shown(words)}"></p>'


def _caption(found: SlideAttention) -> str:
    count, half = len(found.times), found.half
    few = f"{half:,} of {count:,} {'tiles have' if count > 1 else 'tile has'} half of the attention"
    several = f", and the slide {found.share:.1%} of that to {found.tiles.bag}"
    told = f"{found.label}; held out, predicted {found.predicted or 'nothing'}. {few}"
    return shown(told + several * (found.share < 0.9999) + ".")


def _page(run: AttentionRun, written: Sequence[Written], notes: Sequence[str]) -> str:
    wrong = sum(each.line[3] != each.line[4] for each in written)
    told = [[each.line[0], *each.line[2:5], *each.line[6:9]] for each in written]
    head = ["slide", "patient", "label", "predicted", "tiles", "share of bag", "tiles with half"]
    parts = [
        "<h1>Where attention lies</h1>",
        f"<p>Features <b>{shown(run.name)}</b>, classes {shown(', '.join(run.classes))}. Each "
        f"{shown(run.unit)} is looked at by the network of the fold that held it out: it never saw "
        f"its label. Of the {len(written)} slides here, {wrong} are of a {shown(run.unit)} that "
        "was predicted wrongly: look at what those maps are about, too.</p>",
        "<p>Attention is how much a tile counts in the mean that the class is told from. It is not "
        "a probability, it does not say <i>for which</i> class a tile speaks, and a slide of the "
        "other class has its tiles of most attention, too. A network that predicts no better than "
        "guessing has maps all the same: read the probe’s report first.</p>",
        *(f'<p class="warning">{shown(note)}</p>' for note in notes),
        *[each.html for each in written if each.html],
    ]
    if any(not each.html for each in written):
        parts.append(
            f"<p>The pictures of all {len(written)} slides are files beside this page.</p>"
        )
    parts += ["<h2>All slides</h2>", '<div class="scroll">', table(head, told), "</div>"]
    parts.append(
        "<p><small>“Share of bag”: of the attention to all slides of a patient. “Tiles with half”: "
        "how few tiles have half of the slide’s attention together. tiles.csv has the tiles with "
        "the most, in baseline pixels.</small></p>"
    )
    return page("Where attention lies", parts, STYLE)

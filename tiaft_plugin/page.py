"""What the HTML pages share: the style, tables, and figures whose bytes are always the same."""

import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

BLUE, ORANGE = "#0072b2", "#d55e00"
# Okabe and Ito's colours, which colour-blind readers tell apart; yellow is too pale for points.
COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } svg { max-width: 100%; height: auto }
th, td { padding: .25em .6em; border: 1px solid #ccc; text-align: right }
th:first-child, td:first-child { text-align: left } .scroll { overflow-x: auto }
.warning { background: #fff3cd; padding: .4em .8em; margin: .4em 0 } small { color: #555 }
"""


def page(title: str, parts: Iterable[str], style: str = "") -> str:
    """Return a whole page of HTML `parts`; `title` is plain text, `style` more CSS."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{shown(title)}</title><style>{_STYLE}{style}</style></head>\n"
        "<body>\n" + "\n".join(part for part in parts if part) + "\n</body></html>\n"
    )


def shown(words: Any) -> str:
    """Return anything as text for HTML, with nothing in it that is markup or cannot be seen."""
    return escape(visible(words))


def visible(words: Any) -> str:
    """Return anything as text without control characters, which XML and UTF-8 do not take."""
    return "".join(
        sign if sign.isprintable() or sign == "\xa0" else " " if sign.isspace() else "\ufffd"
        for sign in str(words)
    )


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], look: str = "") -> str:
    """Return a table; `look` is its CSS class, and then rows that begin anew are of class "new"."""
    heads = "".join(f"<th>{shown(cell)}</th>" for cell in head)
    lines, before = [], None
    for row in rows:
        begin = '<tr class="new">' if look and row[:1] != before else "<tr>"
        lines.append(f"{begin}{''.join(f'<td>{shown(cell)}</td>' for cell in row)}</tr>")
        before = row[:1]
    begin = f'<table class="{look}">' if look else "<table>"
    return f"{begin}<tr>{heads}</tr>{''.join(lines)}</table>"


def confusion_table(classes: Sequence[str], counts: Any, unit: str = "tiles") -> str:
    """Return a confusion matrix; `counts` (C, C) has true classes in rows."""
    lines = []
    for number, (name, row) in enumerate(zip(classes, counts, strict=True)):
        total = sum(row)
        cells = "".join(
            f'<td style="background:rgba(0,114,178,{n / max(total, 1) * 0.6:.2f})">{n}</td>'
            for n in row
        )
        right = f"{row[number] / total:.3f}" if total else "–"
        lines.append(f"<tr><td>{shown(name)}</td>{cells}<td>{total}</td><td>{right}</td></tr>")
    heads = "".join(f"<th>{shown(name)}</th>" for name in classes)
    return (
        f'<div class="scroll"><table><tr><th></th>{heads}<th>{shown(unit)}</th><th>right</th></tr>'
        + "".join(lines)
        + "</table></div>"
    )


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in matplotlib's own style while the block runs: same data, same bytes, on any desk."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # A sign that matplotlib's font lacks is drawn by the reader's browser, with its own.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()  # else a reader's matplotlibrc would change the bytes
        matplotlib.rcParams.update(
            # parse_math: a gene called $x is a name, no formula
            {"svg.hashsalt": "tiaft", "svg.fonttype": "none", "text.parse_math": False}
        )
        yield


def svg(figure: Any, label: str = "") -> str:
    """Return a matplotlib figure as SVG to stand in a page; `label` is for those who cannot see it.

    Raises what matplotlib does. Call it inside `drawing()`.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    drawn = buffer.getvalue()
    head, bracket, body = drawn[drawn.index("<svg") :].partition(">")
    # HTML needs no namespaces, and no names of groups: every figure of a page would have the same.
    head = re.sub(r' xmlns(:\w+)?="[^"]*"', "", head)
    body = re.sub(r'<g id="\w+_\d+">', "<g>", body).replace("xlink:href=", "href=")
    if label:
        head += f' role="img" aria-label="{shown(label)}"'
    return head + bracket + body

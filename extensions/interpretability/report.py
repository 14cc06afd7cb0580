"""One page, report.html, of what the ``interpret`` commands found: a section a command."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tiaft_plugin import page
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import locked, refuse_unwritable, write_atomically, write_folder_atomically

COMMANDS = ("gradcam", "visualize", "concepts")  # in the order of the page
SECTION, REPORT = "section.html", "report.html"
STYLE = """
figure { display: inline-block; margin: .4em .6em .8em 0; vertical-align: top }
figcaption { font-size: 13px; color: #444; overflow-wrap: anywhere }
img { image-rendering: auto; border: 1px solid #ddd; max-width: 100% }
td img { display: block } h3 { margin-top: 1.6em }
"""


@contextmanager
def section_folder(out: Path | str, command: str, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder that becomes OUT/<command> when the block ends well; then report.

    The block puts a ``section.html`` there, HTML that begins with a heading (h2). Raises TiaftError
    where OUT/<command> is there already and `overwrite` is False, or is none of these commands'.
    """
    folder = Path(out) / command
    refuse_unwritable(folder)
    if folder.exists():
        if not overwrite:
            raise TiaftError(f"{folder} exists already: choose another --out, or pass --overwrite")
        if not (folder / SECTION).is_file():
            raise TiaftError(f"{folder} is not of `tiaft interpret`: it is left alone")
    with write_folder_atomically(folder, overwrite=overwrite) as temporary:
        yield temporary
        if not (temporary / SECTION).is_file():
            raise AssertionError(f"{command} wrote no {SECTION}")
    write_report(folder.parent)


def write_report(out: Path | str) -> Path:
    """Write OUT/report.html from the sections of all commands that wrote to `out`; return it."""
    out = Path(out)
    path = out / REPORT
    with locked(path, wait=True):  # two commands may end at once
        found = [out / command / SECTION for command in COMMANDS]
        sections = [file.read_text(encoding="utf-8") for file in found if file.is_file()]
        title = "What the model sees"
        parts = [
            f"<h1>{title}</h1>",
            "<p>These pictures and numbers describe how a network reacts. They do not prove why: "
            "each section says what its method can and cannot show.</p>",
            *sections,
        ]
        with write_atomically(path) as temporary:
            temporary.write_text(page.page(title, parts, STYLE), encoding="utf-8")
    return path


def picture(pixels: np.ndarray, caption: str = "", *, width: int | None = None) -> str:
    """Return uint8 pixels (H, W, 3) as a figure that stands in the page itself, with a caption.

    `width` is in px of the page; the caption is read to those who cannot see the picture, too.
    """
    size = f' style="width: {width}px"' if width else ""
    drawn = image(png_bytes(pixels), caption, size)
    return f"<figure{size}>{drawn}<figcaption>{page.shown(caption)}</figcaption></figure>"


def image(png: bytes, words: str, attributes: str = "") -> str:
    """Return a PNG that stands in the page itself; `words` are for those who cannot see it."""
    text = base64.b64encode(png).decode("ascii")
    return f'<img src="data:image/png;base64,{text}" alt="{page.shown(words)}"{attributes}>'


def png_bytes(pixels: np.ndarray) -> bytes:
    """Return uint8 pixels (H, W, 3) as PNG: the same pixels give the same bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()

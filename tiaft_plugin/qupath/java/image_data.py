"""The objects of one image of a QuPath project: read, found, removed, added, and saved elsewhere.

What QuPath reads is what QuPath writes: people's objects, their children, the workflow, stains and
properties pass through its own reading and writing, and nothing here looks into them. What it
would drop without a word (the objects of an extension that is not there, the end of a file that
was cut short) is refused before.
"""

import mmap
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import shapely

from tiaft_plugin.errors import TiaftError, first_line
from tiaft_plugin.qupath.java.start import has_class, java_errors, start_java
from tiaft_plugin.qupath.marks import Mark
from tiaft_plugin.qupath.project.project_file import ImageEntry, refuse_half_saved

if TYPE_CHECKING:
    from tiaft_plugin.qupath.java.image import ImageData as ImageData

_END = b"t\x00\x03EOF"  # how QuPath ends a data file
# How Java's serialisation announces a class: a byte, the length of its name, its name.
_CLASS_NAMES = re.compile(rb"r\x00([\x04-\xff])([A-Za-z_][\w$]*(?:\.[\w$]+)+)")


@dataclass(frozen=True)
class Annotation:
    """An annotation of an image, in pixels of the QuPath image.

    `class_name` is as QuPath writes it ("Tumor: Positive") or None, `geometry` what was drawn:
    points and lines, too, and not always valid. `mark` is there if tiaft made it.
    """

    id: str
    name: str | None
    class_name: str | None
    geometry: shapely.Geometry
    locked: bool
    mark: Mark | None


def open_image(entry: ImageEntry) -> "ImageData":
    """Read an image's objects, or begin with none where it has no data file.

    QuPath 0.6 and later do it without the slide, QuPath 0.5 opens it. Raises TiaftError: for data
    that this QuPath would read in part only, and for a slide that is gone with QuPath 0.5.
    """
    start_java()
    from tiaft_plugin.qupath.java.image import ImageData
    from tiaft_plugin.qupath.java.reading import read, take_colours

    refuse_half_saved(entry)
    there = entry.data.exists()
    if there:
        _refuse_partial(entry.data)
    with java_errors(entry.data if there else entry.name):
        coloured = take_colours(entry)
        return ImageData(entry, read(entry, there), coloured)


def _refuse_partial(path: Path) -> None:
    """Raise TiaftError for a data file whose end is missing, or with classes unknown here.

    QuPath reads what it can of both, and would write only that.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            whole = data[-len(_END) :] == _END
            names = {
                match[2] for match in _CLASS_NAMES.finditer(data) if len(match[2]) == match[1][0]
            }
    except (OSError, ValueError) as error:
        raise TiaftError(f"{path} cannot be read: {first_line(error)}") from error
    if not whole:
        raise TiaftError(
            f"{path} is cut short: QuPath was stopped while it saved, or the copy is not whole; "
            "open the image in QuPath, see what is there, and save it"
        )
    for name in sorted(names):
        if not has_class(name.decode()):
            raise TiaftError(
                f"{path} holds a {name.decode()}, which QuPath does not know here and would lose: "
                "it is of an extension, or of a newer QuPath; use that one (PAQUO_QUPATH_DIR)"
            )

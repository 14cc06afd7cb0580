"""Writing an image of a project so that QuPath finds its old objects or the new, never half.

QuPath itself writes over the data file, and over the project's. Here the new data file stands
whole beside the old one before it takes its place; what the project says of it comes after.
"""

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tiaft_plugin.engine.predictions import Colour
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_atomically
from tiaft_plugin.qupath.project.project_file import (
    ImageEntry,
    Project,
    Snapshot,
    extend_classes,
    refuse_changed,
    refuse_half_saved,
    set_image_metadata,
    take_snapshot,
)

if TYPE_CHECKING:
    from tiaft_plugin.qupath.java.image_data import ImageData

BACKUP = ".data.qpdata.before-tiaft"


@dataclass(frozen=True)
class Writing:
    """One image of a project, as it was before anything was read of it."""

    project: Project
    entry: ImageEntry
    before: Snapshot

    def save(
        self,
        image: "ImageData",
        *,
        classes: Sequence[tuple[str, Colour]],
        metadata: Mapping[str, str],
        forget: Collection[str] = (),
    ) -> None:
        """Put an image's objects in place of those it had, and tell the project.

        The class list is extended by `classes`; of the image's metadata `forget` is removed and
        `metadata` added. The old data file is kept aside until all is written, and comes back if
        that fails. Raises TiaftError, also where somebody else wrote in the meantime.
        """
        self.entry.folder.mkdir(parents=True, exist_ok=True)
        extend_classes(self.project.path, classes)
        with write_atomically(self.entry.data) as temporary:
            image.save_to(temporary)
            refuse_changed(self.before)
            _set_aside(self.entry.data)
        with _put_back_on_failure(self.entry.data):
            set_image_metadata(self.project.path, self.entry.id, metadata, forget)
        _write_summary(self.entry.folder / "summary.json", image)


@contextmanager
def rewrite(project: Project, entry: ImageEntry, *, dry_run: bool) -> Iterator[Writing]:
    """Give what writes an image; what was read of it meanwhile has to be written at the end."""
    refuse_half_saved(entry)
    if not dry_run:
        _tidy(entry.folder)
    yield Writing(project, entry, take_snapshot(project.path, entry.data))


def _set_aside(data: Path) -> None:
    """Keep the old data file under another name, where there is one."""
    if data.exists():
        backup = data.parent / BACKUP
        try:
            os.link(data, backup)  # takes no time and no space
        except OSError:
            shutil.copy2(data, backup)


@contextmanager
def _put_back_on_failure(data: Path) -> Iterator[None]:
    """Have what was set aside back, or no data file where there was none, if the block fails.

    Only for what comes after the new file is there: before, a data file that is not the old one is
    somebody else's.
    """
    backup = data.parent / BACKUP
    try:
        yield
    except BaseException:
        if backup.exists():
            backup.replace(data)
        else:
            data.unlink(missing_ok=True)
        raise
    finally:
        backup.unlink(missing_ok=True)


def _tidy(folder: Path) -> None:
    """Remove what a killed push left: the data file itself is the old or the new one, whole."""
    for left in (*folder.glob(".data-*.qpdata"), *folder.glob(".summary-*.json"), folder / BACKUP):
        left.unlink(missing_ok=True)


def _write_summary(path: Path, image: "ImageData") -> None:
    """Write what QuPath keeps beside the data file, to know it without reading it."""
    with suppress(OSError, TiaftError), write_atomically(path) as temporary:
        temporary.write_text(json.dumps(image.summary(), indent=2), encoding="utf-8")

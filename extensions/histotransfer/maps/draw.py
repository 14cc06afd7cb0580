"""The slides of a run, one after the other: drawn, measured for QuPath, and written."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tiaft_extensions.histotransfer.kept import AttentionRun
from tiaft_extensions.histotransfer.maps.report import (
    PICTURED,
    Written,
    write_pictures,
    write_tables,
)
from tiaft_extensions.histotransfer.maps.scores import keep_attention_beside, same_slide
from tiaft_extensions.histotransfer.maps.study import (
    SlideAttention,
    attention_to,
    predicted_by,
    source_of,
)
from tiaft_plugin.engine.predictions import predictions_of
from tiaft_plugin.engine.sinks import Outlet
from tiaft_plugin.engine.store import Store, read_store
from tiaft_plugin.engine.verify import find_slide
from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.files import write_folder_atomically
from tiaft_plugin.progress import progress


@dataclass(frozen=True)
class How:
    """What is asked for: `slides` are files or folders; `count` tiles of each are shown.

    The tiles of `predictions` get attention, and go to `outlets`. `stain_target` is the image that
    stains were normalised to.
    """

    slides: Sequence[Path] = ()
    count: int = 12
    predictions: Sequence[Store] = ()
    outlets: Sequence[Outlet] = ()
    stain_target: Path | None = None


@dataclass
class Drawn:
    """The slides that were drawn, what to know of them, and why others were not."""

    slides: list[Written] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def draw_slides(
    run: AttentionRun, stores: Sequence[Path], out: Path, how: How, *, overwrite: bool = False
) -> Drawn:
    """Draw a run's attention to the slides of stores into the folder OUT, all of it or nothing.

    Raises TiaftError where no slide can be drawn.
    """
    predicted, drawn = predicted_by(run), Drawn()
    with write_folder_atomically(out, overwrite=overwrite) as folder:
        with progress(len(stores), "Drawing", "slide", wanted=None) as bar:
            for path in stores:
                try:
                    store = read_store(path)
                    source = source_of(store, find_slide(path, how.slides), how.stain_target)
                    found = attention_to(run, store, source, predicted)
                    pictured = len(drawn.slides) < PICTURED
                    with TemporaryDirectory(dir=folder) as own:  # what fails leaves no file
                        one = write_pictures(Path(own), found, count=how.count, pictured=pictured)
                        drawn.notes += _measure(run, found, how, Path(own))
                        for file in Path(own).iterdir():
                            file.replace(folder / file.name)
                    drawn.slides.append(one)
                except TiaftError as error:
                    drawn.failures.append(str(error))
                bar.update()
        if not drawn.slides:
            raise (TiaftError if len(drawn.failures) == 1 else Stopped)("; ".join(drawn.failures))
        write_tables(folder, run, drawn.slides, [*drawn.notes, *drawn.failures])
    return drawn


def _measure(run: AttentionRun, found: SlideAttention, how: How, folder: Path) -> list[str]:
    """Keep attention beside the predictions of a slide, send them out; return what to know."""
    notes = []
    if how.slides and found.source is None:
        notes.append(f"{found.name} is not among --slides: its map lies on white")
    own = [store for store in how.predictions if same_slide(found.store, store)]
    if how.predictions and not own:
        notes.append(f"{found.name} is not among --predictions: QuPath gets nothing of it")
    for store in own:
        count = keep_attention_beside(run, found, store)
        if count < len(store):
            notes.append(f"{store.path}: {count:,} of {len(store):,} tiles have attention")
        tiles = predictions_of(store, found.slide or Path(found.name))
        for outlet in how.outlets:
            outlet.write(tiles, outlet.target or folder / f"{store.path.stem}{outlet.suffix}")
    return notes

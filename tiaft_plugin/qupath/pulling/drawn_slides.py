"""Slides with all that was drawn on them, in their own baseline pixels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tiaft_plugin.engine.jobs import patient_of, read_patients
from tiaft_plugin.engine.slides import open_slide, slide_bounds, slide_mpp
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.pulling.asked import Pulled, Where
from tiaft_plugin.qupath.pulling.drawings import Drawing
from tiaft_plugin.qupath.regions import Region

if TYPE_CHECKING:
    from tiatoolbox.wsicore import WSIReader


@dataclass(frozen=True)
class DrawnSlide:
    """A slide, its `size` and `mpp` (x, y) at baseline, and what was drawn on it.

    That is `annotations`, and tiles whose class a person `changed`. Names of its tiles begin with
    `stem`; splits respect `group`.
    """

    path: Path
    stem: str
    group: str
    size: tuple[int, int]
    mpp: tuple[float, float]
    annotations: Sequence[Region] = ()
    changed: Sequence[Region] = ()
    notes: Sequence[str] = ()

    def open(self) -> "WSIReader":
        """Open the slide. Raises TiaftError."""
        return _open(self.path, self.mpp[0])


def drawn_slides(
    drawings: Sequence[Drawing], where: Where
) -> tuple[list[DrawnSlide], list[Pulled]]:
    """Open the slides of drawings; return them, and the results of those that cannot be used."""
    patients = read_patients(where.patients) if where.patients else {}
    by_path: dict[Path, list[Drawing]] = {}
    for drawing in drawings:
        by_path.setdefault(drawing.slide.resolve(), []).append(drawing)
    slides: list[DrawnSlide] = []
    failed: list[Pulled] = []
    for path, of_slide in by_path.items():
        try:
            group = patient_of(path, patients) or path.name
            known = [drawing.mpp for drawing in of_slide if drawing.mpp]
            reader = _open(path, where.mpp or (known[0] if known else None))
        except TiaftError as error:
            failed.append(Pulled(of_slide[0].source, reason=f"{path.name}: {error}"))
            continue
        stem = _free(path.stem, [slide.stem for slide in slides])
        width, height = (int(value) for value in reader.info.slide_dimensions)
        slide = DrawnSlide(path, stem, group, (width, height), slide_mpp(reader))
        for drawing in of_slide:
            try:
                slide = _with_drawing(slide, drawing, reader)
            except TiaftError as error:
                failed.append(Pulled(drawing.source, reason=str(error)))
        slides.append(slide)
    return slides, failed


def _open(path: Path, mpp: float | None) -> "WSIReader":
    try:
        return open_slide(path, mpp)
    except TiaftError as error:
        raise TiaftError(str(error).replace("--mpp", "--slide-mpp")) from error


def _with_drawing(slide: DrawnSlide, drawing: Drawing, reader: "WSIReader") -> DrawnSlide:
    frame = drawing.frame(slide.size, slide_bounds(reader))

    def moved(regions: Iterable[Region]) -> list[Region]:
        return [replace(r, geometry=frame.geometry_to_slide(r.geometry)) for r in regions]

    return replace(
        slide,
        annotations=_joined(slide.annotations, moved(drawing.annotations)),
        changed=_joined(slide.changed, moved(drawing.changed)),
        notes=[*slide.notes, *drawing.notes],
    )


def _joined(before: Sequence[Region], added: Sequence[Region]) -> list[Region]:
    """Join what two drawings have; the same object in both is one."""
    known = {region.id: region for region in before}
    return [*before, *(region for region in added if known.get(region.id) != region)]


def _free(stem: str, taken: Sequence[str]) -> str:
    """Return a name that no other slide's tiles have: the stem, or with a number."""
    folded = {name.casefold() for name in taken}
    names = [stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 2))]
    return next(name for name in names if name.casefold() not in folded)

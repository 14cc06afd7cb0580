"""Annotations and corrections out of QuPath, as a tile set to fine-tune on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.files import (
    DISK_ERRORS,
    refuse_existing,
    refuse_unwritable,
    write_folder_atomically,
)
from tiaft_plugin.qupath.pulling.asked import How, Pulled, Where
from tiaft_plugin.qupath.pulling.drawings import Drawing, NoDrawing, read_drawings
from tiaft_plugin.qupath.pulling.drawn_slides import drawn_slides
from tiaft_plugin.qupath.pulling.slide_plan import SlidePlan, plan_slides
from tiaft_plugin.qupath.pulling.tile_files import ABOUT, write_tile_files
from tiaft_plugin.qupath.pushing.plan import find_model


def pull(
    sources: Sequence[Path],
    out: Path,
    how: How,
    where: Where | None = None,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
) -> list[Pulled]:
    """Cut the tiles that people labelled in `sources` into the folder `out`, with a manifest.csv.

    `sources` are QuPath projects (read with QuPath), GeoJSON files that QuPath exported, and
    folders of them. `out` appears when it is whole. What is wrong with one slide does not stop the
    others: its result has a reason. With `dry_run` nothing is written, and no pixel read. Raises
    TiaftError where nothing can be pulled at all.
    """
    where = where or Where()
    _check(out, how, overwrite, dry_run)
    drawings, failed = _read(sources, where)
    return pull_drawings(drawings, out, how, where, failed, overwrite=overwrite, dry_run=dry_run)


def pull_drawings(
    drawings: Sequence[Drawing],
    out: Path,
    how: How,
    where: Where | None = None,
    failed: Sequence[Pulled] = (),
    *,
    overwrite: bool = False,
    dry_run: bool = False,
) -> list[Pulled]:
    """Do what `pull` does, with drawings from anywhere; `failed` are results of what gave none."""
    _check(out, how, overwrite, dry_run)
    drawings = _chosen(drawings, how)
    used = (region for each in drawings for region in (*each.annotations, *each.changed))
    how.labels.refuse_unknown(region.class_name or "" for region in used)
    slides, unusable = drawn_slides(drawings, where or Where())
    failed = [*failed, *unusable]
    plans = plan_slides(slides, how)
    if not any(plan.tiles for plan in plans):
        raise TiaftError(_nothing(plans, failed))
    results = [plan.pulled for plan in plans]
    if not dry_run:
        with _disk_errors(out), write_folder_atomically(out, overwrite=overwrite) as folder:
            results = write_tile_files(folder, plans, how)
    return [*results, *failed]


def _check(out: Path, how: How, overwrite: bool, dry_run: bool) -> None:
    """Raise TiaftError where tiles have no size, or `out` may not be made."""
    if (how.tile_size is None or how.mpp is None) and how.corrections_of is None:
        raise TiaftError("tiles need a size and µm/px: pass --tile-size and --mpp")
    if not dry_run:
        _refuse_taken(out, overwrite)


def _refuse_taken(out: Path, overwrite: bool) -> None:
    """Raise TiaftError where `out` may not be made; only what a pull made is ever replaced."""
    if not overwrite:
        refuse_existing(out)
    elif out.exists() and not (out / ABOUT).is_file():
        raise TiaftError(
            f"{out} is not what `tiaft qupath pull` made (it has no {ABOUT}), so that it is not "
            "replaced: choose another folder"
        )
    refuse_unwritable(out)


def _read(sources: Sequence[Path], where: Where) -> tuple[list[Drawing], list[Pulled]]:
    drawings, failed = [], []
    for found in read_drawings(sources, where.slides, where.moved):
        if isinstance(found, NoDrawing):
            failed.append(Pulled(found.source, reason=found.reason))
        else:
            drawings.append(found)
    return drawings, failed


def _chosen(drawings: Sequence[Drawing], how: How) -> list[Drawing]:
    """Leave out what is not asked for: annotations, or other models' corrections, with a note."""
    sha256 = None
    if how.corrections_of is not None:
        models = {model for drawing in drawings for model in drawing.models}
        sha256 = find_model(models, how.corrections_of)
    chosen = []
    for drawing in drawings:
        marks = [(region, region.mark) for region in drawing.changed if region.mark is not None]
        others = [mark.model for _, mark in marks if mark.sha256 != sha256]
        notes = list(drawing.notes)
        if others:
            names = ", ".join(sorted(set(others)))
            notes.append(f"{len(others)} corrected tiles left out: --corrections-of {names}")
        chosen.append(
            replace(
                drawing,
                annotations=drawing.annotations if how.annotations else [],
                changed=[region for region, mark in marks if mark.sha256 == sha256],
                notes=notes,
            )
        )
    return chosen


def _nothing(plans: Sequence[SlidePlan], failed: Sequence[Pulled]) -> str:
    """Say why there is no tile at all."""
    reasons = [f"{each.slide}: {each.reason}" for each in failed]
    reasons += [f"{plan.pulled.slide}: {note}" for plan in plans for note in plan.pulled.notes]
    more = f" and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    listed = "; ".join(reasons[:5]) or "nobody drew an annotation with a class, or corrected a tile"
    return f"no tile to pull: {listed}{more}"


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise Stopped(f"{out} cannot be written: {error.strerror}") from error
        raise

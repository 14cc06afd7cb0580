"""Which patient a slide is of."""

from collections.abc import Mapping
from pathlib import PurePath

import numpy as np

from tiaft_plugin.tiles.words import some


def lookup(slide: str, table: Mapping[str, str]) -> str:
    """Return the patient of a slide's name or stem, "" where the table has neither."""
    return table.get(slide) or table.get(PurePath(slide).stem) or ""


def name_patients(
    slides: np.ndarray, table: Mapping[str, str], where: str, *, certain: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Return the patient of each of `slides` (N,), and sentences on slides that have none.

    Such a slide is its own patient. `certain` are names that may well be patients already: nothing
    is said of them where the table names none.
    """
    names = [str(slide) for slide in np.unique(slides) if slide]
    of = {slide: lookup(slide, table) for slide in names}
    alone = [slide for slide in names if not of[slide]]
    notes = []
    if alone and (table or not certain):
        notes.append(alone_note(alone))
    found = np.array([of.get(str(slide)) or str(slide) for slide in slides])
    return found, notes


def alone_note(slides: list[str]) -> str:
    """Return the sentence on slides whose patient nobody names."""
    one = "1 slide has no patient and counts as a patient of its own"
    more = f"{len(slides)} slides have no patient and count as patients of their own"
    return (
        f"{one if len(slides) == 1 else more}: {some(slides)}; "
        "several slides of one patient would stand on both sides of a fold"
    )

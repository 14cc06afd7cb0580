"""Which sample belongs to which slide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from tiaft_extensions.transcriptomics.expression.tables import Expression
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.reproduce.barcodes import PRIMARY, kind_of, read_sample, read_slide_name
from tiaft_plugin.reproduce.leftout import LeftOut
from tiaft_plugin.tiles.words import some


@dataclass(frozen=True)
class Pairs:
    """N slides that have expression, sorted by name, all (N,) text but `rows`.

    `patients` is what splits must respect; `rows` (N,) int64 are places among the samples, where
    several slides may have the same one.
    """

    slides: np.ndarray
    patients: np.ndarray
    rows: np.ndarray


def match_slides(
    slides: Sequence[str],
    expression: Expression,
    *,
    patients: Mapping[str, str] | None = None,
    left: LeftOut | None = None,
) -> Pairs:
    """Return the slides whose sample is in the table; `left` gets the others, with reasons.

    A sample's name is a slide's, with or without its suffix; a patient's, by `patients` (slide to
    patient); or a TCGA barcode. Of barcodes those of the slide's own sample type are taken,
    primary tumours where the slide's name tells none, and of several the first in sorted order.
    Raises TiaftError where nothing matches.
    """
    left = left if left is not None else LeftOut()
    place = {name: row for row, name in enumerate(expression.samples)}
    by_barcode = _by_barcode(expression.samples)
    found: dict[str, tuple[str, int]] = {}
    for slide in sorted(set(slides)):
        patient = _patient_of(slide, patients or {})
        row = _row_of(slide, patient, place, by_barcode)
        if isinstance(row, str):
            left.add("slide", [slide], row)
        else:
            found[slide] = (patient or PurePath(slide).stem, row)
    used = {row for _, row in found.values()}
    unused = [name for name, row in place.items() if row not in used]
    left.add("sample", unused, "no slide that is used has this sample")
    if not found:
        raise TiaftError(
            f"no slide has a sample in the expression table: slides are called {some(slides, 2)}, "
            f"samples {some(expression.samples, 2)}: give a table slide,patient whose patients are "
            "called as samples are"
        )
    names = sorted(found)
    return Pairs(
        np.array(names),
        np.array([found[name][0] for name in names]),
        np.array([found[name][1] for name in names], dtype=np.int64),
    )


def _patient_of(slide: str, patients: Mapping[str, str]) -> str:
    told = patients.get(slide) or patients.get(PurePath(slide).stem)
    name = read_slide_name(PurePath(slide).name)
    if told:
        return told
    if name is not None:
        return name.patient
    sample = read_sample(PurePath(slide).stem)
    return "" if sample is None else sample.patient


def _by_barcode(samples: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Return the barcodes of each patient by sample type, "" where they tell none, sorted."""
    found: dict[str, dict[str, list[str]]] = {}
    for text in sorted(samples):
        sample = read_sample(text)
        if sample is not None:
            found.setdefault(sample.patient, {}).setdefault(sample.type, []).append(text)
    return found


def _row_of(
    slide: str,
    patient: str,
    place: Mapping[str, int],
    by_barcode: Mapping[str, Mapping[str, Sequence[str]]],
) -> int | str:
    """Return a slide's place among the samples, or why it has none."""
    for name in (slide, PurePath(slide).stem, patient):
        if name and name in place:
            return place[name]
    if not patient:
        return "no sample of its name, and its patient is not known"
    kinds = by_barcode.get(patient)
    if kinds is None:
        return f"its patient ({patient}) has no sample in the expression table"
    told = read_slide_name(PurePath(slide).name)
    own = (told.type if told else "") or PRIMARY
    for kind in (own, ""):
        if kind in kinds:
            return place[kinds[kind][0]]
    there = ", ".join(map(kind_of, sorted(kinds)))
    return f"its patient has samples of {there} only, not of {kind_of(own)}"

"""TCGA's barcodes: whose sample, of what kind, and whether a slide is frozen."""

import re
from typing import NamedTuple

PRIMARY = "01"
SAMPLE_TYPES = {
    "01": "primary tumour",
    "02": "recurrent tumour",
    "05": "additional new primary",
    "06": "metastasis",
    "07": "additional metastasis",
    "10": "normal blood",
    "11": "normal tissue",
}
FROZEN = ("TS", "MS", "BS")  # top, middle and bottom section of the frozen portion
DIAGNOSTIC = "DX"  # paraffin

# R's data frames turn the dashes into dots.
_SAMPLE = re.compile(
    r"TCGA[-.](?P<site>\w\w)[-.](?P<person>\w{4})(?:[-.](?P<type>\d\d)[A-Z]?)?(?:[-.].*)?",
    re.ASCII | re.IGNORECASE,
)
_SLIDE = re.compile(
    r"(?P<patient>TCGA-\w\w-\w{4})-(?P<type>\d\d)[A-Z]?-\d\d-(?P<cut>[A-Z]{2})\w*", re.ASCII
)


class Sample(NamedTuple):
    """A sample: its barcode as it was written, its patient, and its type ("" where not told)."""

    barcode: str
    patient: str
    type: str


class SlideName(NamedTuple):
    """What a slide's name tells: patient, sample type, and cut (TS, MS, BS: frozen; DX)."""

    patient: str
    type: str
    cut: str


def read_sample(text: str) -> Sample | None:
    """Return what a barcode tells, or None for what is no TCGA barcode."""
    match = _SAMPLE.fullmatch(text.strip())
    if match is None:
        return None
    patient = f"TCGA-{match['site']}-{match['person']}".upper()
    return Sample(text.strip(), patient, match["type"] or "")


def read_slide_name(file_name: str) -> SlideName | None:
    """Return what the name of a slide file tells, or None where it tells nothing."""
    match = _SLIDE.match(file_name)
    return None if match is None else SlideName(match["patient"], match["type"], match["cut"])


def kind_of(sample_type: str) -> str:
    """Return a sample type in words, such as "11 (normal tissue)"."""
    words = SAMPLE_TYPES.get(sample_type)
    return f"{sample_type} ({words})" if words else sample_type

"""Areas that people drew in ASAP, whose XML comes with the Camelyon slides."""

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from shapely import Polygon

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.regions import FAR, Region, UnusableError, valid_area

_ROOT = "ASAP_Annotations"
_AREAS = ("Polygon", "Rectangle", "Spline")  # a spline by its corners
TUMOR, NORMAL = "tumor", "normal"
# Camelyon16's groups: "_0" and "_1" are tumour, "_2" is what lies within and is none; what is
# excluded has no label (QuPath's names that end in "*" give none).
GROUPS = {"_0": TUMOR, "_1": TUMOR, "Tumor": TUMOR, "_2": NORMAL, "Exclusion": "Exclusion*"}
GROUPS |= {"metastases": TUMOR}  # Camelyon17's


def read_asap(path: Path) -> tuple[list[Region], list[str]]:
    """Return the areas in an ASAP file, in baseline pixels of the slide, and notes on the others.

    A region's class is its group, Camelyon's under one name ("tumor", "normal"). Raises TiaftError
    where the file is none of ASAP's.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        raise TiaftError(f"{path} cannot be read: {error.strerror}") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # of unknown encodings
        raise TiaftError(f"{path} is no XML ({error})") from error
    if root.tag != _ROOT:
        raise TiaftError(
            f"{path} is no annotation file of ASAP (it begins with <{root.tag}>, not <{_ROOT}>): "
            "save it in ASAP, or bring GeoJSON from QuPath"
        )
    regions: list[Region] = []
    notes: list[str] = []
    others: Counter[str] = Counter()
    for number, element in enumerate(root.iter("Annotation"), start=1):
        name = element.get("Name") or f"annotation {number}"
        group, kind = element.get("PartOfGroup", ""), element.get("Type", "")
        if kind not in _AREAS:
            others[f"of type {kind or 'unknown'}, no area"] += 1
        elif group.strip() in ("", "None"):
            others["without a group, which would be its class"] += 1
        else:
            try:
                geometry, repaired = valid_area(Polygon(_corners(element)))
            except UnusableError as reason:
                notes.append(f"{name} left out: {reason}")
                continue
            label = GROUPS.get(group, group.strip())
            regions.append(Region(geometry, label, name=name, repaired=repaired, id=name))
            if repaired:
                notes.append(f"{name} repaired: {repaired}")
    notes += [f"{count} left out {what}" for what, count in others.items()]
    return regions, notes


def _corners(annotation: ElementTree.Element) -> np.ndarray:
    """Return an area's corners (n, 2) in the order that the file numbers them."""
    found = []
    for place, corner in enumerate(annotation.iter("Coordinate")):
        try:  # ASAP writes numbers as the desk's language has them
            x, y = (float(corner.get(axis, "").replace(",", ".")) for axis in "XY")
            found.append((int(corner.get("Order") or place), x, y))
        except ValueError as error:
            raise UnusableError("its coordinates are not all pairs of numbers") from error
    corners = np.array([(x, y) for _, x, y in sorted(found, key=lambda each: each[0])])
    if len(corners) < 3:
        raise UnusableError("it has fewer than three corners")
    if not (np.abs(corners) < FAR).all():
        raise UnusableError("a coordinate is no pixel of a slide")
    return corners

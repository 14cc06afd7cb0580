"""Classes of bags: which column of a table says what a bag is."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.probes.interface import Targets, Unit
from tiaft_plugin.probes.labels import read_labels
from tiaft_plugin.probes.tables import read_table


def read_bag_labels(
    path: Path | None, patients: Mapping[str, str]
) -> tuple[Targets, Unit, dict[str, str]]:
    """Return the classes of bags, what a bag is, and the patients of slides.

    A table has `label` and either `slide`, and then maybe `patient`, or `patient` (or `key` or
    `id`). `patients` maps slides to patients; what the table itself says is added. Raises
    TiaftError.
    """
    if path is None:
        raise TiaftError(
            "bags bring no labels: pass --labels TABLE with columns slide,label or patient,label"
        )
    texts = read_table(path, _all).texts
    if "slide" not in texts:
        return read_labels(path, "classes"), "patient", dict(patients)
    targets = read_labels(path, "classes", key_columns=("slide",))
    if "patient" not in texts:
        return targets, "slide", dict(patients)
    known = dict(patients)
    for slide, patient in zip(texts["slide"].tolist(), texts["patient"].tolist(), strict=True):
        if patient and known.setdefault(slide, patient) != patient:
            raise TiaftError(
                f"{path}: slide {slide} is of patient {patient}, but of {known[slide]} in the "
                "table of patients: correct one of them"
            )
    if "group" not in texts:  # else folds respect what is coarser than patients
        targets = replace(targets, groups=None)
    return targets, "slide", known


def by_stem(targets: Targets, slides: Iterable[str]) -> Targets:
    """Return labels by the stems of slides' file names, which may name a slide in full."""
    stems = {slide: Path(slide).stem for slide in slides}
    keys = np.array([stems.get(key, key) for key in targets.keys.tolist()])
    order = np.argsort(keys, kind="stable")
    groups = None if targets.groups is None else targets.groups[order]
    return replace(targets, keys=keys[order], values=targets.values[order], groups=groups)


def _all(columns: Sequence[str]) -> Sequence[str]:
    return columns

"""What a push or a removal does to an image: what is added, removed, kept; knows no Java.

A model's objects are known by the SHA-256 in their marks, whatever their ids and their grid. One
that a person changed, its class or the outline of a merged area, is a person's from then on: no
push and no removal touches it again. Objects without a mark and other models' are never touched.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.objects import Found, NewAreas, NewTiles

_SHORTEST_PREFIX = 8  # characters of a SHA-256
_SAME_PLACE = 0.5  # px


@dataclass(frozen=True)
class Plan:
    """Rows of what is found to `remove` and of what is new to `add`; (k,) int64, ascending.

    `corrected` are rows of what is found, too: the model's own that people changed, and that stay.
    """

    remove: np.ndarray
    corrected: np.ndarray
    add: np.ndarray


def plan_push(found: Found, new: NewTiles | NewAreas) -> Plan:
    """Plan to replace a model's objects by new ones.

    All its objects go, of whatever grid, tiles and areas, except corrected ones. What a kept
    object stands for already is not added: the same id, or a tile where a corrected tile lies
    (within half a pixel at each edge; tiles of another size that overlap it are added).
    """
    plan = plan_remove(found, new.origin.sha256)
    leaving = set(plan.remove.tolist())
    kept = {uuid for row, uuid in enumerate(found.ids) if row not in leaving}
    add = np.fromiter((uuid not in kept for uuid in new.ids), dtype=bool, count=len(new))
    if isinstance(new, NewTiles):
        tiles = [row for row in plan.corrected.tolist() if not found.marks[row].shape]
        add &= ~_lie_where(new.bounds, found.bounds[tiles])
    return Plan(plan.remove, plan.corrected, np.flatnonzero(add))


def plan_remove(found: Found, sha256: str) -> Plan:
    """Plan to remove all objects of a model but the corrected ones."""
    remove: list[int] = []
    corrected: list[int] = []
    for row, mark in enumerate(found.marks):
        if mark.sha256 == sha256:
            (corrected if is_corrected(found, row) else remove).append(row)
    return Plan(_rows(remove), _rows(corrected), _rows([]))


def is_corrected(found: Found, row: int) -> bool:
    """Whether an object has another class, or another outline, than it was given."""
    mark = found.marks[row]
    return (found.classes[row] or "") != mark.given or found.shapes[row] != mark.shape


def models_in(found: Found) -> dict[tuple[str, str], int]:
    """Return how many objects each model has in an image, by its name and SHA-256."""
    return dict(Counter((mark.model, mark.sha256) for mark in found.marks))


def find_model(models: Found | Iterable[tuple[str, str]], text: str) -> str:
    """Return the SHA-256 of the model that `text` means: its name, or 8 or more first characters.

    A model file's name may come without ".safetensors".

    `models` are (name, SHA-256), `models_in`'s for instance. Raises TiaftError where none is
    meant, or more than one.
    """
    known = sorted(set(models_in(models) if isinstance(models, Found) else models))
    short = len(text) < _SHORTEST_PREFIX
    meant = [
        (name, sha256)
        for name, sha256 in known
        if text in (name, name.removesuffix(".safetensors"))
        or (not short and sha256.startswith(text.lower()))
    ]
    if len({sha256 for _, sha256 in meant}) == 1:
        return meant[0][1]
    if meant:
        raise TiaftError(
            f"{text!r} may be any of {_listed(meant)}: name it by the beginning of its SHA-256"
        )
    if not known:
        raise TiaftError(f"no objects of {text!r}: none here carry a model's mark")
    raise TiaftError(
        f"no objects of {text!r}: here are those of {_listed(known)} (a name, or at least "
        f"{_SHORTEST_PREFIX} characters of the SHA-256)"
    )


def _listed(models: list[tuple[str, str]]) -> str:
    return ", ".join(f"{name} ({sha256[:12]})" for name, sha256 in models)


def _lie_where(bounds: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Tell which of `bounds` (n, 4) are also among `others` (m, 4): (n,) bool."""
    if not len(bounds) or not len(others):
        return np.zeros(len(bounds), dtype=bool)
    from scipy.spatial import KDTree

    distance, _ = KDTree(others).query(bounds, p=np.inf, distance_upper_bound=_SAME_PLACE)
    return np.isfinite(distance)


def _rows(rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.int64)

"""Slides or patients as bags of tiles: read from feature stores bag by bag, never all at once."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_plugin.engine.store import Store, chunk_slice, read_store
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.probes.interface import FeatureTable, Unit
from tiaft_plugin.probes.stores import checked_chunks, open_stores, source_of, stores_by_patient
from tiaft_plugin.progress import progress
from tiaft_plugin.tiles.words import some

HELD_BYTES = 96 * 2**20  # of bags in memory, whatever the cohort's size


@dataclass(frozen=True)
class Bag:
    """The tiles of one slide or patient; `counts` says how many each of its `stores` has.

    `slides` are the file names of the slides that the stores are of; `sha256` names what is in
    them.
    """

    key: str
    slides: tuple[str, ...]
    stores: tuple[Path, ...]
    counts: tuple[int, ...]
    sha256: str

    def __len__(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True)
class Bags:
    """N bags of one feature set: `Rows` of a probe. What is in them stays in their stores.

    `array` is what is read of each store, "features" or "colour"; `means` and `squares` are of
    each bag's tiles and of their squares, (N, D) float64.
    """

    bags: tuple[Bag, ...]
    array: str
    means: np.ndarray
    squares: np.ndarray

    def __len__(self) -> int:
        return len(self.bags)

    def __getitem__(self, rows: np.ndarray) -> "Bags":
        picked = np.arange(len(self))[rows]
        bags = tuple(self.bags[row] for row in picked)
        return Bags(bags, self.array, self.means[picked], self.squares[picked])

    @property
    def sha256(self) -> str:
        """Name all that is in the bags."""
        named = [self.array, *((bag.key, bag.sha256) for bag in self.bags)]
        return hashlib.sha256(repr(named).encode()).hexdigest()

    @property
    def width(self) -> int:
        """How many numbers a tile has."""
        return self.means.shape[1]

    @property
    def tiles(self) -> np.ndarray:
        """How many tiles each bag has, (N,) int64."""
        return np.array([len(bag) for bag in self.bags])

    def scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation (D,) float64 over all tiles; 1 where it is 0."""
        share = self.tiles / self.tiles.sum()
        mean = share @ self.means
        variance = share @ self.squares - mean**2
        constant = variance <= 1e-10 * (share @ self.squares)  # what rounding leaves
        return mean, np.sqrt(np.where(constant, 1.0, variance))

    def load(self, row: int) -> np.ndarray:
        """Return a bag's tiles (n, D) float32, in the order of its stores.

        Bags that were read lately are still there, up to HELD_BYTES of all.
        """
        bag = self.bags[row]
        return _HELD.get(bag, self.array)

    def blocks(self, row: int) -> Iterator[np.ndarray]:
        """Give a bag's tiles chunk by chunk, (n, D) float32, and keep none of them."""
        for path in self.bags[row].stores:
            yield from _chunks(read_store(path), self.array)


class _Held:
    """The bags that were read last, as many as there is room for; a process has one."""

    def __init__(self, room: int):
        self.room, self.used = room, 0
        self.bags: OrderedDict[tuple, np.ndarray] = OrderedDict()

    def get(self, bag: Bag, array: str) -> np.ndarray:
        name = (array, bag.sha256)
        if name in self.bags:
            self.bags.move_to_end(name)
            return self.bags[name]
        stores = map(read_store, bag.stores)
        tiles = np.concatenate([chunk for store in stores for chunk in _chunks(store, array)])
        tiles.flags.writeable = False
        if tiles.nbytes <= self.room:
            self.bags[name] = tiles
            self.used += tiles.nbytes
        while self.used > self.room:
            self.used -= self.bags.popitem(last=False)[1].nbytes
        return tiles


_HELD = _Held(HELD_BYTES)


def _chunks(store: Store, array: str) -> Iterator[np.ndarray]:
    """Give a store's chunks; they were checked when the bags were made."""
    values: Any = store.values if array == "features" else store.colour
    rows = store.facts["chunk_rows"]
    for number in range(-(-len(store) // rows)):
        yield np.asarray(values[chunk_slice(number, rows)], dtype=np.float32)


def read_bags(
    path: Path | str,
    name: str,
    unit: Unit = "patient",
    patients: Mapping[str, str] | None = None,
) -> FeatureTable:
    """Return the bags of the store, or of all stores in the folder, at `path`: a row a bag.

    `unit` is what a bag is, "patient" or "slide"; a slide is known by its file's name without the
    ending. `patients` maps slides to patients where stores do not say. Every chunk is read once,
    and checked: TiaftError for what is damaged, incomplete or NaN, stores of other models or
    settings than the rest, or of one slide. Bags without a tile are left out, and noted.
    """
    path = Path(path)
    where = f"{path} (features {name})"
    stores = open_stores(path, name)
    by_patient, notes = stores_by_patient(where, stores, dict(patients or {}))
    patient_of = {store.path: patient for patient, its in by_patient.items() for store in its}
    grouped = by_patient if unit == "patient" else _by_slide(where, stores)
    empty = sorted(key for key, its in grouped.items() if not sum(map(len, its)))
    if empty:
        notes.append(f"{unit}s without a tile are left out: {some(empty)}")
    kept = {key: grouped[key] for key in sorted(set(grouped) - set(empty))}
    if not kept:
        raise TiaftError(f"{where}: no store has a tile")
    source = source_of([store for its in kept.values() for store in its])
    features, colour = _measured(kept, name)
    return FeatureTable(
        name,
        np.array(list(kept)),
        features,
        groups=np.array([patient_of[its[0].path] for its in kept.values()]),
        colour=colour,
        source={**source, "notes": notes + _lacking_colour(stores)},
        unit=unit,
    )


def slides_of(bags: Bags) -> list[str]:
    """Return the file names of all slides in bags."""
    return [slide for bag in bags.bags for slide in bag.slides]


def mean_pooled(table: FeatureTable) -> FeatureTable:
    """Return the mean of each bag's tiles as a feature set of its own: a baseline."""
    name = f"{table.name} (mean pooling)"
    source = {**table.source, "notes": []}
    means = table.values.means.astype(np.float32)
    return replace(table, name=name, values=means, source=source)


def _by_slide(where: str, stores: Sequence[Store]) -> dict[str, list[Store]]:
    found: dict[str, list[Store]] = {}
    for store in stores:
        found.setdefault(Path(store.facts["slide"]["name"]).stem, []).append(store)
    twice = [slide for slide, its in found.items() if len(its) > 1]
    if twice:
        raise TiaftError(
            f"{where}: several slides have one name: {some(twice)}: put them into folders of "
            "their own"
        )
    return found


def _measured(grouped: Mapping[str, Sequence[Store]], name: str) -> tuple[Bags, Bags | None]:
    """Read all stores once, chunk by chunk; return bags of features, and of colours if all have."""
    stores = [store for its in grouped.values() for store in its]
    with_colour = all(store.colour is not None for store in stores)
    arrays = ("features", "colour") if with_colour else ("features",)
    sums: dict[str, list[np.ndarray]] = {array: [] for array in arrays}
    bags = []
    with progress(sum(map(len, stores)), name, wanted=None) as bar:
        for key, its in grouped.items():
            paths, counts = tuple(store.path for store in its), tuple(map(len, its))
            slides = tuple(store.facts["slide"]["name"] for store in its)
            bags.append(Bag(key, slides, paths, counts, source_of(its)["sha256"]))
            total = {array: _sums(its, array, bar.update) for array in arrays}
            for array, found in total.items():
                sums[array].append(found / len(bags[-1]))
    made = {}
    for array, rows in sums.items():
        means, squares = np.stack(rows, axis=1)
        made[array] = Bags(tuple(bags), array, means, squares)
    return made["features"], made.get("colour")


def _sums(stores: Sequence[Store], array: str, done: Any) -> np.ndarray:
    """Return the sums of tiles and of their squares, (2, D) float64."""
    total: Any = 0
    for store in stores:
        if array == "features":
            for chunk in checked_chunks(store):
                total = total + _both(chunk)
                done(len(chunk))
        else:
            for chunk in _chunks(store, array):
                total = total + _both(chunk)
    return total


def _both(chunk: np.ndarray) -> np.ndarray:
    values = chunk.astype(np.float64)
    return np.stack([values.sum(axis=0), (values**2).sum(axis=0)])


def _lacking_colour(stores: Sequence[Store]) -> list[str]:
    without = [store.path.name for store in stores if store.colour is None]
    if not without or len(without) == len(stores):
        return []
    return [
        f"{len(without)} of {len(stores)} stores have no colour, so that none is used: "
        f"{some(without)}"
    ]

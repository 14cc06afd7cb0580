"""Splits that keep a slide's or patient's tiles together."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.tiles.tileset import TileSet, refuse_rare_classes
from tiaft_plugin.tiles.words import some

DRAWS = 100  # of slides or patients; the draw that parts the classes most evenly is taken


def split_by_groups(tiles: TileSet, groups: Sequence[str]) -> tuple[TileSet, TileSet]:
    """Return the tiles to train on, and those of `groups` (slides or patients), held out.

    Raises TiaftError for an unknown group, for tiles without one, and where a class would have
    fewer than two tiles left to train on.
    """
    bare = [tiles.shown(f) for f, g in zip(tiles.files, tiles.groups, strict=True) if g is None]
    if bare:
        raise TiaftError(
            f"{tiles.root}: {len(bare)} of {len(tiles)} tiles have no group (slide or patient) to "
            f"split by: {some(bare)}: give each one in manifest.csv"
        )
    unknown = sorted(set(groups) - set(tiles.group_names))
    if unknown or not groups:
        raise TiaftError(
            f"{tiles.root} has no group {some(unknown) or 'to hold out'}; "
            f"its groups are {some(tiles.group_names, 20)}"
        )
    wanted = set(groups)
    train, held_out = _parted(tiles, np.array([group in wanted for group in tiles.groups]))
    refuse_rare_classes(train)
    return train, held_out


def split_share(tiles: TileSet, share: float, seed: int) -> tuple[TileSet, TileSet, list[str]]:
    """Return the tiles to train on, about a `share` (0 to 1) of all held out, and warnings.

    Each class is parted as evenly as can be, and keeps two tiles or more to train on. Slides or
    patients are held out whole; tiles whose group is not known one by one, which is warned of.
    `seed` alone decides. Raises TiaftError where nothing can be held out.
    """
    if not 0 < share < 1:
        raise TiaftError(f"{share:g} is no share to hold out: more than 0 and less than 1, please")
    refuse_rare_classes(tiles)
    rng = np.random.default_rng([seed, 4])  # not the numbers that shuffle and augment
    has, least = _memberships(tiles)
    grouped = any(group is not None for group in tiles.groups)
    held = (
        _draw_groups(has, least, _units(tiles), share, rng)
        if grouped
        else _draw_tiles(has, least, share, rng)
    )
    if not held.any():
        what = "slide or patient" if grouped else "tile"
        raise TiaftError(
            f"{tiles.root}: no {what} can be held out and leave each class two tiles to train on: "
            "pass --val-share 0 to train on all, or hold out other tiles with --val"
        )
    train, held_out = _parted(tiles, held)
    return train, held_out, _doubts(tiles, held_out, share) + missing_classes(held_out)


def missing_classes(held_out: TileSet) -> list[str]:
    """Return a warning where no held-out tile is of some class."""
    absent = [name for name, count in held_out.counts.items() if not count]
    if not absent:
        return []
    return [f"no held-out tile is of class {some(absent, 20)}: nothing is known of it"]


def refuse_shared_groups(sets: Mapping[str, TileSet]) -> None:
    """Raise TiaftError where a slide or patient stands in two of the sets, given by name."""
    for (one, tiles), (other, others) in itertools.combinations(sets.items(), 2):
        both = sorted(set(tiles.group_names) & set(others.group_names))
        if both:
            raise TiaftError(
                f"slides or patients stand on both sides of the split ({one} and {other}): "
                f"{some(both)}: take them out of one, or hold out groups of one set with "
                "--val-groups or --test-groups"
            )


def _parted(tiles: TileSet, held: np.ndarray) -> tuple[TileSet, TileSet]:
    return tiles.subset(np.flatnonzero(~held)), tiles.subset(np.flatnonzero(held))


def _memberships(tiles: TileSet) -> tuple[np.ndarray, np.ndarray]:
    """Return what each tile counts for, (N, K) 0 or 1, and how many of each have to train, (K,).

    That is its class; where `multilabel`, the labels that it has, and those that it has not.
    """
    targets = np.array(tiles.targets)
    if not tiles.multilabel:
        return np.eye(len(tiles.classes), dtype=int)[targets], np.full(len(tiles.classes), 2)
    return np.hstack([targets, 1 - targets]), np.repeat([2, 1], len(tiles.classes))


def _units(tiles: TileSet) -> np.ndarray:
    """Return the number of each tile's group, (N,); a tile without one is a group by itself."""
    names = [(group or "", -1 if group else row) for row, group in enumerate(tiles.groups)]
    numbers: dict[tuple[str, int], int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names])


def _draw_groups(
    has: np.ndarray, least: np.ndarray, units: np.ndarray, share: float, rng: np.random.Generator
) -> np.ndarray:
    """Return which tiles are held out, (N,) bool: the most even of a number of random draws.

    scikit-learn's StratifiedGroupKFold would part only by whole folds, and alike for most seeds.
    """
    counts = np.zeros((units.max() + 1, has.shape[1]), dtype=int)
    np.add.at(counts, units, has)
    total = has.sum(axis=0)
    free = np.flatnonzero((total - counts >= least).all(axis=1))  # those that may be held out
    best, held = np.inf, free[:0]
    for _ in range(min(DRAWS, 1 + 20_000_000 // counts.size)):
        order = rng.permutation(free)
        summed = counts[order].cumsum(axis=0)
        uneven = ((summed / total - share) ** 2).sum(axis=1)
        uneven[(total - summed < least).any(axis=1)] = np.inf
        if len(uneven) and uneven.min() < best:
            best, held = uneven.min(), order[: uneven.argmin() + 1]
    return np.isin(units, held)


def _draw_tiles(
    has: np.ndarray, least: np.ndarray, share: float, rng: np.random.Generator
) -> np.ndarray:
    """Return which tiles are held out, (N,) bool: of each class, or combination of labels, a share.

    One in 1 / share is taken along all tiles, sorted by class: rare combinations are not left out.
    """
    kinds = np.unique(has, axis=0, return_inverse=True)[1].ravel()
    order = np.lexsort((rng.random(len(has)), kinds))
    steps = np.floor(np.arange(len(has) + 1) * share + rng.random())
    held = np.zeros(len(has), dtype=bool)
    held[order[np.diff(steps) > 0]] = True
    for column, few in enumerate(least):
        of_it = order[has[order, column] == 1]
        if not held[of_it].any() and len(of_it) > few:
            held[of_it[0]] = True
    for column, few in enumerate(least):
        of_it = order[has[order, column] == 1]
        lacking = few - np.count_nonzero(~held[of_it])
        held[of_it[held[of_it]][: max(0, lacking)]] = False
    return held


def _doubts(tiles: TileSet, held_out: TileSet, share: float) -> list[str]:
    doubts = []
    bare = sum(group is None for group in tiles.groups)
    if bare:
        which = "no tile has a" if bare == len(tiles) else f"{bare} of {len(tiles)} tiles have no"
        doubts.append(
            f"{which} group (slide or patient), so they were held out one by one: tiles of one "
            "slide or patient stand on both sides, and held-out accuracy is too good: name groups "
            "in manifest.csv, or hold out other slides with --val"
        )
    found = len(held_out) / len(tiles)
    if abs(found - share) > max(share / 2, 1 / len(tiles)):
        doubts.append(
            f"{found:.0%} of the tiles are held out, not {share:.0%}: slides, patients and rare "
            "classes cannot be parted finer"
        )
    return doubts

"""Tile sets: labelled tiles of one size, whose slide or patient is known or not."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.kather100k import KATHER100K
from tiaft_plugin.tiles.images import check_images
from tiaft_plugin.tiles.known import KnownSet, recognise
from tiaft_plugin.tiles.listing import SEPARATOR, Row, labels_in, list_tiles
from tiaft_plugin.tiles.words import some


@dataclass(frozen=True)
class TileSet:
    """N labelled tiles, 8-bit RGB, of `tile_size`×`tile_size` px at `mpp` µm/px (None: unknown).

    `labels` holds a name out of `classes` for each of `files`, `groups` its slide or patient or
    None; splits respect groups. `known` is the published set that the tiles are of, or None.

    Where `multilabel`, a tile has any number of the classes: its entry in `labels` joins their
    names by ";" in the order of `classes`, and is empty where it has none.
    """

    root: Path
    files: tuple[Path, ...]
    labels: tuple[str, ...]
    groups: tuple[str | None, ...]
    classes: tuple[str, ...]
    tile_size: int
    mpp: float | None
    known: KnownSet | None = None
    multilabel: bool = False

    def __len__(self) -> int:
        return len(self.files)

    @property
    def name(self) -> str:
        """The published set's name, or else the folder's."""
        return self.known.name if self.known else self.root.resolve().name

    @property
    def targets(self) -> list[Any]:
        """The index in `classes` of each tile's class, (N,); 0 or 1 for each class, (N, C), where
        `multilabel`."""
        if self.multilabel:
            return [[int(name in names) for name in self.classes] for names in self.names]
        index = {name: number for number, name in enumerate(self.classes)}
        return [index[label] for label in self.labels]

    @property
    def names(self) -> list[tuple[str, ...]]:
        """The classes that each tile has: one, or any number where `multilabel`."""
        if self.multilabel:
            return [tuple(labels_in(label)) for label in self.labels]
        return [(label,) for label in self.labels]

    @property
    def counts(self) -> dict[str, int]:
        """How many tiles have each class, in the order of `classes`."""
        counted = Counter(name for names in self.names for name in names)
        return {name: counted[name] for name in self.classes}

    @property
    def group_names(self) -> list[str]:
        """The slides or patients there are, sorted."""
        return sorted({group for group in self.groups if group is not None})

    def shown(self, file: Path) -> str:
        """Return a file's name relative to the root, with forward slashes on every system."""
        inside = file.is_relative_to(self.root)
        return file.relative_to(self.root).as_posix() if inside else str(file)

    def subset(self, indices: Iterable[int]) -> "TileSet":
        """Return the tiles at `indices`, with the same classes."""
        keep = list(indices)
        return replace(
            self,
            files=tuple(self.files[i] for i in keep),
            labels=tuple(self.labels[i] for i in keep),
            groups=tuple(self.groups[i] for i in keep),
        )

    def with_classes(self, classes: Sequence[str]) -> "TileSet":
        """Return these tiles for a model of `classes`. Raises TiaftError where it lacks a class."""
        unknown = sorted({name for names in self.names for name in names} - set(classes))
        if unknown:
            raise TiaftError(
                f"{self.root} has classes that the training tiles lack: {some(unknown)} "
                f"(training has {', '.join(classes)})"
            )
        labels = self.labels
        if self.multilabel:
            labels = tuple(_joined(names, classes) for names in self.names)
        return replace(self, classes=tuple(classes), labels=labels)


def read_tileset(
    path: Path | str,
    *,
    mpp: float | None = None,
    classes: Sequence[str] | None = None,
    multilabel: bool = False,
) -> TileSet:
    """Read a folder per class, a ``manifest.csv``, or a folder that holds one.

    Classes stand in TIAToolbox's kather100k order if they are of those nine, else sorted; given
    `classes` stand as they are, some may have no tile. `mpp` (µm/px) comes before the manifest's,
    that before a known set's. With `multilabel` a manifest's label is ``A;B``, or empty. Every
    header is read. Raises TiaftError that names what is wrong.
    """
    root, rows = list_tiles(Path(path), multilabel=multilabel)
    names = {row.label for row in rows}
    if multilabel:
        names = {name for row in rows for name in labels_in(row.label)}
    _refuse_odd_names(root, names)
    ordered = in_order(names)
    tile_size = check_images([row.file for row in rows], root)
    known = recognise([row.file for row in rows], tile_size)
    tiles = TileSet(
        root=root,
        files=tuple(row.file for row in rows),
        labels=tuple(
            _joined(labels_in(row.label), ordered) if multilabel else row.label for row in rows
        ),
        groups=tuple(row.group or (known.group_of(row.file) if known else None) for row in rows),
        classes=ordered,
        tile_size=tile_size,
        mpp=_mpp(root, rows, mpp) or (known.mpp if known else None),
        known=known,
        multilabel=multilabel,
    )
    if classes is not None:
        return tiles.with_classes(classes)
    refuse_rare_classes(tiles)
    return tiles


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Put class names into TIAToolbox's kather100k order if they are of those nine, else sort."""
    unique = set(names)
    if unique <= set(KATHER100K):
        return tuple(name for name in KATHER100K if name in unique)
    return tuple(sorted(unique))


def refuse_rare_classes(tiles: TileSet) -> None:
    """Raise TiaftError unless there are two classes or more, with two tiles or more each.

    Where `multilabel`, one label is enough, and each needs a tile without it, too.
    """
    rare = [f"{name} ({count})" for name, count in tiles.counts.items() if count < 2]
    if rare:
        raise TiaftError(
            f"{tiles.root}: {'labels' if tiles.multilabel else 'classes'} with fewer than two "
            f"tiles to train on: {some(rare)}: add tiles, or remove the "
            f"{'label' if tiles.multilabel else 'class'}"
        )
    if tiles.multilabel:
        _refuse_constant_labels(tiles)
    elif len(tiles.classes) < 2:
        raise TiaftError(
            f"{tiles.root} holds one class ({tiles.classes[0]}): two or more are needed"
        )


def _joined(names: Iterable[str], classes: Sequence[str]) -> str:
    return SEPARATOR.join(sorted(names, key=list(classes).index))


def _refuse_constant_labels(tiles: TileSet) -> None:
    if not tiles.classes:
        raise TiaftError(f"{tiles.root}: no tile has a label")
    everywhere = [name for name, count in tiles.counts.items() if count == len(tiles)]
    if everywhere:
        raise TiaftError(
            f"{tiles.root}: labels that every tile to train on has: {some(everywhere)}: add tiles "
            "without, or remove the label"
        )


def _refuse_odd_names(root: Path, names: set[str]) -> None:
    odd = [repr(name) for name in sorted(names) if not name.isprintable()]
    if odd:
        raise TiaftError(
            f"{root}: class names hold line breaks or the like: {some(odd)}: rename the classes"
        )
    several = [repr(name) for name in sorted(names) if SEPARATOR in name]
    if several:
        raise TiaftError(
            f"{root}: class names hold ';': {some(several)}: pass --multilabel if these are "
            "several labels of a tile, else rename the classes"
        )
    by_folded: dict[str, list[str]] = {}
    for name in sorted(names):
        by_folded.setdefault(name.casefold(), []).append(name)
    same = [" and ".join(group) for group in by_folded.values() if len(group) > 1]
    if same:
        raise TiaftError(f"{root}: classes differ only in case: {some(same)}: give them one name")


def _mpp(root: Path, rows: list[Row], given: float | None) -> float | None:
    values = sorted({row.mpp for row in rows if row.mpp is not None})
    if len(values) > 1:
        listed = some([f"{value:g}" for value in values])
        raise TiaftError(f"{root}: tiles have different µm/px ({listed}): make one set of each")
    if given is not None:
        return given
    bare = sum(row.mpp is None for row in rows)
    if values and bare:
        raise TiaftError(f"{root}: {bare} of {len(rows)} tiles have no mpp in the manifest: add it")
    return values[0] if values else None

"""Tile sets: labelled tiles of one size, whose slide or patient is known or not."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.kather100k import KATHER100K
from tiaft_plugin.tiles.images import check_images
from tiaft_plugin.tiles.known import KnownSet, recognise
from tiaft_plugin.tiles.listing import Row, list_tiles
from tiaft_plugin.tiles.words import some


@dataclass(frozen=True)
class TileSet:
    """N labelled tiles, 8-bit RGB, of `tile_size`×`tile_size` px at `mpp` µm/px (None: unknown).

    `labels` holds a name out of `classes` for each of `files`, `groups` its slide or patient or
    None; splits respect groups. `known` is the published set that the tiles are of, or None.
    """

    root: Path
    files: tuple[Path, ...]
    labels: tuple[str, ...]
    groups: tuple[str | None, ...]
    classes: tuple[str, ...]
    tile_size: int
    mpp: float | None
    known: KnownSet | None = None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def name(self) -> str:
        """The published set's name, or else the folder's."""
        return self.known.name if self.known else self.root.resolve().name

    @property
    def targets(self) -> list[int]:
        """The index in `classes` of each tile's class, (N,)."""
        index = {name: number for number, name in enumerate(self.classes)}
        return [index[label] for label in self.labels]

    @property
    def counts(self) -> dict[str, int]:
        """How many tiles each class has, in the order of `classes`."""
        counted = Counter(self.labels)
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
        unknown = sorted(set(self.labels) - set(classes))
        if unknown:
            raise TiaftError(
                f"{self.root} has classes that the training tiles lack: {some(unknown)} "
                f"(training has {', '.join(classes)})"
            )
        return replace(self, classes=tuple(classes))


def read_tileset(
    path: Path | str, *, mpp: float | None = None, classes: Sequence[str] | None = None
) -> TileSet:
    """Read a folder per class, a ``manifest.csv``, or a folder that holds one.

    Classes stand in TIAToolbox's kather100k order if they are of those nine, else sorted; given
    `classes` stand as they are, some may have no tile. `mpp` (µm/px) comes before the manifest's,
    that before a known set's. Every header is read. Raises TiaftError that names what is wrong.
    """
    root, rows = list_tiles(Path(path))
    names = {row.label for row in rows}
    _refuse_odd_names(root, names)
    tile_size = check_images([row.file for row in rows], root)
    known = recognise([row.file for row in rows], tile_size)
    tiles = TileSet(
        root=root,
        files=tuple(row.file for row in rows),
        labels=tuple(row.label for row in rows),
        groups=tuple(row.group or (known.group_of(row.file) if known else None) for row in rows),
        classes=in_order(names),
        tile_size=tile_size,
        mpp=_mpp(root, rows, mpp) or (known.mpp if known else None),
        known=known,
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
    """Raise TiaftError unless there are two classes or more, with two tiles or more each."""
    rare = [f"{name} ({count})" for name, count in tiles.counts.items() if count < 2]
    if rare:
        raise TiaftError(
            f"{tiles.root}: classes with fewer than two tiles to train on: {some(rare)}: "
            "add tiles, or remove the class"
        )
    if len(tiles.classes) < 2:
        raise TiaftError(
            f"{tiles.root} holds one class ({tiles.classes[0]}): two or more are needed"
        )


def _refuse_odd_names(root: Path, names: set[str]) -> None:
    odd = [repr(name) for name in sorted(names) if not name.isprintable()]
    if odd:
        raise TiaftError(
            f"{root}: class names hold line breaks or the like: {some(odd)}: rename the classes"
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

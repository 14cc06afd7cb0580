"""The tiles of a bag, wherever they lie: in slides that stores are of, or as image files."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tiaft_extensions.histotransfer.tile_stores import is_tile_folder, tiles_in
from tiaft_plugin.engine.store import Store, read_store
from tiaft_plugin.engine.store_tiles import read_store_tiles, refuse_other_slide, stain_of_store
from tiaft_plugin.engine.verify import find_slide
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import sha256_of, write_atomically
from tiaft_plugin.probes.stores import checked_chunks, source_of
from tiaft_plugin.tiles.images import read_image
from tiaft_plugin.tiles.words import some

Encode = Callable[[np.ndarray], np.ndarray]  # uint8 (n, H, W, 3) -> features (n, D) float32
BLOCK = 32  # tiles that are read at a time


class Part(Protocol):
    """Some tiles of a bag."""

    @property
    def identity(self) -> str:
        """A hash of all that is in them."""
        ...

    def __len__(self) -> int: ...

    def features(self, encode: Encode) -> Iterator[np.ndarray]:
        """Give the frozen features (n, D) float32 of all tiles, some at a time."""
        ...

    def read(self, rows: Sequence[int]) -> Iterator[np.ndarray]:
        """Give pixels uint8 (n, H, W, 3) of `rows`, in their order, some at a time."""
        ...


@dataclass(frozen=True)
class TileImages:
    """Image files, `size` px each; `stain` is a function to (tile, bool), or None."""

    files: tuple[Path, ...]
    size: int
    stain: Any = None

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def identity(self) -> str:
        """A hash of the files' bytes, and of what is done with their stains."""
        facts = getattr(self.stain, "facts", None)
        return digest([facts, [sha256_of(file) for file in self.files]])

    def features(self, encode: Encode) -> Iterator[np.ndarray]:
        """Encode all tiles."""
        yield from map(encode, self.read(range(len(self))))

    def read(self, rows: Sequence[int]) -> Iterator[np.ndarray]:
        """Read files. Raises TiaftError for what is no RGB image of this size."""
        for start in range(0, len(rows), BLOCK):
            yield np.stack([self._tile(self.files[row]) for row in rows[start : start + BLOCK]])

    def _tile(self, file: Path) -> np.ndarray:
        tile = read_image(file)
        if tile.shape[:2] != (self.size, self.size):
            raise TiaftError(
                f"{file} has {tile.shape[1]}×{tile.shape[0]} px: the encoder is for "
                f"{self.size}×{self.size} px"
            )
        return tile if self.stain is None else self.stain(tile)[0]


@dataclass(frozen=True)
class StoreTiles:
    """The tiles of a feature store, which come again from `source`: a slide, or a tile folder."""

    store: Store
    source: Path
    size: int
    stain_target: Path | None = None

    def __len__(self) -> int:
        return len(self.store)

    @cached_property
    def identity(self) -> str:
        """The hash of what is in the store: its settings, tiles and features."""
        return source_of([self.store])["sha256"]

    def features(self, encode: Encode) -> Iterator[np.ndarray]:
        """Give what the store has: its model is the one that is tuned."""
        yield from checked_chunks(self.store)

    def read(self, rows: Sequence[int]) -> Iterator[np.ndarray]:
        """Read tiles as the engine read them, their stains normalised as they were."""
        if is_tile_folder(self.source):
            yield from self._images().read(rows)
            return
        target = self.stain_target
        for _, tiles in read_store_tiles(self.store, self.source, rows, stain_target=target):
            yield tiles

    def check(self) -> None:
        """Raise TiaftError, before long work, where the source is not the one of the store."""
        refuse_other_slide(self.store, self.source)
        stain_of_store(self.store.facts, self.stain_target)
        if is_tile_folder(self.source):
            self._images()

    def _images(self) -> TileImages:
        files = tiles_in(self.source)
        if len(files) != len(self.store):
            raise TiaftError(
                f"{self.source} holds {len(files)} tiles, {self.store.path} {len(self.store)}: "
                "they do not belong together"
            )
        return TileImages(files, self.size, stain_of_store(self.store.facts, self.stain_target))


@dataclass(frozen=True)
class TileBag:
    """All tiles of a slide or patient, a part after the other."""

    name: str
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @cached_property
    def identity(self) -> str:
        """A hash of all that is in the bag, in its order."""
        return digest([part.identity for part in self.parts])

    def features(self, encode: Encode) -> Iterator[np.ndarray]:
        """Give the frozen features (n, D) float32 of all tiles, some at a time."""
        for part in self.parts:
            yield from part.features(encode)

    def read(self, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Give pixels uint8 (n, H, W, 3) of `rows` (k,), ascending, all by default."""
        rows = np.arange(len(self)) if rows is None else rows
        begin = 0
        for part in self.parts:
            own = rows[(rows >= begin) & (rows < begin + len(part))] - begin
            if len(own):
                yield from part.read(own.tolist())
            begin += len(part)


def bag_of_stores(
    paths: Sequence[Path], slides: Sequence[Path], size: int, stain_target: Path | None = None
) -> TileBag:
    """Return the bag of feature stores whose slides are among `slides`, or in these folders.

    `size` (px) is the encoder's. Raises TiaftError for stores of other tiles or none, and where a
    slide is not there.
    """
    parts: list[Part] = [_of_store(path, slides, size, stain_target) for path in paths]
    if not sum(map(len, parts)):
        raise TiaftError(f"{some([str(path) for path in paths])}: no tile: leave that bag out")
    return TileBag(paths[0].stem, tuple(parts))


def _of_store(
    path: Path, slides: Sequence[Path], size: int, stain_target: Path | None
) -> StoreTiles:
    store = read_store(path)
    if store.kind != "features":
        raise TiaftError(f"{path} holds {store.kind}, not features")
    tile = list(store.facts["grid"]["tile_size"])
    if tile != [size, size]:
        raise TiaftError(f"{path} has tiles of {tile[0]}×{tile[1]} px, the encoder is for {size}")
    name = store.facts["slide"]["name"]
    source = find_slide(path, slides)
    if source is None:
        where = some([str(place) for place in slides]) or "no folder of slides"
        raise TiaftError(f"{path}: its slide {name} is not in {where}: name the folder it lies in")
    return StoreTiles(store, source, size, stain_target)


def cached(bag: TileBag, rows: np.ndarray, folder: Path) -> Path:
    """Return a file with the tiles `rows` (k,) of a bag, uint8 (k, H, W, 3); read at most once.

    It is known by what is in it, and written whole or not at all.
    """
    path = folder / f"{digest([bag.identity, rows.tolist()])[:32]}.npy"
    if not path.is_file():
        tiles = np.concatenate(list(bag.read(rows)))
        with write_atomically(path) as part, part.open("wb") as file:
            np.save(file, tiles, allow_pickle=False)
    return path


def digest(value: Any) -> str:
    """Return a hash of plain values."""
    return hashlib.sha256(repr(value).encode()).hexdigest()

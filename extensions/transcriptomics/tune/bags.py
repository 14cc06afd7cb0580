"""A slide's tiles: cached features of them, or their images; some are drawn for each step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from tiaft_plugin.engine.store import read_store
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_atomically
from tiaft_plugin.probes.stores import checked_chunks
from tiaft_plugin.progress import progress
from tiaft_plugin.tiles.images import read_image

Normalise = Callable[[np.ndarray], np.ndarray]
FIXED = 0  # the draw that validation and test have, in every epoch; training's are 1, 2, …


class Bags(Protocol):
    """S slides; `sizes` (S,) says how many tiles each has."""

    sizes: np.ndarray

    def read(self, slide: int, tiles: np.ndarray) -> np.ndarray:
        """Return tiles by their places (k,): features (k, D) float32, or pixels (k, H, W, 3)."""
        ...


@dataclass(frozen=True)
class Chunk:
    """Some slides and their drawn tiles: `tiles` (S, k, …); `there` (S, k) bool, not filled up."""

    tiles: torch.Tensor
    there: torch.Tensor


class FeatureBags:
    """Cached features, a file a slide."""

    def __init__(self, files: Sequence[Path]):
        self.files = tuple(files)
        self.sizes = np.array([len(np.load(file, mmap_mode="r")) for file in files])

    @property
    def width(self) -> int:
        """How many features a tile has."""
        return int(np.load(self.files[0], mmap_mode="r").shape[1])

    def read(self, slide: int, tiles: np.ndarray) -> np.ndarray:
        """Return features (k, D) float32."""
        return np.load(self.files[slide], mmap_mode="r")[tiles]


class ImageBags:
    """Tiles as image files, resized to `size` px where that differs; `normalise` is of stains."""

    def __init__(
        self, files: Sequence[Sequence[Path]], size: int, normalise: Normalise | None = None
    ):
        self.files = tuple(tuple(its) for its in files)
        self.sizes = np.array([len(its) for its in files])
        self.size, self.normalise = size, normalise

    def read(self, slide: int, tiles: np.ndarray) -> np.ndarray:
        """Return pixels (k, size, size, 3) uint8. Raises TiaftError for unreadable files."""
        found = [read_image(self.files[slide][tile], self.size) for tile in tiles.tolist()]
        return np.stack([self.normalise(tile) if self.normalise else tile for tile in found])


def draw(bags: Bags, slide: int, most: int, seed: int, number: int) -> np.ndarray:
    """Return the places (k,) of at most `most` tiles of a slide, sorted; draw `number` of them."""
    return _some_of(int(bags.sizes[slide]), most, seed, number, slide)


def _some_of(size: int, most: int, *seed: int) -> np.ndarray:
    if size <= most:
        return np.arange(size)
    return np.sort(np.random.default_rng(seed).choice(size, most, replace=False))


def read_chunk(bags: Bags, slides: Sequence[int], most: int, seed: int, number: int) -> Chunk:
    """Return drawn tiles of some slides, filled up with zeros to the same number each."""
    read = [bags.read(slide, draw(bags, slide, most, seed, number)) for slide in slides]
    longest = max(map(len, read))
    tiles = np.zeros((len(read), longest, *read[0].shape[1:]), read[0].dtype)
    there = np.zeros((len(read), longest), bool)
    for row, its in enumerate(read):
        tiles[row, : len(its)], there[row, : len(its)] = its, True
    return Chunk(torch.from_numpy(tiles), torch.from_numpy(there))


def cache_stores(
    slides: Sequence[Sequence[Path]], folder: Path, most: int, seed: int
) -> FeatureBags:
    """Keep at most `most` tiles of each slide's feature stores in `folder`; what is there stays.

    A store's chunks are read one after the other. Raises TiaftError for stores that are damaged,
    empty, or not of one width.
    """

    def features(number: int) -> np.ndarray:
        stores = [read_store(path) for path in slides[number]]
        for store in stores:
            if store.kind != "features":
                raise TiaftError(f"{store.path} holds {store.kind}, not features")
        tiles = sum(map(len, stores))
        if not tiles:
            raise TiaftError(f"{slides[number][0]} has no tile: leave its slide out")
        places, begin, parts = _some_of(tiles, most, seed, FIXED, number), 0, []
        for chunk in (chunk for store in stores for chunk in checked_chunks(store)):
            own = places[(places >= begin) & (places < begin + len(chunk))] - begin
            parts.append(chunk[own])
            begin += len(chunk)
        return np.concatenate(parts)

    return _cache(features, len(slides), folder)


@torch.no_grad()
def cache_images(
    bags: ImageBags,
    encode: Callable[[torch.Tensor], torch.Tensor],
    folder: Path,
    most: int,
    seed: int,
    batch_size: int = 64,
) -> FeatureBags:
    """Keep features of at most `most` tiles of each slide in `folder`; what is there stays."""

    def features(number: int) -> np.ndarray:
        places = draw(bags, number, most, seed, FIXED)
        parts = []
        for start in range(0, len(places), batch_size):
            tiles = torch.from_numpy(bags.read(number, places[start : start + batch_size]))
            parts.append(encode(tiles).float().cpu().numpy())
        return np.concatenate(parts)

    return _cache(features, len(bags.files), folder)


def _cache(features: Callable[[int], np.ndarray], slides: int, folder: Path) -> FeatureBags:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:06d}.npy" for number in range(slides)]
    widths = set[int]()
    with progress(slides, "Features", "slide") as bar:
        for number, file in enumerate(files):
            if not file.exists():
                values = np.ascontiguousarray(features(number), dtype=np.float32)
                with write_atomically(file) as temporary:
                    np.save(temporary, values)
            widths.add(int(np.load(file, mmap_mode="r").shape[1]))
            bar.update()
    if len(widths) > 1:
        raise TiaftError(
            f"slides have features of different widths ({', '.join(map(str, sorted(widths)))}): "
            "extract them all with one model"
        )
    return FeatureBags(files)

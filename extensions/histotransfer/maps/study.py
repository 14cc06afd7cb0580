"""The attention that a run of `mil` paid to a slide, tile by tile, and what else is known of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from tiaft_extensions.histotransfer.kept import AttentionRun, TileAttention
from tiaft_extensions.histotransfer.topk.tiles import StoreTiles, is_tile_folder
from tiaft_plugin.engine.store import Store
from tiaft_plugin.errors import TiaftError


@dataclass(frozen=True)
class SlideAttention:
    """Attention to the N tiles of a slide, by the head that never saw its bag.

    `source` gives the tiles again, of a slide or a folder of tiles, and is None where neither is at
    hand. `bounds` (N, 4) float64 are x0, y0, x1,
    y1 in baseline pixels; `times` (N,) float64 is attention as a multiple of what it would be if
    all tiles of the bag had the same: 1 is the mean tile. `predicted` is the bag's class when it
    was held out, averaged over repeats.
    """

    store: Store
    source: StoreTiles | None
    patient: str
    label: str
    predicted: str
    bounds: np.ndarray
    tiles: TileAttention
    times: np.ndarray

    @property
    def name(self) -> str:
        """The slide's file name."""
        return self.store.facts["slide"]["name"]

    @property
    def stem(self) -> str:
        """What files of this slide are called."""
        return self.store.path.stem

    @property
    def share(self) -> float:
        """How much of its bag's attention the slide has, 0 to 1."""
        return float(self.tiles.attention.sum(dtype=np.float64))

    @cached_property
    def order(self) -> np.ndarray:
        """The tiles' rows (N,), from the most attention to the least."""
        return np.argsort(-self.tiles.held_out, kind="stable")

    @property
    def percentile(self) -> np.ndarray:
        """How many of the slide's tiles have no more attention than each, (N,) float64 in %."""
        from scipy.stats import rankdata

        return 100 * rankdata(self.tiles.held_out, "max") / len(self.times)

    @property
    def half(self) -> int:
        """How few tiles have half of the slide's attention together."""
        most = np.cumsum(self.times[self.order])
        return int(np.searchsorted(most, most[-1] / 2)) + 1

    @property
    def slide(self) -> Path | None:
        """The slide's file, where there is one."""
        known = self.source is not None and not is_tile_folder(self.source.source)
        return self.source.source if self.source and known else None

    def pixels(self, rows: Sequence[int]) -> np.ndarray:
        """Read tiles from the slide, uint8 (n, H, W, 3), as the network saw them."""
        assert self.source is not None
        return np.concatenate(list(self.source.read(rows)))


def attention_to(
    run: AttentionRun, store: Store, source: StoreTiles | None, predicted: Mapping[str, str]
) -> SlideAttention:
    """Return a run's attention to the tiles of a store; `predicted` are the classes of bags.

    Raises TiaftError where they do not belong together.
    """
    found = run.tiles(store.path)
    if not np.isfinite(found.attention).all():
        raise TiaftError(f"{store.path}: its fold has no head, as the others had one class only")
    if source is not None:
        source.check()
    row = run.keys.tolist().index(found.bag)
    return SlideAttention(
        store,
        source,
        str(run.groups[row]),
        str(run.labels[row]),
        predicted.get(found.bag, ""),
        store.bounds(),
        found,
        found.attention.astype(np.float64) * _tiles_of_bag(run, found.bag),
    )


def source_of(store: Store, slide: Path | None, stain_target: Path | None) -> StoreTiles | None:
    """Return what gives the tiles of a store again; None without its slide."""
    if slide is None:
        return None
    return StoreTiles(store, slide, int(store.facts["grid"]["tile_size"][0]), stain_target)


def predicted_by(run: AttentionRun) -> dict[str, str]:
    """Return the class that each bag was given when it was held out, over all repeats.

    Raises TiaftError where the run's predictions are gone.
    """
    path = run.folder.parent.parent / "predictions.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            codes = file[f"average/{run.name}/0/0"].argmax(axis=1)
            return dict(zip(file["keys"].tolist(), file["names"][codes].tolist(), strict=True))
    except Exception as error:  # zipfile and numpy raise what they like
        raise TiaftError(f"{path} is damaged or gone: run `tiaft probe mil` again") from error


def _tiles_of_bag(run: AttentionRun, bag: str) -> int:
    stores = [run.folder / name for name, its in run.stores.items() if its == bag]
    return sum(len(run.tiles(store).attention) for store in stores)

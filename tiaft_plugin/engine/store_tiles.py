"""A store's tiles read once more from its slide, as the network saw them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_plugin.engine.reading import read_tiles
from tiaft_plugin.engine.slides import fingerprint, open_slide
from tiaft_plugin.engine.store import Store
from tiaft_plugin.errors import TiaftError


def read_store_tiles(
    store: Store,
    slide: Path,
    rows: Sequence[int] | None = None,
    *,
    stain_target: Path | None = None,
    workers: int = 1,
) -> Iterator[tuple[Sequence[int], np.ndarray]]:
    """Give (rows, tiles uint8 (n, H, W, 3)) of a store's `rows`, all by default, some at a time.

    Stains are normalised where the store's were, with `stain_target` where that was an image.
    Raises TiaftError where `slide` is not the store's or cannot be read.
    """
    refuse_other_slide(store, slide)
    dataset = dataset_of(open_slide(slide, store.facts["slide"]["mpp"][0]), store.facts["grid"])
    dataset.inputs = np.asarray(store.coordinates[:])
    dataset.reader = None  # reading opens the slide for itself, once a thread
    normalise = stain_of_store(store.facts, stain_target)
    chosen = range(len(store)) if rows is None else rows
    for some, tiles in read_tiles(dataset, chosen, workers=workers, ahead=2):
        if normalise is not None:
            tiles = np.stack([normalise(tile)[0] for tile in tiles])
        yield some, tiles


def refuse_other_slide(store: Store, slide: Path) -> None:
    """Raise TiaftError unless a slide is there and is the one that a store was made of."""
    if not slide.exists():
        raise TiaftError(f"{slide}: no such file")
    if fingerprint(slide) != store.facts["slide"]["fingerprint"]:
        raise TiaftError(
            f"{store.path} is of another {store.facts['slide']['name']} than {slide}: the "
            "fingerprints differ"
        )


def dataset_of(reader: Any, grid: dict[str, Any], mask: Any = None, auto: bool = False) -> Any:
    """Return TIAToolbox's tiles of a slide on a store's grid, as the engine would get them.

    Without a mask, nor TIAToolbox's own (`auto`), they cover all of the slide.
    """
    from tiatoolbox.models.dataset import WSIPatchDataset

    return WSIPatchDataset(
        reader,
        input_mask=mask,
        patch_input_shape=grid["tile_size"],
        stride_shape=grid["stride"],
        resolution=grid["resolution"],
        units=grid["units"],
        auto_get_mask=auto,
    )


def stain_of_store(facts: dict[str, Any], target: Path | None = None) -> Any:
    """Return the stain normalisation of a store's tiles, a function to (tile, bool), or None.

    `facts` are the store's. Raises TiaftError where it was to an image that is not `target`.
    """
    wanted = facts["stain_normalisation"]
    if wanted is None:
        return None
    from tiaft_plugin.tiles.slide_stain import SlideMacenko
    from tiaft_plugin.tiles.stain import make_stain

    stain: Any = make_stain(wanted["name"], target, wanted.get("scope", "tile"))
    if getattr(stain, "facts", None) != wanted:
        raise TiaftError(
            f"stain normalisation {wanted} cannot be made here: pass its image with --stain-target"
        )
    return stain.again(facts["stain_found"]).tile if isinstance(stain, SlideMacenko) else stain

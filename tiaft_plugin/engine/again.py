"""A store's tiles made again from the slide, and compared: the half of `verify` that needs it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_plugin.engine import store
from tiaft_plugin.engine.facts import mask_facts
from tiaft_plugin.engine.slides import fingerprint, open_slide, tissue_fractions
from tiaft_plugin.engine.store_tiles import dataset_of
from tiaft_plugin.errors import TiaftError, reason

# How far a tile's values may lie from those made again in float32, as norm of the difference over
# norm. Other batch sizes, threads, machines and folded BatchNorm stay far below 1e-4; a precision
# is taken where 64 tiles together stay within 1 %, of which one tile may have three times as much.
TOLERANCE = {"float32": 1e-4}
TOLERANCE_OTHERS = 0.03
_COLOUR_TOLERANCE = 1e-3  # of fractions and means of pixels scaled to 0…1


class Lacking(Exception):
    """A check needs what is not there; nothing is wrong."""


@dataclass(frozen=True)
class Source:
    """What a store is made again from.

    `model` is a name, a model file or an engine; without, the name that the store has. `mask` and
    `stain_target` are needed where the store was made with such: as SlideJob and `make_stain` take
    them.
    """

    slide: Path
    model: Any = None
    mask: Path | Callable | None = None
    stain_target: Path | None = None


def checks_with_slide(
    path: Path, source: Source, *, tiles: int, seed: int, batch_size: int, device: str
) -> dict[str, Callable[[Path], str]]:
    """Return the checks that need the slide, in their order; each takes the store's path.

    They return what they found, and raise TiaftError for a fault and Lacking for what is not there.
    """
    again = Again(path, source, batch_size=batch_size, device=device)
    return {
        "slide": again.check_slide,
        "coverage": again.check_coverage,
        "model": again.check_model,
        "tiles": partial(again.check_tiles, count=tiles, seed=seed),
    }


class Again:
    """A store beside the slide, mask and model that it was made from."""

    def __init__(self, path: Path, source: Source, *, batch_size: int, device: str):
        self.store, self.source = store.read_store(path), source
        self.facts, self.grid = self.store.facts, self.store.facts["grid"]
        self.batch_size, self.device = batch_size, device

    @cached_property
    def reader(self) -> Any:
        """The slide, with the resolution that the store has of it."""
        return open_slide(self.source.slide, self.facts["slide"]["mpp"][0])

    def check_slide(self, path: Path) -> str:
        """Compare the slide's fingerprint and size."""
        slide = self.source.slide
        if not slide.exists():
            raise TiaftError(f"{slide}: no such file")
        if fingerprint(slide) != self.facts["slide"]["fingerprint"]:
            raise TiaftError(f"{path} is not of {slide}: the fingerprints differ")
        size = [int(value) for value in self.reader.info.slide_dimensions]
        if size != self.facts["slide"]["size"]:
            raise TiaftError(f"{slide} is read with {size} px, not {self.facts['slide']['size']}")
        return f"{slide.name} has the store's fingerprint"

    def check_coverage(self, path: Path) -> str:
        """Lay the grid over slide and mask again: the same tiles, in the same order."""
        dataset = self._dataset(*self._mask())
        wanted, tissue = dataset.inputs, np.ones(len(dataset.inputs), dtype=np.float32)
        if dataset.mask_reader is not None:
            shape = self.reader.slide_dimensions(dataset.resolution, dataset.units)
            tissue = tissue_fractions(dataset.mask_reader.img, wanted, shape)
        enough = tissue >= self.grid["min_tissue"]
        wanted, found = wanted[enough], np.asarray(self.store.coordinates[:])
        if not np.array_equal(found, wanted):
            raise TiaftError(f"{path}: {_difference(found, wanted)}")
        if not np.allclose(self.store.tissue[:], tissue[enough], atol=1e-6):
            raise TiaftError(f"{path}: tissue fractions are not those of the mask")
        return f"grid and mask ({self.grid['mask']:.15}) give these {len(wanted)} tiles again"

    @cached_property
    def engine(self) -> Any:
        """An engine that makes such values, in float32."""
        if not isinstance(self.source.model, str | None):
            return self.source.model
        from tiaft_plugin.engine.run import make_engine

        name = self.source.model or self.facts["model"]["name"]
        try:
            engine = make_engine(
                self.facts["kind"],
                name,
                batch_size=self.batch_size,
                device=self.device,
                stain=self._stain(),
            )
        except TiaftError as error:
            if self.source.model is None:
                raise Lacking(f"model {name} is not here under its name: pass --model") from error
            raise
        engine.verbose = False
        return engine

    def check_model(self, path: Path) -> str:
        """Compare the model's SHA-256, and the stain normalisation that can be had here."""
        model, wanted = self.engine.model_facts, self.facts["model"]
        if model["sha256"] != wanted["sha256"]:
            raise TiaftError(f"{path} was made with another {wanted['name']}: the SHA-256 differ")
        if getattr(self.engine.stain, "facts", None) != self.facts["stain_normalisation"]:
            raise Lacking(
                f"stain normalisation {self.facts['stain_normalisation']} cannot be made here: "
                "pass the target with --stain-target"
            )
        return f"{model['name']} has the store's SHA-256"

    def check_tiles(self, path: Path, *, count: int, seed: int) -> str:
        """Extract `count` tiles again, at the store's own coordinates, and compare."""
        total = len(self.store)
        rows = np.random.default_rng(seed).choice(total, min(count, total), replace=False)
        if not len(rows):
            raise Lacking("none were asked for (--tiles)")
        rows = np.sort(rows)
        values, beside = self._made_again(rows)
        found = self.store.values.oindex[rows]
        norms = np.maximum(np.linalg.norm(values, axis=1), 1e-12)
        errors = np.linalg.norm(found - values, axis=1) / norms
        limit = TOLERANCE.get(self.facts["precision"], TOLERANCE_OTHERS)
        worst = int(errors.argmax())
        if not errors.max() <= limit:
            raise TiaftError(
                f"{path}: {(~(errors <= limit)).sum()} of {len(rows)} tiles are not what the slide "
                f"gives; tile {rows[worst]} differs by {errors[worst]:.2g} (relative), more than "
                f"{limit:g}"
            )
        self._compare_beside(path, rows, beside)
        return (
            f"{len(rows)} of {total} made again; largest relative difference {errors.max():.2g} "
            f"({self.facts['precision']}, at most {limit:g})"
        )

    def _made_again(self, rows: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return values (k, D) and what stands beside them of the tiles in `rows`."""
        import torch

        from tiaft_plugin.engine.prepare import PreparedTiles

        dataset = self._dataset(None, auto=False)
        dataset.inputs = np.asarray(self.store.coordinates[:])[rows]
        dataset.reader = self.reader
        prepare = self.engine.prepare(self.engine._get_model_attr("preproc_func"))
        if found := self.facts.get("stain_found"):  # the slide's own, once for all its tiles
            prepare.stain = self.engine.stain.again(found).tile
        tiles = PreparedTiles(dataset, prepare)
        values: list[np.ndarray] = []
        beside: dict[str, list] = {name: [] for name in store.beside_of(self.facts)}
        for start in range(0, len(rows), self.batch_size):
            batch = [tiles[row] for row in range(start, min(start + self.batch_size, len(rows)))]
            images = torch.stack([torch.as_tensor(np.asarray(tile["image"])) for tile in batch])
            values.append(np.asarray(self.engine.outputs_of(images)))
            for name, column in beside.items():
                column.extend(tile[name] for tile in batch)
        return np.concatenate(values), {k: np.asarray(column) for k, column in beside.items()}

    def _compare_beside(self, path: Path, rows: np.ndarray, beside: dict[str, np.ndarray]) -> None:
        for name, again in beside.items():
            found = getattr(self.store, name).oindex[rows]
            if not np.allclose(found.astype(float), again.astype(float), atol=_COLOUR_TOLERANCE):
                raise TiaftError(f"{path}: {name} of these tiles is not what the slide gives")

    def _dataset(self, mask: Any, auto: bool) -> Any:
        """Return TIAToolbox's tiles of the slide, as the engine would get them."""
        return dataset_of(self.reader, self.grid, mask, auto)

    def _mask(self) -> tuple[Any, bool]:
        """Return the mask that the store was made with, and whether TIAToolbox finds it."""
        recorded = self.grid["mask"]
        if recorded in ("otsu", "none"):
            return None, recorded == "otsu"
        mask = self.source.mask
        if mask is None:
            raise Lacking("the store was made with a mask: pass it with --mask")
        mask = mask(self.reader) if callable(mask) else mask
        if mask_facts(mask, auto=False) != recorded:
            raise TiaftError("the mask is not the one that the store was made with")
        return mask, False

    def _stain(self) -> Any:
        from tiaft_plugin.tiles.stain import make_stain

        facts = self.facts["stain_normalisation"]
        if facts is None:
            return None
        try:
            scope = facts.get("scope", "tile")
            return make_stain(facts["name"], self.source.stain_target, scope)
        except TiaftError as error:
            raise Lacking(f"stain normalisation {facts}: {reason(error)}") from error


def _difference(found: np.ndarray, wanted: np.ndarray) -> str:
    there, expected = (set(map(tuple, places.tolist())) for places in (found, wanted))
    for places, what in ((expected - there, "missing"), (there - expected, "too many")):
        if places:
            x, y, *_ = min(places)
            return f"{len(places)} tiles are {what}, such as at ({x}, {y})"
    return "the tiles are not in the order of the grid"

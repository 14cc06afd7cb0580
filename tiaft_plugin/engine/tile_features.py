"""Features of labelled tile sets, for probes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from tiaft_plugin.engine import facts
from tiaft_plugin.engine.extractor import FeatureExtractor
from tiaft_plugin.engine.prepare import Prepare, Stain
from tiaft_plugin.engine.run import make_engine
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.progress import progress
from tiaft_plugin.tiles.fingerprint import fingerprint
from tiaft_plugin.tiles.images import read_image
from tiaft_plugin.tiles.tileset import TileSet
from tiaft_plugin.zoo.promises import same_scale


@dataclass(frozen=True)
class ExtractedTiles:
    """Features of N tiles, sorted by `keys`, their files relative to the set's root, (N,) text.

    `features` is (N, D) float32, `colour` (N, 54) float32 (`tiles.colour.colour_features`);
    `labels` and `groups` are (N,) text, "" where no slide or patient is known. `about` says of
    which tiles and how they were made, and `warnings` what a person should know.
    """

    keys: np.ndarray
    features: np.ndarray
    colour: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    about: dict[str, Any]
    warnings: tuple[str, ...] = ()


def extract_tiles(
    tiles: TileSet,
    model: str,
    *,
    batch_size: int = 32,
    device: str = "auto",
    workers: int = 0,
    stain: Stain | None = None,
) -> ExtractedTiles:
    """Compute the features of a tile set with a model's name or file; the same ones every time.

    Tiles of another size than the model's are resized as fine-tuning does it (bicubic,
    antialiased), which changes their µm/px; `about` says so. Raises TiaftError.
    """
    engine: Any = make_engine(
        "features", model, batch_size=batch_size, workers=workers, device=device, stain=stain
    )
    names = [tiles.shown(file) for file in tiles.files]
    tiles = tiles.subset(sorted(range(len(tiles)), key=names.__getitem__))
    found = _compute(engine, tiles)
    if not np.isfinite(found["features"]).all():
        raise TiaftError(f"{model} gives NaN or infinity on tiles of {tiles.root}")
    scale = _scale(engine, tiles)
    about = {
        "models": [engine.model_facts],
        "tiles": {"name": tiles.name, "fingerprint": fingerprint(tiles), **scale},
        "stain_normalisation": getattr(engine.stain, "facts", None),
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "device": str(engine.device),
        "versions": facts.versions(),
    }
    if "normalised" in found:
        about["not_normalised"] = int((~found["normalised"]).sum())
    return ExtractedTiles(
        keys=np.array(sorted(names)),
        features=found["features"],
        colour=found["colour"],
        labels=np.array(tiles.labels),
        groups=np.array([group or "" for group in tiles.groups]),
        about=about,
        warnings=tuple(_doubts(tiles, scale)),
    )


class _Tiles(Dataset):
    """A tile set's images, prepared; what cannot be read comes as an error, to be raised later."""

    def __init__(self, files: tuple[Path, ...], size: int, prepare: Prepare):
        self.files, self.size, self.prepare = files, size, prepare

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> dict[str, Any] | TiaftError:
        try:
            return self.prepare(read_image(self.files[row], self.size))
        except TiaftError as error:
            return error  # raised in a worker, it would arrive as a page of traceback


def _compute(engine: FeatureExtractor, tiles: TileSet) -> dict[str, np.ndarray]:
    """Return features, colour and, where stains are normalised, on which tiles they are."""
    prepare = engine.prepare(engine._get_model_attr("preproc_func"))
    parts: dict[str, list[np.ndarray]] = {}
    with progress(len(tiles), tiles.name) as bar:
        for batch in _batches(_Tiles(tiles.files, _tile_size(engine), prepare), engine):
            outputs = {"features": engine.outputs_of(batch.pop("image")), **batch}
            for name, values in outputs.items():
                parts.setdefault(name, []).append(np.asarray(values))
            bar.update(len(outputs["features"]))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _batches(dataset: _Tiles, engine: FeatureExtractor) -> Iterator[dict[str, Any]]:
    loader = DataLoader(
        dataset,
        batch_size=engine.batch_size,
        num_workers=engine.num_workers,
        collate_fn=_collate,
    )
    for batch in loader:
        if isinstance(batch, TiaftError):
            raise batch
        yield batch


def _collate(items: list) -> Any:
    failed = next((item for item in items if isinstance(item, TiaftError)), None)
    return failed if failed is not None else default_collate(items)


def _tile_size(engine: Any) -> int:
    return int(np.ravel(engine._ioconfig.patch_input_shape)[0])


def _scale(engine: Any, tiles: TileSet) -> dict[str, Any]:
    """Return the tiles' size (px) and µm/px, as they are and as the model sees them."""
    size = _tile_size(engine)
    resolution = engine._ioconfig.input_resolutions[0]
    return {
        "tile_size": tiles.tile_size,
        "mpp": tiles.mpp,
        "resized_to": size if size != tiles.tile_size else None,
        "seen_mpp": tiles.mpp and tiles.mpp * tiles.tile_size / size,
        "model_mpp": float(resolution["resolution"]) if resolution["units"] == "mpp" else None,
    }


def _doubts(tiles: TileSet, scale: dict[str, Any]) -> list[str]:
    seen, wanted = scale["seen_mpp"], scale["model_mpp"]
    if seen is None or wanted is None or same_scale(seen, wanted):
        return []
    resized = f", resized to {scale['resized_to']} px," if scale["resized_to"] else ""
    return [f"{tiles.root}: the tiles{resized} have {seen:.3g} µm/px, the model is for {wanted:g}"]

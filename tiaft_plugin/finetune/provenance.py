"""What a model file says about how it was made: data, settings, versions, and no times."""

from importlib.metadata import version
from typing import Any

from tiaft_plugin.finetune.interface import FinetuneJob
from tiaft_plugin.tiles.fingerprint import fingerprint
from tiaft_plugin.tiles.tileset import TileSet

_VERSIONS = ("tiaft_plugin", "torch", "timm", "lightning", "numpy", "pillow")


def describe_data(
    job: FinetuneJob,
    train: TileSet,
    val: TileSet | None,
    train_hashes: list[str],
    val_hashes: list[str],
) -> dict[str, Any]:
    """Return the card's `data`: names, fingerprints, tiles per class, groups, and resizing."""
    data = _describe(train, train_hashes)
    if job.tile_size not in (None, train.tile_size):
        data["resized"] = {"from_px": train.tile_size, "from_mpp": job.mpp or train.mpp}
    if val is not None:
        data["held_out"] = _describe(val, val_hashes)
    return data


def describe_training(job: FinetuneJob, results: list) -> dict[str, Any]:
    """Return the card's `training` after the stages in `results` (see outputs.StageResult)."""
    return {
        "finetuner": "two-stage",
        "seed": job.seed,
        "loss": "categorical cross-entropy",
        "batch_size": job.batch_size,
        "freeze_batchnorm": job.freeze_batchnorm,
        "stages": [result.summary() for result in results],
        "versions": {name: version(name) for name in _VERSIONS},
    }


def shared_tiles(train_hashes: list[str], val_hashes: list[str]) -> list[str]:
    """Return a warning where held-out tiles are, byte by byte, among those to train on."""
    known = set(train_hashes)
    shared = sum(value in known for value in val_hashes)
    if not shared:
        return []
    return [f"{shared} of {len(val_hashes)} held-out tiles are training tiles too (same bytes)"]


def _describe(tiles: TileSet, hashes: list[str]) -> dict[str, Any]:
    about = {
        "name": tiles.name,
        "fingerprint": fingerprint(tiles, hashes),
        "tiles": tiles.counts,
        "groups": len(tiles.group_names),  # their names are patients', and model files travel
    }
    return about | ({"doi": tiles.known.doi, "licence": tiles.known.licence} if tiles.known else {})

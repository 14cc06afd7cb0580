"""What a model file says about how it was made: data, settings, versions, and no times."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from typing import Any

from tiaft_plugin.finetune.interface import FinetuneJob
from tiaft_plugin.finetune.measured import StageResult
from tiaft_plugin.finetune.recipes import Recipe
from tiaft_plugin.finetune.sets import Sets
from tiaft_plugin.tiles.fingerprint import fingerprint
from tiaft_plugin.tiles.tileset import TileSet

_MEASURES = ("loss", "accuracy", "balanced_accuracy", "macro_f1", "auroc", "auprc")
_VERSIONS = ("tiaft_plugin", "torch", "timm", "lightning", "numpy", "pillow")


def describe_data(job: FinetuneJob, sets: Sets, hashes: dict[str, list[str]]) -> dict[str, Any]:
    """Return the card's `data`: names, fingerprints, tiles per class, groups, and resizing."""
    about = {name: _describe(tiles, hashes[name]) for name, tiles in sets.named().items()}
    data = about.pop("train")
    if job.tile_size not in (None, sets.train.tile_size):
        data["resized"] = {"from_px": sets.train.tile_size, "from_mpp": job.mpp or sets.train.mpp}
    names = {"val": "held_out", "test": "test"}
    return data | {names[name]: found for name, found in about.items()}


def describe_training(
    job: FinetuneJob,
    recipe: Recipe,
    results: Sequence[StageResult],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the card's `training` after the stages in `results`; no times, no paths.

    `job` says which precision and activation checkpointing there were, `recipe` every number,
    `environment` what decides the last digits on a machine.
    """
    several = results[-1].net.card.task == "multilabel"
    return {
        "finetuner": "two-stage",
        "recipe": recipe.name,
        "recipe_source": recipe.source,
        "seed": job.seed,
        "loss": "mean binary cross-entropy of labels" if several else "categorical cross-entropy",
        **_numbers(recipe),
        "freeze_batchnorm": job.freeze_batchnorm,
        "precision": job.precision,
        "activation_checkpointing": job.activation_checkpointing,
        **_stain(job),
        "stages": [_describe_stage(result) for result in results],
        "versions": {name: version(name) for name in _VERSIONS},
        "environment": {
            name: value for name, value in environment.items() if not name.endswith(" version")
        },
    }


def _numbers(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's settings, without those that its optimiser and schedule do not use."""
    idle = {"name", "source", "stages", "backbone", "hidden"}
    idle |= set() if recipe.optimizer == "sgd" else {"momentum", "nesterov"}
    idle |= set() if recipe.schedule == "inverse-time" else {"decay"}
    idle |= set() if recipe.schedule == "plateau" else {"factor", "patience", "min_lr"}
    idle |= set() if recipe.frozen else {"frozen"}
    idle |= set() if recipe.part_a_lr != 1 else {"part_a_lr"}
    every = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return {name: value for name, value in every.items() if name not in idle}


def _stain(job: FinetuneJob) -> dict[str, Any]:
    if job.stain == "none":
        return {}
    from tiaft_plugin.tiles import stain

    normalise = stain.normaliser(job.stain)
    return {"stain": normalise.facts} if normalise else {}


def _describe_stage(result: StageResult) -> dict[str, Any]:
    measured = result.measured
    metrics = {
        row["split"]: {name: row[name] for name in ("loss", "accuracy")}
        for row in measured.rows
        if row["split"] == "train" and row["epoch"] == measured.kept
    }
    for split, found in (("val", measured.val), ("test", measured.test)):
        if found is not None:
            metrics[split] = {k: v for k, v in found.metrics({}).items() if k in _MEASURES}
    return {
        "trains": result.stage.trains,
        "epochs": result.stage.epochs,
        "kept_epoch": measured.kept,
        "lr": result.stage.lr,
        "optimizer": measured.optimizer,
        "augmented": result.augmented,
        "metrics": metrics,
    }


def shared_tiles(hashes: dict[str, list[str]]) -> list[str]:
    """Return warnings where tiles of one set are, byte by byte, in another, too.

    `hashes` are of the tiles' files, by name of the set.
    """
    names = {"train": "training", "val": "validation", "test": "test"}
    found = []
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        known = set(hashes.get(one, ()))
        there = hashes.get(other, ())
        shared = sum(value in known for value in there)
        if shared:
            found.append(
                f"{shared} of {len(there)} {names[other]} tiles are {names[one]} tiles, too (same "
                "bytes)"
            )
    return found


def _describe(tiles: TileSet, hashes: list[str]) -> dict[str, Any]:
    about = {
        "name": tiles.name,
        "fingerprint": fingerprint(tiles, hashes),
        "tiles": tiles.counts,
        "groups": len(tiles.group_names),  # their names are patients', and model files travel
    }
    return about | ({"doi": tiles.known.doi, "licence": tiles.known.licence} if tiles.known else {})

"""What a run begins with: the backbone, where its weights come from, and their licence."""

from pathlib import Path
from typing import Any

from tiaft_plugin.files import sha256_of
from tiaft_plugin.finetune.interface import FinetuneJob
from tiaft_plugin.finetune.recipes import Recipe
from tiaft_plugin.network.card import Card, has_card, read_card

_PARTS = ("weights: ", "training tiles: ")


def backbone_of(job: FinetuneJob, recipe: Recipe) -> str:
    """Return the backbone that a job's network will have: given, the init file's, the recipe's."""
    card = _card_of(job.init)
    return job.backbone or (card.backbone if card else recipe.backbone)


def describe_init(init: str) -> dict[str, Any]:
    """Return what the card's `training` tells of ``--init``; a file by its hash, not its path."""
    if init in ("imagenet", "random"):
        return {"init": init}
    return {"init": "file", "init_sha256": sha256_of(init)}


def licence_of(init: str, backbone: str) -> str:
    """Return the licence of the weights that Part A begins with; empty where none is stated."""
    if init == "imagenet":
        return _licence_of_timm(backbone)
    card = _card_of(init)
    return card.licence if card else ""


def joined_licence(weights: str, data: dict[str, Any]) -> str:
    """Return the licences of a fine-tuned model: of the weights it began with, and of its tiles.

    `data` is the card's. `weights` may be such a text already, of a model fine-tuned before.
    """
    parts = [weights if weights.startswith(_PARTS) else f"weights: {weights}"] if weights else []
    tiles = f"training tiles: {data['licence']}, {data['doi']}" if "licence" in data else ""
    if tiles and tiles not in weights:
        parts.append(tiles)
    return "; ".join(parts)


def _card_of(init: str) -> Card | None:
    return read_card(init) if has_card(Path(init)) else None


def _licence_of_timm(backbone: str) -> str:
    import timm

    from tiaft_plugin.network.backbone import timm_name

    config = timm.models.get_pretrained_cfg(timm_name(backbone))
    return (config.license or "") if config else ""

"""Make a new network: a backbone by name, a class list, and where Part A's weights come from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tiaft_plugin.network.backbone import (
    DEFAULT_BACKBONE,
    DEFAULT_TILE_SIZE,
    default_normalisation,
    whole_name,
)
from tiaft_plugin.network.card import Card, has_card, read_card
from tiaft_plugin.network.net import Network
from tiaft_plugin.network.weights import init_part_a

DEFAULT_HIDDEN = (2048,)  # paper 1, section 3.2, read as one hidden layer


def create_network(
    backbone: str | None = None,
    classes: Sequence[str] = (),
    *,
    init: str = "imagenet",
    tile_size: int = DEFAULT_TILE_SIZE,
    mpp: float | None = None,
    hidden: Sequence[int] = DEFAULT_HIDDEN,
    backbone_args: dict[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    **card: Any,
) -> Network:
    """Create a network in eval mode; Part B is random from `seed`, Part A comes from `init`.

    `init` is ``imagenet``, ``random`` or a file; where it is a tiaft model file, its card gives
    the backbone, its arguments, mean and std that are not given here; `backbone` may be a part of
    the file's. Without classes there is no Part B. `card` holds further fields of the card. Raises
    TiaftError.
    """
    given = read_card(init) if has_card(Path(init)) else None
    if given is not None and (not backbone or given.backbone in (backbone, whole_name(backbone))):
        backbone, backbone_args = backbone or given.backbone, backbone_args or given.backbone_args
        mean, std = mean or given.mean, std or given.std
    backbone = backbone or DEFAULT_BACKBONE
    default_mean, default_std = default_normalisation(backbone)
    blueprint = Card(
        backbone=backbone,
        tile_size=tile_size,
        mpp=mpp,
        classes=tuple(classes),
        hidden=tuple(hidden) if classes else (),
        mean=tuple(mean or default_mean),
        std=tuple(std or default_std),
        backbone_args=dict(backbone_args or {}),
        task=card.get("task", "classes"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Network(blueprint)
    source = init_part_a(net, init)
    if init == "random":
        source += f" (seed {seed})"
    net.card = Card(**{**blueprint.__dict__, "source": source, **card})
    return net.eval()

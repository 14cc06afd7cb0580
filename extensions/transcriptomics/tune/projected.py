"""``NAME:projected``: a backbone whose features go through a projection that was learnt."""

from typing import Any

import torch
from torch import Tensor, nn

from tiaft_extensions.transcriptomics.tune.towers import projection
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.network.backbone import create_backbone, pooled_width

SUFFIX = ":projected"
WIDTH, HEAD = "projected_width", "projected_head"  # among backbone_args


class Projected(nn.Module):
    """Features (N, `num_features`) of normalised tiles (N, 3, H, W), in the space of a loss."""

    def __init__(self, body: nn.Module, width: int, head: str):
        super().__init__()
        self.body, self.num_features = body, width
        self.projection = projection(pooled_width(body), width, head)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the projected features."""
        return self.projection(self.body(pixels))


def create_projected(name: str, tile_size: int, args: dict[str, Any]) -> nn.Module:
    """Create NAME:projected with random weights. Raises TiaftError where arguments are wrong."""
    args = dict(args)
    width, head = args.pop(WIDTH, None), args.pop(HEAD, "linear")
    if not isinstance(width, int) or width < 1 or head not in ("linear", "mlp"):
        raise TiaftError(
            f"backbone {name} needs backbone_args {WIDTH}, a number, and {HEAD}, linear or mlp: "
            f"they are {width!r} and {head!r}"
        )
    body = create_backbone(name.removesuffix(SUFFIX), tile_size, args)
    return Projected(body, width, head)


def fill(module: nn.Module, body: nn.Module, learnt: nn.Module) -> None:
    """Copy the weights of a backbone and of a projection into a `Projected`."""
    assert isinstance(module, Projected)
    with torch.no_grad():
        module.body.load_state_dict(body.state_dict())
        module.projection.load_state_dict(learnt.state_dict())

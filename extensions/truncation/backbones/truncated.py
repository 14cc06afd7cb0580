"""A backbone cut off after one of its blocks, then pooled (papers 3 and 4).

It is timm's own network with less in it: its weights have the names that they have in the whole
one, so that pretrained weights load, and what was cut off is left in their file.
"""

from typing import Any

from torch import nn

from tiaft_extensions.truncation.backbones.cuts import find_cut
from tiaft_extensions.truncation.backbones.plan import leave_out
from tiaft_plugin.network.backbone import create_backbone


def create_truncated(
    backbone: str, cut: str, tile_size: int, args: dict[str, Any] | None = None
) -> nn.Module:
    """Create a backbone up to `cut` and its pooling, with random weights: features (N, width).

    `args` go to the whole backbone. Raises TiaftError, which lists the cuts that there are.
    """
    plan = find_cut(backbone, cut, tile_size, args)
    module: Any = create_backbone(backbone, tile_size, args)
    leave_out(module, plan.left_out)
    module.num_features = module.head_hidden_size = plan.width
    return module

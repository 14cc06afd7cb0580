"""TransFusion's networks: a backbone whose top, after a cut, is half as wide.

As in paper 3's baseline TF, after Raghu et al. 2019 (Transfusion): every convolution of the top
gives half as many maps, so that ResNet50 after layer3 has 12.9 million weights.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tiaft_extensions.truncation.backbones.cuts import find_cut
from tiaft_plugin.errors import TiaftError, first_line
from tiaft_plugin.network.backbone import create_backbone


def create_slim(
    backbone: str, cut: str, tile_size: int, args: dict[str, Any] | None = None
) -> nn.Module:
    """Create a backbone with half the width after `cut`, with random weights: features (N, width).

    Up to the cut its weights have the names of the whole backbone's. Raises TiaftError.
    """
    plan = find_cut(backbone, cut, tile_size, args)
    name = f"{backbone} after {cut}"
    if not plan.left_out:
        raise TiaftError(f"{name} has no top that could have half the width")
    return slim_top(create_backbone(backbone, tile_size, args), plan.left_out, tile_size, name)


def slim_top(module: nn.Module, top: Sequence[str], tile_size: int, name: str = "") -> nn.Module:
    """Halve the width of the modules at the paths `top`, in place; their weights are drawn anew.

    One tile of `tile_size` px goes through, and each layer takes the width that it is given. Raises
    TiaftError for networks whose layers do not follow (`name` is what it calls them).
    """
    layers = [layer for path in top for layer in module.get_submodule(path).modules()]
    hooks = [layer.register_forward_pre_hook(_fit) for layer in dict.fromkeys(layers)]
    was_training = module.training
    try:
        with torch.no_grad():
            pooled = module.eval()(torch.zeros(1, 3, tile_size, tile_size))
    except (RuntimeError, ValueError, TypeError) as error:
        raise TiaftError(
            f"{name or 'the network'} cannot have a top of half the width "
            f"({first_line(error)}): leave tf out of --baselines"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        module.train(was_training)
    module.num_features = module.head_hidden_size = pooled.shape[1]
    return module


def _fit(layer: nn.Module, inputs: tuple) -> None:
    """Give a layer as many inputs as come, and half its outputs."""
    if isinstance(layer, nn.Conv2d):
        _fit_convolution(layer, inputs[0].shape[1])
    elif isinstance(layer, nn.BatchNorm2d):
        layer.num_features = inputs[0].shape[1]
        for kept in ("weight", "bias"):
            if getattr(layer, kept) is not None:
                setattr(layer, kept, nn.Parameter(torch.empty(layer.num_features)))
        for kept in ("running_mean", "running_var"):
            if getattr(layer, kept) is not None:
                setattr(layer, kept, torch.empty(layer.num_features))
        layer.reset_parameters()
    elif isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = inputs[0].shape[-1], max(1, layer.out_features // 2)
        layer.weight = nn.Parameter(torch.empty(layer.out_features, layer.in_features))
        if layer.bias is not None:
            layer.bias = nn.Parameter(torch.empty(layer.out_features))
        layer.reset_parameters()


def _fit_convolution(layer: nn.Conv2d, width: int) -> None:
    depthwise = layer.groups == layer.in_channels > 1  # a filter for each map that comes
    outputs = width * (layer.out_channels // layer.in_channels) if depthwise else 0
    layer.out_channels = outputs or max(1, layer.out_channels // 2)
    layer.groups = width if depthwise else layer.groups
    layer.in_channels = width
    shape = (layer.out_channels, width // layer.groups, *layer.kernel_size)
    layer.weight = nn.Parameter(torch.empty(shape))
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        layer.bias = nn.Parameter(torch.zeros(layer.out_channels))

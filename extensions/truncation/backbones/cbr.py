"""The CBR family: small convolutional networks that no ImageNet weights exist for.

Raghu et al., "Transfusion: understanding transfer learning for medical imaging", compare deep
networks with them, and so do Peng et al. (paper 3).
"""

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import SelectAdaptivePool2d
from torch import nn

from tiaft_plugin.errors import TiaftError


@dataclass(frozen=True)
class Shape:
    """Kernel side (px) and widths of a network's blocks; the last may have no max-pooling."""

    kernel: int
    widths: tuple[int, ...]
    pools_last: bool = True


FAMILY = {
    "cbr_large_t": Shape(7, (32, 64, 128, 256, 512), pools_last=False),
    "cbr_large_w": Shape(7, (64, 128, 256, 512)),
    "cbr_small": Shape(7, (32, 64, 128, 256)),
    "cbr_tiny": Shape(5, (64, 128, 256, 512)),
}


class CBR(nn.Module):
    """Blocks of convolution, BatchNorm, ReLU and max-pooling, then global pooling.

    Takes normalised tiles (N, 3, H, W) and returns features (N, width).
    """

    def __init__(self, shape: Shape):
        super().__init__()
        self.blocks = nn.Sequential()
        before = 3
        for number, width in enumerate(shape.widths, start=1):
            block = nn.Sequential()
            # "Same" padding is assumed: the papers do not say.
            block.conv = nn.Conv2d(before, width, shape.kernel, padding=shape.kernel // 2)
            block.bn = nn.BatchNorm2d(width)
            block.act = nn.ReLU(inplace=True)
            if number < len(shape.widths) or shape.pools_last:
                block.pool = nn.MaxPool2d(3, stride=2, padding=1)
            self.blocks.add_module(str(number), block)
            before = width
        self.global_pool = SelectAdaptivePool2d(pool_type="avg", flatten=True)
        self.num_features = before

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return features (N, width)."""
        return self.global_pool(self.blocks(tiles))


def create_cbr(name: str, args: dict[str, Any] | None = None) -> CBR:
    """Create a network of the family with random weights.

    `args` may set ``widths`` (whole numbers, or a text such as ``32,64,128,256``) and ``kernel``
    (odd). Raises TiaftError.
    """
    if name not in FAMILY:
        raise TiaftError(f"there is no {name} in the CBR family: {', '.join(FAMILY)} are")
    shape, args = FAMILY[name], dict(args or {})
    widths = _whole_numbers(args.pop("widths", shape.widths))
    kernel = args.pop("kernel", shape.kernel)
    if args:
        raise TiaftError(f"{name} has no argument {next(iter(args))}: widths and kernel may be set")
    if not widths or min(widths) < 1:
        raise TiaftError(f"{name}: widths are one or more whole numbers, such as 32,64,128,256")
    if not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
        raise TiaftError(f"{name}: kernel is {kernel!r}, not an odd number of pixels")
    return CBR(Shape(kernel, widths, shape.pools_last))


def _whole_numbers(widths: Any) -> tuple[int, ...]:
    parts = widths.split(",") if isinstance(widths, str) else widths
    try:
        return tuple(int(part) for part in parts)
    except (TypeError, ValueError):
        return ()

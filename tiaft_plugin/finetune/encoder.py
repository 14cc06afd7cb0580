"""An encoder that learns from labels of many tiles at once."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tiaft_plugin.network.net import Network, PartB
from tiaft_plugin.network.precision import exact_float32


class Encoder(nn.Module):
    """A network's features, (n, D) float32 of uint8 tiles (n, H, W, 3); some or all of it learns.

    `trained` are the modules that learn, by default all that features come from. Everything is in
    eval mode at all times: BatchNorm keeps its statistics, else a bag's features would depend on
    the tiles beside it; its scale and shift learn. `precision` is that of training, and where
    `always` of measuring too.
    """

    def __init__(
        self,
        net: Network,
        trained: Sequence[nn.Module] | None = None,
        precision: str = "float32",
        *,
        always: bool = False,
    ):
        super().__init__()
        self.net, self.precision, self.always = net, precision, always
        if trained is None:
            hidden = [net.part_b.hidden] if isinstance(net.part_b, PartB) else []
            trained = [net.part_a, *hidden]
        net.requires_grad_(False)
        for module in trained:
            module.requires_grad_(True)

    def train(self, mode: bool = True) -> "Encoder":
        """Note the mode, and leave the network in that of evaluation."""
        super().train(False)
        self.training = mode
        return self

    def forward(self, tiles: Tensor) -> Tensor:
        """Return features (n, D) float32 of uint8 tiles (n, H, W, 3)."""
        mixed = self.precision == "bfloat16" and (self.training or self.always)
        with torch.autocast(self.net.mean.device.type, torch.bfloat16, enabled=mixed):
            return self.net.features(tiles).float()

    @torch.no_grad()
    def encode(self, tiles: np.ndarray) -> np.ndarray:
        """Return features (n, D) float32 of uint8 tiles, in float32 but where `always`."""
        with exact_float32():
            return self(torch.from_numpy(tiles)).cpu().numpy()

"""What learns: an encoder and its attention head, from the tiles of a bag to its class."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from tiaft_extensions.histotransfer.attention import AttentionNet
from tiaft_plugin.network.net import Network, PartB
from tiaft_plugin.network.precision import exact_float32


class Encoder(nn.Module):
    """A network's features, (n, D) float32 of uint8 tiles (n, H, W, 3), all of it learning.

    It is in eval mode at all times: BatchNorm keeps its statistics, and its scale and shift learn
    (the paper's stage 2). What comes after the features, a classifier, stays as it is.
    """

    def __init__(self, net: Network, precision: str = "float32"):
        super().__init__()
        self.net, self.precision = net, precision
        net.requires_grad_(False)
        net.part_a.requires_grad_(True)
        if isinstance(net.part_b, PartB):
            net.part_b.hidden.requires_grad_(True)

    def train(self, mode: bool = True) -> "Encoder":
        """Note the mode, and leave the network in that of evaluation."""
        super().train(False)
        self.training = mode
        return self

    def forward(self, tiles: Tensor) -> Tensor:
        """Return features; in float32 but in training."""
        mixed = self.training and self.precision == "bfloat16"
        with torch.autocast(self.net.mean.device.type, torch.bfloat16, enabled=mixed):
            return self.net.features(tiles).float()

    @torch.no_grad()
    def encode(self, tiles: np.ndarray) -> np.ndarray:
        """Return features (n, D) float32 of uint8 tiles, in float32."""
        with exact_float32():
            return self(torch.from_numpy(tiles)).cpu().numpy()


class Tuned(nn.Module):
    """An encoder and its head."""

    def __init__(self, encoder: Encoder, head: AttentionNet):
        super().__init__()
        self.encoder, self.head = encoder, head.requires_grad_(True)

    def learns(self) -> dict[str, nn.Parameter]:
        """Return the parameters that learn, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def state(self) -> dict[str, Tensor]:
        """Return a copy of them on the CPU; whatever else there is never changes."""
        return {name: p.detach().cpu().clone() for name, p in self.learns().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Set what learns to a copy that `state` made."""
        with torch.no_grad():
            for name, parameter in self.learns().items():
                parameter.copy_(state[name])


@torch.no_grad()
def look(head: AttentionNet, blocks: Iterable[np.ndarray]) -> tuple[Tensor, np.ndarray]:
    """Return logits (C,) and raw attention logits (N,) float32 of a bag's features (n, D) each.

    Only the head's own, narrow embeddings of the whole bag are held.
    """
    device = head.classify.weight.device
    encoded = torch.cat([head.encode(torch.from_numpy(block).to(device)) for block in blocks])
    raw = head.attend(encoded)
    return head.classify(raw.softmax(0) @ encoded).cpu(), raw.cpu().numpy()


def highest(raw: np.ndarray, k: int) -> np.ndarray:
    """Return the rows (≤ k,) of the `k` highest raw attention logits (N,), ascending."""
    return np.sort(np.argsort(-raw, kind="stable")[:k])

"""The network of FTX-2048: Part A, a timm backbone with pooling; Part B, the add-on module."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.network.backbone import create_backbone, pooled_width
from tiaft_plugin.network.card import Card
from tiaft_plugin.network.outputs import probabilities_of


class Network(nn.Module):
    """Part A and Part B, from pixels to logits (paper 1, section 3.2).

    Called with uint8 tiles (N, H, W, 3), a torch tensor or a numpy array, it returns logits
    (N, C); `features` returns (N, D). Tiles are moved to the network's device and normalised
    there. The weights of a new network are random.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, card: Card):
        super().__init__()
        self.card = card
        self.part_a = create_backbone(card.backbone, card.tile_size, card.backbone_args)
        width = pooled_width(self.part_a)
        classes = len(card.classes)
        self.part_b = PartB(width, card.hidden, classes) if classes else nn.Identity()
        self.feature_width = card.hidden[-1] if card.hidden else width
        # Derived from the card, so not part of the weights.
        self.register_buffer("mean", torch.tensor(card.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(card.std).view(3, 1, 1) * 255, persistent=False)

    def forward(self, tiles: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Return logits (N, C) of uint8 tiles (N, H, W, 3)."""
        if not self.card.classes:
            raise TiaftError("this model has no classes: it gives features only (net.features)")
        return self.part_b(self.pooled(tiles))

    def probabilities(self, tiles: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Return probabilities (N, C): softmax, or with several labels a tile, sigmoid."""
        return probabilities_of(self(tiles), multilabel=self.card.multilabel)

    def features(self, tiles: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Return features (N, D) of uint8 tiles (N, H, W, 3).

        With Part B these are the outputs after its last ReLU (FTX-2048); without, the pooled
        output of Part A (IMGNET-2048).
        """
        pooled = self.pooled(tiles)
        return self.part_b.hidden(pooled) if isinstance(self.part_b, PartB) else pooled

    def pooled(self, tiles: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Return Part A's pooled output (N, width) of uint8 tiles (N, H, W, 3)."""
        return self.part_a(self.normalise(tiles))

    def normalise(self, tiles: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Return tiles as (N, 3, H, W), normalised, on the network's device."""
        self._check(tiles)
        if isinstance(tiles, np.ndarray) and not tiles.flags.carray:
            tiles = tiles.copy()  # torch takes no flipped views, and warns of read-only arrays
        return self.scaled(torch.as_tensor(tiles))

    def scaled(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return a tensor of tiles as `normalise` does, unchecked, so that it can be traced."""
        pixels = tiles.to(self.mean.device).permute(0, 3, 1, 2).to(self.mean.dtype)
        return (pixels - self.mean) / self.std

    def _check(self, tiles: torch.Tensor | np.ndarray) -> None:
        if not isinstance(tiles, torch.Tensor | np.ndarray):
            raise TiaftError(
                f"tiles are a {type(tiles).__name__}: a torch tensor or numpy array (N, height, "
                "width, 3) expected"
            )
        shape, size = tuple(tiles.shape), self.card.tile_size
        if tiles.dtype not in (torch.uint8, np.uint8):
            raise TiaftError(
                f"tiles are {str(tiles.dtype).removeprefix('torch.')}: this network takes uint8 "
                "pixels (0 to 255) and normalises them itself"
            )
        if len(shape) != 4 or shape[3] != 3:
            raise TiaftError(f"tiles have shape {shape}: RGB tiles (N, height, width, 3) expected")
        if shape[1:3] != (size, size):
            raise TiaftError(
                f"tiles are {shape[2]}×{shape[1]} px: this model was made for {size}×{size} px"
                + (f" at {self.card.mpp:g} µm/px" if self.card.mpp else "")
            )


class PartB(nn.Module):
    """The add-on module: hidden layers of Linear and ReLU, then a Linear to the classes.

    The paper's "two fully connected layers with 2048 neurons, a ReLU activation layer, and
    nine-neuron classifier layer" can be read as one hidden layer of 2048 and the classifier
    (`hidden` = (2048,), the default) or as two hidden layers (`hidden` = (2048, 2048)).
    """

    def __init__(self, width: int, hidden: Sequence[int], classes: int):
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, units in enumerate(hidden, start=1):
            layers[f"fc{number}"] = nn.Linear(width, units)
            layers[f"relu{number}"] = nn.ReLU()
            width = units
        self.hidden = nn.Sequential(layers)
        self.classifier = nn.Linear(width, classes)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return logits (N, C) of Part A's output (N, width)."""
        return self.classifier(self.hidden(pooled))


def reorder_classes(net: Network, classes: Sequence[str]) -> Network:
    """Put the classifier's outputs into the order of `classes`, in place, and say so in the card.

    Raises TiaftError unless both lists hold the same names.
    """
    from dataclasses import replace

    if sorted(classes) != sorted(net.card.classes):
        raise TiaftError(
            f"the model's classes are {', '.join(net.card.classes) or 'none'}; "
            f"{', '.join(classes)} are needed"
        )
    order = [net.card.classes.index(name) for name in classes]
    if isinstance(net.part_b, PartB):
        with torch.no_grad():
            for parameter in (net.part_b.classifier.weight, net.part_b.classifier.bias):
                parameter.copy_(parameter[order].clone())
    net.card = replace(net.card, classes=tuple(classes))
    return net

"""The paper's attention network: from the features of a bag's tiles to classes of the bag."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tiaft_extensions.histotransfer.recipe import ATTENTION, HIDDEN
from tiaft_plugin.errors import TiaftError, first_line
from tiaft_plugin.files import write_atomically

_SCHEMA = "tiaft-attention"


class AttentionNet(nn.Module):
    """Attention pooling over tiles, as the paper's code has it: no gate, no dropout.

    Features (n, D) → Linear 256, ReLU → Linear 64, ReLU; attention Linear 32, tanh → Linear 1,
    softmax over the bag's tiles; the weighted mean → Linear C. With `gated`, the tanh is multiplied
    by a sigmoid of another Linear (Ilse et al. 2018), which the paper has not.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        hidden: Sequence[int] = HIDDEN,
        attention: int = ATTENTION,
        gated: bool = False,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((width, *hidden), hidden, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.encode = nn.Sequential(*layers)
        embedding = hidden[-1]
        self.look = nn.Linear(embedding, attention)
        self.gate = nn.Linear(embedding, attention) if gated else None
        self.weigh = nn.Linear(attention, 1)
        self.classify = nn.Linear(embedding, classes)
        self.shape = {
            "width": width,
            "classes": classes,
            "hidden": list(hidden),
            "attention": attention,
            "gated": gated,
        }

    def attend(self, encoded: torch.Tensor) -> torch.Tensor:
        """Return the raw attention logits (n,) of encoded tiles (n, 64)."""
        looked = torch.tanh(self.look(encoded))
        if self.gate is not None:
            looked = looked * torch.sigmoid(self.gate(encoded))
        return self.weigh(looked).squeeze(-1)

    def pool(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the bag's embedding (64,) and the raw attention logits (n,) of its tiles."""
        encoded = self.encode(features)
        raw = self.attend(encoded)
        return raw.softmax(0) @ encoded, raw

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (C,) and raw attention logits (n,) of one bag's features (n, D)."""
        pooled, raw = self.pool(features)
        return self.classify(pooled), raw

    @torch.no_grad()
    def take_in(self, mean: torch.Tensor, sd: torch.Tensor) -> None:
        """Let the first layer standardise: it gets features as they are from now on.

        `mean` and `sd` (D,) are what it was trained with in front of it.
        """
        first = self.encode[0]
        assert isinstance(first, nn.Linear)
        weight = first.weight.double() / sd.double()
        first.bias.copy_(first.bias.double() - weight @ mean.double())
        first.weight.copy_(weight)


@dataclass(frozen=True)
class Head:
    """A trained attention network, its classes in order, and what is known of its training."""

    net: AttentionNet
    classes: tuple[str, ...]
    about: Mapping[str, Any]


def save_head(
    path: Path, net: AttentionNet, classes: Sequence[str], about: Mapping[str, Any]
) -> Path:
    """Write a head as ``.safetensors``; its metadata holds shape, classes and `about` as JSON."""
    from safetensors.torch import save

    card = {"shape": net.shape, "classes": list(classes), "about": dict(about)}
    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    data = save(tensors, metadata={_SCHEMA: json.dumps(card, sort_keys=True)})
    with write_atomically(path) as temporary:
        temporary.write_bytes(data)
    return path


def load_head(path: Path) -> Head:
    """Read what `save_head` wrote, in eval mode. Raises TiaftError for anything else."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads((file.metadata() or {})[_SCHEMA])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        net = AttentionNet(**card["shape"])
        net.load_state_dict(weights)
    except Exception as error:  # safetensors, json and torch raise what they like
        why = "none of its metadata" if isinstance(error, KeyError) else first_line(error)
        raise TiaftError(
            f"{path} is no attention head ({why}): `tiaft probe mil` writes them"
        ) from error
    return Head(net.eval().requires_grad_(False), tuple(card["classes"]), card["about"])

"""What an encoder costs: parameters, multiply-accumulates, memory."""

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tiaft_extensions.truncation.backbones.macs import macs_of, parameters_of
from tiaft_plugin.network import Network

BATCH = 32  # tiles, as `tiaft extract` takes by default


@dataclass(frozen=True)
class Cost:
    """What features of one tile cost, None where that is not known.

    `macs` are multiply-accumulates of convolutions and matrix products; `memory` is in bytes:
    float32 weights, and the most that was needed at a time for the maps of 32 tiles. What
    libraries need for themselves comes on top.
    """

    parameters: int | None = None
    macs: int | None = None
    memory: int | None = None


def cost_of(model: str, sha256: str = "") -> Cost:
    """Return the cost of a model file or registered model; nothing is known of others.

    With `sha256`, another model of that name is not taken for it.
    """
    from tiaft_extensions.interpretability.subject import load_subject
    from tiaft_plugin.zoo.names import find

    if not Path(model).is_file() and find(model) is None:
        return Cost()
    subject = load_subject(model)
    if sha256 and subject.sha256 != sha256:
        return Cost()
    return measure(_to_features(subject.network), subject.tile_size)


def measure(module: nn.Module, tile_size: int) -> Cost:
    """Return the cost of a module that takes normalised tiles (N, 3, H, W) of `tile_size` px."""
    module = module.eval()
    weights = [*module.parameters(), *module.buffers()]
    most = _Most(weights)
    with most:
        macs = macs_of(module, tile_size)
    fixed = sum(tensor.numel() * tensor.element_size() for tensor in weights)
    return Cost(parameters_of(module), macs, fixed + BATCH * most.bytes)


def _to_features(network: nn.Module) -> nn.Module:
    """Return what makes features of normalised tiles: Part A, and Part B's hidden layers."""
    if not isinstance(network, Network):
        return _OfBytes(network)
    hidden = getattr(network.part_b, "hidden", nn.Identity())
    return nn.Sequential(network.part_a, hidden)


class _OfBytes(nn.Module):
    """A plug-in's network, which takes uint8 tiles (N, H, W, 3), called as Part A is."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, tiles: torch.Tensor) -> Any:
        return self.network(tiles.permute(0, 2, 3, 1).to(torch.uint8))


class _Most(TorchDispatchMode):
    """The most bytes that tensors made inside it held at a time; `known` ones are not counted."""

    def __init__(self, known: list[torch.Tensor]):
        super().__init__()
        self.bytes = self._now = 0
        self._alive = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # torch's signature
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self._now += storage.nbytes()
        self.bytes = max(self.bytes, self._now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self._now -= self._alive.pop(key, 0)

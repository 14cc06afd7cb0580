"""How strongly a layer's channels respond to pictures, with gradients down to the pixels."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tiaft_extensions.interpretability.subject import Subject, as_maps, device_of, layer
from tiaft_plugin.errors import TiaftError, reason
from tiaft_plugin.network import Network

_FLAT = (nn.ReLU, nn.ReLU6)  # what passes no gradient where it gives nothing


class _ReachedError(Exception):
    """The layer's output is there: what comes after it need not be computed."""


class Response:
    """A layer of a subject, to be called with pictures (N, 3, H, W) of RGB in 0…1.

    Gives the layer's maps (N, channels, h, w). ReLUs that its output comes out of are left out:
    they pass no gradient to a channel that does not yet respond. A network that takes no picture
    but of its tile size gets them resized. Raises TiaftError for an unknown layer, and for a
    network through which no gradient reaches the pixels.
    """

    def __init__(self, subject: Subject, name: str):
        self.subject, self.name = subject, name
        self.module = layer(subject, name)
        self.fixed_size = not self._takes(subject.tile_size + 2)
        self.relus: list[nn.Module] = []
        self.relus = self._find_relus()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the layer's maps."""
        if self.fixed_size:
            size = [self.subject.tile_size] * 2
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        with ExitStack() as stack:
            for relu in self.relus:
                stack.enter_context(_left_out(relu))
            maps = as_maps(self._run(images))
        if maps is None:
            raise TiaftError(f"{self.subject.name}: {self.name} gives no map")
        return maps

    def _run(self, images: torch.Tensor) -> Any:
        found: list[Any] = []

        def stop(module: nn.Module, given: Any, output: Any) -> None:
            found.append(output)
            raise _ReachedError

        handle = self.module.register_forward_hook(stop)
        net = self.subject.network
        tiles = images.permute(0, 2, 3, 1) * 255
        try:
            net.part_a(net.scaled(tiles)) if isinstance(net, Network) else net(tiles)
        except _ReachedError:
            return found[0]
        finally:
            handle.remove()
        raise TiaftError(f"{self.subject.name} gives an output without running {self.name}")

    def _takes(self, size: int) -> bool:
        """Whether the network takes pictures of any size."""
        try:
            with torch.no_grad():
                self._run(torch.full((1, 3, size, size), 0.5, device=device_of(self.subject)))
        except Exception:  # each network has its own
            return False
        return True

    def _find_relus(self) -> list[nn.Module]:
        """Return the ReLUs that the layer's output comes straight out of, or a concatenation."""
        nodes: dict[nn.Module, Any] = {}

        def keep(module: nn.Module, given: Any, output: Any) -> None:
            nodes[module] = output.grad_fn

        inside = [module for module in self.module.modules() if isinstance(module, _FLAT)]
        handles = [module.register_forward_hook(keep) for module in inside]
        size = self.subject.tile_size
        picture = torch.full((1, 3, size, size), 0.5, device=device_of(self.subject))
        try:
            with torch.enable_grad():
                output = self(picture.requires_grad_())
            if not output.requires_grad:
                raise RuntimeError("its output has no gradient")
        except (RuntimeError, TypeError, ValueError, TiaftError) as error:
            raise TiaftError(
                f"no gradients flow through {self.subject.name} from {self.name} to the pixels "
                f"({reason(error)}): a model in plain torch, without no_grad or quantised layers, "
                "is needed"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        ends = _parts(output.grad_fn)
        return [module for module, node in nodes.items() if any(node is end for end in ends)]


def _parts(node: Any) -> list[Any]:
    """Return the operation that made a tensor, or those that made what was concatenated."""
    if node is not None and type(node).__name__ == "CatBackward0":
        return [part for below, _ in node.next_functions for part in _parts(below)]
    return [node]


@contextmanager
def _left_out(module: nn.Module) -> Iterator[None]:
    """Let a module hand on what it is given while the block runs."""
    module.forward = lambda given: given
    try:
        yield
    finally:
        del module.forward

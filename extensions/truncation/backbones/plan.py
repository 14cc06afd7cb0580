"""What is left out of a backbone that is cut off after one of its modules.

A backbone without memory runs, so that what comes after the cut is what runs after it, in whatever
order a class of timm's has its modules; nothing is computed.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from timm.layers import SelectAdaptivePool2d
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from tiaft_plugin.errors import TiaftError, first_line
from tiaft_plugin.network.backbone import create_backbone

# What stays after a cut: it has no weights, and makes features (N, width) of a map.
POOLING = (SelectAdaptivePool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout, nn.Identity)


@dataclass(frozen=True)
class Plan:
    """What is left out for a cut, by path, and how many features are left after pooling."""

    left_out: tuple[str, ...]
    width: int


@dataclass(frozen=True)
class Trace:
    """What one run of a module tells of its parts, by path.

    `began` and `ended` are moments. Of a map `places` is how many it has, `widths` its channels; of
    other outputs, and of what ran twice, both are 0. `macs` are the multiply-accumulates of one
    tile until then, of convolutions and matrix products.
    """

    began: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)


def without_memory(backbone: str, tile_size: int, args: dict[str, Any] | None) -> nn.Module:
    """Create a backbone in eval mode that has shapes but no numbers. Raises TiaftError."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                module = create_backbone(backbone, tile_size, args)
        except TiaftError:  # RegNet computes its widths when it is built
            with torch.device("cpu"):
                module = create_backbone(backbone, tile_size, args).to("meta")
    return module.eval().requires_grad_(False)


def trace(module: nn.Module, tile_size: int) -> Trace:
    """Run a module without memory, and return what ran when. Raises TiaftError."""
    ran = Trace()
    clock = count()
    counter = FlopCounterMode(display=False)
    handles = []
    for path, each in module.named_modules():

        def begin(_: Any, __: Any, path: str = path) -> None:
            ran.began.setdefault(path, next(clock))

        def end(_: Any, __: Any, output: Any, path: str = path) -> None:
            again = path in ran.macs
            ran.ended[path] = next(clock)
            ran.places[path], ran.widths[path] = (0, 0) if again else _size(output)
            ran.macs[path] = counter.get_total_flops() // 2

        handles += [each.register_forward_pre_hook(begin), each.register_forward_hook(end)]
    with _hooks(*handles), counter:
        run(module, tile_size)
    return ran


def plan_cut(module: nn.Module, ran: Trace, path: str, tile_size: int) -> Plan | None:
    """Return what to leave out of a module without memory, to end it after `path`.

    None where that is no place to cut at: where what follows depends on more than its output, or
    no features (N, width) can be made of it.
    """
    parent = module.get_submodule(path.rpartition(".")[0])
    # A dense block hands on what all its layers gave: any number of them will do.
    if not isinstance(parent, nn.ModuleDict) and _bypassed(module, path, tile_size):
        return None
    left_out = tuple(begun_after(module, ran, path))
    left = copy.deepcopy(module)
    leave_out(left, left_out)
    try:
        return Plan(left_out, features_of(left, tile_size))
    except TiaftError:
        return None


def leave_out(module: nn.Module, paths: tuple[str, ...]) -> None:
    """Take modules out of their lists; elsewhere put a module in place that does nothing."""
    for path in paths:
        above, _, name = path.rpartition(".")
        parent = module.get_submodule(above)
        if isinstance(parent, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            delattr(parent, name)
        else:
            setattr(parent, name, nn.Identity())


def features_of(module: nn.Module, tile_size: int) -> int:
    """Return how many features a module without memory makes of a tile. Raises TiaftError."""
    output = run(module, tile_size)
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        raise TiaftError(f"{type(module).__name__} gives no features (N, width)")
    return output.shape[1]


def run(module: nn.Module, tile_size: int) -> Any:
    """Return a module's output for a tile of `tile_size` px, without memory. Raises TiaftError."""
    tile = torch.empty(1, 3, tile_size, tile_size, device="meta", requires_grad=True)
    return _call(module, tile)


def _call(module: nn.Module, tile: torch.Tensor) -> Any:
    try:
        return module(tile)
    except Exception as error:  # any class of timm's
        raise TiaftError(
            f"tiles of {tile.shape[2]} px do not go through {type(module).__name__}: "
            f"{first_line(error)}"
        ) from error


def _bypassed(module: nn.Module, path: str, tile_size: int) -> bool:
    """Return whether features depend on the tile otherwise than through the output of `path`."""
    outputs: list[Any] = []

    def cut_off(_: nn.Module, __: Any, output: Any) -> torch.Tensor | None:
        outputs.append(output)
        if not isinstance(output, torch.Tensor):
            return None
        return output.detach().requires_grad_().clone()  # what follows may work in place

    tile = torch.empty(1, 3, tile_size, tile_size, device="meta", requires_grad=True)
    with torch.enable_grad(), _hooks(module.get_submodule(path).register_forward_hook(cut_off)):
        features = _call(module, tile)
    if len(outputs) != 1 or not features.requires_grad:
        return True
    return torch.autograd.grad(features.sum(), tile, allow_unused=True)[0] is not None


def begun_after(module: nn.Module, ran: Trace, path: str, above: str = "") -> Iterator[str]:
    """Yield the paths of modules that run after `path` has ended, their pooling spared."""
    for name, child in module.named_children():
        if isinstance(child, POOLING):
            continue
        pools = any(isinstance(each, SelectAdaptivePool2d) for each in child.modules())
        if ran.began.get(above + name, -1) > ran.ended[path] and not pools:
            yield above + name
        else:
            yield from begun_after(child, ran, path, f"{above}{name}.")


def _size(output: Any) -> tuple[int, int]:
    """Return places and channels of a map (1, C, H, W), (1, H, W, C) or (1, N, C); 0 of others."""
    if not isinstance(output, torch.Tensor) or output.ndim not in (3, 4):
        return 0, 0
    shape = output.shape
    if output.ndim == 4 and shape[2] == shape[3]:
        return shape[2] * shape[3], shape[1]
    return shape[1:-1].numel(), shape[-1]


@contextmanager
def _hooks(*handles: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

"""BatchNorm folded into the convolution before it: the same function, with less to compute.

Which convolution stands before which BatchNorm is watched while the model runs, because modules do
not tell: a pair is folded where the one's output is the other's input, and nobody else's.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Exactly these: what is derived from them may compute something else from its weights.
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d)


def fold_batchnorm(model: nn.Module, run: Callable[[nn.Module], Any]) -> int:
    """Fold BatchNorm into convolutions, in place, and return how many were.

    `model` is in eval mode; `run` calls it once on a few tiles and returns its output. The caller
    compares outputs: a model that keeps what passes through it, and uses it later, is not seen.
    """
    watch = _Watch(model)
    with watch:
        watch.leaves(run(model))
    pairs = watch.pairs()
    for conv, norm in pairs:
        _fold(conv, norm)
        _replace(model, norm, _what_remains(norm))
    return len(pairs)


class _Watch(TorchDispatchMode):
    """Notes how often modules run, what convolutions give, and who takes it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.made: dict[int, tuple[nn.Module, torch.Tensor]] = {}  # holds them: an id is not reused
        self.taken: dict[nn.Module, nn.Module] = {}
        self.runs: Counter[nn.Module] = Counter()
        self.others: set[int] = set()  # outputs that something besides its BatchNorm takes
        self.inside = False
        self.hooks = []
        for module in model.modules():
            if _has_hooks(module):
                continue
            if type(module) in _CONVOLUTIONS:
                self.hooks.append(module.register_forward_hook(self._gives))
            elif type(module) in _NORMS and _has_statistics(module):
                self.hooks.append(module.register_forward_pre_hook(self._takes))
                self.hooks.append(module.register_forward_hook(self._took))

    def pairs(self) -> list[tuple[Any, Any]]:
        """Return convolutions and the BatchNorm that each can be folded with."""
        given = {conv: id(output) for conv, output in self.made.values()}
        return [
            (conv, norm)
            for norm, conv in self.taken.items()
            if self.runs[conv] == 1 and self.runs[norm] == 1 and given[conv] not in self.others
        ]

    def leaves(self, values: Any) -> None:
        """Note that `values` leave the model, or go into an operation."""
        self.others.update(id(value) for value in tree_leaves(values) if id(value) in self.made)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.inside:
            self.leaves((args, kwargs))
        return func(*args, **(kwargs or {}))

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self.hooks:
            hook.remove()

    def _gives(self, conv: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self.runs[conv] += 1
        self.made[id(output)] = (conv, output)

    def _takes(self, norm: nn.Module, inputs: Any) -> None:
        self.runs[norm] += 1
        if inputs and id(inputs[0]) in self.made:
            self.taken[norm] = self.made[id(inputs[0])][0]
            self.inside = True

    def _took(self, norm: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self.inside = False


def _has_hooks(module: nn.Module) -> bool:
    """Whether something else looks on, or makes the weights anew each time (spectral norm)."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _has_statistics(norm: Any) -> bool:
    return norm.running_mean is not None and norm.running_var is not None


def _fold(conv: Any, norm: Any) -> None:
    """Give a convolution BatchNorm's scale and shift; in float64, so that no digit is lost."""
    mean, var = _exact(norm.running_mean), _exact(norm.running_var)
    scale, shift = _exact(norm.weight), _exact(norm.bias)
    weight, bias = fuse_conv_bn_weights(
        _exact(conv.weight), _exact(conv.bias), mean, var, norm.eps, scale, shift
    )
    like = conv.weight
    conv.weight = nn.Parameter(weight.detach().to(like), requires_grad=False)
    conv.bias = nn.Parameter(bias.detach().to(like), requires_grad=False)


def _exact(values: torch.Tensor | None) -> Any:
    return None if values is None else values.detach().cpu().double()  # some GPUs have no float64


def _what_remains(norm: Any) -> nn.Module:
    """Return what a BatchNorm does besides: timm's have the activation inside."""
    if isinstance(norm, BatchNormAct2d):
        return nn.Sequential(norm.drop, norm.act).eval()
    return nn.Identity().eval()


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for module in model.modules():
        for name, child in list(module.named_children()):
            if child is old:
                setattr(module, name, new)

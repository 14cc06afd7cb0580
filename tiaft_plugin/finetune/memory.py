"""Memory of training: what it needs, what is free, and activation checkpointing to need less.

Smaller batches would change what BatchNorm computes, and gradients added up over several of them
would, too. So where memory is short, activations are computed twice instead.
"""

import copy
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.network.net import Network
from tiaft_plugin.network.precision import memory_format

PLAIN_SHARE = 0.7  # of free memory: above it, activations are checkpointed
WEIGHT_COPIES = 4  # gradients, Adam's two means, and what its step works on
PASSING = 2  # gradients of the largest activation, on their way through a layer
GIB = 2**30
CGROUPS = Path("/sys/fs/cgroup")
CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@contextmanager
def checkpoint_activations(part_a: nn.Module) -> Iterator[None]:
    """Let a backbone keep only what goes into its blocks, and compute the rest again, backwards.

    Gradients, BatchNorm's running statistics (updated once) and dropout are those of plain
    training to the bit on a CPU. Names of weights stay; afterwards the backbone is as it was.
    """
    wrapped = [block for block in blocks(part_a) if "forward" not in vars(block)]
    for block in wrapped:
        # A partial, since deepcopy makes it the copy's own.
        vars(block)["forward"] = partial(_checkpointed, block, block.forward)
    try:
        yield
    finally:
        for block in wrapped:
            del vars(block)["forward"]


def blocks(backbone: nn.Module) -> list[nn.Module]:
    """Return a backbone's blocks: its children that are no single layers.

    Of lists of blocks, and of stages that have one named ``blocks``, the children are taken.
    """
    found = []
    for child in backbone.children():
        if (
            isinstance(child, nn.ModuleList)
            or (isinstance(child, nn.Sequential) and not all(map(_is_layer, child)))
            or isinstance(getattr(child, "blocks", None), nn.Sequential | nn.ModuleList)
        ):
            found += blocks(child)
        elif list(child.children()):
            found.append(child)
    return found


def _is_layer(module: nn.Module) -> bool:
    """Return whether a module is no block; a norm may hold an activation as its child."""
    return not any(list(child.parameters()) for child in module.children())


def _checkpointed(block: nn.Module, forward: Callable, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # A block may change a list that it is given (HRNet's do), and will be given it again.
    lists = {i: tuple(value) for i, value in enumerate(args) if isinstance(value, list)}

    def run(*values: Any) -> Any:
        own = [list(lists[i]) if i in lists else value for i, value in enumerate(values)]
        return forward(*own, **kwargs)

    contexts = partial(_contexts, block)
    return checkpoint(run, *args, use_reentrant=False, context_fn=contexts)


def _contexts(block: nn.Module) -> tuple[Any, Any]:
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Let layers update copies of their statistics: computed again, no batch may count twice."""
    # BatchNorm's track_running_stats = False would do it, too, but saves fewer tensors for the
    # way back, which checkpoint() refuses; and other layers with statistics do not have it.
    buffers = [(layer._buffers, dict(layer._buffers)) for layer in block.modules()]
    for place, own in buffers:
        place.update({name: buffer.clone() for name, buffer in own.items() if buffer is not None})
    try:
        yield
    finally:
        for place, own in buffers:
            place.update(own)


@dataclass(frozen=True)
class Need:
    """Bytes that training takes besides the weights: `fixed`, and for each tile of a batch."""

    fixed: int
    plain: int
    checkpointed: int

    def of(self, tiles: int, checkpointing: bool) -> int:
        """Return what a batch of so many tiles takes."""
        return self.fixed + tiles * (self.checkpointed if checkpointing else self.plain)


def measure_need(net: Network, trains: str, precision: str) -> Need:
    """Return what it takes to train `part_a`, `part_b` or ``all`` of a network.

    Two tiles, then three, go through a copy of it in training mode on the CPU, and what autograd
    keeps for the way back is counted.
    """
    trained = copy.deepcopy(net).cpu().eval().requires_grad_(False)
    (trained if trains == "all" else getattr(trained, trains)).train().requires_grad_(True)
    kept = _Kept.of(trained, precision)
    weights = sum(p.nbytes for p in trained.parameters() if p.requires_grad)
    passing = PASSING * max(kept.a_tile, default=0)
    with checkpoint_activations(trained.part_a):
        most = _most_at_once(_Kept.of(trained, precision), kept.by_block())
    fixed = kept.fixed + WEIGHT_COPIES * weights
    return Need(fixed, sum(kept.a_tile) + passing, most + passing)


def decide(
    choice: Literal["auto", "on", "off"], need: Need, tiles: int, device: torch.device
) -> tuple[bool, str]:
    """Return whether to checkpoint activations for batches of so many tiles, and a line on why.

    ``auto`` does where plain training would take most of the memory that is free; ``off`` asks
    nothing. The line is empty where there is nothing to say. Raises TiaftError where memory will
    not do either way.
    """
    if choice == "off":
        return False, ""
    free = free_memory(device)
    plain, less = (need.of(tiles, checkpointing) for checkpointing in (False, True))
    checkpointing = choice == "on" or plain > PLAIN_SHARE * free
    if less > free and checkpointing:
        raise TiaftError(
            f"training with {tiles} tiles a batch takes about {less / GIB:.1f} GiB of memory even "
            f"with activation checkpointing, and {free / GIB:.1f} GiB are free on {device}: free "
            "some, or pass a smaller --batch-size (then with --freeze-batchnorm, if results are to "
            "stay comparable: BatchNorm depends on the batch)"
        )
    if not checkpointing or choice == "on":
        return checkpointing, ""
    return True, (
        f"activations are checkpointed: {tiles} tiles a batch would take about "
        f"{plain / GIB:.1f} GiB of memory, {free / GIB:.1f} GiB are free on {device}; so it takes "
        f"about {less / GIB:.1f} GiB and more time, with the same result"
    )


def free_memory(device: torch.device) -> int:
    """Return bytes that can still be had: of a GPU, or of the machine and within its cgroups."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    return min(psutil.virtual_memory().available, *_left_in_cgroups(), 2**63)


def peak_gib(device: torch.device) -> float:
    """Return the most memory used so far, in GiB: a GPU's, or else this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    status = Path("/proc/self/status")
    # Not getrusage on Linux: its peak has that of the process which started this one.
    if status.is_file() and (most := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(most[1]) * 1024 / GIB
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


class _Kept:
    """Storages that autograd keeps for the way back: bytes a tile, and whose block they are."""

    def __init__(self, sizes: list[int], more: list[int], owners: list[nn.Module | None]):
        self.a_tile = [b - a for a, b in zip(sizes, more, strict=True)]  # of two and three tiles
        self.fixed = sum(a - 2 * each for a, each in zip(sizes, self.a_tile, strict=True))
        self.owners = owners

    @classmethod
    def of(cls, net: Network, precision: str) -> "_Kept":
        """Send two and three tiles through a network, whose statistics move by that."""
        (sizes, owners), (more, _) = (_record(net, tiles, precision) for tiles in (2, 3))
        return cls(sizes, more, owners)

    def by_block(self) -> dict[nn.Module, int]:
        """Return bytes a tile of each block."""
        found: dict[nn.Module, int] = {}
        for owner, size in zip(self.owners, self.a_tile, strict=True):
            if owner is not None:
                found[owner] = found.get(owner, 0) + size
        return found


def _most_at_once(outside: _Kept, by_block: dict[nn.Module, int]) -> int:
    """Return the most bytes a tile on the way back: a block computed again, and what is before."""
    held = most = 0
    for owner, size in zip(outside.owners, outside.a_tile, strict=True):
        held += size
        most = max(most, held + (by_block.get(owner, 0) if owner is not None else 0))
    return most


def _record(net: Network, tiles: int, precision: str) -> tuple[list[int], list[nn.Module | None]]:
    """Return bytes and block of each storage that autograd keeps, weights left out."""
    weights = [*net.parameters(), *net.buffers()]
    seen = {tensor.untyped_storage().data_ptr() for tensor in weights}
    held: list[torch.Tensor] = []  # else the addresses of what is freed would come again
    sizes: list[int] = []
    owners: list[nn.Module | None] = []
    inside: list[nn.Module] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            sizes.append(storage.nbytes())
            owners.append(inside[-1] if inside else None)
            held.append(tensor.detach())
        return tensor.detach()

    def enter(block: nn.Module, _: Any) -> None:
        inside.append(block)
        sizes.append(0)  # marks where a block begins that keeps nothing outside
        owners.append(block)

    side = net.card.tile_size
    pixels = torch.zeros(tiles, side, side, 3, dtype=torch.uint8)
    with ExitStack() as stack:
        for block in blocks(net.part_a):
            for hook in (
                block.register_forward_pre_hook(enter),
                block.register_forward_hook(lambda *_: inside.pop() and None),
            ):
                stack.callback(hook.remove)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
        layout = memory_format(net.part_a)
        net.part_b(net.part_a(net.normalise(pixels).contiguous(memory_format=layout)))
    return sizes, owners


def _left_in_cgroups() -> list[int]:
    """Return bytes left under each memory limit that Linux sets this process, if any."""
    listing = Path("/proc/self/cgroup")
    found = []
    for line in listing.read_text().splitlines() if listing.is_file() else []:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = CGROUPS / controllers
        # In a container the group's path may be the host's; the root is then the group itself.
        place = root / group.lstrip("/") if (root / group.lstrip("/")).is_dir() else root
        for folder in (place, *place.parents):
            found += _left_in(folder)
            if folder == root:
                break
    return found


def _left_in(folder: Path) -> list[int]:
    for limit, usage, cache in CGROUP_FILES:
        try:
            text = (folder / limit).read_text().strip()
            used = int((folder / usage).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if text.isdigit():
            # Files' pages count as used until somebody needs them.
            return [max(int(text) - used + int(stat.get(cache, 0)), 0)]
    return []

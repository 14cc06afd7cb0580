"""What a network costs: parameters, multiplications and additions, tiles a second."""

import statistics
from time import perf_counter

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

ROUNDS = 3  # of which the median counts: the first may still find the machine busy


def parameters_of(module: nn.Module) -> int:
    """Return how many numbers a module's weights are, BatchNorm's running statistics left out."""
    return sum(parameter.numel() for parameter in module.parameters())


def macs_of(module: nn.Module, tile_size: int) -> int:
    """Return the multiply-accumulate operations of one tile of `tile_size` px, (1, 3, H, W) floats.

    As is usual in the field only convolutions and matrix products count.
    """
    was_training = module.training
    parameter = next(module.parameters())
    tile = torch.zeros(1, 3, tile_size, tile_size, device=parameter.device, dtype=parameter.dtype)
    module.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(tile)
    finally:
        module.train(was_training)
    return counter.get_total_flops() // 2


@torch.inference_mode()
def tiles_per_second(
    module: nn.Module, tile_size: int, *, batch_size: int = 32, seconds: float = 1.0
) -> float:
    """Return how many float32 tiles of `tile_size` px a module takes a second where it stands.

    The median of three rounds of about `seconds` each, channels last, after one batch that does
    not count; reading tiles is not part of it.
    """
    parameter = next(module.parameters())
    shape = (batch_size, 3, tile_size, tile_size)
    tiles = torch.zeros(shape, device=parameter.device).to(memory_format=torch.channels_last)
    _run(module, tiles)
    found = []
    for _ in range(ROUNDS):
        begun, batches = perf_counter(), 0
        while perf_counter() - begun < seconds:
            _run(module, tiles)
            batches += 1
        found.append(batches * batch_size / (perf_counter() - begun))
    return statistics.median(found)


def _run(module: nn.Module, tiles: torch.Tensor) -> None:
    module(tiles)
    if tiles.device.type == "cuda":
        torch.cuda.synchronize(tiles.device)

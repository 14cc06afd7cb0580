"""The exact gradient of a batch that does not fit into memory, chunk by chunk (GradCache).

A contrastive loss needs all slides of a batch at once, but only their embeddings. So these are
computed first without a graph; the loss's gradient with respect to them follows; and with it each
chunk goes through once more, with a graph (Gao et al. 2021, arXiv 2101.06983).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Forward = Callable[[Any], Tensor]


def backward_whole(
    forward: Forward,
    chunks: Sequence[Any],
    loss_of: Callable[[Tensor], Tensor],
    *,
    seed: int = 0,
    first: int = 0,
    gather: Callable[[Tensor], tuple[Tensor, slice]] | None = None,
) -> Tensor:
    """Add the gradient of ``loss_of(cat(forward(chunk) for chunk in chunks))``; return the loss.

    `forward` gives (n, P) of a chunk, and draws (dropout) from torch's generators, which are set
    from `seed` and the chunk's number, counted from `first`: the same draws in both passes. With
    several processes, `gather` makes the embeddings of all out of this one's, and says which are
    its own: the gradients of `forward`'s weights are then this process's part, and those of
    `loss_of`'s the whole.
    """
    if len(chunks) == 1 and gather is None:
        every = _drawn(forward, chunks[0], seed, first)
        torch.manual_seed(seed)
        loss = loss_of(every)
        loss.backward()
        return loss.detach()
    with torch.no_grad():
        parts = [_drawn(forward, chunk, seed, n) for n, chunk in enumerate(chunks, first)]
    every = torch.cat(parts)
    every, own = gather(every) if gather else (every, slice(None))
    every.requires_grad_(True)
    torch.manual_seed(seed)
    loss = loss_of(every)
    loss.backward()
    assert every.grad is not None
    gradients = every.grad[own].split([len(part) for part in parts])
    for n, (chunk, gradient) in enumerate(zip(chunks, gradients, strict=True), first):
        _drawn(forward, chunk, seed, n).backward(gradient)
    return loss.detach()


def _drawn(forward: Forward, chunk: Any, seed: int, number: int) -> Tensor:
    torch.manual_seed(seed + number + 1)
    return forward(chunk)

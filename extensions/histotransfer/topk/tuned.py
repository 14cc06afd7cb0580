"""What learns: an encoder and its attention head, from the tiles of a bag to its class."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from tiaft_extensions.histotransfer.attention import AttentionNet
from tiaft_plugin.finetune.encoder import Encoder
from tiaft_plugin.finetune.epochs import Learner


class Seen(NamedTuple):
    """What a head says of a bag: raw attention logits (N,) float32 of its tiles, and logits (C,)
    float64 by all of them, and by the k with the most attention."""

    by_all: np.ndarray
    by_k: np.ndarray
    raw: np.ndarray


class Tuned(Learner):
    """An encoder and its head."""

    def __init__(self, encoder: Encoder, head: AttentionNet):
        super().__init__()
        self.encoder, self.head = encoder, head.requires_grad_(True)


@torch.no_grad()
def look(head: AttentionNet, blocks: Iterable[np.ndarray], k: int) -> Seen:
    """Return what a head says of a bag's features, which come in blocks (n, D).

    Only the head's own, narrow embeddings of the whole bag are held.
    """
    device = head.classify.weight.device
    encoded = torch.cat([head.encode(torch.from_numpy(block).to(device)) for block in blocks])
    raw = head.attend(encoded)

    def logits(rows: np.ndarray | slice) -> np.ndarray:
        return head.classify(raw[rows].softmax(0) @ encoded[rows]).double().cpu().numpy()

    return Seen(logits(slice(None)), logits(highest(raw.cpu().numpy(), k)), raw.cpu().numpy())


def highest(raw: np.ndarray, k: int) -> np.ndarray:
    """Return the rows (≤ k,) of the `k` highest raw attention logits (N,), ascending."""
    return np.sort(np.argsort(-raw, kind="stable")[:k])

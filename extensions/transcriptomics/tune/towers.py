"""From a slide's tiles to one embedding: the encoder, a projection, and pooling."""

from typing import Any

import torch
from torch import Tensor, nn

from tiaft_extensions.transcriptomics.tune.settings import TuneSettings
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.finetune.encoder import Encoder

ATTENTION, ATTENTION_DROPOUT = 128, 0.25


class ImageTower(nn.Module):
    """From tiles (S, k, …) of S slides to slide embeddings (S, P).

    Tiles are features (S, k, D) where there is no `encoder`, else pixels (S, k, H, W, 3). Each
    tile is projected, then the slide's are pooled: their mean, or gated attention over them.
    """

    def __init__(self, width: int, settings: TuneSettings, encoder: Encoder | None = None):
        super().__init__()
        self.encoder, self.width = encoder, settings.width
        self.projection = projection(width, settings.width, settings.head)
        self.attention = GatedAttention(settings.width) if settings.pooling == "attention" else None

    def forward(self, tiles: Tensor, there: Tensor) -> Tensor:
        """Return (S, P); `there` (S, k) bool says which tiles are, the others fill up."""
        features = tiles[there]
        return self.pool(features if self.encoder is None else self.encoder(features), there)

    def pool(self, features: Tensor, there: Tensor) -> Tensor:
        """Return (S, P) of the features (n, D) of all the n tiles that are `there` (S, k)."""
        tokens = self.projection(features)
        if self.attention is None:
            weights = there / there.sum(dim=1, keepdim=True)
        else:
            scores = tokens.new_full(there.shape, -torch.inf)
            weights = torch.softmax(scores.masked_scatter(there, self.attention(tokens)), dim=1)
        slide = torch.nonzero(there)[:, 0]
        weighted = tokens * weights[there][:, None]
        return weighted.new_zeros(len(there), tokens.shape[1]).index_add(0, slide, weighted)


class GatedAttention(nn.Module):
    """A score (n,) for each of n tiles (n, P); dropout as TANGLE's."""

    def __init__(self, width: int):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(width, ATTENTION), nn.Sigmoid())
        self.value = nn.Sequential(nn.Linear(width, ATTENTION), nn.Tanh())
        self.drop, self.score = nn.Dropout(ATTENTION_DROPOUT), nn.Linear(ATTENTION, 1)

    def forward(self, tiles: Tensor) -> Tensor:
        """Return the scores, before softmax."""
        return self.score(self.drop(self.gate(tiles) * self.value(tiles)))[:, 0]


def projection(width: int, out: int, head: str) -> nn.Module:
    """Return what makes (n, out) of features (n, width): one Linear, or two around a GELU."""
    if head == "linear":
        return nn.Sequential(nn.Linear(width, out))
    return nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))


def trained_modules(part_a: nn.Module, settings: TuneSettings) -> list[nn.Module]:
    """Return the modules of Part A that learn: none, the last blocks, or all of it.

    A block is what timm calls so (a stage of a ResNet, a block of a ViT); what comes after the
    last belongs to it. Raises TiaftError where there are not so many.
    """
    if settings.train == "head":
        return []
    if settings.train == "whole":
        return [part_a]
    blocks = _blocks(part_a)
    if settings.blocks > len(blocks):
        raise TiaftError(f"setting blocks is {settings.blocks}: the encoder has {len(blocks)}")
    return [module for block in blocks[-settings.blocks :] for module in block]


def _blocks(part_a: Any) -> list[list[nn.Module]]:
    """Return Part A's blocks in order, each a list of modules that hold weights themselves."""
    holding = {
        name: module
        for name, module in part_a.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }
    if not hasattr(part_a, "group_matcher"):  # a plug-in's: its children, then
        grouped: dict[Any, list[str]] = {}
        for name in holding:
            grouped.setdefault(name.partition(".")[0], []).append(name)
        return [[holding[name] for name in names] for names in grouped.values()]
    from timm.models import group_parameters

    matched = group_parameters(part_a, part_a.group_matcher(coarse=True))
    blocks: list[list[nn.Module]] = []
    for number in sorted(matched):
        names = dict.fromkeys(name.rpartition(".")[0] for name in matched[number])
        block = [holding[name] for name in names if name in holding]
        # A last norm, such as a DenseNet's, is no block of its own.
        only_norms = all(p.ndim == 1 for module in block for p in module.parameters(recurse=False))
        if only_norms and blocks:
            blocks[-1] += block
        elif block:
            blocks.append(block)
    return blocks

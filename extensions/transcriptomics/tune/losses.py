"""The two losses, and how well a slide finds its expression among others."""

import torch
from torch import Tensor, nn
from torch.nn import functional

MAX_SCALE = 100.0  # of logits, as CLIP clips it


class Direct(nn.Module):
    """Mean squared error of G standardised genes, out of slide embeddings (B, P)."""

    def __init__(self, width: int, genes: int, head: str = "linear"):
        super().__init__()
        self.head: nn.Module = nn.Linear(width, genes)
        if head == "mlp":
            self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, genes))

    def forward(self, slides: Tensor, expression: Tensor, patients: Tensor) -> Tensor:
        """Return the loss of slides (B, P) with expression (B, G)."""
        return functional.mse_loss(self.head(slides), expression)

    def predict(self, slides: Tensor) -> Tensor:
        """Return standardised expression (B, G)."""
        return self.head(slides)


class Contrastive(nn.Module):
    """CLIP's loss with expression in place of text (paper 5, approach 02).

    The expression encoder has two blocks of Linear, LayerNorm, ReLU and Dropout, then a Linear to
    the joint space, as TANGLE's. The logits' scale begins at 1 / `temperature` and is learnt, up to
    100.
    """

    def __init__(
        self, width: int, genes: int, hidden: int, temperature: float = 0.07, dropout: float = 0.2
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for given in (genes, hidden):
            layers += [nn.Linear(given, hidden), nn.LayerNorm(hidden), nn.ReLU()]
            layers.append(nn.Dropout(dropout))
        self.encoder = nn.Sequential(*layers, nn.Linear(hidden, width))
        self.log_scale = nn.Parameter(-torch.tensor(temperature).log())

    def forward(self, slides: Tensor, expression: Tensor, patients: Tensor) -> Tensor:
        """Return the loss of slides (B, P), expression (B, G) and patients (B,) int64."""
        logits = self.scale * similarity(slides, self.encoder(expression))
        return clip_loss(logits, patients)

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by."""
        return self.log_scale.exp().clamp(max=MAX_SCALE)

    def predict(self, expression: Tensor) -> Tensor:
        """Return embeddings (B, P) of standardised expression (B, G)."""
        return self.encoder(expression)


def similarity(slides: Tensor, expression: Tensor) -> Tensor:
    """Return cosines (B, M) of slides (B, P) and expression (M, P)."""
    return functional.normalize(slides, dim=1) @ functional.normalize(expression, dim=1).T


def clip_loss(logits: Tensor, patients: Tensor) -> Tensor:
    """Return the symmetric cross-entropy of logits (B, B), whose diagonal are the pairs.

    Other slides and samples of the same of `patients` (B,) are no negatives: they are left out.
    """
    same = patients[:, None] == patients[None, :]
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, -torch.inf)
    own = torch.arange(len(logits), device=logits.device)
    rows, columns = functional.cross_entropy(logits, own), functional.cross_entropy(logits.T, own)
    return (rows + columns) / 2


def recall(cosines: Tensor, patients: Tensor, most: int) -> float:
    """Return the share of slides whose patient's expression is among their `most` most alike.

    `cosines` is (B, M) to the expression of M patients, sorted as ``patients.unique()``; chance is
    `most` / M.
    """
    own = torch.searchsorted(patients.unique(), patients)
    at = cosines[torch.arange(len(cosines)), own]
    # Of several as alike, the own one counts last: all the same embeddings find nothing.
    before = (cosines >= at[:, None]).sum(dim=1) - 1
    return float((before < most).float().mean())


def pearson(predicted: Tensor, expression: Tensor) -> Tensor:
    """Return the correlation of each gene (G,), NaN for what is constant; both are (B, G)."""
    one, other = (
        values.double() - values.double().mean(dim=0) for values in (predicted, expression)
    )
    return (one * other).sum(dim=0) / (one.norm(dim=0) * other.norm(dim=0))

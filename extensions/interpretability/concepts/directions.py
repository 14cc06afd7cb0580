"""Concepts as directions: TCAV scores and bidirectional relevance Br, with their nulls.

A regression concept vector v is the unit vector of the coefficients that regress a concept on the
spatial means of a layer's maps. S = ∂logit/∂φ · v is how a class's logit changes where all of the
map moves along v. TCAV is the share of tiles with S > 0, Br = R² · mean(S)/std(S), where R² is
held out (Graziani et al. 2018). A direction that means nothing has TCAV 0.5 and Br 0 on average.
"""

from collections.abc import Sequence

import numpy as np

from tiaft_extensions.interpretability.concepts.regression import RIDGE, fit
from tiaft_extensions.interpretability.subject import BATCH, Subject, gradients_at
from tiaft_plugin.progress import progress


def directions(features: np.ndarray, values: np.ndarray, how: str = RIDGE) -> np.ndarray:
    """Return unit vectors (p, K): along them `values` (N, K) rise with `features` (N, p).

    `how` is a way of `regression.fit`. The paper's is "ols"; where channels are many, its
    directions differ from one half of the slides to the other (`agreement`).
    """
    return unit(fit(features.astype(np.float64), values, how).slopes)


def unit(slopes: np.ndarray) -> np.ndarray:
    """Return vectors (p, K), each with length 1, or 0 where a concept has no direction."""
    length = np.linalg.norm(slopes, axis=0)
    return np.divide(slopes, length, out=np.zeros_like(slopes), where=length > 0)


def pooled_gradients(subject: Subject, tiles: np.ndarray, layer: str, number: int) -> np.ndarray:
    """Return how the logit of class `number` changes as a layer's map moves, (N, channels) float64.

    All places of the map move alike: the sum of the gradients over them. `tiles` is uint8 (N, H,
    W, 3). Raises TiaftError for a model without gradients.
    """
    parts = [np.zeros((0, 0))]
    with progress(len(tiles), f"Gradients at {layer}", wanted=None) as bar:
        for start in range(0, len(tiles), BATCH):
            batch = tiles[start : start + BATCH]
            _, slopes = gradients_at(subject, batch, layer, lambda logits: logits[:, number])
            parts.append(slopes.sum(dim=(2, 3)).double().cpu().numpy())
            bar.update(len(batch))
    return np.concatenate(parts[1:] or parts)


def tcav(sensitivities: np.ndarray) -> np.ndarray:
    """Return the share (…) of positive ones among (N, …) sensitivities."""
    return (sensitivities > 0).mean(axis=0)


def strength(sensitivities: np.ndarray) -> np.ndarray:
    """Return mean(S)/std(S) (…) of sensitivities (N, …).

    NaN where all tiles have the same one, as behind a layer that only linear ones follow: it would
    be infinite.
    """
    mean, spread = sensitivities.mean(axis=0), sensitivities.std(axis=0)
    varies = spread > 1e-5 * np.abs(mean)  # gradients are float32
    return np.divide(mean, spread, out=np.full_like(mean, np.nan), where=varies)


def relevance(sensitivities: np.ndarray, r2: np.ndarray) -> np.ndarray:
    """Return Br (…) of sensitivities (N, …) and held-out R² (…), which counts as 0 below 0."""
    return np.maximum(r2, 0) * strength(sensitivities) + 0.0  # no -0


def agreement(found: Sequence[np.ndarray], direction: np.ndarray) -> np.ndarray:
    """Return the mean cosine (K,) of directions (R, p, K) with one of all tiles (p, K)."""
    return np.einsum("rpk,pk->rk", np.asarray(found), direction).mean(axis=0)

"""The test: patients that nothing was learnt from or chosen by, beside an untuned base.

Whatever tells expression is held against the same: ridge regression on the mean of the untuned
encoder's features, and the expression probe on them, which is not linear. These learn from the
training and the validation patients, since the fine-tuning has seen both.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tiaft_extensions.transcriptomics.means import means_of
from tiaft_extensions.transcriptomics.tune.bags import FIXED, FeatureBags, draw
from tiaft_extensions.transcriptomics.tune.loop import Split, Tuned
from tiaft_extensions.transcriptomics.tune.losses import Direct
from tiaft_extensions.transcriptomics.tune.scores import (
    MEAN_R,
    Score,
    cosines_of,
    gene_scores,
    retrieval_scores,
)
from tiaft_plugin.probes.expression import Expression

TUNED_HEAD, JOINT = "tuned head", "joint space"
TUNED_RIDGE, BASE_RIDGE, BASE_SVR = "tuned + ridge", "base + ridge", "base + SVR"
MOST_SVR = 2000  # genes: the probe has a regression of its own for each
_PENALTIES = np.logspace(-1, 6, 15)
_SEED = 3  # keeps the bootstrap's draws apart from the training's
Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Tested:
    """What was measured on test patients: `scores`, and `genes`, columns (G,) by name.

    `found_by` is the way that expression is found by, `told_by` the one that tells single genes.
    `observed` (P, G) and what each way `predicted` are standardised, patients in sorted order.
    """

    slides: int
    patients: int
    told_by: str
    found_by: str
    scores: list[Score]
    genes: dict[str, np.ndarray]
    observed: np.ndarray
    predicted: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()

    def main(self) -> dict[str, float]:
        """Return the measures of the main ways, without intervals, by name."""
        own = {MEAN_R: self.told_by}
        found = [i for i in self.scores if i.way == own.get(i.measure, self.found_by)]
        return {its.measure: its.value for its in found if not its.against}

    @property
    def genes_told(self) -> int:
        """How many genes correlate, at a false discovery rate of 5 %."""
        return int((self.genes["q"] < 0.05).sum())


def measure_test(
    tuned: Tuned,
    splits: Mapping[str, Split],
    base: Mapping[str, FeatureBags],
    after: Mapping[str, FeatureBags],
    projection: nn.Module | None,
    most: int,
    seed: int,
) -> Tested:
    """Measure a model on ``splits["test"]``; nothing of it is learnt from.

    `base` and `after` are features before and after, of the sets that `splits` has; `projection`
    comes after them in the model file, where it does. At most `most` tiles of each slide count.
    """
    device = next(tuned.tower.projection.parameters()).device
    tuned.cpu().eval()
    learnt = [name for name in ("train", "val") if name in splits]
    expression = {name: _by_patient(s.expression.double().numpy(), s) for name, s in splits.items()}
    known, observed = np.concatenate([expression[n] for n in learnt]), expression["test"]
    rows = {
        "base": {n: _means(base[n], its, most, seed) for n, its in splits.items()},
        "tuned": {n: _means(after[n], its, most, seed, projection) for n, its in splits.items()},
    }
    ways: dict[str, np.ndarray] = {}
    slides = _embedded(tuned, after["test"], most, seed)
    if isinstance(tuned.objective, Direct):
        with torch.no_grad():
            ways[TUNED_HEAD] = _by_patient(tuned.objective.predict(slides).numpy(), splits["test"])
    readers = {TUNED_RIDGE: ("tuned", ridge), BASE_RIDGE: ("base", ridge), BASE_SVR: ("base", _svr)}
    notes: tuple[str, ...] = ()
    if known.shape[1] > MOST_SVR:
        del readers[BASE_SVR]
        notes = (f"{BASE_SVR} is left out: {known.shape[1]:,} genes, more than {MOST_SVR:,}",)
    for way, (which, learn) in readers.items():
        features = np.concatenate([rows[which][name] for name in learnt])
        ways[way] = learn(features, known)(rows[which]["test"])
    bases = [way for way in (BASE_RIDGE, BASE_SVR) if way in ways]
    cosines = {way: cosines_of(told, observed) for way, told in ways.items()}
    if not isinstance(tuned.objective, Direct):
        cosines = {JOINT: _joint(tuned, slides, splits["test"], observed), **cosines}
    scores, genes = gene_scores(observed, ways, bases, seed + _SEED)
    scores += retrieval_scores(cosines, bases, seed + _SEED)
    tuned.to(device)
    told_by, found_by = next(iter(ways)), next(iter(cosines))
    count = len(splits["test"])
    return Tested(count, len(observed), told_by, found_by, scores, genes, observed, ways, notes)


def ridge(features: np.ndarray, targets: np.ndarray) -> Predict:
    """Fit ridge regression (n, D) to (n, G), each gene's penalty by leaving one row out."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(_PENALTIES, alpha_per_target=True))
    model.fit(features, targets)
    return lambda rows: model.predict(rows).reshape(len(rows), -1)


def _svr(features: np.ndarray, targets: np.ndarray) -> Predict:
    return Expression().fit(features, targets, np.arange(len(features)), seed=0)


@torch.no_grad()
def _means(
    bags: FeatureBags, split: Split, most: int, seed: int, projection: nn.Module | None = None
) -> np.ndarray:
    """Return each patient's mean of its slides' mean features, (P, D) float64."""
    count, out = len(bags.sizes), bags.width
    if projection is not None:
        out = projection(torch.zeros(1, out)).shape[1]
    # In place: small rows kept between large reads would leave the heap full of holes.
    rows = np.empty((count, out))
    for slide in range(count):
        tiles = bags.read(slide, draw(bags, slide, most, seed, FIXED))
        if projection is not None:
            tiles = projection(torch.from_numpy(tiles)).numpy()
        rows[slide] = tiles.mean(axis=0, dtype=np.float64)
    return _by_patient(rows, split)


def _by_patient(values: np.ndarray, split: Split) -> np.ndarray:
    """Return the mean of each patient's slides (P, ·) float64, patients in sorted order."""
    return means_of(values, split.patients.numpy())


@torch.no_grad()
def _embedded(tuned: Tuned, bags: FeatureBags, most: int, seed: int) -> Tensor:
    """Return slide embeddings (S, P) of features, pooled as in training."""
    rows = torch.empty(len(bags.sizes), tuned.tower.width)
    for slide in range(len(rows)):
        tiles = torch.from_numpy(bags.read(slide, draw(bags, slide, most, seed, FIXED)))
        rows[slide] = tuned.tower.pool(tiles, torch.ones(1, len(tiles), dtype=torch.bool))[0]
    return rows


@torch.no_grad()
def _joint(tuned: Tuned, slides: Tensor, split: Split, observed: np.ndarray) -> np.ndarray:
    """Return cosines (P, P) of patients' images and expression in the joint space."""
    images = _by_patient(normalize(slides, dim=1).numpy(), split)
    genes = tuned.objective.predict(torch.from_numpy(observed.astype(np.float32)))
    return cosines_of(images, genes.double().numpy())

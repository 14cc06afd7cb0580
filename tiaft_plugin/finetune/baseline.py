"""What a fine-tuned network has to beat: answers from colour alone, and answers without looking."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tiaft_plugin.finetune.evaluation import Evaluation
from tiaft_plugin.tiles.colour import colour_features
from tiaft_plugin.tiles.images import read_image
from tiaft_plugin.tiles.threads import in_threads
from tiaft_plugin.tiles.tileset import TileSet

MOST_TILES = 20_000  # to learn from: a baseline has to be cheap
_SURE = 1e-6  # the least probability that is given: a loss has to stay a number


@dataclass(frozen=True)
class ColourBaseline:
    """How a classifier of colour alone does, having learnt from `learnt` of `there` tiles."""

    evaluation: Evaluation
    learnt: int
    there: int


def colour_baseline(train: TileSet, held_out: TileSet, seed: int = 0) -> ColourBaseline:
    """Classify held-out tiles by the 54 numbers of ``tiles/colour.py``, standardised.

    The classifier is scikit-learn's logistic regression, one a label where tiles have several. It
    learns from MOST_TILES tiles, drawn by `seed`, where there are more; the pixels are those of
    the files, whatever normalises or augments them for the network. Raises TiaftError where a tile
    cannot be read.
    """
    from threadpoolctl import threadpool_limits

    chosen = np.arange(len(train))
    if len(train) > MOST_TILES:
        drawn = np.random.default_rng(seed).permutation(len(train))[:MOST_TILES]
        chosen = np.sort(drawn)
    learning = train.subset(chosen.tolist())
    features, targets = _features(learning), np.array(learning.targets, np.int64)
    with threadpool_limits(1):  # sums over several threads differ in their last bits
        given = _fit_predict(features, targets, _features(held_out), len(train.classes))
    return ColourBaseline(evaluation_of(held_out, given), len(chosen), len(train))


def blind_baseline(train: TileSet, held_out: TileSet) -> Evaluation:
    """Give every held-out tile the shares of the training tiles: always the commonest class."""
    targets = np.array(train.targets, np.int64)
    classes = np.arange(len(train.classes))
    truth = targets if targets.ndim == 2 else targets[:, None] == classes
    return evaluation_of(held_out, np.tile(truth.mean(axis=0), (len(held_out), 1)))


def evaluation_of(tiles: TileSet, probabilities: np.ndarray) -> Evaluation:
    """Return what probabilities (N, C) are worth on tiles."""
    targets = np.array(tiles.targets, np.int64)
    given = np.clip(probabilities, _SURE, 1 - _SURE)
    if targets.ndim == 2:
        losses = -np.log(np.where(targets, given, 1 - given)).mean(axis=1)
    else:
        losses = -np.log(given[np.arange(len(targets)), targets])
    return Evaluation(
        tiles.classes,
        targets,
        probabilities.astype(np.float32),
        losses.astype(np.float32),
        targets.ndim == 2,
    )


def _features(tiles: TileSet) -> np.ndarray:
    found = in_threads(_colours, tiles.files, "Colour baseline")
    return np.concatenate(list(found)).astype(np.float64)


def _colours(file: Path) -> np.ndarray:
    return colour_features(read_image(file)[None])


def _fit_predict(
    features: np.ndarray, targets: np.ndarray, others: np.ndarray, classes: int
) -> np.ndarray:
    """Return probabilities (M, C) float64 of other features (M, 54)."""
    if targets.ndim == 2:
        columns = [_fit_predict(features, column, others, 2)[:, 1] for column in targets.T]
        return np.stack(columns, axis=1)
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    there = np.unique(targets)
    given = np.zeros((len(others), classes))
    if len(there) == 1:  # nothing to learn: a label that all tiles have, or none
        given[:, there] = 1
        return given
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with warnings.catch_warnings(action="ignore"):  # of not converging: it is a baseline
        given[:, there] = model.fit(features, targets).predict_proba(others)
    return given

"""The probe `mil`: classes of slides or patients from their tiles, by attention pooling."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_extensions.histotransfer.cli.mil import OPTIONS
from tiaft_extensions.histotransfer.recipe import Recipe
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.probes.crossval import Problem
from tiaft_plugin.probes.interface import (
    Experiment,
    FeatureTable,
    Kind,
    Predict,
    Targets,
    Unit,
)
from tiaft_plugin.tiles.words import some

COST = 1.0  # scikit-learn's default


class Mil:
    """Attention over the tiles of a bag, trained as in the paper's first stage.

    Beside each feature set stands the mean of each bag's tiles, with logistic regression, under
    the same protocol; colour alone goes through the attention network, too. Scores are log
    probabilities. `gated` and the other settings are `Recipe`'s.
    """

    kind: Kind = "classes"
    unit: Unit = "patient"
    title = "Classes of slides or patients, by attention over their tiles"
    defaults = {"repeats": 3}  # noqa: RUF012  # times that everything is split anew
    options = OPTIONS
    libraries = ("torch", "lightning")

    def __init__(self, **settings: Any) -> None:
        self._recipe = recipe = Recipe(**settings)
        self.settings: Mapping[str, Any] = {
            "model": "attention pooling, one bag a step, Adam, cross-entropy",
            **asdict(recipe),
            "hidden": list(recipe.hidden),
            "epoch kept": f"best accuracy on one of {recipe.held_out} folds of the training "
            "bags, by group; then lowest loss; the last where groups are too few",
            "mean pooling": f"logistic regression, cost {COST}, on the mean of a bag's tiles, "
            "scaled by mean and sd of the training bags",
            "library": "torch, lightning; scikit-learn",
        }

    def with_options(self, **given: Any) -> "Mil":
        """Return this probe with other settings of its `Recipe`. Raises TiaftError."""
        known = asdict(self._recipe)
        if unknown := sorted(given.keys() - known.keys()):
            raise TiaftError(f"{some(unknown)}: unknown; there are {', '.join(known)}")
        if not given.get("hidden", True):
            raise TiaftError("--hidden: one layer is the least")
        return Mil(**{**known, **given})

    def read(
        self, features: Mapping[str, Path], labels: Path | None, patients: Mapping[str, str]
    ) -> tuple[list[FeatureTable], Targets]:
        """Return bags, and their means, of each named path, and the classes of bags.

        Bags are slides where `labels` has a column slide, else patients. Raises TiaftError.
        """
        from tiaft_extensions.histotransfer.bags import mean_pooled, read_bags, slides_of
        from tiaft_extensions.histotransfer.labels import by_stem, read_bag_labels

        targets, unit, patients = read_bag_labels(labels, patients)
        tables = []
        for name, path in features.items():
            table = read_bags(path, name, unit, patients)
            if targets.groups is not None:  # the labels' own: folds respect them
                table = replace(table, groups=None)
            tables += [table, mean_pooled(table)]
        if unit == "slide":
            targets = by_stem(targets, {s for t in tables[::2] for s in slides_of(t.values)})
        return tables, targets

    def fit(self, features: Any, targets: np.ndarray, groups: np.ndarray, seed: int) -> Predict:
        """Fit to bags (n) or means (n, D) of classes (n,) text; scores (m, C) are float64."""
        classes, codes = np.unique(targets, return_inverse=True)
        if len(classes) < 2:
            raise TiaftError(
                f"all {len(targets)} training rows are {str(classes[0])!r}: two classes are needed"
            )
        if isinstance(features, np.ndarray):
            return _fit_means(features, codes)
        from tiaft_extensions.histotransfer.training import train

        net = train(features, codes, len(classes), groups, seed, self._recipe).net
        return partial(_scores, net)

    def leave(self, folder: Path, experiment: Experiment, problem: Problem, seed: int) -> None:
        """Keep the heads of the first repeat's folds, and the attention that they pay to tiles."""
        from tiaft_extensions.histotransfer.kept import keep_attention

        keep_attention(folder, experiment, problem, seed, self._recipe)


def _scores(net: Any, bags: Any) -> np.ndarray:
    """Return log probabilities (m, C) float64 of bags."""
    import torch

    from tiaft_extensions.histotransfer.training import as_tensor

    with torch.no_grad():
        found = [net(as_tensor(bags.load(row)))[0].double() for row in range(len(bags))]
        return torch.stack(found).log_softmax(1).numpy()


def _fit_means(features: np.ndarray, codes: np.ndarray) -> Predict:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if not np.isfinite(features).all():
        raise TiaftError("the features hold NaN or infinity: leave those rows out")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=COST, max_iter=10_000))
    model.fit(features.astype(np.float64), codes)
    return lambda rows: model.predict_log_proba(rows.astype(np.float64))

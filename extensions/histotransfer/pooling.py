"""Attention that was learnt on one cohort as a way from tiles to patients of another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.tiles.words import some

if TYPE_CHECKING:  # whoever lists aggregators needs no torch
    from tiaft_extensions.histotransfer.kept import AttentionRun


class AttentionPooling:
    """Means of a patient's tiles, weighted by the attention of a run's heads: an aggregator.

    An aggregator knows no folds. The run must therefore be of other patients: its heads have
    learnt from the labels of its own, and held-out attention would not help, since the patients of
    a training part are weighted by heads that saw those of the test part.
    """

    def __init__(self, run: "AttentionRun"):
        self.run = run
        self.heads = run.heads()
        self.known = {Path(store).stem for store in run.stores}
        self.known |= {*run.keys.tolist(), *run.groups.tolist()}

    def check(self, models: Sequence[Mapping[str, str]]) -> None:
        """Raise TiaftError for features of another model than the run's."""
        known = {model["sha256"] for model in self.run.models}
        other = next((model for model in models if known and model["sha256"] not in known), None)
        if other is not None:
            own = " or ".join(map(_called, self.run.models))
            raise TiaftError(
                f"features are of the model {_called(other)}, the attention of {self.run.folder} "
                f"is for those of {own}: extract with that one"
            )

    def __call__(self, features: np.ndarray, slides: np.ndarray) -> np.ndarray:
        """Return the weighted mean (D,) float64 of tiles (n, D), averaged over heads.

        Raises TiaftError for features of another width, and slides that the run had.
        """
        seen = [name for name in np.unique(slides).tolist() if self._knows(name)]
        if seen:
            raise TiaftError(
                f"{self.run.folder} has learnt from the labels of {some(seen)}: its attention is "
                "for other patients"
            )
        width = self.heads[0].net.shape["width"]
        if features.shape[1] != width:
            raise TiaftError(
                f"{self.run.folder} is for features of width {width}, not {features.shape[1]}: "
                "extract with the model that it had"
            )
        return self._weights(features) @ features.astype(np.float64)

    def _knows(self, slide: str) -> bool:
        return slide in self.known or Path(slide).stem in self.known

    def _weights(self, features: np.ndarray) -> np.ndarray:
        import torch

        from tiaft_extensions.histotransfer.training import as_tensor

        tiles: Any = as_tensor(features)
        with torch.no_grad():
            raw = [head.net.attend(head.net.encode(tiles)).double() for head in self.heads]
        return torch.stack(raw).softmax(1).mean(0).numpy()


def _called(model: Mapping[str, str]) -> str:
    return f"{model['name']} (SHA-256 {model['sha256'][:16]})"


def pooling_by(place: Path) -> AttentionPooling:
    """Return the pooling by a run of `tiaft probe mil` in a folder. Raises TiaftError."""
    from tiaft_extensions.histotransfer.kept import read_run

    return AttentionPooling(read_run(place))

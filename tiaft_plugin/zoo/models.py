"""The classes TIAToolbox's engines run. They live here, so that they unpickle in any process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiatoolbox.models.models_abc import ModelABC

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.network.card import UNCLASSIFIED
from tiaft_plugin.network.outputs import labels_of, probabilities_of
from tiaft_plugin.tiles.stain import Macenko, Normalise, stain_of_training
from tiaft_plugin.zoo.load import identity, known, load_named
from tiaft_plugin.zoo.names import NamedModel, of_file


class BatchOutput(np.ndarray):
    """The output (B, D) of one batch, whose ``[0]`` is the whole of it.

    TIAToolbox's DeepFeatureExtractor keeps ``infer_batch(…)[0]`` on slides and all of
    ``infer_batch(…)`` in patch mode. An array would lose tiles in the first, a list fails on
    uneven batches in the second; this serves both. TIAToolbox writes a literal 0: only Python's
    own 0 is the whole, and a computed index (numpy's) or iterating gives rows.
    """

    def __getitem__(self, key: Any) -> Any:
        whole = self.view(np.ndarray)
        return whole if type(key) is int and key == 0 else whole[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.view(np.ndarray))

    def __array_finalize__(self, parent: Any) -> None:
        """Nothing to hand on: what is computed from an output is an ordinary array."""

    def __array_wrap__(self, array: np.ndarray, context: Any = None, return_scalar: bool = False):
        plain = array.view(np.ndarray)
        return plain[()] if return_scalar else plain


class TileModel(ModelABC):
    """A tiaft model by name, as TIAToolbox builds it: empty first, then `load`.

    Called with uint8 tiles (N, H, W, 3); normalises them itself, so that it needs no
    preprocessing, but for `stain`, which the tiles had in training. `class_dict` maps output
    columns to class names.
    """

    def __init__(self, name: str | NamedModel):
        super().__init__()
        self.named: NamedModel = known(name) if isinstance(name, str) else name
        self.net: torch.nn.Module | None = None
        self.stain: Macenko | None = None
        self.sha256 = ""  # what stores and run records know the model by

    def load(self, weights: str | Path | None) -> "TileModel":
        """Build the network, from the name's own weights or from a file. Raises TiaftError."""
        path = Path(weights) if weights else None
        self.net = load_named(self.named, path).eval()
        self.sha256 = identity(self.named, self.net, path)
        training = getattr(getattr(self.net, "card", None), "training", {})
        self.stain = stain_of_training(training, self.named.name)
        # An attribute, not a method: a method would take the network along to the workers.
        self.preproc = Normalise(self.stain) if self.stain else ModelABC.preproc
        self.preproc_func = None  # TIAToolbox's way to say `preproc`
        return self

    def load_weights_from_file(self, weights: str | Path) -> "TileModel":
        """Build the network from a file, as TIAToolbox's method of that name does."""
        return self.load(weights)

    def network(self) -> torch.nn.Module:
        """Return the network. Raises TiaftError before `load`."""
        if self.net is None:
            raise TiaftError(
                f"{self.named.name} has no weights yet: get_pretrained_model gives them"
            )
        return self.net

    @staticmethod
    def infer_batch(
        model: torch.nn.Module, batch_data: torch.Tensor | np.ndarray, *, device: str = "cpu"
    ) -> np.ndarray:
        """Return the output (B, D), float32, of one batch of uint8 tiles (B, H, W, 3)."""
        model.eval()
        tiles = torch.as_tensor(batch_data).to(device)
        with torch.inference_mode():
            output = model(tiles)
        return output.float().cpu().numpy().view(BatchOutput)

    def __getstate__(self) -> dict:
        state = self.__dict__.copy()
        if state["named"].load is not None:  # a plug-in's function may not pickle; its name does
            state["named"] = state["named"].name
        return state

    def __setstate__(self, state: dict) -> None:
        if isinstance(state["named"], str):
            state["named"] = known(state["named"])
        self.__dict__.update(state)


class TileClassifier(TileModel):
    """Gives class probabilities (N, C).

    A tile's class is the most probable one; of several labels a tile (`multilabel`), where it has
    0.5 or more, and else ``unclassified``, which stands behind the labels in `class_dict`.
    """

    def __init__(self, name: str | NamedModel):
        super().__init__(name)
        self.multilabel = self.named.multilabel
        self.class_dict = dict(enumerate(self.named.classes))
        if self.multilabel:
            self.class_dict[len(self.class_dict)] = UNCLASSIFIED
            self.postproc_func = _label_or_none

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return class probabilities (N, C) of uint8 tiles (N, H, W, 3)."""
        return probabilities_of(self.network()(tiles), multilabel=self.multilabel)

    @staticmethod
    def postproc(image: Any) -> Any:
        """Return the index of the most probable class, as TIAToolbox's classifiers do."""
        return labels_of(image, multilabel=False)


def _label_or_none(image: Any) -> Any:
    """Return the index of the most probable label, or that of ``unclassified``."""
    return labels_of(image, multilabel=True)


class TileFeatures(TileModel):
    """Gives features (N, D)."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return features (N, D) of uint8 tiles (N, H, W, 3)."""
        net = self.network()
        features = getattr(net, "features", None)
        if callable(features):
            return features(tiles)
        if self.named.classes:
            raise TiaftError(f"{self.named.base} gives classes only: its network has no features()")
        return net(tiles)

    def refuse_as_classifier(self) -> None:
        """Raise TiaftError: a PatchPredictor would take the largest feature for a class."""
        named = self.named
        other = f"; for classes use {named.base}" if named.classes else ""
        raise TiaftError(
            f"{named.name} gives features, not classes: use it with DeepFeatureExtractor{other}"
        )


def model_from_file(path: Path, *, view: str) -> tuple[TileModel, Any]:
    """Return a model file's model and ioconfig without giving it a name in the folder.

    `view` is "classes" or "features". Raises TiaftError, also where there are no classes.
    """
    from tiatoolbox.models.engine.io_config import IOPatchPredictorConfig

    named = of_file(path, view)
    model = (TileClassifier if view == "classes" else TileFeatures)(named)
    config = IOPatchPredictorConfig(
        patch_input_shape=[named.tile_size] * 2,
        stride_shape=[named.tile_size] * 2,
        input_resolutions=[{"resolution": named.mpp, "units": "mpp"}],
    )
    return model.load(None), config

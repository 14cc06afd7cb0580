"""What a job reads of its slides: images, features, and those of them that are kept on disk."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tiaft_extensions.transcriptomics.tune.bags import (
    FeatureBags,
    ImageBags,
    cache_images,
    cache_stores,
)
from tiaft_plugin.engine.store import read_store
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import sha256_of
from tiaft_plugin.finetune.interface import FinetuneJob, Samples
from tiaft_plugin.network.backbone import pooled_width
from tiaft_plugin.network.card import has_card, read_card
from tiaft_plugin.network.net import Network
from tiaft_plugin.network.precision import exact_float32
from tiaft_plugin.network.weights import sha256_of_weights
from tiaft_plugin.tiles.stain import normaliser


@dataclass(frozen=True)
class Cache:
    """Features of a job's slides, kept below `folder`; what an interrupted run left is used.

    `identities` are hashes of what is in each of the `sets`.
    """

    job: FinetuneJob
    sets: Mapping[str, Samples]
    identities: Mapping[str, str]
    folder: Path
    device: torch.device

    def images(self, name: str, net: Network) -> ImageBags:
        """Return a set's tiles as images, as the encoder takes them."""
        normalise = normaliser(self.job.stain)
        return ImageBags(self.sets[name].files, net.card.tile_size, normalise)

    def features(self, name: str, net: Network, most: int) -> FeatureBags:
        """Return a set's features, of at most `most` tiles a slide, as `net` is now.

        Raises TiaftError for stores that are damaged, or of another model.
        """
        job, samples = self.job, self.sets[name]
        # By what decides them: a run with other settings may have been killed here.
        card = net.card
        decides = [
            [self.identities[name], job.seed, most],
            [sha256_of_weights(net), card.backbone, card.backbone_args],
            [card.mean, card.std, card.tile_size, job.stain],
        ]
        folder = self.folder / f"features-{name}-{digest(decides)[:16]}"
        if job.inputs == "slides":
            _refuse_other_models(job, samples, net)
            return cache_stores(samples.files, folder, most, job.seed)
        net.to(self.device).eval()
        with exact_float32():
            found = cache_images(self.images(name, net), net.pooled, folder, most, job.seed)
        net.cpu()
        return found


def identity(job: FinetuneJob, samples: Samples) -> str:
    """Return a hash of slides: of tiles' bytes, or of stores' facts; and of their expression."""
    if job.inputs == "bags":
        files = [[sha256_of(file) for file in its] for its in samples.files]
    else:
        files = [[_store_identity(path) for path in its] for its in samples.files]
    values = hashlib.sha256(np.array(samples.targets, dtype=np.float64).tobytes()).hexdigest()
    return digest([files, values, samples.groups])


def digest(value: Any) -> str:
    """Return a hash of plain values."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _store_identity(path: Path) -> str:
    facts = read_store(path).facts
    return f"{facts['settings_sha256']} {facts['tiles_sha256']}"


def _refuse_other_models(job: FinetuneJob, samples: Samples, net: Network) -> None:
    """Raise TiaftError for stores of features that the job's encoder does not give."""
    own = sha256_of(job.init) if Path(job.init).is_file() else ""
    card = read_card(job.init) if own and has_card(Path(job.init)) else None
    for path in (path for its in samples.files for path in its):
        store = read_store(path)
        width = pooled_width(net.part_a)
        if own and store.facts["model"]["sha256"] != own:
            raise TiaftError(
                f"{path} has features of model {store.facts['model']['name']}, not of {job.init}: "
                "give the model that extracted them"
            )
        if card is not None and card.hidden:
            mpp = f" --mpp {card.mpp}" if card.mpp else ""
            raise TiaftError(
                f"{path} has features after the hidden layers of {job.init}, which a tuned model "
                "has no more: give tiles, or features by the encoder alone (`tiaft models create "
                f"FILE --init {job.init} --tile-size {card.tile_size}{mpp}` makes it)"
            )
        if store.values.shape[1] != width:
            remedy = "leave --backbone out" if own else "give the model that extracted them"
            raise TiaftError(
                f"{path} has {store.values.shape[1]} features, {net.card.backbone} gives {width}: "
                f"{remedy}"
            )

"""What is said of a result: the card of the model file, and doubts."""

import json
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np

from tiaft_extensions.histotransfer.topk.loop import TopKEpochs
from tiaft_extensions.histotransfer.topk.prepare import Prepared
from tiaft_extensions.histotransfer.topk.tiles import StoreTiles
from tiaft_plugin.finetune.epochs import Progress
from tiaft_plugin.finetune.origin import describe_init, joined_licence
from tiaft_plugin.network.net import Network
from tiaft_plugin.tiles.stain import Macenko

_VERSIONS = ("tiaft_plugin", "torch", "timm", "numpy")


def finished(ready: Prepared, found: Progress, around: dict[str, Any]) -> Network:
    """Return the network of the model file: the tuned encoder, and a card that says how."""
    card, job = ready.net.card, ready.job
    kept = found.best["epoch"] if found.best else ready.settings.epochs
    done = "top-k fine-tuned on" if kept else "as before top-k fine-tuning on"
    training: dict[str, Any] = {
        **describe_init(job.init),
        "finetuner": "top-k",
        "seed": job.seed,
        **ready.settings.numbers,
        "optimizer": "Adam",
        "head_sha256": ready.decides["head"],
        "kept_epoch": kept,
        "metrics": {
            row["split"]: {"loss": row["loss"], "accuracy": row["accuracy"]}
            for row in found.rows
            if row["epoch"] == kept
        },
        "versions": {name: version(name) for name in _VERSIONS},
        "environment": {k: v for k, v in around.items() if not k.endswith(" version")},
    }
    stain = _stain(ready)
    if stain == Macenko().facts:  # what a model file can ask for; others a user has to
        training["stain"] = stain
    ready.net.card = replace(
        card,
        training=training,
        data={
            "name": job.train.root.resolve().name,
            "bags": {name: len(its.bags) for name, its in ready.sets.items()},
            "groups": {name: len(np.unique(its.groups)) for name, its in ready.sets.items()},
            "classes": list(ready.head.classes),
        },
        licence=joined_licence(card.licence, {}),
        source=f"{card.source}; {done} {len(ready.sets['train'].bags)} bags",
    )
    return ready.net


def _stain(ready: Prepared) -> Any:
    part = ready.sets["train"].bags[0].parts[0]
    if isinstance(part, StoreTiles):
        return part.store.facts["stain_normalisation"]
    return getattr(getattr(part, "stain", None), "facts", None)


def doubts_of(ready: Prepared, found: Progress) -> list[str]:
    """Return what whoever takes the result should know, after `finished`."""
    doubts, card, rank = [], ready.net.card, TopKEpochs.rank
    if card.classes:
        doubts.append(
            "the classifier of tiles in the model file was not tuned with its features: use these "
            "(NAME-features, tiaft extract)"
        )
    stain = _stain(ready)
    if stain is not None and "stain" not in card.training:
        doubts.append(
            f"its tiles were stain-normalised ({json.dumps(stain)}), which the model file cannot "
            "ask for: extract with the same options"
        )
    if "val" not in ready.sets:
        doubts.append("no validation bags: the last epoch is kept")
    elif rank(found.rows[0]) >= max(map(rank, found.rows_of("val")[1:])):
        kept = ", which is kept" if ready.settings.keep == "best" else ""
        doubts.append(
            f"on validation bags no epoch was better than the frozen encoder{kept}: more bags may "
            "help, or a lower --lr"
        )
    return doubts

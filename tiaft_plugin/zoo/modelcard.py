"""A model card in Hugging Face's format, made of what a model file records and of nothing else."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import sha256_of
from tiaft_plugin.network.card import Card, is_safetensors, read_card
from tiaft_plugin.plugins import NAME
from tiaft_plugin.zoo.load import known, no_weights

UNKNOWN = "not recorded"
# Hugging Face's name of a measure, where it has one, and ours.
MEASURES = {
    "accuracy": ("accuracy", "Accuracy"),
    "balanced_accuracy": ("balanced_accuracy", "Balanced accuracy"),
    "macro_f1": ("f1", "Macro F1"),
    "auroc": ("roc_auc", "AUROC, mean over labels"),
    "auprc": ("average_precision", "AUPRC, mean over labels"),
    "loss": ("loss", "Loss"),
}
# Sets of tiles as a card's data and metrics name them, and Hugging Face.
SETS = {"test": ("test", "test"), "val": ("held_out", "validation")}
_TRAINS = {"part_b": "Part B (Part A frozen)", "part_a": "Part A (Part B frozen)", "all": "all"}


def model_card(name: str) -> str:
    """Return the card of a model, by name or file: YAML, then Markdown. Raises TiaftError."""
    from huggingface_hub import ModelCard

    if is_safetensors(Path(name)):
        path, called = Path(name), Path(name).stem
    else:
        model = known(name)
        if model.file is None:
            raise TiaftError(f"{name} is a model of plug-in {model.plugin}: only files have cards")
        if not model.file.is_file():
            raise no_weights(model.base)
        path, called = model.file, model.base
    card = read_card(path)
    data = card_data(card, called)
    body = "\n\n".join(_sections(card, called, sha256_of(path)))
    text = f"---\n{data.to_yaml()}\n---\n\n{body}\n"
    if ModelCard(text).data.to_dict() != data.to_dict():
        raise TiaftError(f"{path}: its card holds what Hugging Face's format cannot hold")
    return text


def card_data(card: Card, name: str) -> Any:
    """Return a card's metadata as ``huggingface_hub.ModelCardData``.

    It has no `datasets`, which would be ids of Hugging Face's: a model file records names, DOIs
    and fingerprints of tile sets.
    """
    from huggingface_hub import ModelCardData

    task = "image-classification" if card.classes else "image-feature-extraction"
    results = _results(card, task)
    several = ["multi-label"] if card.multilabel else []
    return ModelCardData(
        **_licence(card.licence),
        library_name="tiaft_plugin",
        tags=["histology", "pathology", "tiatoolbox", "timm", *several],
        pipeline_tag=task,
        base_model=_base_model(card.source),
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=name,
        eval_results=results or None,
    )


def _results(card: Card, task: str) -> list[Any]:
    """Return what was measured on held-out tiles, in Hugging Face's form."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=task,
            dataset_type=_slug(tiles) or "unknown",
            dataset_name=tiles or UNKNOWN,
            dataset_split=split,
            metric_type=MEASURES[measure][0],
            metric_name=MEASURES[measure][1],
            metric_value=value,
        )
        for split, tiles, measures in _measured(card)
        for measure, value in measures.items()
    ]


def _measured(card: Card) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yield (split, name of the tile set, measures) of each held-out set of the last stage."""
    metrics = _dict(_last_stage(card).get("metrics"))
    for key, (described, split) in SETS.items():
        found = _dict(metrics.get(key))
        measures = {name: float(found[name]) for name in MEASURES if _is_number(found.get(name))}
        if measures:
            yield split, str(_dict(card.data.get(described)).get("name", "")), measures


def _licence(text: str) -> dict[str, Any]:
    """Return Hugging Face's fields for a licence: an id of its own only where it is just one."""
    if not text:
        return {"license": "unknown"}
    slug = _slug(text.removeprefix("weights: "))
    if slug in ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc0-1.0"):
        return {"license": slug}
    return {"license": "other", "license_name": _slug(text)}


def _base_model(source: str) -> str | None:
    """Return timm's weights, by Hugging Face's id, where Part A began with them."""
    found = re.match(r"Part A from timm (\S+?\.\w+)(;|$)", source)
    if found is None:
        return None
    import timm

    config = timm.models.get_pretrained_cfg(found[1])
    hub = (config.hf_hub_id or "") if config else ""
    return hub if hub.endswith(found[1]) else None


def _sections(card: Card, name: str, sha256: str) -> Iterator[str]:
    yield f"# {_text(name)}"
    yield _what_it_is(card)
    yield "## Use"
    yield _use(card, name)
    yield "## Input and output"
    yield "\n".join(_input_and_output(card))
    yield "## Training data"
    yield "\n".join(_data(card.data)) if card.data else f"The tiles are {UNKNOWN}."
    yield "## Training"
    yield "\n".join(_training(card))
    yield "## Results on held-out tiles"
    yield _results_text(card)
    yield "## Limitations"
    yield "\n".join(f"- {line}" for line in _limitations(card))
    yield "## Licences"
    yield _text(card.licence) if card.licence else f"The licence of the weights is {UNKNOWN}."
    yield "## Identity"
    yield "\n".join(_identity(card, sha256))


def _what_it_is(card: Card) -> str:
    if card.multilabel:
        gives = f"probabilities of {len(card.classes)} labels, any number of which a tile may have"
    elif card.classes:
        gives = f"probabilities of {len(card.classes)} classes"
    else:
        gives = "features"
    trained = f" {_text(card.source)}." if card.source else ""
    return (
        f"A network that gives {gives} for tiles of histological slides. Its backbone is "
        f"{_text(card.backbone)}.{trained} `tiaft_plugin` runs it with TIAToolbox, and brings its "
        "predictions to QuPath."
    )


def _use(card: Card, name: str) -> str:
    if not NAME.fullmatch(name):  # of a file: no name that a model can be added by
        name = "NAME"
    engine = "PatchPredictor" if card.classes else "DeepFeatureExtractor"
    command = "predict" if card.classes else "extract"
    also = f"; its features are the model `{name}-features`" if card.classes else ""
    return f"""\
With `tiaft_plugin` installed, from the shell (`model.safetensors` is the model file):

```sh
tiaft models add {name} model.safetensors
tiaft {command} slide.svs --model {name} --out out
```

In a script with TIAToolbox, once it is added{also}:

```python
import tiaft_plugin
from tiatoolbox.models import {engine}
{engine}({name!r}).run(["slide.svs"], patch_mode=False, save_dir="out")
```"""


def _input_and_output(card: Card) -> Iterator[str]:
    mpp = f"{card.mpp:g} µm/px" if card.mpp else f"µm/px {UNKNOWN}"
    yield f"- Tiles: RGB, 8 bit, {card.tile_size}×{card.tile_size} px, {mpp}"
    yield (
        f"- Normalised inside the network: mean {_numbers(card.mean)}, standard deviation "
        f"{_numbers(card.std)} of pixels from 0 to 1"
    )
    stain = card.training.get("stain")
    if stain:
        yield f"- Stain normalisation before that, as in training: {_text(_flat(stain))}"
    kind = "Label" if card.multilabel else "Class"
    for number, label in enumerate(card.classes):
        yield f"- {kind} {number}: {_text(label)}"
    if card.hidden:
        widths = ", ".join(map(str, card.hidden))
        yield f"- Features: {card.hidden[-1]} numbers, after Part B's hidden layers ({widths})"
    else:
        yield "- Features: the pooled output of the backbone"


def _data(data: Mapping[str, Any]) -> Iterator[str]:
    yield from _set_lines(data)
    resized = _dict(data.get("resized"))
    if resized:
        yield (
            f"- Resized to the model's tile size from {_text(resized.get('from_px', UNKNOWN))} px "
            f"at {_text(resized.get('from_mpp') or UNKNOWN)} µm/px"
        )


def _set_lines(tiles: Mapping[str, Any]) -> Iterator[str]:
    yield f"- Tile set: {_text(tiles.get('name') or UNKNOWN)}"
    if tiles.get("doi"):
        yield f"- DOI: {_text(tiles['doi'])}; licence: {_text(tiles.get('licence') or UNKNOWN)}"
    yield f"- Fingerprint: {_text(tiles.get('fingerprint') or UNKNOWN)}"
    groups = tiles.get("groups")
    if groups:
        yield f"- Groups (slides or patients): {_text(groups)}"
    elif groups == 0:
        yield "- Groups (slides or patients): not known"
    counts = _dict(tiles.get("tiles"))
    if counts:
        listed = ", ".join(f"{_text(name)} {_text(count)}" for name, count in counts.items())
        yield f"- Tiles: {listed}"


def _training(card: Card) -> Iterator[str]:
    training = card.training
    if not training:
        yield f"How it was trained is {UNKNOWN}."
        return
    left = {"stages", "versions", "environment", "stain", "init_sha256"}  # said elsewhere
    for name, value in training.items():
        if name not in left and value not in (None, "", [], {}):
            yield f"- {_text(name.replace('_', ' '))}: {_text(_flat(value))}"
    for number, stage in enumerate(_stages(card), start=1):
        facts = {k: v for k, v in stage.items() if k not in ("metrics", "trains")}
        trains = _TRAINS.get(str(stage.get("trains")), stage.get("trains", UNKNOWN))
        listed = "; ".join(f"{k.replace('_', ' ')} {_flat(v)}" for k, v in facts.items() if v != "")
        yield f"- Stage {number}: trains {_text(trains)}; {_text(listed)}"


def _results_text(card: Card) -> str:
    measured = list(_measured(card))
    if not measured:
        return "None are recorded: how good this model is on other tiles is not known."
    parts = []
    for split, tiles, measures in measured:
        described = _dict(card.data.get("test" if split == "test" else "held_out"))
        lines = [f"### {_text(tiles or UNKNOWN)} ({split})", "", "| measure | value |", "|---|---|"]
        lines += [f"| {MEASURES[name][1]} | {value:.4g} |" for name, value in measures.items()]
        lines += ["", *_set_lines(described)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _limitations(card: Card) -> Iterator[str]:
    yield "For research. Nothing here shows that it is fit for diagnosis."
    measured = {split for split, _, _ in _measured(card)}
    if not measured:
        yield "No result on held-out tiles is recorded."
    elif measured == {"validation"}:
        chosen = card.training.get("keep") == "best"
        yield (
            "The held-out tiles also chose the epoch that was kept, so that the results are "
            "optimistic; there was no test set."
            if chosen
            else "There was no test set beside the tiles that were looked at after every epoch."
        )
    for split, name, _ in _measured(card):
        tiles = _dict(card.data.get("test" if split == "test" else "held_out"))
        if tiles.get("groups") == 0 or card.data.get("groups") == 0:
            yield (
                f"Whether {_text(name or split)} shares slides or patients with the training tiles "
                "is not known; where it does, the results are too good."
            )
        absent = [_text(n) for n, count in _dict(tiles.get("tiles")).items() if count == 0]
        if absent:
            yield f"No {split} tile shows {', '.join(absent)}: nothing is known of them."
    if card.classes and not card.multilabel:
        yield "Every tile gets one of these classes, also a tile that shows something else."
    if card.multilabel:
        yield "A tile counts as unclassified where no label has a probability of 0.5."
    if card.mpp is None:
        yield "The µm/px of its tiles is not recorded: at another one, results are others."
    else:
        yield f"Made for {card.mpp:g} µm/px: at another resolution, results are others."
    if card.training.get("stain"):
        yield "Made for stain-normalised tiles; exported files do not normalise stains."
    yield "How it does with other scanners, stains, organs or laboratories is not known."


def _identity(card: Card, sha256: str) -> Iterator[str]:
    yield f"- SHA-256 of the model file: {sha256}"
    if card.training.get("init_sha256"):
        yield f"- SHA-256 of the weights it began with: {_text(card.training['init_sha256'])}"
    yield f"- Version of the card's format: {card.version}"
    versions = _dict(card.training.get("versions"))
    yield f"- Trained with: {_text(_flat(versions)) if versions else UNKNOWN}"
    environment = _dict(card.training.get("environment"))
    if environment:
        yield f"- Trained on: {_text(_flat(environment))}"


def _stages(card: Card) -> list[dict]:
    stages = card.training.get("stages")
    return [_dict(stage) for stage in stages] if isinstance(stages, list) else []


def _last_stage(card: Card) -> dict:
    return (_stages(card) or [{}])[-1]


def _dict(value: Any) -> dict:
    """A card is anybody's: what is no object there is an empty one here."""
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_flat, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _text(value: Any) -> str:
    """Return any text so that Markdown shows it as it is, in one line."""
    line = " ".join(str(value).split())
    line = re.sub(r"([\\`*{}\[\]<>|#~$&])", r"\\\1", line)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)


def _slug(text: str) -> str:
    """Return a text as ids are written: ``CC BY 4.0`` becomes ``cc-by-4.0``."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")

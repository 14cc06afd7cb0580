"""The encoders that are compared: what people type, and the model file that it stands for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.network.backbone import DEFAULT_TILE_SIZE, whole_name
from tiaft_plugin.network.card import Card, is_file, read_card

IMAGENET, RANDOM = "imagenet", "random"
DEFAULT_MPP = 0.5  # µm/px, which is 20×, as the paper's tiles are taken to be
USAGE = "[NAME=]MODEL or BACKBONE, then maybe :CUT, then maybe @imagenet, @random, @FILE or @MODEL"
_NAME = re.compile(r"[\w.+-]{1,64}")


@dataclass(frozen=True)
class Encoder:
    """A tile encoder, as it was typed and as tables have it.

    `backbone` is the whole network's name, "" where only a plug-in knows; `cut` is where it ends,
    "" for all of it; `weights` says whose they are: imagenet, random, or the name of a file or
    model. `model` is what an engine takes; "" until a file is made, of `init` (as
    `tiaft models create` has it) and of what the card `like` says of the model it is a part of.
    """

    name: str
    backbone: str
    cut: str
    weights: str
    model: str = ""
    init: str = ""
    like: Card | None = None

    @property
    def network(self) -> str:
        """Backbone and cut, as timm and the truncation extension name them."""
        return f"{self.backbone}:{self.cut}" if self.cut else self.backbone


def read_encoders(texts: Sequence[str]) -> list[Encoder]:
    """Return the encoders that `texts` name (see USAGE); loads no weights. Raises TiaftError."""
    found: dict[str, Encoder] = {}
    for text in texts:
        encoder = read_encoder(text)
        if encoder.name in found:
            raise TiaftError(
                f"--encoder {text}: there is one called {encoder.name} already: call it otherwise, "
                "NAME=ENCODER"
            )
        found[encoder.name] = encoder
    return list(found.values())


def read_encoder(text: str) -> Encoder:
    """Return the encoder that a text names (see USAGE). Raises TiaftError."""
    name, what = _named(text)
    try:
        base, cut, weights = _parts(what)
        encoder = _encoder(base, cut, weights)
    except TiaftError as error:
        raise TiaftError(f"--encoder {text}: {error}") from error
    return replace(encoder, name=_checked(name or encoder.name, text))


def grid_of(encoders: Sequence[Encoder]) -> tuple[int, float]:
    """Return the tile size (px) and µm/px of the first that brings them, else 224 and 0.5."""
    for encoder in encoders:
        card = encoder.like or _card(encoder.model)
        if card is not None and card.mpp is not None:
            return card.tile_size, card.mpp
    return DEFAULT_TILE_SIZE, DEFAULT_MPP


def make_model(encoder: Encoder, folder: Path, tile_size: int, mpp: float, seed: int) -> Encoder:
    """Return an encoder with its model: a file that is made in `folder` where it has none.

    The same encoder gives the same bytes, so that features of an earlier run stand. Raises
    TiaftError where its weights cannot be had, or backbone or cut are unknown.
    """
    if encoder.model:
        return encoder
    path = folder / f"{encoder.name}.safetensors"
    made = replace(encoder, model=str(path))
    if encoder.init == IMAGENET and _stands(path, encoder, tile_size, mpp):
        return made  # downloaded once
    from tiaft_plugin.network import create_network, save_model

    try:
        net = create_network(
            encoder.network,
            init=encoder.init,
            tile_size=tile_size,
            mpp=mpp,
            seed=seed,
            **_likeness(encoder),
        )
    except TiaftError as error:
        why = str(error).replace("--init FILE", f"{encoder.backbone}@FILE")
        why = why.replace("--init random", f"{encoder.backbone}@random").replace("--init ", "")
        raise TiaftError(f"encoder {encoder.name}: {why}") from error
    save_model(net, path, overwrite=True)
    return made


def _named(text: str) -> tuple[str, str]:
    before, equals, after = text.partition("=")
    if equals and not set("/\\:@") & set(before) and not is_file(Path(text)):
        return before.strip(), after.strip()
    return "", text.strip()


def _parts(what: str) -> tuple[str, str, str]:
    """Return what a text is based on, where that is cut, and the weights it is to have."""
    if _is_model(what):
        return what, "", ""
    head, at, weights = what.rpartition("@") if "@" in what else (what, "", "")
    base, colon, cut = head.rpartition(":") if ":" in head and not _is_model(head) else (head,) * 3
    if not colon or base is head:
        base, cut = head, ""
    elif not _is_model(base):  # NAME:tf-CUT and the like have one colon, at the first
        base, _, cut = head.partition(":")
    if not base or (at and not weights) or (colon and base is not head and not cut):
        raise TiaftError(f"expected is {USAGE}")
    return base, cut, weights


def _encoder(base: str, cut: str, weights: str) -> Encoder:
    card = _card(base)
    if card is None and _is_model(base):
        if cut or weights:
            raise TiaftError(f"{base} is a plug-in's model: it is compared as it is")
        return Encoder(base, "", "", base, model=base)
    whole = whole_name(card.backbone) if card else base
    own_cut = card.backbone.partition(":")[2] if card else ""
    if card and not cut and not weights:
        return Encoder(_short(base), whole, own_cut, _whose(base, whole), model=base)
    if cut and own_cut:
        raise TiaftError(f"{base} is cut off already, at {own_cut}")
    cut = cut or own_cut
    source = weights or (base if card else IMAGENET)
    whose = source if source in (IMAGENET, RANDOM) else _whose(source, whole)
    init = source if source in (IMAGENET, RANDOM) else str(_file(source))
    name = "-".join(part for part in (whole, cut, whose) if part)
    return Encoder(re.sub(r"[^\w.+-]", "_", name)[:64], whole, cut, whose, init=init, like=card)


def _is_model(name: str) -> bool:
    """Whether a text is a model file or a registered model's name."""
    if name.endswith(".safetensors") or is_file(Path(name)):
        return True
    from tiaft_plugin.zoo.names import find

    return bool(name) and not set("/\\:@") & set(name) and find(name) is not None


def _card(name: str) -> Card | None:
    """Return the card of a model; None of a plug-in's, and of what is none."""
    path = _file(name) if name and _is_model(name) else None
    return None if path is None else read_card(path)


def _file(name: str) -> Path | None:
    """Return the file of weights of a name or path; None of a plug-in's model."""
    if is_file(Path(name)):
        return Path(name)
    if name.endswith(".safetensors"):
        raise TiaftError(f"{name}: no such file")
    from tiaft_plugin.zoo.load import no_weights
    from tiaft_plugin.zoo.names import find

    named = find(name)
    if named is None:
        raise TiaftError(f"{name} is neither imagenet, random, a file nor the name of a model")
    if named.file is not None and not is_file(named.file):
        raise no_weights(named.base)
    return named.file


def _short(name: str) -> str:
    return Path(name).stem if is_file(Path(name)) else name


def _whose(source: str, backbone: str) -> str:
    """Return what weights are called, the same for backbones of all sizes.

    ``resnet18-kather100k`` and ``resnet50-kather100k`` are both kather100k's.
    """
    short = _short(source)
    return short.replace(backbone, "").strip("-_. ") or short


def _checked(name: str, text: str) -> str:
    if not _NAME.fullmatch(name):
        raise TiaftError(
            f"--encoder {text}: {name!r} cannot name an encoder: letters, digits and . _ + - can, "
            "64 of them: NAME=ENCODER"
        )
    return name


def _likeness(encoder: Encoder) -> dict[str, Any]:
    """Return what a new model takes from the card of the one that it is a part or a twin of."""
    card = encoder.like
    if card is None:
        return {}
    found: dict[str, Any] = {"backbone_args": card.backbone_args, "mean": card.mean}
    found["std"] = card.std
    if "stain" in card.training and encoder.init != RANDOM:  # which its tiles get, too
        found["training"] = {"stain": card.training["stain"]}
    return found


def _stands(path: Path, encoder: Encoder, tile_size: int, mpp: float) -> bool:
    """Whether an earlier run made the file, with ImageNet weights."""
    if not is_file(path):
        return False
    try:
        card = read_card(path)
    except TiaftError:
        return False
    same = (card.backbone, card.tile_size, card.mpp) == (encoder.network, tile_size, mpp)
    return same and card.source.startswith("Part A from timm ")

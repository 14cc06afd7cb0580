"""The ways in for Part A's weights: timm's own, a local file, or random; and weights' identity."""

import hashlib
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from tiaft_plugin.errors import TiaftError, first_line
from tiaft_plugin.network.backbone import create_backbone, timm_arguments, timm_name, whole_name
from tiaft_plugin.network.card import Card, is_file, is_safetensors, read_card
from tiaft_plugin.network.net import Network

# Names that timm's backbones, and older files of theirs, give to what comes after Part A.
CLASSIFIERS = {"AuxLogits", "aux_head", "classif", "classifier", "fc", "head", "head_dist",
               "last_linear"}  # fmt: skip
# Older files hold what newer networks compute.
COMPUTED = ("num_batches_tracked", "relative_position_index", "attn_mask")


def init_part_a(net: Network, init: str) -> str:
    """Fill Part A: `init` is ``imagenet``, ``random`` or a ``.safetensors`` or ``.pth`` file.

    Returns a short text for the card's `source`. A file holds a state dict with timm's names of
    layers, whatever stands before them, or is a tiaft model file with the same backbone, or with
    the whole of which this one is a part. Raises TiaftError.
    """
    if init == "random":
        return "random weights"
    if init == "imagenet":
        return _from_timm(net)
    path = Path(init)
    if not is_file(path):
        raise TiaftError(f"--init {init}: neither imagenet, random nor a file")
    tensors = read_tensors(path)
    ours = any(name.startswith("part_a.") for name in tensors)
    if ours and is_safetensors(path):
        _check_same_backbone(net, path)
    left = fill_part_a(net, tensors, path)
    told = f", without its {', '.join(left)}" if left and not ours else ""
    return f"Part A from {path.name}{told}"


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from ``.safetensors`` or ``.pth``, executing nothing. Raises TiaftError."""
    if is_safetensors(path):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise TiaftError(f"{path} is not a whole safetensors file: {error}") from error
    if path.suffix in (".h5", ".hdf5", ".keras"):
        raise TiaftError(f"{path} is a Keras file: import it with `tiaft models convert` first")
    return _read_pickle(path)


def fill_part_a(net: Network, tensors: dict[str, torch.Tensor], path: Path) -> list[str]:
    """Copy Part A's weights out of a state dict, all but a classifier and what Part A leaves out.

    Returns what the file's network has besides, such as its classifier. Raises TiaftError where any
    weight is missing, or is there for another backbone.
    """
    wanted = net.part_a.state_dict()
    # Files written before torch 0.4 lack these counters, which inference does not use.
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    theirs, own = _prefixes(tensors, {k: v for k, v in wanted.items() if k not in counters}, path)
    filled = {}
    for name, value in wanted.items():
        given = tensors.get(theirs + name.removeprefix(own))
        if given is None and name in counters:
            given = value
        if given is None or given.shape != value.shape:
            found = "missing" if given is None else f"of shape {tuple(given.shape)}"
            raise TiaftError(
                f"{path} does not fit {net.card.backbone}: {name}, of shape "
                f"{tuple(value.shape)}, is {found}"
            )
        if given.layout != torch.strided or given.is_quantized or given.is_complex():
            raise TiaftError(f"{path}: {name} is sparse, quantised or complex, not plain weights")
        if not torch.isfinite(given.float()).all():
            raise TiaftError(f"{path}: weights hold NaN or infinity ({name})")
        filled[name] = given.to(value.dtype)  # float16 files become float32 networks
    over = [
        name
        for name in tensors
        if name.startswith(theirs)
        and own + name.removeprefix(theirs) not in wanted
        and not name.endswith(COMPUTED)
    ]
    heads = [name for name in over if name.removeprefix(theirs).partition(".")[0] in CLASSIFIERS]
    more = [name for name in over if name not in heads]
    if more and whole_name(net.card.backbone) != net.card.backbone:
        whole = _names_of_whole(net.card)
        more = [name for name in more if own + name.removeprefix(theirs) not in whole]
    if more:
        raise TiaftError(
            f"{path} does not fit {net.card.backbone}, which has no {more[0]}"
            + (f" ({len(more) - 1} more)" if len(more) > 1 else "")
        )
    net.part_a.load_state_dict(filled)
    besides = [name for name in tensors if not name.startswith(theirs)]
    return sorted({_branch(name, theirs) for name in besides + heads})


def sha256_of_weights(module: nn.Module) -> str:
    """Return the hexadecimal SHA-256 of a module's state dict: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        whole = value.detach().cpu().contiguous().reshape(-1)
        digest.update(whole.view(torch.uint8).numpy().data)  # numpy has no bfloat16
    return digest.hexdigest()


def _prefixes(
    tensors: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], path: Path
) -> tuple[str, str]:
    """Return what stands before the names of Part A's weights in a file, and in Part A itself.

    Other software has the same backbone under names such as ``model.resnet.conv1.weight``, or
    without the ``features.`` with which all of timm's names of a DenseNet begin. Of all that stands
    before the first of them, that is taken with which the most weights fit.
    """
    if all(name in tensors for name in wanted):
        return "", ""
    begin = {name.partition(".")[0] for name in wanted}
    own = f"{begin.pop()}." if len(begin) == 1 else ""
    bare = {name.removeprefix(own): value.shape for name, value in wanted.items()}
    first = next(iter(bare))
    found = [name.removesuffix(first) for name in tensors if f".{name}".endswith(f".{first}")]
    fits = {
        theirs: sum(
            theirs + name in tensors and tensors[theirs + name].shape == shape
            for name, shape in bare.items()
        )
        for theirs in sorted(found, key=len)
    }
    best = [theirs for theirs, count in fits.items() if count == max(fits.values())]
    if len(best) > 1 and best[0] and fits[best[0]] == len(bare):
        raise TiaftError(
            f"{path} holds several networks that fit ({', '.join(best)}): save the one that is "
            "meant in a file of its own"
        )
    theirs = best[0] if best else own
    return (theirs.removesuffix(own), "") if theirs.endswith(own) else (theirs, own)


def _branch(name: str, prefix: str) -> str:
    """Return a name up to where it leaves a prefix: the part of a network that it belongs to."""
    parts = name.split(".")
    pairs = zip(parts, prefix.split("."), strict=False)
    same = next((number for number, (one, other) in enumerate(pairs) if one != other), 0)
    return ".".join(parts[: same + 1])


def _check_same_backbone(net: Network, path: Path) -> None:
    """Raise TiaftError if a model file's Part A computes otherwise with the same weights."""
    card = read_card(path)
    found, wanted = (
        {k: v for k, v in c.backbone_args.items() if not k.startswith("drop")}
        for c in (card, net.card)
    )
    fits = (net.card.backbone, whole_name(net.card.backbone))
    if card.backbone not in fits or found != wanted:
        raise TiaftError(
            f"{path} does not fit: its backbone is {card.backbone} with {found or 'no arguments'}, "
            f"this network's {net.card.backbone} with {wanted or 'no arguments'}"
        )


def _names_of_whole(card: Card) -> set[str]:
    """Return the names of the weights of the backbone that a card's is a part of."""
    with torch.random.fork_rng(devices=[]):
        whole = create_backbone(whole_name(card.backbone), card.tile_size, card.backbone_args)
    return set(whole.state_dict())


def _from_timm(net: Network) -> str:
    name = net.card.backbone
    known = timm_name(name)
    if not timm.is_model(known):
        raise TiaftError(f"there are no ImageNet weights of {name}: pass --init FILE or random")
    try:
        args = timm_arguments(name, net.card.tile_size, net.card.backbone_args)
        pretrained = timm.create_model(known, pretrained=True, num_classes=0, **args)
    except Exception as error:  # timm, huggingface_hub and urllib each raise their own
        raise TiaftError(
            f"timm's ImageNet weights of {name} cannot be had ({first_line(error)}): "
            "go online once, or pass --init FILE with weights from elsewhere, or --init random"
        ) from error
    fill_part_a(net, pretrained.state_dict(), Path(f"timm/{known}"))
    config: Any = pretrained.pretrained_cfg
    return f"Part A from timm {config.get('architecture', known)}.{config.get('tag', '')}"


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch errors alike: all mean "not weights"
        raise TiaftError(
            f"{path} is refused: it is not a plain file of weights, and a pickle that holds more "
            "can run code. Ask its author for a .safetensors file"
        ) from error
    while isinstance(content, dict):
        inner = next((content[k] for k in ("state_dict", "model") if k in content), None)
        if not isinstance(inner, dict):
            break
        content = inner
    if not isinstance(content, dict) or not content:
        raise TiaftError(f"{path} holds no weights by name (a state dict)")
    tensors = {str(k).removeprefix("module."): v for k, v in content.items()}
    wrong = next((k for k, v in tensors.items() if not isinstance(v, torch.Tensor)), None)
    if wrong is not None:
        raise TiaftError(f"{path} holds no state dict: its entry {wrong!r} is no tensor")
    return tensors

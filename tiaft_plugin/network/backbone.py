"""Part A: a backbone with its global pooling: timm's, a plug-in's, or Keras' Xception."""

from difflib import get_close_matches
from typing import Any

import timm
from torch import nn

from tiaft_plugin.errors import TiaftError

DEFAULT_BACKBONE = "legacy_xception"
DEFAULT_TILE_SIZE = 224  # px, as in the paper and in TIAToolbox's kather100k models
KERAS_XCEPTION = "keras_xception"
KERAS_BATCHNORM_EPS = 1e-3
# Arguments of timm.create_model that read files or change what goes in and comes out. They can
# stand in the card of a stranger's model file, so they are refused.
REFUSED_ARGS = frozenset({
    "cache_dir", "checkpoint_path", "exportable", "feature_cfg", "features_only", "in_chans",
    "model_name", "no_jit", "num_classes", "out_indices", "pretrained", "pretrained_cfg",
    "pretrained_cfg_overlay", "pretrained_strict", "scriptable",
})  # fmt: skip


def create_backbone(name: str, tile_size: int, args: dict[str, Any] | None = None) -> nn.Module:
    """Create a backbone with random weights that gives pooled features (N, width).

    `name` is timm's, ``keras_xception``, or one that a plug-in's hook ``create_backbone`` knows;
    `args` go to ``timm.create_model``, or to the plug-in. Raises TiaftError for an unknown name or
    argument.
    """
    if name != KERAS_XCEPTION and not timm.is_model(name):
        return _of_a_plugin(name, tile_size, args)
    args = timm_arguments(name, tile_size, args)
    try:
        model = timm.create_model(timm_name(name), pretrained=False, num_classes=0, **args)
    except Exception as error:  # any class of timm's, with any arguments, raises what it likes
        raise TiaftError(f"backbone {name} with {args} cannot be built: {error}") from error
    return as_keras_builds_it(model) if name == KERAS_XCEPTION else model


def whole_name(name: str) -> str:
    """Return NAME of a plug-in's ``NAME:CHANGE``, which has weights by NAME's names."""
    return name.partition(":")[0]


def timm_name(name: str) -> str:
    """Return timm's name of the network whose weights and normalisation a backbone takes."""
    whole = whole_name(name)
    return DEFAULT_BACKBONE if whole == KERAS_XCEPTION else whole


def timm_arguments(name: str, tile_size: int, args: dict[str, Any] | None) -> dict[str, Any]:
    """Return what goes to ``timm.create_model`` besides the name. Raises TiaftError."""
    args = dict(args or {})
    refused = sorted(REFUSED_ARGS & args.keys())
    if refused:
        raise TiaftError(f"backbone_args {', '.join(refused)}: refused, not the network's own")
    if not args.get("global_pool", "avg"):
        raise TiaftError("backbone_args global_pool is empty: features need a pooling")
    if "img_size" not in args and _has_fixed_size(timm_name(name)):
        args["img_size"] = tile_size
    return args


def default_normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std (of pixels scaled to 0…1) that timm gives for a backbone's weights."""
    config = timm.models.get_pretrained_cfg(timm_name(name))
    if config is None:
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return tuple(config.mean), tuple(config.std)


def pooled_width(backbone: nn.Module) -> int:
    """Return how many features a backbone without classifier gives."""
    # Some heads widen the features after pooling (MobileNetV3), so num_features is not enough.
    width: Any = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    return int(width)


def as_keras_builds_it(xception: nn.Module) -> nn.Module:
    """Change timm's legacy_xception, in place, into the network of keras.applications.

    Keras' BatchNorm has epsilon 1e-3, and its strided max-poolings pad as TensorFlow's "same"
    does, which differs from timm's padding wherever the map has an even side.
    """
    from timm.layers import create_pool2d

    for parent in list(xception.modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                child.eps = KERAS_BATCHNORM_EPS
            elif isinstance(child, nn.MaxPool2d):
                same = create_pool2d("max", child.kernel_size, child.stride, padding="same")
                setattr(parent, child_name, same)
    return xception


def _of_a_plugin(name: str, tile_size: int, args: dict[str, Any] | None) -> nn.Module:
    from tiaft_plugin.plugins import call_hook

    model = call_hook("create_backbone", name=name, tile_size=tile_size, args=dict(args or {}))
    if model is None:
        raise TiaftError(f"timm has no backbone {name!r}, nor has a plug-in{_suggestion(name)}")
    if not isinstance(model, nn.Module) or not isinstance(
        getattr(model, "num_features", None), int
    ):
        raise TiaftError(f"a plug-in's backbone {name!r} is no module with a width, num_features")
    return model


def _has_fixed_size(name: str) -> bool:
    config = timm.models.get_pretrained_cfg(name)
    return config is not None and bool(config.fixed_input_size)


def _suggestion(name: str) -> str:
    if ":" in name:
        return ": `tiaft plugins` tells whether the one that builds it is there"
    close = get_close_matches(name, timm.list_models(), n=3)
    return f": did you mean {' or '.join(close)}?" if close else " (timm.list_models() lists them)"

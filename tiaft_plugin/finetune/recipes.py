"""Recipes: published ways to fine-tune, as presets whose every number can be set."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.finetune.interface import FinetuneJob
from tiaft_plugin.tiles.words import some

Trains = Literal["part_b", "part_a", "all"]


@dataclass(frozen=True)
class Stage:
    """One stage: what trains (the rest is frozen), for how long, and how fast at first."""

    number: int
    trains: Trains
    epochs: int
    lr: float


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune. What stands after `keep` can be set by ``--finetuner-arg NAME=VALUE``.

    `schedule` is ``constant``, ``inverse-time`` (lr / (1 + decay · step), as Keras' `decay`) or
    ``plateau`` (lr · factor once more than `patience` epochs have not lowered the loss on
    validation tiles, as torch counts; the stage ends where lr falls below `min_lr`). `keep` is
    ``last`` or ``best``: the epoch of the lowest loss on validation tiles. Part A learns at
    `part_a_lr` times the learning rate; `frozen` names modules of it that do not learn at all.
    """

    name: str
    source: str
    stages: tuple[Stage, ...]
    backbone: str
    hidden: tuple[int, ...]
    batch_size: int
    augment: tuple[str, ...] = ()
    balance: Literal["none", "weights", "sampling"] = "none"
    keep: Literal["last", "best"] = "last"
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = 0.0
    nesterov: bool = False
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: Literal["constant", "inverse-time", "plateau"] = "constant"
    decay: float = 0.0
    factor: float = 0.5
    patience: int = 5
    min_lr: float = 0.0
    part_a_lr: float = 1.0
    frozen: str = ""


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "ftx2048",
            # "20 iterations" and "10 iterations" are read as epochs: at batch size 128 twenty
            # steps would show Part B 2,560 of the 100,000 tiles.
            "FTX-2048 (paper 1, section 3.2)",
            stages=(Stage(1, "part_b", 20, 4e-4), Stage(2, "part_a", 10, 5e-5)),
            backbone="legacy_xception",
            hidden=(2048,),
            batch_size=128,
            eps=1e-7,  # of Keras' Adam, which the paper's code uses
        ),
        Recipe(
            "graziani",
            # The batch size is not in the paper.
            "Graziani et al. 2019, feature reuse in histopathology (paper 2)",
            stages=(Stage(1, "all", 30, 1e-4),),
            backbone="inception_v3",
            hidden=(),
            batch_size=32,
            augment=("flips", "hue", "brightness"),
            optimizer="sgd",
            momentum=0.9,
            nesterov=True,
            schedule="inverse-time",
            decay=1e-6,
        ),
        Recipe(
            "peng",
            "Peng et al. 2021, rethinking transfer learning (paper 3)",
            stages=(Stage(1, "all", 50, 1e-4),),
            backbone="resnet50",
            hidden=(),
            batch_size=64,
            augment=("crop", "mirror"),
            balance="weights",
            keep="best",
            schedule="plateau",
            min_lr=1e-6,
        ),
    )
}

_CHOICES = {
    "balance": ("none", "weights", "sampling"),
    "keep": ("last", "best"),
    "optimizer": ("adam", "adamw", "sgd"),
    "schedule": ("constant", "inverse-time", "plateau"),
}
_NAMES = [field.name for field in fields(Recipe)]
_SETTABLE = _NAMES[_NAMES.index("keep") + 1 :]


def recipe_of(job: FinetuneJob) -> Recipe:
    """Return a job's recipe, with the job's own numbers in the place of the recipe's.

    Raises TiaftError for an unknown recipe or setting, and for numbers that make no sense.
    """
    if job.recipe not in RECIPES:
        raise TiaftError(f"there is no recipe {job.recipe}: there is {', '.join(RECIPES)}")
    recipe = RECIPES[job.recipe]
    unknown = sorted(set(job.options) - set(_SETTABLE))
    if unknown:
        raise TiaftError(
            f"two-stage has no setting {some(unknown)}: --finetuner-arg takes "
            f"{', '.join(_SETTABLE)}, or the settings of a plug-in's --finetuner"
        )
    given = {
        name: value
        for name in ("hidden", "batch_size", "augment", "balance", "keep")
        if (value := getattr(job, name)) is not None
    }
    changed = {name: _as_declared(recipe, name, value) for name, value in job.options.items()}
    stages = _stages(recipe, job.epochs, job.lrs)
    recipe = replace(recipe, stages=stages, **given, **changed)
    _check(recipe)
    return recipe


def _stages(
    recipe: Recipe, epochs: tuple[int, ...] | None, lrs: tuple[float, ...] | None
) -> tuple[Stage, ...]:
    count = len(recipe.stages)
    for name, numbers in (("epochs", epochs), ("lr", lrs)):
        if numbers is not None and len(numbers) != count:
            raise TiaftError(
                f"{name} {', '.join(f'{n:g}' for n in numbers)}: recipe {recipe.name} has "
                f"{count} stage{'s' * (count > 1)}: give {count} number{'s' * (count > 1)}"
            )
    return tuple(
        replace(
            stage,
            epochs=stage.epochs if epochs is None else epochs[i],
            lr=stage.lr if lrs is None else lrs[i],
        )
        for i, stage in enumerate(recipe.stages)
    )


def _as_declared(recipe: Recipe, name: str, value: Any) -> Any:
    """Return a setting as the recipe's own kind of value: 5 may stand for 5.0."""
    kind = type(getattr(recipe, name))
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        words = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}
        raise TiaftError(f"setting {name} is {value!r}: {words[kind]} is expected")
    return value


def _check(recipe: Recipe) -> None:
    for name, choices in _CHOICES.items():
        if getattr(recipe, name) not in choices:
            raise TiaftError(f"{name} is {getattr(recipe, name)!r}: one of {', '.join(choices)}")
    for stage in recipe.stages:
        if stage.epochs < 0:
            raise TiaftError(f"epochs {stage.epochs}: 0 or more")
        if not 0 < stage.lr <= 1e6:
            raise TiaftError(f"lr {stage.lr:g}: learning rates are positive numbers, up to 1e6")
    if recipe.batch_size < 2:
        raise TiaftError(f"batch_size is {recipe.batch_size}: 2 or more")
    numbers = (
        "momentum", "eps", "weight_decay", "decay", "factor", "min_lr", "patience", "part_a_lr"
    )  # fmt: skip
    wrong = [n for n in numbers if not 0 <= getattr(recipe, n) < math.inf]
    if wrong:
        raise TiaftError(f"setting {wrong[0]} is {getattr(recipe, wrong[0])}: 0 or more")
    if recipe.nesterov and not recipe.momentum:
        raise TiaftError("setting nesterov needs a momentum above 0")
    if recipe.schedule == "plateau" and not 0 < recipe.factor < 1:
        raise TiaftError(f"setting factor is {recipe.factor}: between 0 and 1")

"""``tiaft truncate study``: how much of a pretrained network labelled tiles need."""

from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import (
    NUMBERS,
    POSITIVE,
    CommaList,
    Finite,
    Sections,
    at_least,
    batch_size_option,
    device_option,
    names_or_none,
    section,
    seed_option,
    settings,
    workers_option,
)

_PATH = click.Path(path_type=Path)
_WORDS = CommaList("names A,B", str)
_RECIPES = "the recipe's"


_GRID = section(
    "Grid",
    click.option("--out", type=_PATH, required=True, help="Folder for the study."),
    click.option(
        "--backbone",
        required=True,
        metavar="NAME",
        help="Any timm backbone with stages or blocks.",
    ),
    click.option(
        "--cuts",
        type=_WORDS,
        default="",
        metavar="A,B",
        show_default="the ends of its stages",
        help="Where to cut; the whole network is always there.",
    ),
    click.option(
        "--init",
        "inits",
        type=_WORDS,
        default="pretrained,random,meanvar",
        show_default=True,
        metavar="A,B",
        help="Weights to begin with; meanvar: random, with mean and variance of pretrained ones.",
    ),
    click.option(
        "--weights",
        default="imagenet",
        show_default=True,
        metavar="imagenet|FILE",
        help="What pretrained means.",
    ),
    click.option(
        "--fractions",
        "percents",
        type=CommaList("percentages such as 5,10,100", float),
        default="5,10,25,50,100",
        show_default=True,
        metavar="P,Q",
        help="Percentages of the training tiles.",
    ),
    click.option(
        "--repeats",
        type=click.IntRange(min=1),
        default=3,
        show_default=True,
        help="Trainings of each, with other tiles, weights and order.",
    ),
    click.option(
        "--baselines",
        type=_WORDS,
        callback=names_or_none,
        default="lwft,tf",
        show_default=True,
        metavar="A,B|none",
        help="lwft freezes what is below a cut; tf halves the width of what is above.",
    ),
    click.option(
        "--also",
        type=_WORDS,
        default="",
        metavar="A,B",
        help="Further backbones from random weights, such as cbr_small,cbr_tiny.",
    ),
    click.option("--search", is_flag=True, help="Then try the layers around the best cut, too."),
    click.option(
        "--search-layers",
        type=click.IntRange(min=1),
        default=8,
        show_default=True,
        help="At most so many of them.",
    ),
)
_DATA = section(
    "Data",
    click.option("--val", type=_PATH, help="Tiles that choose epochs and networks."),
    click.option(
        "--val-groups", type=_WORDS, default="", metavar="A,B", help="Slides or patients for that."
    ),
    click.option(
        "--val-share",
        type=Finite(0, 1, max_open=True),
        metavar="SHARE",
        show_default="0.2",
        help="Share of TILES for that, by slide or patient where known.",
    ),
    click.option("--test", type=_PATH, help="Tiles that results are of; they choose nothing."),
    click.option(
        "--test-groups", type=_WORDS, default="", metavar="A,B", help="Slides or patients for that."
    ),
    click.option(
        "--test-share",
        type=Finite(0, 1, max_open=True),
        metavar="SHARE",
        show_default="0.2",
        help="Share of the others for that, by slide or patient where known; 0: none.",
    ),
    click.option(
        "--multilabel",
        is_flag=True,
        help="Tiles have several labels or none, A;B in the manifest's column label.",
    ),
    click.option("--mpp", type=POSITIVE, metavar="UM_PER_PX", help="The tiles' µm/px."),
    click.option(
        "--tile-size",
        type=click.IntRange(min=1),
        metavar="PX",
        show_default="their own",
        help="Resize tiles to this side.",
    ),
    click.option(
        "--stain",
        type=click.Choice(["none", "macenko"]),
        default="none",
        show_default=True,
        help="Normalise the stains of every tile.",
    ),
)
_TRAINING = section(
    "Training (recipe peng, paper 3)",
    click.option(
        "--epochs",
        type=click.IntRange(min=1),
        metavar="N",
        show_default="50",
        help="Epochs at most.",
    ),
    click.option("--lr", type=POSITIVE, metavar="F", show_default="1e-4", help="Learning rate."),
    batch_size_option(None, least=2),
    click.option(
        "--augment",
        type=_WORDS,
        callback=names_or_none,
        metavar="A,B|none",
        show_default=_RECIPES,
        help="Change tiles at random, as of tiaft finetune.",
    ),
    click.option(
        "--freeze-batchnorm",
        is_flag=True,
        help="Keep the running statistics of pretrained BatchNorm; not of tf.",
    ),
    settings("--backbone-arg", "backbone_args", "An argument for timm, such as pad_type=same"),
    click.option("--mean", type=NUMBERS, metavar="R,G,B", help="Of pixels scaled to 0…1."),
    click.option(
        "--std",
        type=NUMBERS,
        callback=at_least(1e-6),
        metavar="R,G,B",
        help="Of pixels scaled to 0…1 [mean and std by default: timm's].",
    ),
    seed_option,
)
_COMPUTER = section(
    "Computer",
    device_option,
    workers_option,
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default="auto",
        show_default=True,
        help="Of training's arithmetic; auto is bfloat16 where there is hardware for it.",
    ),
)
_RESULTS = section(
    "Results",
    click.option("--register", metavar="NAME", help="Give the chosen model a name in TIAToolbox."),
    click.option("--overwrite", is_flag=True, help="Remove the study in OUT and begin anew."),
)


@click.command(cls=Sections, short_help="Find out how much of a network labelled tiles need.")
@click.argument("tiles", type=_PATH)
@_GRID
@_DATA
@_TRAINING
@_COMPUTER
@_RESULTS
def study(tiles: Path, register: str | None, overwrite: bool, **given: Any) -> None:
    """Train a backbone cut at several depths on shares of TILES, and keep what is enough.

    Each training is a folder in OUT/cells; interrupted, the same command goes on, and its grid may
    grow. Writes cells.csv, summary.csv, models.csv, report.html, and model.safetensors: the
    smallest network within one standard error of the best on validation tiles.
    """
    from functools import partial

    from tiaft_extensions.truncation.study.run import hold_out, run_study
    from tiaft_extensions.truncation.study.settings import StudySettings

    names = ("val", "val_groups", "val_share", "test", "test_groups", "test_share", "multilabel")
    about = {name: given.pop(name) for name in names}
    asked = StudySettings(**given)
    sets, notes = hold_out(tiles, mpp=asked.mpp, seed=asked.seed, **about)
    for note in notes:
        click.echo(f"Warning: {note}", err=True)
    if register:
        _check(register, asked, sets, overwrite)
    say = partial(click.echo, err=True)
    result = run_study(asked, sets, notes, say, overwrite=overwrite)
    click.echo(result.text + "\n")
    for name in ("model", "report", "cells", "summary", "models"):
        click.echo(f"{name:10}{getattr(result, name)}")
    if register:
        from tiaft_plugin.zoo.folder import add_model

        add_model(register, result.model, overwrite=overwrite)
        click.echo(f"{'name':10}{register}")


def _check(name: str, asked: Any, sets: Any, overwrite: bool) -> None:
    """Raise TiaftError, before hours of training, where the model could not have that name."""
    from tiaft_plugin.errors import TiaftError
    from tiaft_plugin.zoo.folder import check_name, file_of

    path = file_of(check_name(name))
    if path.exists() and not overwrite:
        raise TiaftError(f"there is a model {name} already ({path}): choose another --register")
    if (asked.mpp or sets.train.mpp) is None:
        raise TiaftError("--register: the tiles' µm/px is not known: pass --mpp")

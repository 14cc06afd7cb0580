"""`tiaft finetune`: labelled tiles to a model file."""

from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import (
    POSITIVE,
    CommaList,
    Finite,
    Sections,
    at_least,
    backbone_option,
    batch_size_option,
    device_option,
    hidden_option,
    names_or_none,
    pixel_options,
    section,
    seed_option,
    settings,
    truncate_option,
    truncated,
    weights_options,
    workers_option,
)

_PATH = click.Path(path_type=Path)
_GROUPS = CommaList("slides or patients A,B", str)
_RECIPES = "the recipe's"


_DATA = section(
    "Data",
    click.option("--out", type=_PATH, required=True, help="Folder for the results."),
    click.option(
        "--val", type=_PATH, help="Tiles to measure on after each epoch, never trained on."
    ),
    click.option(
        "--val-groups",
        type=_GROUPS,
        default="",
        metavar="A,B",
        help="Slides or patients of TILES to take for that.",
    ),
    click.option(
        "--val-share",
        type=Finite(0, 1, max_open=True),
        metavar="SHARE",
        show_default="0.2 where nothing else is held out",
        help="Share of TILES to take for that, by slide or patient where known; 0: none.",
    ),
    click.option("--test", type=_PATH, help="Tiles to measure on at the end; they choose nothing."),
    click.option(
        "--test-groups",
        type=_GROUPS,
        default="",
        metavar="A,B",
        help="Slides or patients of TILES to take for that.",
    ),
    click.option(
        "--multilabel",
        is_flag=True,
        help="Tiles have several labels or none, A;B in the manifest's column label.",
    ),
    click.option(
        "--mpp",
        type=POSITIVE,
        metavar="UM_PER_PX",
        show_default="from the manifest, or of a known data set",
        help="The tiles' µm/px.",
    ),
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
        help="Normalise the stains of every tile, of later ones too.",
    ),
)
_NETWORK = section(
    "Network",
    backbone_option("the init file's, or the recipe's"),
    truncate_option,
    weights_options,
    hidden_option(None),
    pixel_options,
)
_TRAINING = section(
    "Training",
    click.option(
        "--recipe",
        default="ftx2048",
        show_default=True,
        metavar="NAME",
        help="ftx2048, graziani or peng: the numbers that are not given here.",
    ),
    click.option(
        "--epochs",
        type=CommaList("whole numbers, one for each stage", int),
        callback=at_least(0),
        metavar="N[,N]",
        show_default=_RECIPES,
        help="Epochs of each stage; 0 leaves it out.",
    ),
    click.option(
        "--lr",
        "lrs",
        type=CommaList("numbers, one for each stage", float),
        callback=at_least(1e-12),
        metavar="F[,F]",
        show_default=_RECIPES,
        help="Learning rate of each stage.",
    ),
    batch_size_option(None, least=2),
    click.option(
        "--augment",
        type=CommaList("augmentations A,B", str),
        callback=names_or_none,
        metavar="A,B|none",
        show_default=_RECIPES,
        help="Change tiles at random, in this order; of flips, mirror, rotations, colour, hue, "
        "brightness, hed, crop, and plug-ins' own.",
    ),
    click.option(
        "--balance",
        type=click.Choice(["none", "weights", "sampling"]),
        show_default=_RECIPES,
        help="Rare classes weigh more in the loss, or are drawn more often.",
    ),
    click.option(
        "--keep",
        type=click.Choice(["last", "best"]),
        show_default=_RECIPES,
        help="Which epoch's weights to keep; best is the lowest loss on val.",
    ),
    click.option(
        "--freeze-batchnorm",
        is_flag=True,
        help="Keep the running statistics of Part A's BatchNorm.",
    ),
    seed_option,
    click.option(
        "--finetuner",
        default="two-stage",
        show_default=True,
        metavar="NAME",
        help="Who fine-tunes: two-stage, by recipe, or a plug-in's.",
    ),
    settings("--finetuner-arg", "options", "A further setting of the recipe, or of a plug-in's"),
)
_COMPUTER = section(
    "Computer",
    device_option,
    click.option(
        "--devices",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        help="GPUs of each machine, or processes on CPUs; they share each batch.",
    ),
    click.option(
        "--nodes",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        help="Machines, as Slurm or torchrun start them.",
    ),
    workers_option,
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default="auto",
        show_default=True,
        help="Of training's arithmetic; auto is bfloat16 where there is hardware for it.",
    ),
    click.option(
        "--activation-checkpointing",
        type=click.Choice(["auto", "on", "off"]),
        default="auto",
        show_default=True,
        help="Compute activations twice to need less memory.",
    ),
    click.option(
        "--cache",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="FOLDER",
        show_default="none",
        help="Keep the frozen Part A's outputs here for other runs.",
    ),
)
_RESUMING = section(
    "Interruptions (the same command goes on where it stopped)",
    click.option(
        "--checkpoint-minutes",
        type=POSITIVE,
        default=10.0,
        show_default=True,
        metavar="MINUTES",
        help="Write the state of the run this often.",
    ),
    click.option(
        "--checkpoint-steps",
        type=click.IntRange(min=1),
        metavar="N",
        show_default="no such rule",
        help="And after as many steps.",
    ),
    click.option(
        "--resume-anyway",
        is_flag=True,
        help="Go on though threads, processor or versions differ: weights may, too.",
    ),
)
_RESULTS = section(
    "Results",
    click.option(
        "--register",
        metavar="NAME",
        help="Give the model a name in TIAToolbox, and stage 1's NAME-stage1.",
    ),
    click.option(
        "--overwrite", is_flag=True, help="Replace results and names that stand in the way."
    ),
)


@click.command(cls=Sections, short_help="Fine-tune a network on labelled tiles, in two stages.")
@click.argument("tiles", type=_PATH)
@_DATA
@_NETWORK
@_TRAINING
@_COMPUTER
@_RESUMING
@_RESULTS
def finetune(tiles: Path, **job: Any) -> None:
    """Fine-tune a network on TILES: a folder per class, a manifest.csv, or NCT-CRC-HE's folders.

    Recipes: ftx2048 trains the new layers (Part B), then the backbone (Part A), as paper 1 does;
    graziani and peng train all at once. Writes model.safetensors, metrics.csv, report.html, of
    ftx2048 stage1.safetensors and, with held-out tiles, tiles.csv and confusion.csv; of several
    labels labels.csv.
    """
    from functools import partial

    from tiaft_plugin.cli._logging import quiet_tiatoolbox
    from tiaft_plugin.finetune.run import finetune_tiles

    quiet_tiatoolbox()
    result = finetune_tiles(tiles, **truncated(job), say=partial(click.echo, err=True))
    click.echo(result.summary + "\n")
    files = {
        "model": result.model,
        "stage 1's model": result.stage1,
        "metrics": result.metrics,
        "confusion matrix": result.confusion,
        "labels": result.labels,
        "held-out tiles": result.tiles,
        "report": result.report,
    }
    for name, path in files.items():
        if path is not None:
            click.echo(f"{name:17}{path}")
    if job["register"]:
        from tiaft_plugin.zoo.folder import check_name

        click.echo(f"{'registered as':17}{check_name(job['register'])}")  # an alias has a name

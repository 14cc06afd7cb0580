"""`tiaft finetune`: labelled tiles to a model file."""

from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import (
    POSITIVE,
    CommaList,
    at_least,
    batch_size_option,
    device_option,
    network_options,
    seed_option,
    settings,
    workers_option,
)

_PATH = click.Path(path_type=Path)


@click.command(short_help="Fine-tune a network on labelled tiles, in two stages.")
@click.argument("tiles", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="Folder for the results.")
@click.option("--val", type=_PATH, help="Tiles to hold out: measured on, never trained on.")
@click.option(
    "--val-groups",
    type=CommaList("slides or patients A,B", str),
    default="",
    metavar="A,B",
    help="Slides or patients of TILES to hold out.",
)
@network_options
@click.option(
    "--epochs",
    type=CommaList("two whole numbers, for stage 1 and stage 2", int, length=2),
    callback=at_least(0),
    default="20,10",
    show_default=True,
    metavar="N,N",
    help="Epochs of stage 1 and stage 2; 0 leaves a stage out.",
)
@click.option(
    "--lr",
    "lrs",
    type=CommaList("two numbers, for stage 1 and stage 2", float, length=2),
    callback=at_least(1e-12),
    default="4e-4,5e-5",
    show_default=True,
    metavar="F,F",
    help="Learning rates of stage 1 and stage 2.",
)
@batch_size_option(default=128, least=2)
@click.option(
    "--mpp",
    type=POSITIVE,
    metavar="UM_PER_PX",
    help="The tiles' µm/px [default: from the manifest, or of a known data set].",
)
@click.option(
    "--tile-size",
    type=click.IntRange(min=1),
    metavar="PX",
    help="Resize tiles to this side [default: their own].",
)
@click.option(
    "--freeze-batchnorm",
    is_flag=True,
    help="Keep the running statistics of Part A's BatchNorm in stage 2.",
)
@click.option(
    "--register",
    metavar="NAME",
    help="Give the model a name in TIAToolbox, and stage 1's NAME-stage1.",
)
@seed_option
@click.option(
    "--finetuner",
    default="two-stage",
    show_default=True,
    metavar="NAME",
    help="Who fine-tunes: two-stage, or a plug-in's.",
)
@settings("--finetuner-arg", "options", "A setting of a plug-in's finetuner")
@device_option
@workers_option
@click.option("--overwrite", is_flag=True, help="Replace results and names that stand in the way.")
def finetune(tiles: Path, **job: Any) -> None:
    """Fine-tune a network on TILES, a folder per class or a manifest.csv.

    Stage 1 trains the new layers (Part B), stage 2 the backbone (Part A). Writes
    model.safetensors, stage1.safetensors, metrics.csv, report.html and, with held-out tiles,
    confusion.csv.
    """
    from tiaft_plugin.cli._logging import quiet_tiatoolbox
    from tiaft_plugin.finetune.run import finetune_tiles

    quiet_tiatoolbox()
    result = finetune_tiles(tiles, **job)
    click.echo(result.summary + "\n")
    files = {
        "model": result.model,
        "stage 1's model": result.stage1,
        "metrics": result.metrics,
        "confusion matrix": result.confusion,
        "report": result.report,
    }
    for name, path in files.items():
        if path is not None:
            click.echo(f"{name:17}{path}")
    if job["register"]:
        from tiaft_plugin.zoo.folder import check_name

        click.echo(f"{'registered as':17}{check_name(job['register'])}")  # an alias has a name

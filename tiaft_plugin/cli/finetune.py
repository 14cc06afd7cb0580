"""`tiaft finetune`: labelled tiles to a model file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import KEY_VALUE, NUMBERS, WIDTHS, CommaList

_PATH = click.Path(path_type=Path)


def _at_least(least: float) -> Callable[..., Any]:
    """Return a click callback that refuses smaller numbers, infinity and NaN."""

    def check(ctx: click.Context, option: click.Parameter, numbers: tuple | None) -> tuple | None:
        if numbers is not None and not all(least <= number < float("inf") for number in numbers):
            raise click.BadParameter(f"{', '.join(map(str, numbers))}: {least:g} or more, please")
        return numbers

    return check


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
@click.option("--backbone", metavar="NAME", help="Of timm [default: FILE's, or legacy_xception].")
@click.option(
    "--backbone-arg",
    type=KEY_VALUE,
    multiple=True,
    help="An argument for timm, such as pad_type=same; may be repeated.",
)
@click.option(
    "--init",
    default="imagenet",
    show_default=True,
    metavar="imagenet|random|FILE",
    help="Part A's weights to begin with.",
)
@click.option(
    "--epochs",
    type=CommaList("two whole numbers, for stage 1 and stage 2", int, length=2),
    callback=_at_least(0),
    default="20,10",
    show_default=True,
    metavar="N,N",
    help="Epochs of stage 1 and stage 2; 0 leaves a stage out.",
)
@click.option(
    "--lr",
    "lrs",
    type=CommaList("two numbers, for stage 1 and stage 2", float, length=2),
    callback=_at_least(1e-12),
    default="4e-4,5e-5",
    show_default=True,
    metavar="F,F",
    help="Learning rates of stage 1 and stage 2.",
)
@click.option("--batch-size", type=click.IntRange(min=2), default=128, show_default=True)
@click.option(
    "--mpp",
    type=click.FloatRange(min=0, min_open=True),
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
    "--hidden",
    type=WIDTHS,
    callback=_at_least(1),
    default="2048",
    show_default=True,
    metavar="N[,N]",
    help="Widths of Part B's hidden layers.",
)
@click.option("--mean", type=NUMBERS, metavar="R,G,B", help="Of pixels scaled to 0…1.")
@click.option(
    "--std",
    type=NUMBERS,
    callback=_at_least(1e-6),
    metavar="R,G,B",
    help="Of pixels scaled to 0…1 [mean and std by default: the init file's, or timm's].",
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
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--finetuner", default="two-stage", show_default=True, metavar="NAME")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, …")
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Processes that read tiles beside the training.",
)
@click.option("--overwrite", is_flag=True, help="Replace results and names that stand in the way.")
def finetune(tiles: Path, backbone_arg: tuple, **options: Any) -> None:
    """Fine-tune a network on TILES, a folder per class or a manifest.csv.

    Stage 1 trains the new layers (Part B), stage 2 the backbone (Part A). Writes
    model.safetensors, stage1.safetensors, metrics.csv and report.html.
    """
    from tiaft_plugin.cli._logging import quiet_tiatoolbox
    from tiaft_plugin.finetune.run import finetune_tiles

    quiet_tiatoolbox()
    result = finetune_tiles(tiles, backbone_args=dict(backbone_arg), **options)
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
    if options["register"]:
        click.echo(f"{'registered as':17}{options['register']}")

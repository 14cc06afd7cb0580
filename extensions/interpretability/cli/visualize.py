"""`tiaft interpret visualize`: pictures that channels respond to."""

from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import CommaList, device_option, model_option, seed_option


def _scales(ctx: click.Context, option: click.Parameter, scales: tuple[float, ...]) -> Any:
    if not scales or not all(0 < scale <= 10 for scale in scales):
        raise click.BadParameter("above 0 and at most 10, please")
    return tuple(dict.fromkeys(scales))


@click.command(short_help="Pictures that single channels of a model respond to.")
@model_option
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the report; pictures go to its folder visualize.",
)
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="NAME",
    help="Layer; may be repeated [default: four from shallow to deep].",
)
@click.option(
    "--channels",
    type=CommaList("channels such as 0,1,2", int),
    default=(),
    metavar="N[,N]",
    help="Channels of each layer [default: four, evenly spread].",
)
@click.option(
    "--pretrained",
    metavar="FILE|none",
    help="Weights before fine-tuning, or none to leave them out [default: timm's].",
)
@click.option(
    "--steps-scale",
    "steps_scales",
    type=CommaList("numbers such as 0.1 or 0.1,1", float),
    callback=_scales,
    default="1",
    show_default=True,
    metavar="F[,F]",
    help="Times the paper's 3,584 steps, such as 0.1 without a GPU; several are shown together.",
)
@click.option(
    "--size",
    type=click.IntRange(32, 1024),
    default=128,
    show_default=True,
    metavar="PX",
    help="Side of the pictures.",
)
@seed_option
@device_option
@click.option("--overwrite", is_flag=True, help="Replace the pictures of an earlier run.")
def visualize(model: str, out: Path, **options: Any) -> None:
    """Make pictures that heighten the response of single channels, and a page that shows them.

    The same channels with random weights, with those before fine-tuning and with the model's own
    stand side by side. Writes OUT/report.html, and to OUT/visualize pictures and tables.
    """
    from tiaft_extensions.interpretability.visualize.gallery import write_gallery

    folder = write_gallery(model, out, **options)
    click.echo(f"Pictures -> {folder}")
    click.echo(f"Report -> {folder.parent / 'report.html'}")

"""`tiaft models`: the model files that have names, and how to make, import and check them."""

from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import (
    CLASSES,
    POSITIVE,
    network_options,
    seed_option,
    together,
    truncated,
)

_FILE = click.Path(dir_okay=False, path_type=Path)
_CARD_OPTIONS = together(
    click.option(
        "--tile-size",
        type=click.IntRange(min=1),
        default=224,
        show_default=True,
        metavar="PX",
        help="Side of the tiles that the model reads.",
    ),
    click.option(
        "--mpp",
        type=POSITIVE,
        default=0.5,
        show_default=True,
        metavar="UM_PER_PX",
        help="Resolution of these tiles.",
    ),
    click.option("--licence", default="", help="Licence of the weights, for the card."),
    click.option("--overwrite", is_flag=True, help="Replace FILE."),
)


@click.group(short_help="List, add, make and check models.")
def models() -> None:
    """List, add and make models; a model added once has a name in every later script."""


@models.command("list")
def list_models() -> None:
    """List the models that have names: tiaft's own, yours, and those of plug-ins."""
    from tiaft_plugin.zoo.table import model_rows

    rows = [("NAME", "GIVES", "TILES", "FROM"), *model_rows()]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@models.command()
@click.argument("name")
@click.argument("source")
@click.option("--sha256", help="Refuse the file unless it has this hash; needed for https sources.")
@click.option("--mpp", type=POSITIVE, metavar="UM_PER_PX", help="The model's µm/px, for its card.")
@click.option("--overwrite", is_flag=True, help="Replace a model of that name.")
def add(name: str, source: str, **options: Any) -> None:
    """Give a model file a NAME.

    SOURCE is a local model file, hf://owner/repo/file@revision, or an https address with --sha256.
    """
    from tiaft_plugin.zoo.folder import add_model

    path = add_model(name, source, **options)
    click.echo(f"added {path.stem} ({path})")


@models.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove a model that was added."""
    from tiaft_plugin.zoo.folder import remove_model

    click.echo(f"removed {remove_model(name)}")


@models.command()
@click.argument("name")
def show(name: str) -> None:
    """Show the card of a model, by NAME or file."""
    from tiaft_plugin.zoo.table import describe_model

    click.echo(describe_model(name))


@models.command()
@click.argument("name")
def verify(name: str) -> None:
    """Check a model, by NAME or file: its hash, its card, its weights, and how it behaves."""
    from tiaft_plugin.zoo.table import verify_model

    click.echo(verify_model(name))


@models.command()
@click.argument("name", metavar="NAME|FILE")
@click.option("--out", type=_FILE, metavar="README.md", help="Write it there, not to the screen.")
@click.option("--overwrite", is_flag=True, help="Replace that file.")
def card(name: str, out: Path | None, overwrite: bool) -> None:
    """Print a model card in Hugging Face's format, of what the model file records."""
    from tiaft_plugin.zoo.modelcard import model_card

    text = model_card(name)
    if out is None:
        click.echo(text, nl=False)
        return
    from tiaft_plugin.files import write_atomically

    with write_atomically(out, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")
    click.echo(f"wrote {out}")


@models.command()
@click.argument("name", metavar="NAME|FILE")
@click.argument("out", type=_FILE)
@click.option(
    "--to",
    required=True,
    type=click.Choice(["pth", "torchscript", "pt2", "onnx"]),
    help="pth: weights for TIAToolbox's weights=; pt2: torch.export's format.",
)
@click.option("--features", is_flag=True, help="Features, not probabilities.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
def export(name: str, out: Path, **options: Any) -> None:
    """Write a model to OUT for other software, its outputs compared with the model's.

    All but pth take uint8 tiles (N, height, width, 3) of the model's size and normalise them
    themselves. What is printed says how the file is used.
    """
    from tiaft_plugin.zoo.export import export_model

    how = export_model(name, out, **options)
    click.echo(f"wrote {out}\n\n{how}", nl=False)


@models.command()
@click.argument("file", type=_FILE)
@click.option("--classes", type=CLASSES, default="", help="A,B,C; without, it gives features only.")
@network_options
@seed_option
@_CARD_OPTIONS
def create(file: Path, classes: tuple[str, ...], **options: Any) -> None:
    """Make a model FILE from a backbone and class names."""
    from tiaft_plugin.files import refuse_existing
    from tiaft_plugin.network import create_network, save_model

    options = truncated(options)
    overwrite = options.pop("overwrite")
    if not overwrite:
        refuse_existing(file)
    if not options["licence"]:
        del options["licence"]  # that of the weights it begins with stands
    net = create_network(options.pop("backbone"), classes, **options)
    save_model(net, file, overwrite=overwrite)
    gives = f"{len(classes)} classes, " if classes else ""
    click.echo(
        f"{file}: {net.card.backbone}, {gives}{net.feature_width} features; {net.card.source}"
    )


@models.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("file", type=_FILE)
@click.option("--classes", type=CLASSES, default="", help="A,B,C in the order of SOURCE's outputs.")
@_CARD_OPTIONS
def convert(source: Path, file: Path, overwrite: bool, **options: Any) -> None:
    """Make a model FILE of a Keras Xception (.h5, .weights.h5, .keras), exactly."""
    from tiaft_plugin.zoo.convert import convert_keras

    net = convert_keras(source, file, overwrite=overwrite, **options)
    click.echo(f"{file}: {net.card.backbone}, classes {', '.join(net.card.classes) or 'none'}")

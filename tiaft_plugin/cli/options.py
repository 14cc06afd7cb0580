"""Kinds of values that options take, and the options that several commands share."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class CommaList(click.ParamType):
    """Values with commas between them, each of one kind; an empty text is an empty tuple."""

    def __init__(self, name: str, kind: type, length: int | None = None):
        self.name, self.kind, self.length = name, kind, length

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple:
        """Return a tuple, or fail with a usage error."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",")] if value.strip() else []
        try:
            found = tuple(self.kind(part) for part in parts)
        except ValueError:
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        if "" in parts or (self.length is not None and len(found) != self.length):
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        return found


class KeyValue(click.ParamType):
    """KEY=VALUE; the value becomes a number, true or false where it reads as one."""

    name = "key=value"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Any]:
        """Return (key, value), or fail with a usage error."""
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        return key, _plain(text)


class Finite(click.FloatRange):
    """A number in a range; neither infinity nor NaN."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return the number, or fail with a usage error."""
        if not math.isfinite(number := super().convert(value, param, ctx)):
            self.fail(f"{value} is no number to work with", param, ctx)
        return number


def _plain(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


class Sections(click.Command):
    """A command whose help shows its options under the headings that `section` gave them."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, a section after the other; those of none come last."""
        rows: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                rows.setdefault(getattr(param, "section", "Other"), []).append(record)
        for title, records in rows.items():
            with formatter.section(title):
                formatter.write_dl(records)


def section(title: str, *options: Callable) -> Callable[[Callable], Callable]:
    """Return a decorator that adds options to a command of `Sections`, under a heading."""

    def add(command: Callable) -> Callable:
        before = list(getattr(command, "__click_params__", ()))
        command = together(*options)(command)
        for param in command.__click_params__:  # type: ignore[attr-defined]
            if param not in before:
                param.section = title
        return command

    return add


def at_least(least: float) -> Callable[..., Any]:
    """Return a click callback that refuses smaller numbers, infinity and NaN in a list."""

    def check(ctx: click.Context, option: click.Parameter, numbers: tuple | None) -> tuple | None:
        if numbers is not None and not all(least <= number < float("inf") for number in numbers):
            raise click.BadParameter(f"{', '.join(map(str, numbers))}: {least:g} or more, please")
        return numbers

    return check


def names_or_none(ctx: click.Context, option: click.Parameter, names: tuple | None) -> tuple | None:
    """Return names; the word ``none`` alone is no names at all, not the recipe's."""
    return () if names == ("none",) else names


def together(*options: Callable) -> Callable[[Callable], Callable]:
    """Return a decorator that adds options to a command, in this order."""

    def add(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def settings(name: str, into: str, help: str) -> Callable:
    """Return an option KEY=VALUE that may be repeated; the command gets the dict `into`."""
    return click.option(
        name,
        into,
        type=KEY_VALUE,
        multiple=True,
        callback=lambda ctx, option, pairs: dict(pairs),
        help=f"{help}; may be repeated.",
    )


def batch_size_option(default: int | None, least: int = 1) -> Callable:
    """Return ``--batch-size``, in tiles; the recipe's where `default` is None."""
    return click.option(
        "--batch-size",
        type=click.IntRange(min=least),
        default=default,
        show_default=default is not None or "the recipe's",
        help="Tiles that go through the network at once.",
    )


def backbone_option(default: str) -> Callable:
    """Return ``--backbone``; `default` is what the help calls its default."""
    return click.option(
        "--backbone",
        metavar="NAME",
        show_default=default,
        help="Any timm backbone, or a plug-in's.",
    )


def truncated(job: dict[str, Any]) -> dict[str, Any]:
    """Return options of a command with ``--truncate`` made part of the backbone's name."""
    job = dict(job)
    if (cut := job.pop("truncate")) is not None:
        if not job["backbone"]:
            raise click.UsageError("--truncate CUT needs --backbone NAME, which it cuts off")
        job["backbone"] = f"{job['backbone']}:{cut}"
    return job


def hidden_option(default: str | None) -> Callable:
    """Return ``--hidden``; the recipe's where `default` is None."""
    return click.option(
        "--hidden",
        type=WIDTHS,
        callback=at_least(1),
        default=default,
        show_default=default is not None or "the recipe's",
        metavar="N[,N]",
        help="Widths of Part B's hidden layers.",
    )


def stain_of(options: dict[str, Any]) -> Any:
    """Return the stain normalisation that --stain and --stain-target ask for, or None."""
    from tiaft_plugin.tiles.stain import make_stain

    scope = options.get("stain_scope", "tile")
    if options["stain_target"] and not options["stain"]:
        raise click.UsageError("--stain-target needs --stain")
    if scope != "tile" and not options["stain"]:
        raise click.UsageError("--stain-scope needs --stain")
    return make_stain(options["stain"], options["stain_target"], scope)


CLASSES = CommaList("a,b,c", str)
WIDTHS = CommaList("widths such as 2048 or 2048,2048", int)
NUMBERS = CommaList("three numbers r,g,b", float, length=3)
KEY_VALUE = KeyValue()
POSITIVE = Finite(min=0, min_open=True)


def _moves(ctx: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> list:
    from tiaft_plugin.qupath.project.places import read_moves

    return read_moves(texts)


map_option = click.option(
    "--map",
    "moved",
    multiple=True,
    callback=_moves,
    metavar="OLD=NEW",
    help="Folder of slides as the project has it, and where it is now; may be repeated.",
)
model_option = click.option(
    "--model", required=True, metavar="NAME|FILE", help="Model name or model file."
)
device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, …"
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Processes that read tiles beside the network.",
)
seed_option = click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Of all that is random; the same seed gives the same result.",
)
weights_options = together(
    settings("--backbone-arg", "backbone_args", "An argument for timm, such as pad_type=same"),
    click.option(
        "--init",
        default="imagenet",
        show_default=True,
        metavar="imagenet|random|FILE",
        help="Weights of the backbone (Part A) to begin with; Part B is random.",
    ),
)
truncate_option = click.option(
    "--truncate",
    metavar="CUT",
    help="Keep the backbone up to here only, as --backbone NAME:CUT does; "
    "`tiaft truncate cuts NAME` lists cuts.",
)
pixel_options = together(
    click.option("--mean", type=NUMBERS, metavar="R,G,B", help="Of pixels scaled to 0…1."),
    click.option(
        "--std",
        type=NUMBERS,
        callback=at_least(1e-6),
        metavar="R,G,B",
        help="Of pixels scaled to 0…1 [mean and std by default: the init file's, or timm's].",
    ),
)
network_options = together(
    backbone_option("the init file's, or legacy_xception"),
    truncate_option,
    weights_options,
    hidden_option("2048"),
    pixel_options,
)
stain_options = together(
    click.option(
        "--stain",
        type=click.Choice(["macenko"]),
        help="Normalise the stains of each tile before the network sees it.",
    ),
    click.option(
        "--stain-target",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="IMAGE",
        help="Image to take the stains of [default: the method's reference stains].",
    ),
)

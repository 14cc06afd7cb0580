"""`tiaft probe`: what features are worth downstream. A command for each registered probe."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import Finite, seed_option, together

_PATH = click.Path(path_type=Path)


class Probes(click.Group):
    """A command for each probe that plug-ins register, and `compare`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the probes' names in the order of their registration, then `compare`."""
        from tiaft_plugin.plugins import collect

        return [*collect("register_probes"), *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a probe, made for what it predicts."""
        from tiaft_plugin.plugins import collect
        from tiaft_plugin.probes.interface import sound

        found = super().get_command(ctx, cmd_name)
        probes = collect("register_probes")
        if found is not None or cmd_name not in probes:
            return found
        return _command(cmd_name, sound(probes[cmd_name]).thing)


@click.group(cls=Probes, short_help="Find out what features are worth, with baselines.")
def probe() -> None:
    """Cross-validate simple models on features: tissue, expression, mutation, and plug-ins' own.

    All share one protocol: repeated folds by patient or slide, the same for every feature set;
    intervals by a bootstrap of patients; colour, permuted labels and a leak control beside them.
    """


_COMMON = together(
    click.argument("features", nargs=-1, required=True, metavar="[NAME=]FEATURES..."),
    click.option(
        "--out",
        required=True,
        type=_PATH,
        help="Folder for report.html, results.csv and summary.json.",
    ),
    click.option(
        "--folds", type=click.IntRange(min=2), default=5, show_default=True, help="Folds a repeat."
    ),
    click.option(
        "--repeats",
        type=click.IntRange(min=1),
        default=50,
        show_default=True,
        help="Times that everything is split anew.",
    ),
    click.option(
        "--ungrouped",
        is_flag=True,
        help="Split rows, not patients or slides, as in the paper: results are too good.",
    ),
    click.option(
        "--reference",
        metavar="NAME",
        help="Feature set that the others are compared with [default: the first].",
    ),
    click.option(
        "--permutations",
        type=click.IntRange(min=0),
        default=99,
        show_default=True,
        help="Of the labels by group; 99 or more, or 0 for none.",
    ),
    click.option(
        "--no-leak-control",
        is_flag=True,
        help="Leave out the control for leaks, which trains 20 times for each feature set.",
    ),
    click.option(
        "--draws",
        type=click.IntRange(min=100),
        default=2000,
        show_default=True,
        help="Of the bootstrap that gives the intervals.",
    ),
    click.option(
        "--unmatched",
        type=click.Choice(["refuse", "drop"]),
        default="refuse",
        show_default=True,
        help="What to do with features without label, and labels without features.",
    ),
    seed_option,
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Processes that compute side by side; they change no result.",
    ),
    click.option("--cluster", metavar="ADDRESS", help="Compute on this Dask scheduler's cluster."),
    click.option("--overwrite", is_flag=True, help="Replace the results in OUT."),
)
_PATIENTS = click.option(
    "--patients",
    type=_PATH,
    help="CSV table with columns slide,patient, for stores that do not name their patient.",
)
_AGGREGATE = click.option(
    "--aggregate",
    default="mean",
    show_default=True,
    metavar="NAME[=PATH]",
    help="From all tiles of a patient to one row: mean, or a plug-in's way.",
)
_OF_GENES = together(
    click.option(
        "--genes", type=_PATH, help="Text file, a gene a line [default: all of the table]."
    ),
    click.option(
        "--missing",
        type=click.Choice(["refuse", "drop-genes", "drop-rows"]),
        default="refuse",
        show_default=True,
        help="What to do where the table has no value; of mutations, refuse leaves the row out "
        "for that gene alone.",
    ),
)
_OF_CLASSES = click.option(
    "--missing",
    type=click.Choice(["refuse", "drop-rows"]),
    default="refuse",
    show_default=True,
    help="What to do with rows whose label is empty.",
)
_OF_NUMBERS = together(
    click.option(
        "--transform",
        type=click.Choice(["log2p1", "log1p", "none"]),
        default="log2p1",
        show_default=True,
        help="Of the table's numbers: log2(x + 1), log(x + 1), or none.",
    ),
    click.option(
        "--select",
        default="union",
        show_default=True,
        metavar="union|NAME",
        help="Whose p values say which genes are significant: any set's, or one's.",
    ),
    click.option(
        "--alpha",
        type=Finite(0, 1, min_open=True, max_open=True),
        default=0.05,
        show_default=True,
        help="A gene is significant below this (Benjamini-Hochberg).",
    ),
)


def _command(name: str, thing: Any) -> click.Command:
    """Make the command of a probe: its options depend on what a row is, and on the labels."""
    options: list[Callable] = [_COMMON, _labels_option(thing)]
    reads = hasattr(thing, "read")  # its inputs itself
    if thing.unit != "tile":
        options.append(_PATIENTS if reads else together(_PATIENTS, _AGGREGATE))
    options.append(_OF_CLASSES if thing.kind == "classes" else _OF_GENES)
    if thing.kind == "numbers":
        options.append(_OF_NUMBERS)
    options += getattr(thing, "options", ())

    def command(**given: Any) -> None:
        _run(name, thing, **given)

    title = getattr(thing, "title", "") or f"Probe {name}"
    command.__doc__ = f"""{title}.

    FEATURES are {_STORES if reads else _WHAT[thing.unit]}; NAME= gives a set a name.
    """
    own = {"default_map": dict(getattr(thing, "defaults", {}))}
    return click.command(name, short_help=title, context_settings=own)(together(*options)(command))


_STORES = "what this probe reads, such as folders of stores (of tiaft extract)"
_WHAT = {
    "tile": ".npz (of tiaft features), .csv, .tsv or .parquet tables with a row a tile",
    "patient": "folders of stores (of tiaft extract), or .npz, .csv, .tsv or .parquet tables with "
    "a row a patient or a tile",
}


def _labels_option(thing: Any) -> Callable:
    table = {
        "classes": "Table with a label a row; not needed where the features bring labels.",
        "numbers": "Table with a row a patient and a column a gene.",
        "binary": "Table with a row a patient and a column a gene, of 0 and 1.",
    }
    return click.option(
        "--labels", type=_PATH, required=thing.kind != "classes", help=table[thing.kind]
    )


def _run(name: str, thing: Any, features: tuple[str, ...], **given: Any) -> None:
    from tiaft_plugin.probes.reading import read_inputs
    from tiaft_plugin.probes.run import run_probe

    out, grouped = given.pop("out"), not given.pop("ungrouped")
    given["leak_control"] = not given.pop("no_leak_control")
    reading = ("labels", "patients", "aggregate", "genes", "transform")
    inputs = {option: given.pop(option) for option in reading if option in given}
    own = {option: given.pop(option) for option in _names(getattr(thing, "options", ()))}
    tables, targets = read_inputs(thing, features, **inputs)
    result = run_probe(name, tables, targets, out, grouped=grouped, options=own, **given)
    _say(result, out)


def _names(options: Iterable[Callable]) -> list[str]:
    """Return the names of arguments that options give to a command."""
    return [str(param.name) for param in click.command()(together(*options)(lambda: None)).params]


@probe.command(short_help="Compare feature sets of several finished runs.")
@click.argument("runs", nargs=-1, required=True, type=_PATH)
@click.option("--out", required=True, type=_PATH, help="Folder for the comparison.")
@click.option(
    "--reference",
    metavar="NAME",
    help="Feature set that the others are compared with [default: the first].",
)
@click.option("--overwrite", is_flag=True, help="Replace the results in OUT.")
def compare(runs: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Compare feature sets of several RUNS, folders that the same probe wrote.

    The runs must be of the same labels, seed, folds, repeats and draws.
    """
    from tiaft_plugin.probes.compare import compare_runs

    _say(compare_runs(runs, out, **options), out)


def _say(result: Any, out: Path) -> None:
    """Print the warnings, the main table and the answer, and where everything stands."""
    from tiaft_plugin.probes.answer import lines

    for line in lines(result.summary):
        click.echo(line)
    click.echo(f"\nreport  {out / 'report.html'}")

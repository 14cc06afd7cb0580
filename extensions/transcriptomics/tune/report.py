"""What a run found, as a page for people and as a few lines for a terminal."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tiaft_extensions.transcriptomics.tune.checks import Data
from tiaft_extensions.transcriptomics.tune.scores import CHANCE, MEAN_R, Score
from tiaft_extensions.transcriptomics.tune.settings import TuneSettings
from tiaft_extensions.transcriptomics.tune.tested import Tested
from tiaft_plugin.finetune.epochs import Progress
from tiaft_plugin.page import BLUE, COLOURS, drawing, page, shown, svg, table

_PRINTED = {
    MEAN_R: MEAN_R,
    "recall@1 image to expression": "recall@1",
    "recall@1 expression to image": "the other way",
}
_WAYS = (
    ("tuned head", "the tuned model, with the head that learnt beside it"),
    ("joint space", "cosines of images and expression in the space of the contrastive loss"),
    ("tuned + ridge", "ridge regression on the model file's features, the mean of a slide's tiles"),
    ("base + ridge", "the same of the encoder before"),
    ("base + SVR", "the expression probe on the latter: support vector regression, not linear"),
)


def report(
    objective: str,
    settings: TuneSettings,
    data: Data,
    found: Progress,
    kept: int,
    test: Tested | None,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    warnings: Sequence[str],
) -> str:
    """Return the page of a run; `columns` and `rows` are those of ``metrics.csv``."""
    counts = ", ".join(f"{len(its.files)} {name}" for name, its in data.sets.items())
    learns = {
        "head": "only the heads learnt",
        "last": f"its last {settings.blocks} blocks learnt, too",
        "whole": "all of it learnt",
    }
    chosen = " (the lowest loss on val slides)" if found.best else ""
    parts = [
        "<h1>Fine-tuning on expression</h1>",
        *(f'<p class="warning">{shown(text)}</p>' for text in warnings),
        f"<p>Objective: {objective}; {len(data.scale.names)} genes; slides: {counts}. Of the "
        f"encoder, {learns[settings.train]}. The epoch that is kept: {kept}{chosen}.</p>",
        *(_test(test) if test else ["<p>No test: no slides were held out for one.</p>"]),
        "<h2>Training</h2>",
        _curves(found),
        f'<div class="scroll">{table(columns, rows)}</div>',
        "<h2>Settings</h2>",
        table(("setting", "value"), asdict(settings).items()),
    ]
    left = data.left.summary()
    if left:
        parts += ["<h2>Left out</h2>", *(f"<p>{shown(line)}</p>" for line in left)]
    return page("Fine-tuning on expression", parts)


def lines_of(test: Tested | None) -> list[str]:
    """Return the test for a terminal: the main measures of each way, and what is above the base."""
    if test is None:
        return ["No test: no slides were held out for one (--test-share)."]
    lines = [
        f"Test: {test.slides} slides of {test.patients} patients that nothing was learnt from or "
        "chosen by; 95 % intervals.",
        "",
        _line("", list(_PRINTED.values())),
    ]
    for base in ("", *_bases(test)):
        for way in _ways(test, above=base):
            cells = [_cell(test, measure, way, base) for measure in _PRINTED]
            lines.append(_line(f"{way} − {base}" if base else way, cells))
    lines += ["", f"{test.genes_told} of {len(test.genes['r'])} genes are told by {test.told_by} "
              "(permutation, q < 0.05)."]  # fmt: skip
    return lines


def plain(value: Any) -> str:
    """Return a number as text of six digits; nothing for NaN and None."""
    if value is None or value != value:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _line(name: str, cells: Sequence[str]) -> str:
    return f"{name:28}" + "".join(f"{cell:>25}" for cell in cells)


def _test(test: Tested) -> list[str]:
    measures = list(dict.fromkeys(its.measure for its in test.scores))
    ways = _ways(test)
    seen = [[m, *(_cell(test, m, way) for way in ways)] for m in measures]
    parts = [
        "<h2>Test</h2>",
        f"<p>{test.slides} slides of {test.patients} patients that nothing was learnt from or "
        "chosen by. A patient is the mean of its slides. Brackets are 95 % intervals, over test "
        "patients; other training patients would give another model. A low rank is good, 1 the "
        "best.</p>",
        table(("", *ways), seen),
        "<ul>" + "".join(f"<li><b>{w}</b>: {shown(t)}</li>" for w, t in _WAYS if w in ways),
        f"<li><b>{CHANCE}</b>: knowing nothing</li></ul>",
    ]
    for base in _bases(test):
        above = _ways(test, above=base)
        less = [[m, *(_cell(test, m, way, base) for way in above)] for m in measures]
        parts += [f"<h3>Difference to {base}</h3>", table(("", *above), less)]
    return [
        *parts,
        "<h3>Single genes</h3>",
        f"<p>{test.genes_told} of {len(test.genes['r'])} genes are told by {test.told_by} at a "
        "false discovery rate of 5 % (patients permuted); genes.csv has them all.</p>",
        _genes(test),
    ]


def _genes(test: Tested) -> str:
    """Return a figure: each gene's correlation after fine-tuning against the base's."""
    from matplotlib.figure import Figure

    base = _bases(test)[0]
    with drawing():
        figure = Figure(figsize=(4.2, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.axline((0, 0), slope=1, color="#999999", linewidth=0.8)
        axes.scatter(test.genes["base_r"], test.genes["r"], s=9, color=BLUE, alpha=0.6, linewidth=0)
        axes.set_xlabel(f"r of {base}")
        axes.set_ylabel(f"r of {test.told_by}")
        return svg(figure, "Correlation of each gene, tuned against base")


def _curves(found: Progress) -> str:
    """Return the losses by epoch as a figure."""
    from matplotlib.figure import Figure

    with drawing():
        figure = Figure(figsize=(7, 3), layout="constrained")
        axes = figure.add_subplot()
        splits = dict.fromkeys(row["split"] for row in found.rows)
        for colour, split in zip(COLOURS, splits, strict=False):
            its = [(row["epoch"], row["loss"]) for row in found.rows if row["split"] == split]
            axes.plot(*zip(*its, strict=True), color=colour, label=split)
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        axes.legend(frameon=False)
        return svg(figure, "Loss by epoch")


def _ways(test: Tested, above: str = "") -> list[str]:
    """Return who tells expression, chance last; or those that are held against a base."""
    found = dict.fromkeys(its.way for its in test.scores if its.against == above)
    known = [way for way, _ in _WAYS if way in found]
    return known + [CHANCE] * (CHANCE in found)


def _bases(test: Tested) -> list[str]:
    return list(dict.fromkeys(its.against for its in test.scores if its.against))


def _cell(test: Tested, measure: str, way: str, against: str = "") -> str:
    its = next((i for i in test.scores if i[:3] == (measure, way, against)), None)
    return "" if its is None else _shown(its)


def _shown(score: Score) -> str:
    digits = 1 if score.measure.startswith("median") else 3
    sign = "+" if score.against else ""
    value = f"{score.value:{sign}.{digits}f}"
    if score.low != score.low:
        return value
    return f"{value} [{score.low:{sign}.{digits}f}, {score.high:{sign}.{digits}f}]"

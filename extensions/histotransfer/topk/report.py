"""The page of a run, or of all folds together: the held-out comparison, and how training went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tiaft_extensions.histotransfer.topk.held_out import (
    FROZEN,
    MARGIN,
    OF_K,
    TUNED,
    Compared,
    HeldOut,
    signed,
    verdict,
)
from tiaft_plugin.page import BLUE, COLOURS, ORANGE, drawing, page, shown, svg, table

_TITLE = "Top-k fine-tuning"


@dataclass(frozen=True)
class Fold:
    """A training: its name ("" where it is the only one), kept epoch, rows of metrics.csv, data."""

    name: str
    kept: int
    rows: Sequence[Mapping[str, Any]]
    data: Mapping[str, Any]
    notes: Sequence[str] = ()


def build_report(
    folds: Sequence[Fold],
    found: HeldOut | None,
    compared: Compared | None,
    settings: Mapping[str, Any],
    by_fold: Sequence[Compared] = (),
) -> str:
    """Return the page; `by_fold` are the comparisons of each fold by itself."""
    notes = dict.fromkeys(note for fold in folds for note in fold.notes)
    parts = [f"<h1>{_TITLE}</h1>"]
    if compared is None or found is None:
        parts.append("<p>No bags were held out: nothing here tells how others would fare.</p>")
    else:
        parts += [_headline(compared), _models(compared), _explained(found)]
    parts += [f'<p class="warning">{shown(note)}</p>' for note in notes]
    if found is not None:
        parts += ["<h2>Held-out bags</h2>", _bags(found)]
    if by_fold:
        parts += ["<h2>Fold by fold</h2>", _folds(folds, by_fold)]
    parts += [
        "<h2>Training</h2>",
        _learnt(folds),
        _curves(folds),
        "<h2>Settings</h2>",
        table(("setting", "value"), [*settings.items(), *_counts(folds)]),
    ]
    return page(_TITLE, parts)


def _headline(compared: Compared) -> str:
    return (
        f"<p><b>{shown(compared.verdict[:1].upper() + compared.verdict[1:])}.</b> Of "
        f"{compared.bags} held-out bags of {compared.groups} patients, by all their tiles. By the "
        f"tuned head's k tiles it is {shown(verdict(compared.differences[OF_K]))}.</p>"
    )


def _models(compared: Compared) -> str:
    rows = [
        [name, f"{auroc:.3f}", f"{low:.3f} to {high:.3f}", f"{balanced:.3f}"]
        for name, (auroc, low, high, balanced) in compared.models.items()
    ]
    rows += [
        [f"{name} less {FROZEN}", signed(its.value), f"{signed(its.low)} to {signed(its.high)}", ""]
        for name, its in compared.differences.items()
    ]
    return table(("encoder", "AUROC", "95 % interval", "balanced accuracy"), rows)


def _explained(found: HeldOut) -> str:
    several = len(np.unique(found.folds)) > 1
    pooled = (
        " Each fold's bags are judged by an encoder and a head that learnt from the other folds "
        "only; intervals are wider for that, since each patient also taught the models of others."
        if several
        else ""
    )
    return (
        f"<p><b>{FROZEN}</b> is the encoder as it was, with the head of the attention run; "
        f"<b>{TUNED}</b> both, fine-tuned, by all tiles of a bag, as in the paper; <b>{OF_K}</b> "
        "by the k tiles that the tuned head attends to the most. Training saw k tiles of a bag: "
        "where that is a small part, attention to all of them is spread over more tiles than the "
        "head has learnt from, which leans its probabilities to one side. Whole patients are drawn "
        "with replacement, the same for all, and Student's t counts the patients. Non-inferior by "
        "a margin of "
        f"{100 * MARGIN:g} points: the lower end of the difference's interval is above "
        f"{signed(-MARGIN)}.{pooled}</p>"
    )


def _bags(found: HeldOut) -> str:
    """Return the probability of the true class, frozen against tuned, a point a bag."""
    from matplotlib.figure import Figure

    rows = np.arange(len(found.codes))
    true = {name: np.exp(scores[rows, found.codes]) for name, scores in found.scores.items()}
    with drawing():
        figure = Figure(figsize=(8, 3.9), layout="constrained")
        for axes, name in zip(figure.subplots(1, 2), (TUNED, OF_K), strict=True):
            axes.plot([0, 1], [0, 1], color="#bbb", linewidth=1)
            for code, label in enumerate(found.classes):
                of = found.codes == code
                colour = COLOURS[code % len(COLOURS)]
                points = (true[FROZEN][of], true[name][of])
                axes.scatter(*points, s=14, color=colour, alpha=0.7, label=label)
            axes.set_xlabel(f"probability of the true class, {FROZEN}")
            axes.set_ylabel(name)
            axes.set_aspect("equal")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        return svg(figure, "Each held-out bag's probability of its true class, before and after")


def _folds(folds: Sequence[Fold], by_fold: Sequence[Compared]) -> str:
    rows = []
    for fold, compared in zip(folds, by_fold, strict=True):
        aurocs = [f"{values[0]:.3f}" for values in compared.models.values()]
        rows.append([fold.name, compared.groups, compared.bags, fold.kept, *aurocs])
    head = ("fold", "patients", "bags", "kept epoch", f"AUROC, {FROZEN}", TUNED, OF_K)
    return table(head, rows)


def _learnt(folds: Sequence[Fold]) -> str:
    text = "Of each bag, the tiles with the most attention are seen."
    if any(row["split"] == "val" for fold in folds for row in fold.rows):
        text += (
            " Epoch 0 is the frozen encoder, by all tiles. Validation bags chose the epoch of the "
            "head that training began with, which did not learn from them; they choose the epoch "
            "here, too."
        )
    return f"<p>{text}</p>"


def _curves(folds: Sequence[Fold]) -> str:
    """Return loss and accuracy by epoch; each fold is a line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with drawing():
        figure = Figure(figsize=(8, 3), layout="constrained")
        for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for split, colour in (("train", BLUE), ("val", ORANGE)):
                for number, fold in enumerate(folds):
                    its = [(row["epoch"], row[what]) for row in fold.rows if row["split"] == split]
                    if its:
                        label = None if number else split
                        axes.plot(*zip(*its, strict=True), color=colour, alpha=0.8, label=label)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylabel(what)
        axes.legend(frameon=False)
        return svg(figure, "Loss and accuracy by epoch")


def _counts(folds: Sequence[Fold]) -> list[tuple[str, str]]:
    lines = []
    for fold in folds:
        bags = ", ".join(f"{count} {name}" for name, count in fold.data["bags"].items())
        lines.append((f"bags of fold {fold.name}" if fold.name else "bags", bags))
    return lines

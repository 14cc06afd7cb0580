"""How good a run's model is: beside its first stage, and beside answers that need no network."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiaft_plugin.finetune.baseline import ColourBaseline, blind_baseline
from tiaft_plugin.finetune.evaluation import Evaluation
from tiaft_plugin.finetune.measured import StageResult
from tiaft_plugin.finetune.recipes import Recipe
from tiaft_plugin.finetune.sets import Sets
from tiaft_plugin.page import shown, table
from tiaft_plugin.tiles.tileset import TileSet

MISSING = "–"
COLOUR = "colour alone"


@dataclass(frozen=True)
class Compared:
    """Answers on the tiles of one set (``test`` or ``validation``), by who gives them.

    `blind` is the answer that looks at no tile, `colour` that of colour alone.
    """

    name: str
    tiles: TileSet
    stages: dict[str, Evaluation]
    blind: Evaluation
    colour: Evaluation | None = None

    @property
    def model(self) -> Evaluation:
        """The answers of the last stage's model."""
        return list(self.stages.values())[-1]

    @property
    def unseen(self) -> str:
        """What the blind answer is."""
        same = "what most training tiles have" if self.model.multilabel else "the commonest class"
        return f"always {same}"

    @property
    def columns(self) -> dict[str, str]:
        """The measures to show, and their names."""
        columns = {
            "accuracy": "accuracy",
            "balanced_accuracy": "balanced accuracy",
            "macro_f1": "macro F1",
        }
        ranked = {"auroc": "AUROC", "auprc": "AUPRC"} if self.model.multilabel else {}
        return columns | ranked | {"loss": "loss"}

    def rows(self, *, stages_only: bool = False) -> list[list[str]]:
        """Return a row for each who answers: the measures of `columns`, in words."""
        answers = dict(self.stages)
        if not stages_only:
            answers |= {COLOUR: self.colour} if self.colour else {}
            answers[self.unseen] = self.blind
        found = {who: answer.metrics({}) for who, answer in answers.items()}
        return [
            [who, *(decimals(m.get(name)) for name in self.columns)] for who, m in found.items()
        ]


def compared(
    results: Sequence[StageResult], sets: Sets, colour: ColourBaseline | None
) -> Compared | None:
    """Return answers on the test tiles, or on those of validation; None without either.

    `colour` is of the same set.
    """
    name, tiles = headline_set(sets)
    found = _by_stage(results, "test" if name == "test" else "val")
    if tiles is None or not found:
        return None
    blind = blind_baseline(sets.train, tiles)
    return Compared(name, tiles, found, blind, colour.evaluation if colour else None)


def headline_set(sets: Sets) -> tuple[str, TileSet | None]:
    """Return the set that tells best how good a model is, and its name."""
    return ("test", sets.test) if sets.test is not None else ("validation", sets.val)


def validated(results: Sequence[StageResult], sets: Sets) -> Compared | None:
    """Return answers on the tiles of validation where there are test tiles, too; else None."""
    found = _by_stage(results, "val")
    if sets.test is None or sets.val is None or not found:
        return None
    return Compared("validation", sets.val, found, blind_baseline(sets.train, sets.val))


def _by_stage(results: Sequence[StageResult], split: str) -> dict[str, Evaluation]:
    found = {}
    for number, result in enumerate(results, start=1):
        evaluation = getattr(result.measured, split)
        if evaluation is not None:
            untrained = "" if result.stage.epochs else " (not trained)"
            found[f"after stage {number}{untrained}" if len(results) > 1 else "model"] = evaluation
    return found


def steered(recipe: Recipe, sets: Sets) -> str:
    """Return how the tiles measured on steered the training, in a sentence; or nothing."""
    if headline_set(sets)[0] == "test" or sets.val is None:
        return ""
    ways = {
        "chose which epoch is kept": recipe.keep == "best",
        "decided when the learning rate fell": recipe.schedule == "plateau",
    }
    how = " and ".join(way for way, used in ways.items() if used)
    if not how:
        return ""
    return (
        f"These numbers are optimistic: the very tiles that they are measured on {how}. Test "
        "tiles, which choose nothing, would tell how others fare."
    )


def doubts(recipe: Recipe, sets: Sets) -> list[str]:
    """Return, in whole sentences, why the model may do worse on other tiles than these numbers."""
    found = [steered(recipe, sets)]
    _, tiles = headline_set(sets)
    if tiles is not None and None in (*sets.train.groups, *tiles.groups):
        found.append(
            "These numbers are probably optimistic: it is not known which slide or patient each "
            "tile is from, and neighbours of training tiles may be among those measured."
        )
    return list(filter(None, found))


def answer(held_out: Compared) -> str:
    """Return the main result in a sentence or two."""
    model, colour = held_out.model, held_out.colour
    which = f"{model.count:,} {held_out.name} tiles"
    if model.multilabel:
        measures = model.metrics({})
        text = f"On {which}, {percent(model.accuracy)} of all labels are right"
        if "auroc" in measures:
            text += f"; the mean AUROC of labels is {measures['auroc']:.3f} (guessing: 0.5)"
    else:
        text = f"Of {which}, the model tells {percent(model.accuracy)} right; "
        text += f"with each class counting the same, {percent(model.balanced_accuracy)}"
    others = [f"colour alone gets {percent(colour.accuracy)} right"] if colour else []
    others.append(f"saying {held_out.unseen} {percent(held_out.blind.accuracy)}")
    return f"{text}. For comparison: {', '.join(others)}."


def class_table(held_out: Compared, train: TileSet) -> str:
    """Return a line for each class: tiles, recall, precision, F1, and what it is mistaken for."""
    found = held_out.model
    head = ["label" if found.multilabel else "class", "training tiles", f"{held_out.name} tiles"]
    columns = [
        [*found.classes],
        [*map(str, train.counts.values())],
        [*map(str, found.counts.values())],
    ]
    measures = {"recall": found.recalls, "precision": found.precisions, "F1": found.f1}
    if found.multilabel:
        shares = {"prevalence": found.prevalence}
        measures = shares | measures | {"AUROC": found.auroc, "AUPRC": found.auprc}
    for name, values in measures.items():
        head.append(name)
        columns.append([decimals(values.get(label)) for label in found.classes])
    if not found.multilabel:
        head.append("most often taken for")
        columns.append(mistaken(found))
    return f'<div class="scroll">{table(head, zip(*columns, strict=True))}</div>'


def mistaken(found: Evaluation) -> list[str]:
    """Return for each class the one that its tiles are most often taken for, and how often."""
    wrong = found.confusion * (1 - np.eye(len(found.classes), dtype=np.int64))
    return [
        f"{found.classes[row.argmax()]} ({row.max()})" if row.max() else MISSING for row in wrong
    ]


def measures_table(held_out: Compared, *, stages_only: bool = False) -> str:
    """Return a line for each who answers."""
    head = [f"{held_out.name} tiles: {held_out.model.count:,}", *held_out.columns.values()]
    return f'<div class="scroll">{table(head, held_out.rows(stages_only=stages_only))}</div>'


def summary(held_out: Compared | None, also: Compared | None, doubt: str) -> str:
    """Return the result for a terminal: the main numbers, what they stand beside, and classes.

    `also` are the tiles of validation where `held_out` are test tiles; `doubt` is a sentence.
    """
    if held_out is None:
        return "No tiles were held out (--val, --val-groups): how good the model is, is not known."
    found = held_out.model
    name = "Test" if held_out.name == "test" else "Held-out"
    text = (
        f"{name} accuracy {found.accuracy:.3f}, balanced {found.balanced_accuracy:.3f}, "
        f"on {found.count} tiles"
    )
    if also:
        text += f" (validation: {also.model.accuracy:.3f}, on {also.model.count})"
    text += f". {doubt}" if doubt else "."
    return f"{text}\n\n{_lines(held_out)}\n\n{found.table()}"


def _lines(held_out: Compared) -> str:
    """Return the table of measures as text."""
    heads, rows = [f"{name:>5}" for name in held_out.columns.values()], held_out.rows()
    left = max(len(row[0]) for row in rows)
    lines = [" " * left + "".join(f"  {head}" for head in heads)]
    for who, *cells in rows:
        numbers = [f"  {cell:>{len(head)}}" for cell, head in zip(cells, heads, strict=True)]
        lines.append(f"{who:{left}}{''.join(numbers)}")
    return "\n".join(lines)


def decimals(value: float | None) -> str:
    """Return a measure with three decimals; a dash for none."""
    return MISSING if value is None else f"{value:.3f}"


def sentences(words: Sequence[str]) -> str:
    """Return warnings as HTML."""
    return "".join(f'<p class="warning">{shown(text)}</p>' for text in words)


def percent(share: float) -> str:
    """Return a share as percent."""
    return f"{100 * share:.1f}\xa0%"

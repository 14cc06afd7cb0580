"""The report of a run: one self-contained HTML page, the same bytes for the same run.

Only its last section, on time and memory, differs from run to run.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tiaft_plugin.finetune import report_measures as measures
from tiaft_plugin.finetune.baseline import MOST_TILES, ColourBaseline
from tiaft_plugin.finetune.evaluation import Evaluation
from tiaft_plugin.finetune.measured import StageResult
from tiaft_plugin.finetune.recipes import Recipe
from tiaft_plugin.finetune.report_figures import draw_calibration, draw_curves
from tiaft_plugin.finetune.report_tiles import MOST, gallery
from tiaft_plugin.finetune.sets import Sets
from tiaft_plugin.network.card import Card
from tiaft_plugin.page import confusion_table, page, shown, table

TIME = "Time and memory"
_STYLE = """
th { background: #f3f3f3; vertical-align: bottom } td { font-variant-numeric: tabular-nums }
h2 { margin-top: 2em; border-bottom: 1px solid #ccc } p, h1, .facts td { overflow-wrap: anywhere }
.scroll td { white-space: nowrap }
.answer { font-size: 1.25em; border-left: 4px solid #0072b2; padding: .2em .8em }
.charts { display: flex; flex-wrap: wrap; gap: 1em } .charts > * { flex: 1 1 18em; max-width: 26em }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(10em, 1fr)); gap: 1em }
.tiles figure { margin: 0 } .tiles img { width: 100%; display: block }
figcaption { line-height: 1.35; overflow-wrap: anywhere; margin-top: .3em }
.facts td { text-align: left; vertical-align: top }
.facts td:first-child { min-width: min(15em, 35vw) }
* { print-color-adjust: exact; -webkit-print-color-adjust: exact }
@media print { .scroll { overflow: visible } figure, tr, svg { break-inside: avoid } }
"""


@dataclass(frozen=True)
class Run:
    """What a report tells of: a run's stages, its tiles, and what was found.

    `colour` is of the test tiles, or those of validation; `times` are seconds by part of the run.
    """

    recipe: Recipe
    results: Sequence[StageResult]
    sets: Sets
    colour: ColourBaseline | None = None
    warnings: Sequence[str] = ()
    times: Mapping[str, float] = field(default_factory=dict)

    @property
    def card(self) -> Card:
        """The card of the last stage's model."""
        return self.results[-1].net.card


def build_report(run: Run) -> str:
    """Return the page."""
    card = run.card
    held_out = measures.compared(run.results, run.sets, run.colour)
    parts = [
        f"<h1>Fine-tuned {shown(card.backbone)}</h1>",
        *(_headline(run, held_out) if held_out else []),
        measures.sentences(run.warnings),
        f"<p>{shown(card.source)}. {shown(card.licence)}</p>",
        _curves(run),
        *(_held_out(run, held_out) if held_out else []),
        _tiles(run),
        f"<h2>Settings</h2>{_facts(_settings(run))}",
        f"<h2>{TIME}</h2>{_time(run)}",
    ]
    return page(f"tiaft finetune: {card.backbone}", parts, _STYLE)


def _headline(run: Run, held_out: measures.Compared) -> list[str]:
    also = measures.validated(run.results, run.sets)
    return [
        f'<p class="answer">{shown(measures.answer(held_out))}</p>',
        measures.sentences(measures.doubts(run.recipe, run.sets)),
        f"<p>{shown(_which(run, held_out))}</p>",
        measures.measures_table(held_out),
        f"<p>{shown(_explained(held_out.model))}{shown(_colour(run))}</p>",
        _validation(also) if also else "",
    ]


def _validation(also: measures.Compared) -> str:
    drawn = measures.measures_table(also, stages_only=True)
    return f"<p>Beside them, the tiles of validation, measured after every epoch:</p>{drawn}"


def _which(run: Run, held_out: measures.Compared) -> str:
    groups = len(held_out.tiles.group_names)
    whose = f" of {groups} slides or patients" if groups else ""
    if held_out.name == "test":
        return (
            f"Measured on test tiles{whose}: the model was not trained on them, and they chose "
            "nothing."
        )
    chose = " They chose which epoch is kept." if run.recipe.keep == "best" else ""
    return f"Measured on tiles{whose} that were held out: the model was not trained on them.{chose}"


def _explained(found: Evaluation) -> str:
    if found.multilabel:
        return (
            "Accuracy: the share of labels, over all tiles, that are right. Balanced accuracy and "
            "F1 are means over labels; a label counts as said above a probability of 0.5. AUROC: "
            "how well tiles with a label are ranked before those without (0.5 is guessing); AUPRC "
            "is to be held against the label's prevalence. Loss: lower is better, and being sure "
            "and wrong costs most. "
        )
    return (
        "Accuracy: the share of tiles that are right. Balanced accuracy: the mean of each class's "
        "share, so that rare classes count as much as common ones. Macro F1: the mean of the "
        "classes' F1, which missed tiles and false alarms lower. Loss: cross-entropy in nats; "
        "lower is better, and being sure and wrong costs most. "
    )


def _colour(run: Run) -> str:
    if run.colour is None:
        return ""
    many = (
        f" It learnt from {MOST_TILES:,} of {run.colour.there:,} training tiles, drawn at random."
        if run.colour.learnt < run.colour.there
        else ""
    )
    stained = " It sees tiles as they are, without stain normalisation." if _stained(run) else ""
    return (
        "Colour alone: logistic regression on each tile's histogram, means and deviations of red, "
        f"green and blue; what a network gains over it, it sees in structure.{many}{stained}"
    )


def _stained(run: Run) -> bool:
    return bool(run.card.training.get("stain"))


def _curves(run: Run) -> str:
    rows = [row for result in run.results for row in result.measured.rows]
    if not rows:
        return "<h2>Curves</h2><p>No epoch was trained.</p>"
    kept = {result.stage.number: result.measured.kept for result in run.results}
    charts = "".join(f"<div>{drawn}</div>" for drawn in draw_curves(rows, kept))
    return (
        "<h2>Curves</h2><p>The training curve is measured while the network changes, so it can "
        "look worse than that of tiles held out; where training goes on getting better and "
        'validation does not, the network learns by heart.</p><div class="charts">'
        f"{charts}</div>"
    )


def _held_out(run: Run, held_out: measures.Compared) -> list[str]:
    found = held_out.model
    stained = " They are shown as they are, without stain normalisation." * _stained(run)
    matrix = (
        "<h2>Confusion matrix</h2><p>True classes in rows, predicted ones in columns.</p>"
        + confusion_table(found.classes, found.confusion)
        if not found.multilabel
        else ""
    )
    return [
        matrix,
        f"<h2>Each {'label' if found.multilabel else 'class'}</h2><p>Recall: of the tiles that "
        "have it, the share that is recognised. Precision: of the tiles said to have it, the share "
        f"that do. F1: both in one number.</p>{measures.class_table(held_out, run.sets.train)}",
        f"<h2>Calibration</h2><p>{shown(_calibration(found))}</p>"
        f'<div class="charts"><div>{draw_calibration(found)}</div></div>',
        f"<h2>The hardest tiles</h2><p>The {min(MOST, found.count)} {held_out.name} tiles of "
        "highest loss. Each has what it is, what the model says, and with what probability. Some "
        f"may be labelled wrongly.{stained}</p>"
        f"{gallery(held_out.tiles, found)}",
    ]


def _calibration(found: Evaluation) -> str:
    calibration = found.calibration
    what = "labels" if found.multilabel else "tiles"
    text = (
        f"Of the {what} that the model gives 80 %, 80 of 100 should be right: points on the dashed "
        "line; below it, the model is surer than it may be. Expected calibration error: "
        f"{calibration.error:.3f}, so that on average its probabilities are off by "
        f"{100 * calibration.error:.1f} percentage points."
    )
    if found.multilabel:
        return text
    claimed = float(found.probabilities.max(axis=1).mean(dtype=float))
    return (
        text + f" On average it claims {measures.percent(claimed)} and is right "
        f"on {measures.percent(found.accuracy)}."
    )


def _tiles(run: Run) -> str:
    named = run.sets.named()
    words = {"train": "training", "val": "validation", "test": "test"}
    counts = {name: tiles.counts for name, tiles in named.items()}
    rows: list[list[Any]] = [
        [label, *(counts[name][label] for name in named)] for label in run.card.classes
    ]
    rows.append(["tiles in all", *map(len, named.values())])
    groups = [len(tiles.group_names) or "not given" for tiles in named.values()]
    rows.append(["slides or patients", *groups])
    head = ["class", *(f"{words[name]} tiles" for name in named)]
    names = "".join(f"<li>{words[name]}: {shown(tiles.name)}</li>" for name, tiles in named.items())
    return (
        f"<h2>Tiles</h2><p>{shown(_size(run.card))}.</p><ul>{names}</ul>"
        f'<div class="scroll">{table(head, rows)}</div>{_facts(_fingerprints(run.card.data))}'
    )


def _size(card: Card) -> str:
    text = f"Tiles of {card.tile_size} px at {_resolution(card.mpp)}"
    if "resized" in card.data:
        before = card.data["resized"]
        text += f", resized from {before['from_px']} px at {_resolution(before['from_mpp'])}"
    return text


def _resolution(mpp: float | None) -> str:
    return f"{mpp:.4g} µm/px" if mpp else "unknown resolution"


def _fingerprints(data: Mapping[str, Any]) -> dict[str, str]:
    """Return the fingerprint of each set that a card's `data` tells of."""
    sets = {"training": data, "validation": data.get("held_out"), "test": data.get("test")}
    return {
        f"fingerprint of {name} tiles": about["fingerprint"]
        for name, about in sets.items()
        if about
    }


def _settings(run: Run) -> dict[str, Any]:
    card = run.card
    model = {
        "backbone": card.backbone,
        "backbone_args": card.backbone_args,
        "hidden": card.hidden,
        "mean": card.mean,
        "std": card.std,
    }
    stages = [
        {name: value for name, value in stage.items() if name != "metrics"}  # they stand above
        for stage in card.training.get("stages", ())
    ]
    return model | card.training | {"stages": stages}


def _facts(facts: Mapping[str, Any]) -> str:
    lines = "".join(
        f"<tr><td>{shown(name)}</td><td>{shown(value)}</td></tr>" for name, value in _flat(facts)
    )
    return f'<table class="facts">{lines}</table>'


def _flat(facts: Any, path: str = "") -> Iterable[tuple[str, str]]:
    """Yield whatever is recorded, facts within facts by their path."""
    if isinstance(facts, Sequence) and any(isinstance(fact, Mapping) for fact in facts):
        facts = {str(number): fact for number, fact in enumerate(facts, start=1)}
    if isinstance(facts, Mapping) and facts:
        for name, value in facts.items():
            words = str(name).replace("_", " ")
            yield from _flat(value, f"{path} · {words}" if path else words)
    elif isinstance(facts, list | tuple | Mapping):
        yield path, ", ".join(map(_fact, facts)) or measures.MISSING
    else:
        yield path, _fact(facts)


def _fact(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: measures.MISSING}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _time(run: Run) -> str:
    """Return what each part took; of a stage, all its runs together."""
    stages = {f"stage {r.stage.number}": r.measured for r in run.results}
    seconds = dict(run.times) | {name: found.seconds for name, found in stages.items()}
    rows = [
        [name, _duration(took), f"{stages[name].peak_gib:.2f} GiB" if name in stages else ""]
        for name, took in seconds.items()
    ]
    rows.append(["all", _duration(sum(seconds.values())), ""])
    return table(["part", "time", "most memory used"], rows)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"

"""The page of a truncation study: what was found, in the paper's figures, tables and words."""

from collections.abc import Mapping, Sequence
from typing import Any

from tiaft_extensions.truncation.backbones.cuts import WHOLE
from tiaft_extensions.truncation.study.costs import Cost
from tiaft_extensions.truncation.study.figures import (
    Table,
    draw_both,
    draw_choice,
    draw_classes,
    draw_costs,
    draw_fractions,
)
from tiaft_extensions.truncation.study.grid import STRATEGIES, Variant
from tiaft_extensions.truncation.study.settings import StudySettings
from tiaft_extensions.truncation.study.summary import Choice
from tiaft_extensions.truncation.study.training import backbone_of
from tiaft_plugin.finetune.sets import Sets
from tiaft_plugin.page import page, shown, table

HEAD = ("network", "weights at first", "features", "million weights", "GMACs", "tiles/s",
        "AUPRC on val", "± s.e.", "AUROC", "AUPRC", "")  # fmt: skip


def build_report(
    settings: StudySettings,
    sets: Sets,
    name: str,
    summary: Sequence[Mapping[str, Any]],
    models: Sequence[Mapping[str, Any]],
    choice: Choice,
    costs: Mapping[Variant, Cost],
    notes: Sequence[str],
) -> tuple[str, str]:
    """Return what was found, in a few lines, and the page; `name` is the set of the results."""
    text = _found(models, choice)
    rows = Table(summary)
    parts = [
        f"<h1>How much of {shown(settings.backbone)} is needed for {shown(sets.train.name)}?</h1>",
        *(f"<p>{shown(line)}</p>" for line in text.split("\n")),
        *(f'<p class="warning">{shown(note)}</p>' for note in notes),
        _choice_part(models, choice),
        *_figures(settings, rows, choice, costs, name),
        _told(settings, sets, name),
    ]
    return text, page(f"Truncation of {settings.backbone}", parts)


def _found(models: Sequence[Mapping[str, Any]], choice: Choice) -> str:
    rows = {_variant(row): row for row in models}
    small, best = rows[choice.chosen], rows[choice.best]
    itself = (
        ", which is the best itself"
        if choice.chosen == choice.best
        else (
            f"; the best, {choice.best.title}, has {best['parameters'] / 1e6:.3g} million and "
            f"{best['val_auprc']:.3f}"
        )
    )
    lines = [
        f"The smallest network within one standard error of the best is {choice.chosen.title}: "
        f"{small['parameters'] / 1e6:.3g} million weights, AUPRC {small['val_auprc']:.3f} on "
        f"validation tiles{itself}."
    ]
    whole = [v for v in rows if (v.strategy, v.cut) == ("ttl", WHOLE)
             and v.backbone == choice.chosen.backbone]  # fmt: skip
    if whole and choice.chosen not in whole:
        full = rows[max(whole, key=lambda v: rows[v]["val_auprc"])]
        lines.append(
            f"Beside the whole network it has {small['parameters'] / full['parameters']:.2g} times "
            f"the weights and is {small['tiles_per_second'] / full['tiles_per_second']:.2f} times "
            f"as fast; AUROC {small['auroc']:.3f} against {full['auroc']:.3f}, AUPRC "
            f"{small['auprc']:.3f} against {full['auprc']:.3f}."
        )
    return "\n".join(lines)


def _choice_part(models: Sequence[Mapping[str, Any]], choice: Choice) -> str:
    rows = []
    for row in models:
        variant = _variant(row)
        mark = "chosen" if row["chosen"] else "best" if variant == choice.best else ""
        mark = mark or ("within one s.e." if row["within_one_se"] else "")
        rows.append((
            variant.network, row["init"], row["width"], f"{row['parameters'] / 1e6:.3f}",
            f"{row['gmacs']:.3f}", f"{row['tiles_per_second']:.1f}", _three(row["val_auprc"]),
            _three(row["val_auprc_se"]), _three(row["auroc"]), _three(row["auprc"]), mark,
        ))  # fmt: skip
    return (
        "<h2>Which network is enough</h2><p>Trained on the largest share of tiles. What is chosen "
        "is the smallest network whose mean AUPRC on validation tiles is not below the best one's "
        "by more than the standard error of that mean over repeats; test tiles had no say.</p>"
        + draw_choice(models, choice.least, "AUPRC on validation tiles over weights")
        + f'<div class="scroll">{table(HEAD, rows)}</div>'
    )


def _figures(
    settings: StudySettings, rows: Table, choice: Choice, costs: Mapping[Variant, Cost], name: str
) -> list[str]:
    variants = list(costs)
    most = max(rows.percents)
    truncated = [v for v in variants if v.strategy == "ttl" and v.backbone == settings.backbone]
    others = [v for v in variants if v.strategy == "ttl" and v.backbone != settings.backbone]
    wholes = [v for v in truncated if v.cut == WHOLE]
    init = choice.chosen.init if any(v.init == choice.chosen.init for v in truncated) else "random"
    cuts = [v for v in truncated if v.init == init and rows.get(v, min(rows.percents), "auroc")]
    searched = [v for v in truncated if v.init == init and v not in cuts]
    baselines = [v for v in variants if v.strategy != "ttl"]
    chosen = [choice.chosen]
    few = list(dict.fromkeys([*cuts, *chosen]))
    parts = [
        _figure("Pretrained or random weights, class by class (figure 3)",
                "The whole network, and further ones from random weights.",
                draw_classes(rows, [*wholes, *others], most, "AUROC and AUPRC of each class")),
        _figure("Pretrained or random weights, with fewer tiles (figure 4)",
                "The same networks, trained on a share of the tiles.",
                draw_fractions(rows, [*wholes, *others], "AUROC and AUPRC over training tiles")),
        _figure("What is left at each cut (figure 5)", "",
                draw_costs(_by_name(variants, costs), "Size and speed of each network")),
        _figure("Truncated networks, with fewer tiles (figure 6)", f"Weights at first: {init}.",
                draw_fractions(rows, [*cuts, *others], "AUROC and AUPRC over training tiles")),
        _figure("Truncated networks, class by class (figure 7)", f"Weights at first: {init}.",
                draw_classes(rows, few, most, "AUROC and AUPRC of each class")),
        _figure("AUROC and AUPRC of the chosen network (figure 8)",
                "Rare classes can have a high AUROC and a low AUPRC: of many tiles without them, a "
                "small share called by mistake outnumbers those with them.",
                draw_both(rows, choice.chosen, most, "AUPRC beside AUROC of each class")),
    ]  # fmt: skip
    if baselines:
        there = dict.fromkeys(v.strategy for v in baselines)
        parts.insert(5, _figure(
            "Truncated networks and the baselines, with fewer tiles",
            "; ".join(f"{key.upper()}: {STRATEGIES[key]}" for key in there) + ".",
            draw_fractions(rows, [*chosen, *baselines], "AUROC and AUPRC over training tiles"),
        ))  # fmt: skip
    if searched:
        parts.insert(5, _figure(
            "The search around the best cut", "Layers inside the blocks next to it.",
            draw_classes(rows, searched, most, "AUROC and AUPRC of each class"),
        ))  # fmt: skip
    about = (
        f"<p>Points are means over {settings.repeats} repeats on {_SETS[name]} tiles; bars hold "
        "95 % of a bootstrap of these tiles.</p>"
    )
    return [about, *(part for part in parts if part)]


_SETS = {"test": "test", "val": "validation"}


def _figure(title: str, text: str, drawn: str) -> str:
    said = f"<p>{shown(text)}</p>" if text else ""
    return f"<h2>{shown(title)}</h2>{said}{drawn}"


def _by_name(variants: Sequence[Variant], costs: Mapping[Variant, Cost]) -> dict[str, Cost]:
    named = {backbone_of(variant): costs[variant] for variant in variants}
    return dict(sorted(named.items(), key=lambda item: item[1].parameters))


def _told(settings: StudySettings, sets: Sets, name: str) -> str:
    counts = ", ".join(f"{each} {len(tiles)}" for each, tiles in sets.named().items())
    size = settings.tile_size or sets.train.tile_size
    rows = [
        ("tiles", counts),
        ("tile size", f"{size} px"),
        ("weights", settings.weights),
        ("shares of the training tiles", ", ".join(f"{p:g} %" for p in settings.percents)),
        ("repeats", settings.repeats),
        ("recipe", "peng (paper 3): Adam, halved on plateaus, best epoch by validation loss"),
        ("epochs at most", settings.epochs or "the recipe's"),
        ("learning rate", settings.lr or "the recipe's"),
        ("BatchNorm statistics of pretrained weights",
         "kept" if settings.freeze_batchnorm else "trained on"),
        ("seed", settings.seed),
    ]  # fmt: skip
    text = (
        "AUROC and AUPRC are of one class against the rest, means over classes that tiles have. "
        "AUPRC is the average precision; cells.csv also has the trapezoid's, as in the paper. "
        "A repeat has other tiles (where these are a share), other random weights, another order. "
        "Shares are taken of each class alike, and those of one repeat lie within each other. "
        "Tiles/s are of the network alone, measured one after the other on one machine."
    )
    return f"<h2>How it was done</h2><p>{shown(text)}</p>" + table(("", ""), rows)


def _variant(row: Mapping[str, Any]) -> Variant:
    return Variant(row["strategy"], row["backbone"], row["cut"], row["init"])


def _three(value: float) -> str:
    return "–" if value != value else f"{value:.3f}"

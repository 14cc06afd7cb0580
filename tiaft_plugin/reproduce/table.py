"""The table that a reproduction ends in: what the paper reports, and what was found here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiaft_plugin.files import write_csv
from tiaft_plugin.reproduce import paper

Summary = Mapping[str, Any]
COLUMNS = ("experiment", "what", "features", "expected", "here", "low", "high")


@dataclass(frozen=True)
class Line:
    """One number with its 95 % interval, where there is one, beside what was `expected`."""

    experiment: str
    what: str
    features: str
    expected: str
    here: float | str | None
    low: float | None = None
    high: float | None = None


def compare_with_paper(summaries: Mapping[str, Summary], sets: Sequence[str]) -> list[Line]:
    """Return the lines for the experiments there are; `sets`: the reference first, FTX last."""
    lines = []
    if "tissue" in summaries:
        lines += tissue_lines(summaries["tissue"], sets, paper.TISSUE)
    if "expression" in summaries:
        lines += expression_lines(summaries["expression"], sets)
    if "mutation" in summaries:
        lines += _mutation_lines(summaries["mutation"], sets)
    return lines


def tissue_lines(
    summary: Summary, sets: Sequence[str], reported: Mapping[str, tuple[float, float]]
) -> list[Line]:
    """Return accuracy of all tissues and of each that there is, and the difference overall.

    `reported` are the paper's, of the first and the last set.
    """
    lines = []
    for target in ("", *summary["data"]["names"]):
        told = dict(zip((sets[0], sets[-1]), reported.get(target, ()), strict=False))
        for name in sets:
            row = _one(summary["scores"], features=name, target=target, metric="accuracy")
            what = f"accuracy, {target or 'all tissues'}"
            lines.append(_line("tissue", what, name, _share(told.get(name)), row))
    return lines + _differences("tissue", "accuracy, all tissues", summary, sets, "accuracy")


def expression_lines(summary: Summary, sets: Sequence[str], reported: bool = True) -> list[Line]:
    """Return how many genes are significant, and how many of them the last set predicts better."""
    genes = summary["genes"]
    tested, selected = genes["tested"], genes["selected"]
    lines = [
        Line("expression", f"of {tested} genes, q < {genes['alpha']:g}", name, "",
             genes["significant"][name])
        for name in sets
    ]  # fmt: skip
    told = [f"{paper.GENES_SIGNIFICANT} of {paper.GENES} (p < 0.05)",
            f"{paper.GENES_BETTER} of {paper.GENES_SIGNIFICANT} (81 %)"]  # fmt: skip
    if not reported:
        told = ["", ""]
    lines.append(Line("expression", "genes significant with any", "", told[0], selected))
    for name in sets[1:]:
        better = genes["better"][name]
        share = f" ({better / selected:.0%})".replace("%", " %") if selected else ""
        what = f"of these, better than {sets[0]}"
        lines.append(Line("expression", what, name, told[1] if name == sets[-1] else "",
                          f"{better} of {selected}{share}"))  # fmt: skip
    return lines + _differences("expression", "median r", summary, sets, "median_r")


def _mutation_lines(summary: Summary, sets: Sequence[str]) -> list[Line]:
    lines = mutation_lines(summary, sets)
    said = {
        **dict.fromkeys(paper.MUTATION_BETTER, "better"),
        **dict.fromkeys(paper.MUTATION_SIMILAR, "similar"),
        **dict.fromkeys(paper.MUTATION_WORSE, "worse"),
    }
    for gene in summary["data"]["names"]:
        what = f"AUROC {gene}: difference"
        lines += _differences("mutation", what, summary, sets, "AUROC", gene, said.get(gene, ""))
    return lines


def mutation_lines(summary: Summary, sets: Sequence[str]) -> list[Line]:
    """Return the AUROC of each gene and set, of the first variant (lambda.min)."""
    return [
        _line("mutation", f"AUROC {gene}", name, "",
              _one(summary["scores"], features=name, target=gene, metric="AUROC"))
        for gene in summary["data"]["names"]
        for name in sets
    ]  # fmt: skip


def write_table(
    lines: Sequence[Line], path: Path, say: Callable[[str], None], expected: str = "paper"
) -> Path:
    """Print the lines, and write them as CSV; `expected` is that column's heading in print."""
    shown = [(x.experiment, x.what, x.features, x.expected, _shown(x)) for x in lines]
    header = ("", "", "features", expected, "here (95 % interval)")
    widths = [max(map(len, column)) for column in zip(header, *shown, strict=True)]
    for row in (header, *shown):
        say("  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
    write_csv(path, COLUMNS, ([vars(line)[name] for name in COLUMNS] for line in lines))
    say(f"-> {path}")
    return path


def _differences(
    experiment: str,
    what: str,
    summary: Summary,
    sets: Sequence[str],
    metric: str,
    target: str = "",
    told: str = "",
) -> list[Line]:
    """Return the difference of each set from the first; `told` is the paper's, of the last."""
    what = what if "difference" in what else f"{what}: difference"
    return [
        _line(
            experiment,
            what,
            f"{name} − {sets[0]}",
            told if name == sets[-1] else "",
            _one(summary["comparisons"], b=name, target=target, metric=metric),
        )
        for name in sets[1:]
    ]


def _line(experiment: str, what: str, name: str, told: str, row: Mapping[str, Any] | None) -> Line:
    row = row or {}
    value = row.get("value", row.get("difference"))
    return Line(experiment, what, name, told, value, row.get("low"), row.get("high"))


def _one(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> Mapping[str, Any] | None:
    """Return the first row of these values: of several variants lambda.min comes first."""
    return next((r for r in rows if all(r[key] == value for key, value in wanted.items())), None)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _shown(line: Line) -> str:
    if line.here is None:
        return "not known"
    if not isinstance(line.here, float):
        return str(line.here)
    signed = "+" if "difference" in line.what else ""
    text = f"{line.here:{signed}.3f}"
    if line.low is None or line.high is None:
        return text
    return f"{text} ({line.low:{signed}.3f} to {line.high:{signed}.3f})"

"""The paper's questions, answered from paired differences: whose weights, how large, how deep."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tiaft_extensions.histotransfer.compare.encoders import IMAGENET
from tiaft_extensions.histotransfer.compare.rows import MAIN, Row, Value
from tiaft_plugin.probes.cells import MISSING, decimals, interval
from tiaft_plugin.probes.interface import Result
from tiaft_plugin.probes.metrics import class_metrics
from tiaft_plugin.probes.packing import unpack
from tiaft_plugin.probes.statistics import cluster_weights, paired_bootstrap
from tiaft_plugin.tiles.words import some

MARGIN = 0.02  # of AUROC, by which an encoder may be worse and still count as good enough


@dataclass(frozen=True)
class Pair:
    """AUROC of the encoder `b` minus that of `a`, with its 95 % interval and p value."""

    a: str
    b: str
    difference: Value
    p: float

    @property
    def clear(self) -> bool:
        """Whether the interval does not hold 0."""
        return self.difference.low > 0 or self.difference.high < 0


@dataclass(frozen=True)
class Answer:
    """A question, sentences that answer it, and the pairs that they rest on."""

    question: str
    sentences: list[str] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)


class Draws:
    """AUROC of each feature set, and the bootstrap's draws (B,) of it, the same patients for all.

    They are those of the probes' report: differences to its reference are the same numbers.
    """

    def __init__(self, result: Result):
        protocol = result.summary["protocol"]
        (problem,), traces = unpack(result.predictions, result.summary)
        weights = cluster_weights(problem.groups, protocol["draws"], protocol["seed"])
        self._clusters, self._folds = problem.clusters, problem.count
        self.values: dict[str, float] = {}
        self.draws: dict[str, np.ndarray] = {}
        for (name, _, _), trace in traces.items():
            scores, targets = trace.average, problem.targets
            self.values[name] = float(class_metrics(scores, targets, problem.classes)[MAIN, ""])
            found = class_metrics(scores, targets, problem.classes, weights=weights)
            self.draws[name] = found[MAIN, ""]

    def pair(self, a: str, b: str) -> Pair:
        """Return what `b` has more than `a`."""
        return Pair(a, b, *self._tested({a: -1.0, b: 1.0}))

    def slope(self, x: Mapping[str, float]) -> tuple[Value, float]:
        """Return the slope, by least squares, of AUROC over `x` of each set, and its p value."""
        middle = sum(x.values()) / len(x)
        centred = {name: value - middle for name, value in x.items()}
        square = sum(value**2 for value in centred.values())
        return self._tested({name: value / square for name, value in centred.items()})

    def _tested(self, factors: Mapping[str, float]) -> tuple[Value, float]:
        """Return a sum of the sets' AUROC, each times its factor."""
        value = sum(factor * self.values[name] for name, factor in factors.items())
        draws = np.sum([factor * self.draws[name] for name, factor in factors.items()], axis=0)
        found = paired_bootstrap(value, draws, self._clusters, self._folds)
        return Value(float(value), float(found.low), float(found.high)), float(found.p)


def answers(rows: Sequence[Row], result: Result, margin: float = MARGIN) -> list[Answer]:
    """Return what the encoders say to the paper's questions; none that they do not allow."""
    known = [row for row in rows if row.encoder.backbone]
    draws = Draws(result)
    found = [whose_weights(known, draws), how_large(known, draws), how_deep(known, draws, margin)]
    return [answer for answer in found if answer.sentences]


def whose_weights(rows: Sequence[Row], draws: Draws) -> Answer:
    """ImageNet weights, histology's, or none: networks of one shape, with weights of several."""
    answer = Answer("Do the weights matter?")
    for its in _grouped(rows, "network"):
        first = next((row for row in its if row.encoder.weights == IMAGENET), its[0])
        for row in its:
            if row is not first:
                pair = draws.pair(first.encoder.name, row.encoder.name)
                answer.pairs.append(pair)
                answer.sentences.append(
                    f"{row.encoder.network}, {row.encoder.weights} weights against "
                    f"{first.encoder.weights}: {spoken(pair.difference)}: {_said(pair)}."
                )
    return answer


def how_large(rows: Sequence[Row], draws: Draws) -> Answer:
    """Whole networks of several sizes, with weights of one kind."""
    answer = Answer("Does more complexity help?")
    whole = [row for row in rows if not row.encoder.cut and row.cost.parameters]
    for its in _grouped(whole, "weights"):
        sizes = {row.encoder.name: math.log2(row.cost.parameters or 1) for row in its}
        if len(set(sizes.values())) < 2:
            continue
        smallest, largest = (how(sizes, key=sizes.__getitem__) for how in (min, max))
        of = f"{its[0].encoder.weights} weights"
        if len(its) > 2:
            slope, _ = draws.slope(sizes)
            shown = "it helps" if slope.low > 0 else "it harms" if slope.high < 0 else ""
            shown = shown or "not shown to help"
            names = some([row.encoder.network for row in its], 8)
            answer.sentences.append(
                f"{of} ({names}): each doubling of the parameters changes AUROC by "
                f"{spoken(slope)}: {shown}."
            )
        pair = draws.pair(smallest, largest)
        answer.pairs.append(pair)
        answer.sentences.append(
            f"{of}, the largest against the smallest: {largest} against {smallest}: "
            f"{spoken(pair.difference)}: {_said(pair)}."
        )
    return answer


def how_deep(rows: Sequence[Row], draws: Draws, margin: float) -> Answer:
    """A network cut off at several depths, and the whole of it, with the same weights."""
    answer = Answer("Is the whole network needed?")
    for its in _grouped(rows, "backbone", "weights"):
        whole = next((row for row in its if not row.encoder.cut), None)
        cuts = [row for row in its if row.encoder.cut and row.cost.parameters]
        if whole is None or not cuts:
            continue
        cuts = sorted(cuts, key=lambda row: row.cost.parameters or 0)
        pairs = [(row, draws.pair(whole.encoder.name, row.encoder.name)) for row in cuts]
        answer.pairs.extend(pair for _, pair in pairs)
        answer.sentences.extend(_depth(whole, pairs, margin))
    return answer


def _depth(whole: Row, pairs: Sequence[tuple[Row, Pair]], margin: float) -> Iterator[str]:
    """Say of cuts, shallow to deep, which is enough."""
    of = f"{whole.encoder.backbone}, {whole.encoder.weights} weights"
    enough = [(row, pair) for row, pair in pairs if pair.difference.low > -margin]
    if enough:
        row, pair = enough[0]
        yield (
            f"{of}: {row.encoder.cut} is enough, with {_share(row, whole)}: "
            f"{spoken(pair.difference)} against the whole, which is no loss of {margin:g}."
        )
        return
    row, pair = max(pairs, key=lambda each: each[1].difference.low)
    yield (
        f"{of}: no cut is shown to lose less than {margin:g}; the nearest to it is "
        f"{row.encoder.cut}, with {_share(row, whole)}: {spoken(pair.difference)} against the "
        "whole."
    )


def _share(row: Row, whole: Row) -> str:
    shares = [
        f"{a / b:.0%} of the {what}"
        for a, b, what in (
            (row.cost.parameters, whole.cost.parameters, "parameters"),
            (row.cost.macs, whole.cost.macs, "multiply-accumulates"),
        )
        if a and b
    ]
    return " and ".join(shares)


def _grouped(rows: Sequence[Row], *names: str) -> list[list[Row]]:
    """Return the rows that agree in what names of their encoders say, where these are several."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = tuple(getattr(row.encoder, name) for name in names)
        groups.setdefault(key, []).append(row)
    return [its for its in groups.values() if len(its) > 1]


def _said(pair: Pair) -> str:
    if not pair.clear:
        return "no difference that these data show"
    return "better" if pair.difference.value > 0 else "worse"


def spoken(value: Value) -> str:
    """Return a difference with its interval, in words."""
    between = interval(vars(value), sign=True)
    told = "no interval" if between == MISSING else f"95 % interval {between}"
    return f"{decimals(value.value, sign=True)} ({told})"

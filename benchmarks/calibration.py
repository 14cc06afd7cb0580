"""How often each p value of a probe's result rejects at 5 % where there is nothing to find.

    python benchmarks/calibration.py [--sets 200] [--seed 0] [--jobs 1]

Made-up data go through what a run of a probe goes through: its folds, its probes, its analysis; the
p values that are counted are those of its tables. There is either no signal at all, or one that
two feature sets, A and B, carry alike. Beside each rate: "unwidened", the same without the larger
variance that cross-validation asks for, and "the paper's": a paired test over repeats or, for a
gene, Pearson's test of all repeats' predictions as if each were of other patients.

"holds": the rate is within the 99 % binomial bounds of 5 %; "careful": it is below them. The last
table is how often 95 % intervals hold the mean score of all sets; where LASSO finds nothing, an
AUROC is 0.5 and its interval has no width.

Five sets of genes share their features, and with them a kernel: genes are drawn independently of
each other, so that their p values are. A ridge regression stands in for LASSO where labels are
permuted, and once beside it: LASSO takes long, and where it finds nothing it is mostly empty.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
from joblib import Parallel, delayed
from scipy import stats
from threadpoolctl import threadpool_limits

from tiaft_plugin.plugins import Registered
from tiaft_plugin.probes import numbers, statistics
from tiaft_plugin.probes.analysis import analyse, trace_of
from tiaft_plugin.probes.baselines import permuted_statistic
from tiaft_plugin.probes.crossval import Problem, fold_seed, predict_repeat, problems_of
from tiaft_plugin.probes.expression import Expression
from tiaft_plugin.probes.interface import Experiment, Predict, Probe
from tiaft_plugin.probes.mutation import Mutation
from tiaft_plugin.probes.settings import Analysis, Settings
from tiaft_plugin.probes.summary import summarise
from tiaft_plugin.probes.tissue import Tissue

FOLDS, REPEATS, DRAWS, PERMUTATIONS, GENE_DRAWS = 5, 3, 299, 19, 999
PATIENTS, SLIDES, TILES, CLASSES = 60, 15, 4, ("a", "b", "c")
SHARING = 5  # sets of genes with the same features
WIDENED, UNWIDENED, PAPER = "widened", "unwidened", "paper"  # ways to a p value
Rates = dict[str, dict[str, np.ndarray]]  # what is tested, the way: p values of all sets


class Ridge:
    """A quick stand-in for LASSO: ridge regression of 0 and 1, less its mean."""

    kind, unit = "binary", "patient"
    settings: Mapping[str, Any] = {"model": "ridge"}

    def fit(
        self, features: np.ndarray, targets: np.ndarray, groups: np.ndarray, seed: int
    ) -> Predict:
        """Penalise as much as there are rows."""
        mean, sd = features.mean(0), features.std(0)
        x = (features - mean) / sd
        weights = np.linalg.solve(x.T @ x + len(x) * np.eye(x.shape[1]), x.T @ (targets - 0.5))
        return lambda rows: ((rows - mean) / sd) @ weights


@dataclass(frozen=True)
class Null:
    """Made-up data, what predicts them, and whether A's own p values have nothing to find either.

    These are a gene's p and q, and those of labels permuted.
    """

    probe: Callable[[], Any]
    make: Callable[[np.random.Generator], Experiment]
    sharing: int = 1
    silent: bool = False


@dataclass
class Found:
    """What a set's result says: p values by what is tested, and [value, low, high] of scores."""

    p: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, list[float]]]


def two_views(rng: np.random.Generator, hidden: np.ndarray, columns: int) -> dict:
    """Return two feature sets of the same few hidden factors, each blurred in its own way.

    Both mix them alike: neither is better but by chance.
    """
    mixed = rng.standard_normal((hidden.shape[1], columns))
    found = {}
    for name in "AB":
        values = (hidden + 0.5 * rng.standard_normal(hidden.shape)) @ mixed
        found[name] = (values + 0.5 * rng.standard_normal(values.shape)).astype(np.float32)
    return found


def patients(rng: np.random.Generator, genes: int, signal: float, columns: int = 40) -> Experiment:
    """Return expression of genes, each of which depends on a hidden factor of its own, or none."""
    hidden = rng.standard_normal((PATIENTS, max(5, genes * (signal > 0))))
    values = rng.standard_normal((PATIENTS, genes))
    if signal:
        values += signal * hidden[:, :genes]
    keys = np.array([f"patient {number:02d}" for number in range(PATIENTS)])
    names = tuple(f"gene {number:02d}" for number in range(genes))
    views = two_views(rng, hidden, columns)
    return Experiment("numbers", "patient", keys, keys, True, names, values, views)


def mutated(rng: np.random.Generator, signal: float, columns: int = 40) -> Experiment:
    """Return a gene that is mutated in 30 % of the patients."""
    made = patients(rng, 1, signal, columns)
    values = (made.values > np.quantile(made.values, 0.7)).astype(float)
    return replace(made, kind="binary", values=values)


def tiles(rng: np.random.Generator, signal: float) -> Experiment:
    """Return tiles of slides; each slide has a shade and a mix of classes of its own."""
    slides = np.repeat(np.arange(SLIDES), TILES)
    mix = rng.dirichlet(np.full(len(CLASSES), 0.7), SLIDES)
    labels = np.array([rng.choice(len(CLASSES), p=mix[slide]) for slide in slides])
    hidden = rng.standard_normal((len(slides), 5)) + 0.7 * rng.standard_normal((SLIDES, 5))[slides]
    hidden[:, :3] += signal * np.eye(len(CLASSES))[labels]
    keys = np.array([f"tile {number:02d}" for number in range(len(slides))])
    groups = np.array([f"slide {slide:02d}" for slide in slides])
    names = np.array(CLASSES)[labels]
    views = two_views(rng, hidden, 12)
    return Experiment("classes", "tile", keys, groups, True, CLASSES, names, views)


NULLS = {
    "genes, no signal": Null(
        Expression, partial(patients, genes=15, signal=0.0), SHARING, silent=True
    ),
    "genes, equal signal": Null(Expression, partial(patients, genes=5, signal=0.8), SHARING),
    "tiles, no signal": Null(Tissue, partial(tiles, signal=0.0), silent=True),
    "tiles, equal signal": Null(Tissue, partial(tiles, signal=1.5)),
    "mutation by ridge, no signal": Null(Ridge, partial(mutated, signal=0.0), silent=True),
    "mutation by ridge, equal signal": Null(Ridge, partial(mutated, signal=1.0)),
    "mutation, no signal": Null(Mutation, partial(mutated, signal=0.0, columns=8)),
    "mutation, equal signal": Null(Mutation, partial(mutated, signal=1.5, columns=8)),
}


def results(
    null: Null, rng: np.random.Generator, ways: tuple[str, ...], permuted: bool
) -> list[Found]:
    """Predict made-up data as a run does, and return what its tables say, a set of genes each."""
    probe, whole = null.probe(), null.make(rng)
    settings = Settings(FOLDS, REPEATS, int(rng.integers(2**31)), draws=DRAWS, reference="A")
    seed, counts = settings.seed, {"folds": FOLDS, "repeats": REPEATS}
    problem = problems_of(whole, **counts, seed=seed, grouped=True)[0]
    seeds = [fold_seed(seed, repeat) for repeat in range(REPEATS)]
    scores = {
        name: np.stack(
            [
                predict_repeat(probe, values, problem, folds, own)
                for folds, own in zip(problem.folds, seeds, strict=True)
            ]
        )
        for name, values in whole.features.items()
    }
    found = []
    for one, part, own in shared(whole, problem, scores, null.sharing):
        analysis, said = told(probe, one, part, own, settings, ways)
        found.append(said)
        if null.silent and permuted:
            p = labels_permuted(probe, one, part, analysis, settings)
            said.p["labels permuted"][WIDENED] = p
        if not null.silent:
            said.p.pop("a gene's p", None)
            said.p.pop("any gene's q", None)
    return found


def shared(experiment: Experiment, problem: Problem, scores: dict, count: int) -> Iterator[tuple]:
    """Split genes that were predicted at once into sets, each as if it had been alone."""
    if count == 1:
        yield experiment, problem, scores
        return
    for columns in np.array_split(np.arange(len(experiment.names)), count):
        values = experiment.values[:, columns]
        names = tuple(experiment.names[column] for column in columns)
        own = {name: predicted[:, :, columns] for name, predicted in scores.items()}
        alone = replace(experiment, names=names, values=values)
        yield alone, replace(problem, targets=values), own


def traces_of(probe: Probe, problem: Problem, scores: dict) -> dict:
    """Return what a run keeps of all repeats."""
    binary = problem.kind == "binary"
    return {
        (name, 0, v): trace_of(problem, predicted[:, :, v] if binary else predicted)
        for name, predicted in scores.items()
        for v in range(len(variants_of(probe)))
    }


def variants_of(probe: Probe) -> tuple[str, ...]:
    """Return the names of a probe's scores where it gives several."""
    return tuple(getattr(probe, "variants", ())) or ("",)


def told(
    probe: Probe,
    experiment: Experiment,
    problem: Problem,
    scores: dict,
    settings: Settings,
    ways: tuple[str, ...],
) -> tuple[Analysis, Found]:
    """Return the tables, and their p values and intervals in each of the ways."""
    found, traces = Found(defaultdict(dict), defaultdict(dict)), traces_of(probe, problem, scores)
    variants = variants_of(probe)
    few = mock.patch.object(numbers, "PERMUTATIONS", GENE_DRAWS)  # 5 % need no more
    for way in reversed(ways):  # the first one is the last, and kept
        given = mock.patch.object(statistics, "reuse", lambda folds: 1.0)
        with few, given if way == UNWIDENED else nullcontext():
            analysis = analyse(experiment.names, [problem], traces, settings, variants)
        own = gene_values(analysis) if problem.kind == "numbers" else {}
        own |= compared(analysis, experiment, "p")
        for what, p in own.items():
            found.p[what][way] = p
        for what, values in spans(analysis, experiment).items():
            found.intervals[what][way] = values
    paper = compared(analysis, experiment, "p_paper")
    if problem.kind == "numbers":
        a, b = (next(iter(traces[name, 0, 0].repeats.values())) for name in "AB")
        paper["difference of a gene's r"] = float(statistics.paper_t(b - a).p)
        stacked = scores["A"][:, :, 0].ravel(), np.tile(problem.targets[:, 0], REPEATS)
        paper["a gene's p"] = float(stats.pearsonr(*stacked).pvalue)
    for what, p in paper.items():
        found.p[what][PAPER] = p
    return analysis, found


def gene_values(analysis: Analysis) -> dict[str, float]:
    """Return what the table of genes says: of its first gene, and the smallest q."""
    a, b = (next(row for row in analysis.rows if row["features"] == name) for name in "AB")
    smallest = min(row["q"] for row in analysis.rows if row["features"] == "A")
    return {
        "a gene's p": a["p"],
        "any gene's q": smallest,
        "difference of a gene's r": b["difference_p"],
    }


def compared(analysis: Analysis, experiment: Experiment, which: str) -> dict[str, float]:
    """Return the p values of the comparisons: overall, and of one class or gene."""
    found = {}
    for row in analysis.comparisons:
        if row["metric"] == "median_r_significant":  # what is significant differs from set to set
            continue
        p = row["p_paper"]
        if which == "p":
            p = row["p_bootstrap"] if row["p_corrected"] is None else row["p_corrected"]
        if p is not None and row["target"] in ("", experiment.names[0]):
            of = " of a class" if experiment.kind == "classes" and row["target"] else ""
            variant = f" ({row['variant']})" if row["variant"] else ""
            found[f"difference of {row['metric'].replace('_', ' ')}{of}{variant}"] = p
    return found


def spans(analysis: Analysis, experiment: Experiment) -> dict[str, list[float]]:
    """Return value, low and high of feature set A: of all classes and genes, or of one gene."""
    found = {}
    for row in analysis.scores:
        of_all = experiment.kind == "binary" or not row["target"]
        if row["features"] == "A" and of_all and row["low"] is not None:
            variant = f" ({row['variant']})" if row["variant"] else ""
            what = row["metric"].replace("_", " ") + variant
            found[what] = [row["value"], row["low"], row["high"]]
    if experiment.kind == "numbers":
        row = next(row for row in analysis.rows if row["features"] == "A")
        found["a gene's r"] = [row["r"], row["low"], row["high"]]
    return found


def labels_permuted(
    probe: Probe, experiment: Experiment, problem: Problem, analysis: Analysis, settings: Settings
) -> float:
    """Return the p value of labels permuted, of feature set A, from the summary."""
    settings = replace(settings, permutations=PERMUTATIONS)
    one = replace(experiment, features={"A": experiment.features["A"]})
    drawn = {
        ("A", 0, draw, "permuted"): permuted_statistic(
            probe, one.features["A"], problem, draw, grouped=True, seed=settings.seed
        )
        for draw in range(PERMUTATIONS + 1)
    }
    registered = Registered("calibration", probe, {}, "benchmarks")
    summary = summarise(registered, one, [problem], settings, analysis, drawn, {})
    rows = [row for row in summary["baselines"] if row["baseline"] == "labels permuted"]
    return rows[0]["p"]


def run(
    name: str,
    sets: int,
    seed: int = 0,
    jobs: int = 1,
    ways: tuple[str, ...] = (WIDENED, UNWIDENED),
    permuted: bool = True,
) -> tuple[Rates, Rates]:
    """Return p values (sets,) and intervals (sets, 3) by what is tested and the way to it.

    Without labels permuted, which takes longest, where `permuted` is false.
    """
    null, place = NULLS[name], list(NULLS).index(name)

    def one(number: int) -> list[Found]:
        with threadpool_limits(1):
            return results(null, np.random.default_rng([seed, place, number]), ways, permuted)

    draws = range(-(-sets // null.sharing))
    parts = Parallel(n_jobs=jobs)(delayed(one)(number) for number in draws)
    found = [one for part in parts for one in part][:sets]
    return gathered([one.p for one in found]), gathered([one.intervals for one in found])


def gathered(found: list[dict]) -> Rates:
    """Return arrays over all sets; what a set does not have is left out."""
    lists: dict[str, dict[str, list]] = {}
    for one in found:
        for what, by_way in one.items():
            for way, value in by_way.items():
                lists.setdefault(what, {}).setdefault(way, []).append(value)
    return {
        what: {way: np.array(values) for way, values in by_way.items()}
        for what, by_way in lists.items()
    }


def rate(p: np.ndarray) -> float:
    """Return the share of p values that reject at 5 %; one that is NaN does not."""
    return float(np.mean(p <= 0.05 + 1e-12))


def bounds(sets: int, share: float = 0.05, outside: float = 0.01) -> tuple[float, float]:
    """Return the shares between which a true share stays, but for `outside` of all runs."""
    low, high = stats.binom.ppf((outside / 2, 1 - outside / 2), sets, share) / sets
    return float(low), float(high)


def coverage(spans: np.ndarray) -> float:
    """Return the share of intervals (sets, 3) that hold the mean value."""
    mean = spans[:, 0].mean()
    return float(((spans[:, 1] <= mean) & (mean <= spans[:, 2])).mean())


def main() -> None:
    """Print the rejection rates, then the coverage."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--sets", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--jobs", type=int, default=1)
    given = options.parse_args()
    low, high = bounds(given.sets)
    print(f"{given.sets} sets; a rate of 5 % lies within {low:.1%} and {high:.1%}\n")
    print(
        f"{'nothing to find in':32}{'p value':43}{'rejects':>7}  {'':10}"
        f"{'unwidened':>9}{'the paper’s':>13}"
    )
    covered = []
    for name in NULLS:
        values, intervals = run(name, given.sets, given.seed, given.jobs)
        covered.append((name, intervals))
        for what, by_way in values.items():
            own, plain, paper = (
                f"{rate(by_way[way]):.1%}" if way in by_way and len(by_way[way]) else "–"
                for way in (WIDENED, UNWIDENED, PAPER)
            )
            said = ""
            if WIDENED in by_way:
                share = rate(by_way[WIDENED])
                said = "TOO OFTEN" if share > high else "careful" if share < low else "holds"
            print(f"{name:32}{what:43}{own:>7}  {said:10}{plain:>9}{paper:>13}", flush=True)
    print(f"\n{'95 % interval of':32}{'':43}{'mean':>7}{'holds it':>10}{'unwidened':>11}")
    for name, intervals in covered:
        for what, by_way in intervals.items():
            mean = by_way[WIDENED][:, 0].mean()
            held, without = (coverage(by_way[way]) for way in (WIDENED, UNWIDENED))
            print(f"{name:32}{what:43}{mean:7.3f}{held:10.1%}{without:11.1%}")


if __name__ == "__main__":
    main()

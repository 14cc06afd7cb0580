"""Whether a probe learns what is there, gives the same bytes again, and touches nothing else."""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from tiaft_plugin.errors import TiaftError, reason
from tiaft_plugin.probes.interface import Kind, Predict, Unit

COLUMNS = 8  # two carry the signal, five noise, one of them large; one is constant
SEED = 7


def check_probe(probe: Any) -> None:
    """Raise TiaftError unless a probe keeps the promises of ``tiaft_plugin.probes.interface``.

    `probe` is fitted to a few small problems of its kind with 8 features: 90 rows and 12, three
    classes and two, three genes and one. One feature is constant, one is noise a thousand times
    as large as the others. Scores have to be finite and of the promised shape, the same bytes for
    the same seed, one row's the same whatever rows it is predicted with, and better than chance.
    Inputs cannot be written to, as between processes; nothing may draw from global randomness,
    and a later fit must not change what an earlier one predicts.
    """
    _check_attributes(probe)
    problems = _problems(probe.kind)
    for problem in problems:
        _check_scores(probe, problem)
    _check_same_bytes(probe, problems[0], problems[1])
    _check_rows_alone(probe, problems[0])
    _check_learns(probe, problems[0])


@dataclass(frozen=True)
class _Problem:
    """Training rows, and others to predict; `asked` says in words what it is."""

    asked: str
    features: np.ndarray  # (n, 8) float32
    targets: np.ndarray
    groups: np.ndarray  # (n,) text
    others: np.ndarray  # (m, 8) float32
    expected: np.ndarray  # the targets of `others`


def _check_attributes(probe: Any) -> None:
    """Check what a probe says of itself."""
    for name, known in (("kind", get_args(Kind)), ("unit", get_args(Unit))):
        value = getattr(probe, name, None)
        if value not in known:
            raise TiaftError(
                f"the probe's {name} is {value!r}: one of {', '.join(known)} is needed"
            )
    settings = getattr(probe, "settings", None)
    if not isinstance(settings, Mapping):
        raise TiaftError(
            f"the probe's settings are {settings!r}: a dict is needed, or an empty one"
        )
    try:
        json.dumps(dict(settings), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TiaftError(f"the probe's settings cannot be written as JSON: {error}") from error
    title = getattr(probe, "title", "a title")
    if not isinstance(title, str) or not title.strip():
        raise TiaftError(f"the probe's title is {title!r}: some text is needed, or no title")
    if not callable(getattr(probe, "fit", None)):
        raise TiaftError("the probe has no method fit(features, targets, groups, seed)")
    _check_variants(probe)


def _check_variants(probe: Any) -> None:
    variants = getattr(probe, "variants", ())
    if not isinstance(variants, tuple) or not all(isinstance(name, str) for name in variants):
        raise TiaftError(f"the probe's variants are {variants!r}: a tuple of names is needed")
    if len(set(variants)) != len(variants):
        raise TiaftError(f"the probe's variants are {variants!r}: each name once")
    if variants and probe.kind != "binary":
        raise TiaftError(
            f"the probe has variants and predicts {probe.kind}: only 'binary' has them"
        )


def _problems(kind: Kind) -> list[_Problem]:
    """Return the problems of a kind; of the first one, many rows are there to learn from."""
    if kind == "classes":
        three, two = ("NORM", "TUM", "Müller cells"), ("b", "a")
        return [_classes(three, 90), _classes(two, 60), _classes(three, 12)]
    if kind == "numbers":
        return [_numbers(3, 90), _numbers(1, 60), _numbers(3, 12)]
    return [_binary(90), _binary(12)]


def _features(rows: int) -> tuple[np.ndarray, np.random.Generator]:
    """Return features without signal, and a generator that goes on from there."""
    rng = np.random.default_rng(rows)
    features = rng.normal(size=(rows, COLUMNS))
    features[:, 2] *= 1000
    features[:, 3] = 0.1
    return features, rng


def _problem(asked: str, features: np.ndarray, targets: np.ndarray, train: int) -> _Problem:
    """Split rows into `train` for training, in groups of three, and the rest."""
    groups = np.array([f"patient {row // 3}" for row in range(train)])
    values = features.astype(np.float32)
    for array in (values, targets, groups):
        array.flags.writeable = False
    asked = f"{train} rows, {asked}"
    return _Problem(asked, values[:train], targets[:train], groups, values[train:], targets[train:])


def _classes(names: tuple[str, ...], train: int) -> _Problem:
    features, _ = _features(train + 60)
    number = np.arange(len(features)) % len(names)
    angle = 2 * np.pi * number / len(names)
    features[:, 0] += 3 * np.cos(angle)
    features[:, 1] += 3 * np.sin(angle)
    return _problem(f"{len(names)} classes", features, np.array(names)[number], train)


def _numbers(genes: int, train: int) -> _Problem:
    features, rng = _features(train + 60)
    signal = np.stack([features[:, 0], features[:, 1], features[:, 0] + features[:, 1]], axis=1)
    targets = 5 + signal[:, :genes] + 0.2 * rng.normal(size=(len(features), genes))
    return _problem(f"{genes} numbers a row", features, targets, train)


def _binary(train: int) -> _Problem:
    features, _ = _features(train + 60)
    targets = np.arange(len(features)) % 2
    features[:, 0] += 3 * targets
    return _problem("0 and 1", features, targets.astype(np.int64), train)


def _fit(probe: Any, problem: _Problem) -> Predict:
    """Fit a probe once; return the function that it gives."""

    def fit() -> Any:
        try:
            return probe.fit(problem.features, problem.targets, problem.groups, SEED)
        except Exception as error:
            raise _failure("fit", problem, error) from error

    predict = _without_global_randomness(fit)
    if not callable(predict):
        kind = type(predict).__name__
        raise TiaftError(f"the probe's fit returns {kind}: a function of features is needed")
    return predict


def _predict(predict: Predict, problem: _Problem, rows: np.ndarray | slice) -> np.ndarray:
    """Predict some of a problem's other rows; what comes back is known to be an array."""
    others = problem.others[rows]
    others.flags.writeable = False

    def scored() -> Any:
        try:
            return predict(others)
        except Exception as error:
            raise _failure(f"prediction of {len(others)} rows", problem, error) from error

    scores = _without_global_randomness(scored)
    if not isinstance(scores, np.ndarray) or scores.dtype.kind != "f":
        found = scores.dtype if isinstance(scores, np.ndarray) else type(scores).__name__
        raise TiaftError(f"the probe's scores are {found}: a numpy array of floats is needed")
    return scores


def _failure(what: str, problem: _Problem, error: Exception) -> TiaftError:
    if "read-only" in str(error) or "readonly" in str(error):
        return TiaftError(f"the probe's {what} writes to its inputs: copy them first ({error})")
    return TiaftError(f"the probe's {what} fails ({problem.asked}): {reason(error)}")


def _global_randomness() -> tuple:
    state = np.random.get_state(legacy=False)["state"]
    return state["key"].tobytes(), state["pos"], random.getstate()


def _without_global_randomness(call: Callable[[], Any]) -> Any:
    """Return what `call` gives, known to leave Python's and numpy's generators as they are."""
    for attempt in range(3):  # another thread may draw in between, but hardly three times
        if attempt:  # a probe that seeds leaves the same state each time
            random.seed(attempt)
            np.random.seed(attempt)
        before = _global_randomness()
        result = call()
        if _global_randomness() == before:
            return result
    raise TiaftError(
        "the probe touches global randomness: use numpy.random.default_rng(seed), "
        "or random_state=seed in scikit-learn"
    )


def _check_scores(probe: Any, problem: _Problem) -> None:
    """Check shape and values of the scores for one problem."""
    scores = _predict(_fit(probe, problem), problem, slice(None))
    count, variants = len(problem.others), tuple(getattr(probe, "variants", ()))
    expected: tuple[int, ...]
    if probe.kind == "classes":
        expected = (count, len(np.unique(problem.targets)))
        columns = "a column a class, for two classes, too"
    elif probe.kind == "numbers":
        expected, columns = (count, problem.targets.shape[1]), "a column a number, for one, too"
    elif variants:
        expected, columns = (count, len(variants)), "a column a variant"
    else:
        expected, columns = (count,), "a number a row"
    if scores.shape != expected:
        raise TiaftError(
            f"the probe's scores have shape {scores.shape} for {count} rows to predict "
            f"({problem.asked}): {expected} is needed, {columns}"
        )
    if not np.isfinite(scores).all():
        raise TiaftError(
            f"the probe's scores hold NaN or infinity ({problem.asked}): "
            "one feature is constant, has it been divided by its standard deviation of 0?"
        )


def _check_same_bytes(probe: Any, problem: _Problem, other: _Problem) -> None:
    """Check that a fit can be repeated, and that nothing of it lives on in the probe."""
    first = _fit(probe, problem)
    scores = _predict(first, problem, slice(None)).tobytes()
    if _predict(_fit(probe, problem), problem, slice(None)).tobytes() != scores:
        raise TiaftError(
            "the probe gives other scores for the same rows and seed: "
            "whatever is drawn has to come from `seed`"
        )
    _fit(probe, other)
    try:
        again = _predict(first, problem, slice(None)).tobytes()
    except TiaftError:
        again = b""
    if again != scores:
        raise TiaftError(
            "the probe's later fits change what earlier ones predict: "
            "keep what was learnt in the returned function, not in the probe"
        )


def _check_rows_alone(probe: Any, problem: _Problem) -> None:
    """Check each row alone, and all in another order; the last bits of sums may differ."""
    predict = _fit(probe, problem)
    scores = _predict(predict, problem, slice(None))
    count = len(problem.others)
    alone = np.concatenate([_predict(predict, problem, slice(i, i + 1)) for i in range(count)])
    turned = _predict(predict, problem, np.arange(count)[::-1])[::-1]
    for found in (alone, turned):
        if found.shape != scores.shape or not np.allclose(found, scores, rtol=1e-5, atol=1e-6):
            raise TiaftError(
                "the probe's scores of a row depend on the rows predicted with it: "
                "means and the like have to come from the training rows"
            )


def _check_learns(probe: Any, problem: _Problem) -> None:
    """Check that scores say more than chance about rows that are easy to tell apart."""
    scores = _predict(_fit(probe, problem), problem, slice(None))
    if probe.kind == "classes":
        names, what = np.unique(problem.targets), "accuracy"
        found = float((names[scores.argmax(axis=1)] == problem.expected).mean())
        chance, hint = 1 / len(names), "; are columns in the order of np.unique(targets)?"
    elif probe.kind == "numbers":
        pairs = zip(scores.T, problem.expected.T, strict=True)
        found = float(np.mean([_correlation(*pair) for pair in pairs]))
        chance, what, hint = 0.0, "correlation", "; are columns in the order of the targets'?"
    else:
        columns = scores.reshape(len(scores), -1).T
        found = max(_auroc(column, problem.expected) for column in columns)
        chance, what, hint = 0.5, "AUROC", "; are scores larger for 1 than for 0?"
    if found < chance + (1 - chance) / 2:
        raise TiaftError(
            f"the probe learns too little: {what} {found:.2f} where {chance:.2f} is chance, on "
            f"data that are easy to tell apart; are features standardised inside{hint}"
        )


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return 0.0 if one.std() == 0 else float(np.corrcoef(one, other)[0, 1])


def _auroc(scores: np.ndarray, targets: np.ndarray) -> float:
    """Return the share of pairs of a 1 and a 0 that scores put in order; ties count half."""
    above = scores[targets == 1][:, None] - scores[targets == 0][None, :]
    return float(((above > 0) + 0.5 * (above == 0)).mean())

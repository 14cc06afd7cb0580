"""From a patient's tiles to one row: the mean, or what a plug-in registers."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from tiaft_plugin.errors import TiaftError, reason
from tiaft_plugin.plugins import collect

Aggregate = Callable[[np.ndarray, np.ndarray], np.ndarray]


def mean_of_tiles(features: np.ndarray, slides: np.ndarray) -> np.ndarray:
    """Return the mean (D,) float64 of all tiles' `features` (n, D), of all `slides` together.

    A slide counts by its tiles, as in the paper (section 3.3): "the features of all tiles from a
    patient were averaged".
    """
    return features.mean(axis=0, dtype=np.float64)


def find_aggregator(name: str) -> Aggregate:
    """Return the aggregator of that name: "mean", or a plug-in's (`register_aggregators`).

    It gets features (n, D) float32 and slides (n,) text, and returns (E,) numbers. One with a
    target is named with it, "name=PATH". Raises TiaftError for a name that nobody registered, and
    for a target that is missing or too many.
    """
    name, given, place = name.partition("=")
    if name == "mean" and not given:
        return mean_of_tiles  # itself, not what registers it: tiles are then never all held
    known = collect("register_aggregators")
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(sorted(known))}"
        raise TiaftError(f"no aggregator is called {name!r}: {hint}")
    target = known[name].options["target"]
    if target and not place:
        raise TiaftError(f"--aggregate {name} needs to know which: --aggregate {name}={target}")
    if given and not target:
        raise TiaftError(f"--aggregate {name} takes nothing after it: ask for it as {name}")
    return known[name].thing(Path(place)) if target else known[name].thing


def shown_name(name: str) -> str:
    """Return an aggregator's name as results have it: where a target lies is not theirs."""
    name, given, place = name.partition("=")
    return f"{name}{given}{Path(place).resolve().name if given else ''}"


def check_models(aggregate: Aggregate, where: str, models: Sequence[Mapping[str, str]]) -> None:
    """Let an aggregator that has `check` refuse features of models that it is not for.

    `models` are those of the features at `where`, as far as they say. Raises TiaftError.
    """
    check = getattr(aggregate, "check", None)
    if check is None:
        return
    try:
        check(models)
    except Exception as error:
        raise TiaftError(f"{where}: {reason(error)}") from error


def represent(
    aggregate: Aggregate, patient: str, features: np.ndarray, slides: np.ndarray
) -> np.ndarray:
    """Return a patient's row (E,) float64. Raises TiaftError where the aggregator gives none."""
    try:
        row = np.asarray(aggregate(features, slides))
    except Exception as error:
        raise TiaftError(f"the aggregator fails on patient {patient}: {reason(error)}") from error
    if row.ndim != 1 or not len(row) or row.dtype.kind not in "fiub":
        raise TiaftError(
            f"the aggregator gives shape {row.shape} and type {row.dtype} for patient {patient}: "
            "one line of numbers is expected"
        )
    if not np.isfinite(row).all():
        raise TiaftError(f"the aggregator gives NaN or infinity for patient {patient}")
    return row.astype(np.float64)


def stack(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return patients' rows as (P, E). Raises TiaftError where their lengths differ."""
    lengths = {patient: len(row) for patient, row in rows.items()}
    first, length = next(iter(lengths.items()))
    for patient, other in lengths.items():
        if other != length:
            raise TiaftError(
                f"the aggregator gives {length} numbers for patient {first} and {other} for "
                f"{patient}: all rows must be of one length"
            )
    return np.stack(list(rows.values()))

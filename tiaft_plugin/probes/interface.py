"""What is passed on inside the probes' room, and what a probe is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.plugins import Registered

Kind = Literal["classes", "numbers", "binary"]
Unit = Literal["tile", "patient", "slide"]
Predict = Callable[[np.ndarray], np.ndarray]


class Probe(Protocol):
    """A way to predict something from features; `register_probes` gives it a name.

    `kind` is what is predicted: "classes" (one label a row), "numbers" (G numbers a row, such as
    the expression of G genes) or "binary" (0 or 1, a gene at a time). `unit` is what a row is.
    `settings` are recorded. The protocol around it (folds, baselines, statistics, report) is
    `tiaft_plugin.probes.run`'s, the same for every probe.

    Optional: `variants`, names of several scores that a fit gives ("binary" only); `title`;
    `defaults`, other defaults of the protocol's options, by name; `options`, click options of its
    own, and ``with_options(**given)``, which returns the probe that they ask for; `libraries`,
    names of installed packages that it trains with, whose versions are then recorded; and for what
    is neither a tile nor a row of numbers

    - ``read(features, labels, patients)`` returns feature tables and targets of what a user
      named, instead of `read_inputs`: paths by name, a path or None, and patients by slide. A
      table's `values` may then be `Rows`, which `fit` and the function it returns get a part of;
    - ``leave(folder, experiment, problem, seed)`` writes what else there is to keep into a new
      folder, whose files and folders then go beside the results.
    """

    kind: Kind
    unit: Unit
    settings: Mapping[str, Any]

    def fit(self, features: np.ndarray, targets: np.ndarray, groups: np.ndarray, seed: int) -> Any:
        """Learn from n training rows; return a function (m, D) -> scores of m other rows.

        `features` are (n, D) float32 as they were extracted: standardise inside. `groups` (n,) is
        text, rows of one group belong together (inner folds must respect it). `targets` and scores:

        - classes: (n,) text; scores (m, C), a column for each of ``np.unique(targets)``, the
          largest is the prediction;
        - numbers: (n, G) float64; predictions (m, G);
        - binary: (n,) int64, 0 and 1, both present; scores (m,), larger for 1; or (m, V), one
          column for each of `variants`.

        The same arguments give the same bytes; inputs are not written to; a row's scores do not
        depend on the other rows that are predicted with it. Scores of all folds are ranked
        together: where their level depends on the training rows, take it off.
        """
        ...


class Rows(Protocol):
    """N rows that are no numbers, such as bags of tiles; they go to other processes, by pickle.

    `rows` (n,) are indices or bool, as numpy takes them. `sha256` names all that is in them.
    """

    sha256: str

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray) -> "Rows": ...


def sound(registered: Registered) -> Registered:
    """Return a registered probe. Raises TiaftError where it does not say what it is."""
    probe = registered.thing
    for what, known in (("kind", get_args(Kind)), ("unit", get_args(Unit))):
        if getattr(probe, what, None) not in known:
            raise TiaftError(
                f"plug-in {registered.plugin}: the {what} of probe {registered.name} must be "
                f"{' or '.join(known)}; TIAFT_DISABLE_PLUGINS={registered.plugin} leaves it out"
            )
    if not isinstance(getattr(probe, "settings", None), Mapping):
        raise TiaftError(
            f"plug-in {registered.plugin}: probe {registered.name} has no settings: a dict is "
            f"needed, or an empty one; TIAFT_DISABLE_PLUGINS={registered.plugin} leaves it out"
        )
    return registered


@dataclass(frozen=True)
class FeatureTable:
    """One feature set: a row a tile or a patient.

    `keys` (N,) are unique texts (tile file or patient), sorted; `values` (N, D) float32; `groups`
    (N,) text or None where nothing is known of slides and patients; `labels` (N,) text where the
    file brings them; `colour` (N, B) float32 where it brings what colour alone says. `source`
    holds "format", "files", "sha256" and "models" (name and sha256 of each). `values` and `colour`
    may be `Rows` for a probe that reads its own. `unit` says what a row is where that is for the
    table to say, not the probe.
    """

    name: str
    keys: np.ndarray
    values: Any
    groups: np.ndarray | None = None
    labels: np.ndarray | None = None
    colour: Any = None
    source: dict[str, Any] = field(default_factory=dict)
    unit: Unit | None = None


@dataclass(frozen=True)
class Targets:
    """What is to be predicted. `keys` (N,) unique texts; `groups` (N,) text or None.

    `values`: "classes" (N,) text; "numbers" (N, G) float64; "binary" (N, G) float64 of 0 and 1;
    NaN where a number is missing. `names` are the G columns' (genes), or the C classes.
    """

    kind: Kind
    keys: np.ndarray
    values: np.ndarray
    names: tuple[str, ...]
    groups: np.ndarray | None = None
    source: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """Feature sets and targets of the very same N rows, sorted by key.

    `features` maps each set's name to (N, D) float32; `colour` is (N, B) float32 or None (either
    may be `Rows`);
    `groups` (N,) text: the patient or slide of each row, its own key where nothing is known
    (`grouped` is then False, unless a row is a patient). `values` and `names` as in Targets.
    `notes` are sentences for the report: what was left out, what is odd.
    """

    kind: Kind
    unit: Unit
    keys: np.ndarray
    groups: np.ndarray
    grouped: bool
    names: tuple[str, ...]
    values: np.ndarray
    features: dict[str, Any]
    colour: Any = None
    notes: tuple[str, ...] = ()
    sources: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a run of a probe ends in; `tiaft_plugin.probes.outputs` writes it.

    `summary` is what ``summary.json`` holds, `rows` are those of ``results.csv`` (dicts of one
    set of names), `predictions` the arrays of ``predictions.npz``.
    """

    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    predictions: dict[str, np.ndarray]

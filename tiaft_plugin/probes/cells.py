"""Scores looked up and put into words, for the report's tables and figures."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tiaft_plugin.probes.settings import COLOUR

MISSING = "–"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_WRITTEN = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "macro_f1": "macro F1",
    "r": "correlation r",
    "median_r": "median correlation r",
    "mean_r": "mean correlation r",
    "median_r_significant": "median correlation r of the selected genes",
    "share_significant": "share of genes that are significant",
}
Row = Mapping[str, Any]


def metric_key(metric: Any) -> str:
    """Return a metric's name in small letters without blanks: "AUROC" is auroc."""
    return str(metric).lower().replace(" ", "_")


def metric_name(metric: Any) -> str:
    """Return a metric's name as people write it."""
    key = metric_key(metric)
    return _WRITTEN.get(key, key.replace("_", " "))


def number(value: Any) -> float:
    """Return a cell as a number; NaN for what is missing or no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def is_yes(value: Any) -> bool:
    """Return whether a cell says yes, as Python, NumPy and CSV files write it."""
    return str(value).lower() in ("true", "1", "1.0")


def decimals(value: Any, sign: bool = False) -> str:
    """Return a metric with three decimals and a true minus; `sign` writes the plus, too."""
    cell = number(value)
    if not math.isfinite(cell):
        return MISSING
    text = f"{cell:+.3f}" if sign else f"{cell:.3f}"
    return f"0{text[2:]}" if float(text) == 0 and sign else text.replace("-", "−")


def interval(row: Row, sign: bool = False) -> str:
    """Return the 95 % interval of a score row."""
    low, high = (decimals(row.get(end), sign) for end in ("low", "high"))
    return MISSING if MISSING in (low, high) else f"{low}\xa0to\xa0{high}"


def reading(row: Row) -> str:
    """Return what a comparison's interval says: which set is higher, if it can be told."""
    low, high = number(row.get("low")), number(row.get("high"))
    if not (math.isfinite(low) and math.isfinite(high)):
        return MISSING
    if low > 0 or high < 0:
        return f"{row.get('b' if low > 0 else 'a')} higher"
    return "not told apart"


def with_interval(row: Row) -> str:
    """Return a value and its 95 % interval as one text."""
    value, between = decimals(row.get("value")), interval(row)
    return value if between == MISSING else f"{value}\xa0({between})"


def p_value(value: Any) -> str:
    """Return a p value with two digits, however small."""
    cell = number(value)
    if math.isnan(cell):
        return MISSING
    if cell >= 0.001 or cell <= 0:
        return f"{cell:.2g}"
    digits, _, power = f"{cell:.1e}".partition("e")
    return f"{digits}·10{str(int(power)).translate(_RAISED)}"


def count(value: Any) -> str:
    """Return a whole number with thousands apart."""
    cell = number(value)
    if not math.isfinite(cell):
        return MISSING
    return f"{cell:,.0f}" if cell == round(cell) else f"{cell:,.1f}"


def share(part: int, whole: int) -> str:
    """Return "139 of 171 (81 %)"."""
    return f"{part:,} of {whole:,} ({100 * part / whole:.0f} %)" if whole else f"{part:,} of 0"


def in_order(values: Iterable[Any]) -> list[str]:
    """Return the different values, in the order in which they first come."""
    return list(dict.fromkeys(str(value) for value in values))


@dataclass(frozen=True)
class Scores:
    """Score rows, looked up by feature set, target, metric (see `metric_key`) and variant."""

    rows: dict[tuple[str, str, str, str], Row]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Scores":
        """Take rows as ``summary["scores"]`` has them; of several for one thing, the first."""
        found: dict[tuple[str, str, str, str], Row] = {}
        for row in rows:
            name, target, metric, variant = (
                str("" if row.get(column) is None else row[column])
                for column in ("features", "target", "metric", "variant")
            )
            found.setdefault((name, target, metric_key(metric), variant), row)
        return cls(found)

    @property
    def sets(self) -> list[str]:
        """The feature sets."""
        return in_order(key[0] for key in self.rows)

    @property
    def asked(self) -> list[str]:
        """The feature sets but the baseline that knows colour only."""
        return [name for name in self.sets if name != COLOUR]

    @property
    def targets(self) -> list[str]:
        """The classes or genes; the overall score is none."""
        return in_order(key[1] for key in self.rows if key[1])

    def metrics(self, overall: bool) -> list[str]:
        """Return the metrics of the overall rows, or of those of a class or gene."""
        return in_order(key[2] for key in self.rows if overall != bool(key[1]))

    @property
    def variants(self) -> list[str]:
        """The variants; [""] where there are none."""
        return in_order(key[3] for key in self.rows)

    def get(self, name: str, target: str, metric: str, variant: str = "") -> Row:
        """Return the row of a feature set, or an empty one."""
        return self.rows.get((name, target, metric, variant), {})

    def prevalence(self, name: str, target: str, metric: str, variant: str = "") -> float:
        """Return what guessing reaches in AUPRC; over all classes, the mean of theirs."""
        if metric != "auprc":
            return math.nan
        if not target:
            own = [self.prevalence(name, each, metric, variant) for each in self.targets]
            known = [each for each in own if math.isfinite(each)]
            found = number(self.get(name, "", metric, variant).get("prevalence"))
            return sum(known) / len(known) if known and math.isnan(found) else found
        return number(self.get(name, target, metric, variant).get("prevalence"))

    def value(self, name: str, target: str, metric: str, variant: str = "") -> float:
        """Return the value; NaN where there is none."""
        return number(self.get(name, target, metric, variant).get("value"))


def gene_scores(rows: Iterable[Row]) -> Scores:
    """Return the genes of ``results.csv`` of a "numbers" probe as score rows of the metric r."""
    return Scores.of({**row, "metric": "r", "value": row.get("r")} for row in rows)

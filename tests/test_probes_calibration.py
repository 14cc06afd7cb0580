"""Planted genes are found; where there is nothing to find, printed p values say so."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tiaft_plugin.probes.interface import FeatureTable, Targets
from tiaft_plugin.probes.run import run_probe

SETS = 200
SIGNALS = ("no signal", "equal signal")
CASES = [f"{what}, {how}" for what in ("genes", "mutation by ridge") for how in SIGNALS]
CASES += ["tiles, no signal"]  # the other cases take longer: benchmarks/calibration.py has all


@pytest.fixture(scope="module")
def calibration():
    path = Path(__file__).parents[1] / "benchmarks" / "calibration.py"
    spec = importlib.util.spec_from_file_location("calibration", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found(calibration):
    # Of labels permuted, which take long, one case: the p value is the same for all kinds. And
    # what holds without the larger variance is asked where there is no signal.
    ways = calibration.WIDENED, calibration.UNWIDENED
    return {
        case: calibration.run(
            case,
            SETS,
            seed=1,
            ways=ways if "no signal" in case else ways[:1],
            permuted="mutation" in case,
        )
        for case in CASES
    }


def rates(calibration, found, way: str) -> dict[tuple[str, str], float]:
    """Return how often each p value rejects that is made in that way."""
    return {
        (case, what): calibration.rate(by_way[way])
        for case, (values, _) in found.items()
        for what, by_way in values.items()
        if way in by_way
    }


def above(rates: dict, bound: float) -> dict:
    return {key: rate for key, rate in rates.items() if rate > bound}


@pytest.mark.slow
def test_p_values_that_are_printed_hold(calibration, found):
    low, high = calibration.bounds(SETS)
    assert 0.01 < low < 0.05 < high < 0.1
    seen = rates(calibration, found, calibration.WIDENED)
    assert {what for _, what in seen} >= {
        "a gene's p",
        "any gene's q",
        "difference of a gene's r",
        "difference of accuracy",
        "difference of balanced accuracy",
        "difference of AUROC",
        "difference of AUPRC",
        "labels permuted",
    }
    assert above(seen, high) == {}
    exact = {case: rate for (case, what), rate in seen.items() if what == "labels permuted"}
    assert len(exact) == 1 and min(exact.values()) >= low


@pytest.mark.slow
def test_they_would_not_without_the_larger_variance(calibration, found):
    """What the test above asserts can fail: here `statistics.reuse` gave 1."""
    _, high = calibration.bounds(SETS)
    seen = rates(calibration, found, calibration.UNWIDENED)
    assert above(seen, high).keys() >= {
        ("genes, no signal", "difference of a gene's r"),
        ("mutation by ridge, no signal", "difference of AUROC"),
        ("tiles, no signal", "difference of AUROC"),
    }


@pytest.mark.slow
def test_those_of_the_paper_do_not(calibration, found):
    _, high = calibration.bounds(SETS)
    seen = rates(calibration, found, calibration.PAPER)
    assert ("genes, no signal", "a gene's p") in seen and len(seen) > 10
    assert above(seen, high) == seen


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if "no signal" in case])
def test_intervals_hold_the_mean_more_often_than_plain_ones(calibration, found, case):
    low, _ = calibration.bounds(SETS, 0.95, outside=0.001)  # of several intervals at once
    for what, by_way in found[case][1].items():
        ours, plain = (calibration.coverage(by_way[way]) for way in ("widened", "unwidened"))
        assert ours >= low and plain < ours, what


def test_planted_genes_are_found():
    rng, genes, planted = np.random.default_rng(0), 40, 8
    hidden = rng.normal(size=(60, planted))
    values = rng.normal(size=(60, genes))
    values[:, :planted] = 2 * hidden + 0.5 * values[:, :planted]
    keys = np.array([f"patient {number:02d}" for number in range(60)])
    names = tuple(f"planted {n}" if n < planted else f"null {n}" for n in range(genes))
    mixed = hidden @ rng.normal(size=(planted, 30))
    tables = [
        FeatureTable(name, keys, (mixed + noise * rng.normal(size=mixed.shape)).astype(np.float32))
        for name, noise in (("noisy", 4.0), ("clear", 0.5))
    ]
    targets = Targets("numbers", keys, values, names)
    options = {"repeats": 2, "permutations": 0, "draws": 100, "verbose": False}
    result = run_probe("expression", tables, targets, **options)
    found = {row["target"] for row in result.rows if row["features"] == "clear" and row["q"] < 0.05}
    wrong = {name for name in found if name.startswith("null")}
    assert len(found - wrong) == planted and len(wrong) <= 2
    assert result.summary["genes"]["better"] == {"clear": result.summary["genes"]["selected"]}

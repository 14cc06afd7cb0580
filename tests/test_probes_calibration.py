"""Where there is nothing to find, the p values that are printed reject as often as they say."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SETS = 200
CASES = (
    "correlation, correlated features",
    "two correlations, no signal",
    "two AUROCs, no signal",
    "two accuracies, no signal",
    "accuracy, no signal",
)


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
    return {case: calibration.run(case, SETS, seed=1) for case in CASES}


@pytest.mark.slow
def test_p_values_that_are_printed_hold(calibration, found):
    low, high = calibration.bounds(SETS)
    assert 0.01 < low < 0.05 < high < 0.1
    rates = {
        (case, key): calibration.rate(p)
        for case, (values, _) in found.items()
        for key, p in values.items()
        if key in calibration.PRINTED
    }
    assert len(rates) == len(CASES)
    assert {key: rate for key, rate in rates.items() if not low <= rate <= high} == {}


@pytest.mark.slow
def test_the_textbooks_and_the_papers_do_not(calibration, found):
    _, high = calibration.bounds(SETS)
    invalid = {
        "Pearson's test": "correlation, correlated features",
        "Pearson's test, repeats stacked": "correlation, correlated features",
        "paired bootstrap, percentiles": "two correlations, no signal",
        "paired t over repeats (the paper)": "two accuracies, no signal",
    }
    rates = {key: calibration.rate(found[case][0][key]) for key, case in invalid.items()}
    assert {key: rate for key, rate in rates.items() if rate <= high} == {}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[:4])
def test_intervals_hold_the_mean_and_plain_percentiles_do_not(calibration, found, case):
    scores = found[case][1]
    mean, (low, _) = scores[:, 0].mean(), calibration.bounds(SETS, 0.95)
    ours, plain = (np.mean((scores[:, i] <= mean) & (mean <= scores[:, i + 1])) for i in (1, 3))
    assert plain < low <= ours

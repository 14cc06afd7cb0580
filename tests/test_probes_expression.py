"""The expression probe: e1071's predictions, one kernel for all genes, odd genes and columns."""

import importlib.util
import time
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from tiaft_plugin import TiaftError
from tiaft_plugin.probes.expression import Expression
from tiaft_plugin.testing import check_probe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def benchmark(name: str):
    """Import a file of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data():
    """70 training and 20 other patients, 30 features, 6 genes."""
    rng = np.random.default_rng(0)
    tissue = rng.normal(size=(90, 4))
    features = tissue @ rng.normal(size=(4, 30)) + rng.normal(size=(90, 30))
    expression = 5 + np.tanh(tissue @ rng.normal(size=(4, 6))) + 0.3 * rng.normal(size=(90, 6))
    return features[:70].astype(np.float32), expression[:70], features[70:].astype(np.float32)


def predict(train, expression, others, **settings):
    groups = np.arange(len(train)).astype(str)
    return Expression(**settings).fit(train, expression, groups, seed=0)(others)


def test_it_keeps_a_probes_promises():
    check_probe(Expression())


def test_predictions_are_those_of_e1071():
    against = benchmark("against_e1071")
    if reason := against.missing():
        pytest.skip(reason)
    same, apart, found = against.compare(genes=9, patients=100, columns=60)
    assert same.min() > 0.999  # what the project promises
    assert apart.max() < 1e-6  # what it keeps
    assert found.max() > 0.5  # there was something to predict


def test_predictions_are_those_of_a_pipeline_per_gene():
    against = benchmark("expression")
    features, expression = against.made_up(4)
    rows = slice(0, 60), slice(60, 90)
    train, test, genes = features[rows[0], :300], features[rows[1], :300], expression[rows[0]]
    train[:, 5] = 1  # constant, and not constant in the rows that are predicted
    apart = np.abs(against.shared(train, genes, test) - against.pipelines(train, genes, test))
    assert apart.max() < 1e-5


def test_a_gene_is_predicted_alike_alone_and_among_others(data):
    train, expression, others = data
    together = predict(train, expression, others)
    alone = predict(train, expression[:, 2:3], others)
    np.testing.assert_allclose(alone[:, 0], together[:, 2], rtol=1e-12)


@pytest.mark.parametrize("value", [0.1, 0.0, 12345.678])
def test_a_gene_constant_in_training_is_predicted_as_that_constant(data, value):
    train, expression, others = data
    expression = expression.copy()
    expression[:, 1] = value
    assert (predict(train, expression, others)[:, 1] == value).all()


def test_a_constant_column_changes_nothing_and_is_not_counted(data):
    train, expression, others = data
    expected = predict(train, expression, others)
    more = np.full((len(train), 1), 0.1, np.float32)
    other = np.linspace(-9, 9, len(others), dtype=np.float32)[:, None]
    found = predict(np.hstack([train, more]), expression, np.hstack([others, other]))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_scale_and_shift_change_nothing(data):
    train, expression, others = data
    expected = predict(train, expression, others)
    found = predict(train * 1000 + 3, expression * 10 - 2, others * 1000 + 3)
    np.testing.assert_allclose((found + 2) / 10, expected, atol=1e-4)


def test_settings_are_used_and_recorded(data):
    assert Expression().settings["cost"] == 1
    assert Expression(cost=3).settings["cost"] == 3
    assert not np.allclose(predict(*data), predict(*data, cost=3))
    assert not np.allclose(predict(*data), predict(*data, epsilon=0.5))


def test_without_any_varying_column_all_rows_get_the_same(data):
    train, expression, others = data
    found = predict(np.ones_like(train), expression, others)
    assert np.isfinite(found).all()
    assert (found == found[0]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(data, value):
    train, expression, others = data
    broken = train.copy()
    broken[3, 3] = value
    with pytest.raises(TiaftError, match="the features hold NaN or infinity: leave those rows out"):
        predict(broken, expression, others)
    broken = expression.copy()
    broken[3, 3] = value
    with pytest.raises(TiaftError, match="the expression values hold NaN or infinity"):
        predict(train, broken, others)


def test_one_row_is_too_few(data):
    train, expression, others = data
    with pytest.raises(TiaftError, match="1 training rows: regression needs at least 2"):
        predict(train[:1], expression[:1], others)


def test_one_kernel_is_much_faster_than_a_pipeline_per_gene():
    against = benchmark("expression")
    features, expression = against.made_up(6)

    def seconds(way):
        started = time.process_time()
        with threadpool_limits(1):
            way(features[:275], expression[:275], features[275:])
        return time.process_time() - started

    seconds(against.shared)  # imports are not counted
    # 12 times is promised for many genes; here are few, and machines are shared.
    assert seconds(against.pipelines) > 3 * seconds(against.shared)

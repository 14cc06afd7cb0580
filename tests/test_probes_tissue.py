"""The tissue probe: a linear SVC's scores, for two classes, too, and for odd columns."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from tiaft_plugin import TiaftError
from tiaft_plugin.probes.tissue import Tissue
from tiaft_plugin.testing import check_probe

TISSUES = np.array(["ADI", "STR", "TUM"])


def tiles(rows, columns=20, classes=3, seed=0):
    """Return features (rows, columns) float32 and tissues, some of them hard to tell apart."""
    rng = np.random.default_rng(seed)
    number = np.arange(rows) % classes
    centres = np.random.default_rng(1).normal(size=(classes, columns))
    features = 0.6 * centres[number] + rng.normal(size=(rows, columns))
    return (5 + features).astype(np.float32), TISSUES[number]


def predict(train, targets, others, seed=0, **settings):
    groups = np.arange(len(train)).astype(str)
    return Tissue(**settings).fit(train, targets, groups, seed)(others)


def test_it_keeps_a_probes_promises():
    check_probe(Tissue())


@pytest.mark.parametrize("columns", [20, 200])  # fewer than rows, and more
def test_predictions_are_those_of_a_linear_svc(columns):
    train, targets = tiles(120, columns)
    others, expected = tiles(300, columns, seed=2)
    scores = predict(train, targets, others)
    scaler = StandardScaler().fit(train.astype(np.float64))
    exact = LinearSVC(dual=False, tol=1e-8, max_iter=100_000).fit(
        scaler.transform(train.astype(np.float64)), targets
    )
    exactly = exact.decision_function(scaler.transform(others.astype(np.float64)))
    assert np.corrcoef(scores.ravel(), exactly.ravel())[0, 1] > 0.999
    found, same = TISSUES[scores.argmax(axis=1)], TISSUES[exactly.argmax(axis=1)]
    assert (found == same).mean() > 0.98
    assert abs((found == expected).mean() - (same == expected).mean()) < 0.01


def test_two_classes_have_two_columns_in_the_order_of_their_names():
    train, targets = tiles(60, classes=2)
    scores = predict(train, targets[::-1].copy(), train)
    assert scores.shape == (60, 2)
    assert (scores[:, 0] == -scores[:, 1]).all()
    assert (TISSUES[scores.argmax(axis=1)] == targets[::-1]).mean() > 0.9


def test_a_column_constant_in_training_changes_nothing():
    train, targets = tiles(60)
    others, _ = tiles(30, seed=2)
    expected = predict(train, targets, others)
    more = np.full((60, 1), 0.1, np.float32)
    other = np.linspace(-9, 9, 30, dtype=np.float32)[:, None]
    found = predict(np.hstack([more, train]), targets, np.hstack([other, others]))
    assert found.tobytes() == expected.tobytes()


def test_a_seed_changes_next_to_nothing():
    train, targets = tiles(60, 100)
    others, _ = tiles(300, 100, seed=2)
    one, other = (predict(train, targets, others, seed=seed) for seed in (0, 1))
    assert (one.argmax(axis=1) == other.argmax(axis=1)).mean() > 0.98


def test_giving_up_is_not_silent():
    train, targets = tiles(60, 100)
    with pytest.warns(ConvergenceWarning, match="increase the number of iterations"):
        predict(train, targets, train, max_iter=1)


@pytest.mark.parametrize("rows", [150, 30])
def test_it_converges_where_classes_overlap_and_columns_are_alike(rows):
    rng = np.random.default_rng(0)
    train = (rng.normal(size=(rows, 3)) @ rng.normal(size=(3, 40))).astype(np.float32)
    train[:, 1] = train[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(train, TISSUES[rng.integers(3, size=rows)], train)


def test_without_any_varying_column_the_commonest_class_wins():
    targets = np.array(["ADI"] * 5 + ["TUM"] * 10)
    scores = predict(np.ones((15, 4), np.float32), targets, np.ones((2, 4), np.float32))
    assert (scores.argmax(axis=1) == 1).all()


def test_settings_are_used_and_recorded():
    train, targets = tiles(60)
    assert Tissue(cost=0.01).settings["cost"] == 0.01
    assert not np.allclose(
        predict(train, targets, train), predict(train, targets, train, cost=0.01)
    )


def test_what_cannot_be_learnt_is_refused():
    train, targets = tiles(30)
    with pytest.raises(TiaftError, match="all 30 training rows are 'ADI': two classes are needed"):
        predict(train, np.array(["ADI"] * 30), train)
    train[4, 2] = np.nan
    with pytest.raises(TiaftError, match="the features hold NaN or infinity: leave those rows out"):
        predict(train, targets, train)

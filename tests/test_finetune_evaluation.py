"""What predictions, tile by tile, are counted into: against scikit-learn, and by hand."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from tiaft_plugin.finetune.evaluation import BINS, Evaluation

CLASSES = ("A", "B", "C", "D")


def saying(predicted, classes=CLASSES, sure=0.7):
    """Return probabilities whose highest is that of each predicted class."""
    others = (1 - sure) / (len(classes) - 1)
    probabilities = np.full((len(predicted), len(classes)), others, np.float32)
    probabilities[np.arange(len(predicted)), predicted] = sure
    return probabilities


def evaluated(true, predicted, classes=CLASSES, sure=0.7):
    probabilities = saying(predicted, classes, sure)
    losses = -np.log(probabilities[np.arange(len(true)), true].clip(1e-6))
    return Evaluation(classes, np.array(true), probabilities, losses)


def labelled(truth, probabilities, classes=("a", "b", "c")):
    truth, probabilities = np.array(truth), np.array(probabilities, np.float32)
    losses = -np.log(np.where(truth, probabilities, 1 - probabilities)).mean(axis=1)
    return Evaluation(classes, truth, probabilities, losses, multilabel=True)


PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@settings(max_examples=40)
@given(PAIRS)
def test_evaluation_agrees_with_scikit_learn(pairs):
    true, predicted = zip(*pairs, strict=True)
    found = evaluated(true, predicted)
    assert found.accuracy == pytest.approx(metrics.accuracy_score(true, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of predicted classes that are absent
        expected = metrics.balanced_accuracy_score(true, predicted)
    assert found.balanced_accuracy == pytest.approx(expected)
    there = sorted(set(true))
    f1 = metrics.f1_score(true, predicted, labels=there, average="macro", zero_division=0)
    assert found.macro_f1 == pytest.approx(f1)
    precision = metrics.precision_score(true, predicted, labels=range(4), average=None,
                                        zero_division=np.nan)  # fmt: skip
    assert found.precisions == pytest.approx(
        {name: p for name, p in zip(CLASSES, precision, strict=True) if p == p}
    )
    matrix = metrics.confusion_matrix(true, predicted, labels=range(4))
    assert np.array_equal(found.confusion, matrix)
    assert found.loss == pytest.approx(
        metrics.log_loss(true, found.probabilities, labels=range(4)), abs=1e-6
    )
    assert found.baseline({"A": 1, "C": 5}) == pytest.approx(true.count(2) / len(true))


@settings(max_examples=40)
@given(
    st.lists(
        st.lists(st.tuples(st.booleans(), st.integers(1, 99)), min_size=3, max_size=3),
        min_size=1,
        max_size=30,
    )
)
def test_labels_agree_with_scikit_learn(cells):
    truth = np.array([[has for has, _ in row] for row in cells], int)
    probabilities = np.array([[p / 100 for _, p in row] for row in cells], np.float32)
    found = labelled(truth, probabilities)
    said = probabilities > 0.5
    assert found.accuracy == pytest.approx((truth == said).mean())
    told = [i for i in range(3) if 0 < truth[:, i].sum() < len(truth)]
    names = [found.classes[i] for i in told]
    assert found.auroc == pytest.approx(
        {
            n: metrics.roc_auc_score(truth[:, i], probabilities[:, i])
            for n, i in zip(names, told, strict=True)
        }
    )
    assert found.auprc == pytest.approx(
        {
            n: metrics.average_precision_score(truth[:, i], probabilities[:, i])
            for n, i in zip(names, told, strict=True)
        }
    )
    balanced = [metrics.balanced_accuracy_score(truth[:, i], said[:, i]) for i in told]
    if told:
        assert found.balanced_accuracy == pytest.approx(np.mean(balanced))
    assert ("balanced_accuracy" in found.metrics({})) == bool(told)
    assert np.isfinite(list(found.metrics({}).values())).all()


def test_classes_without_tiles_have_no_measure_and_do_not_lower_the_means():
    found = evaluated([0, 0, 1, 1], [0, 2, 1, 1])
    assert found.absent == ["C", "D"]
    assert found.recalls == {"A": 0.5, "B": 1.0}
    assert found.balanced_accuracy == 0.75
    assert found.f1 == {"A": pytest.approx(2 / 3), "B": 1.0}
    assert found.macro_f1 == pytest.approx(5 / 6)
    assert found.precisions == {"A": 1.0, "B": 1.0, "C": 0.0}
    assert found.counts == {"A": 2, "B": 2, "C": 0, "D": 0}


def test_a_network_that_says_70_percent_and_is_right_7_times_in_10_is_calibrated():
    found = evaluated([0] * 10, [0] * 7 + [1] * 3, sure=0.7).calibration
    assert found.counts.sum() == 10
    assert found.error == pytest.approx(0, abs=1e-6)
    sure = evaluated([0] * 10, [0] * 7 + [1] * 3, sure=1.0).calibration
    assert sure.error == pytest.approx(0.3)
    assert sure.counts.tolist() == [0] * (BINS - 1) + [10]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=50))
def test_calibration_is_the_mean_distance_of_bins(cells):
    claims = np.array([p for p, _ in cells], np.float64)
    right = np.array([r for _, r in cells])
    truth, both = np.stack([right, right], axis=1).astype(int), np.stack([claims] * 2, axis=1)
    found = Evaluation(("a", "b"), truth, both.astype(np.float32), np.zeros(len(cells)), True)
    distance, edges = 0.0, np.arange(BINS) / BINS
    for low in edges:
        inside = (claims > low) & (claims <= low + 1 / BINS) | (claims == 0) & (low == 0)
        if inside.any():
            distance += abs(claims[inside].mean() - right[inside].mean()) * inside.mean()
    assert found.calibration.error == pytest.approx(distance, abs=1e-6)


def test_of_labels_the_best_blind_answer_is_the_baseline():
    found = labelled([[1, 0, 1], [1, 0, 0], [1, 0, 0]], np.full((3, 3), 0.4))
    assert found.baseline({}) == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert found.auroc == {"c": 0.5}
    assert found.prevalence == pytest.approx({"a": 1, "b": 0, "c": 1 / 3})


def test_the_table_keeps_long_names_apart():
    found = evaluated([0] * 4, [0, 0, 1, 0], ("adenocarcinoma_low", "adenocarcinoma_high"))
    lines = found.table().splitlines()
    assert lines[0].split() == ["true", "class", "[0]", "[1]", "right"]
    assert lines[1].split() == ["[0]", "adenocarcinoma_low", "3", "1", "0.750"]
    assert lines[2].split() == ["[1]", "adenocarcinoma_high", "0", "0", "-"]


def test_the_table_of_labels_has_a_line_each():
    found = labelled([[1, 0, 1], [0, 0, 0]], [[0.9, 0.2, 0.1], [0.3, 0.2, 0.6]])
    assert [line.split() for line in found.table().splitlines()] == [
        ["label", "tiles", "prevalence", "AUROC", "AUPRC"],
        ["a", "1", "0.500", "1.000", "1.000"],
        ["b", "0", "0.000", "-", "-"],
        ["c", "1", "0.500", "0.000", "0.500"],
    ]

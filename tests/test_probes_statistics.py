"""Metrics as scikit-learn's, weights as repeated rows; intervals and p values by their formulas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn

from tiaft_plugin.probes import statistics
from tiaft_plugin.probes.metrics import binary_metrics, class_metrics, confusion, correlations


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    count=st.integers(2, 40),
    levels=st.integers(1, 6),
    kind=st.sampled_from(["counts", "fractions"]),
)
def test_ranking_is_scikit_learns_with_ties_and_weights(seed, count, levels, kind):
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=count) / 3.0
    labels = rng.permutation(np.arange(count) % 2)
    weights = rng.integers(0, 3, (4, count)).astype(float)
    if kind == "fractions":
        weights = weights * rng.random((4, count))
    found = binary_metrics(scores, labels, weights)
    for draw, weight in enumerate(weights):
        pos, neg = weight @ labels, weight @ (1 - labels)
        if pos > 0 and neg > 0:
            auroc = sklearn.roc_auc_score(labels, scores, sample_weight=weight)
            assert found["AUROC", ""][draw] == pytest.approx(auroc)
        else:
            assert np.isnan(found["AUROC", ""][draw])
        if pos > 0:
            auprc = sklearn.average_precision_score(labels, scores, sample_weight=weight)
            assert found["AUPRC", ""][draw] == pytest.approx(auprc)
            assert found["prevalence", ""][draw] == pytest.approx(pos / (pos + neg))


def test_class_metrics_are_scikit_learns(rng):
    scores, labels = rng.integers(0, 5, (200, 3)) / 4, rng.integers(0, 3, 200)
    weights = rng.integers(0, 3, (3, 200))
    found, predicted = class_metrics(scores, labels, "abc", weights), scores.argmax(1)
    for draw, weight in enumerate(weights):
        given = {"y_true": labels, "y_pred": predicted, "sample_weight": weight}
        recall = sklearn.recall_score(**given, average=None)
        expected = {
            ("accuracy", ""): sklearn.accuracy_score(**given),
            ("balanced accuracy", ""): sklearn.balanced_accuracy_score(**given),
            ("macro F1", ""): sklearn.f1_score(**given, average="macro"),
            ("accuracy", "c"): recall[2],
            ("F1", "b"): sklearn.f1_score(**given, average=None)[1],
            ("AUROC", "a"): sklearn.roc_auc_score(labels == 0, scores[:, 0], sample_weight=weight),
        }
        assert {key: found[key][draw] for key in expected} == pytest.approx(expected)
    assert (confusion(scores, labels) == sklearn.confusion_matrix(labels, predicted)).all()


def test_one_row_of_ones_is_no_weights(rng):
    scores, labels = rng.random((50, 3)), rng.integers(0, 3, 50)
    alone, drawn = (class_metrics(scores, labels, "abc", w) for w in (None, np.ones((1, 50), int)))
    assert {key: value[0] for key, value in drawn.items()} == alone


def test_blocks_of_draws_make_no_difference(rng, monkeypatch):
    scores, labels, weights = (
        rng.random((30, 3)),
        rng.integers(0, 3, 30),
        rng.integers(0, 3, (9, 30)),
    )
    x, y = rng.random((2, 30, 4))
    whole = class_metrics(scores, labels, "abc", weights), correlations(x, y, weights)
    monkeypatch.setattr("tiaft_plugin.probes.metrics.BLOCK", 100)
    parts = class_metrics(scores, labels, "abc", weights), correlations(x, y, weights)
    assert all(np.array_equal(whole[0][key], parts[0][key]) for key in whole[0])
    assert parts[1] == pytest.approx(whole[1])


def test_a_class_without_rows_is_left_out_of_the_means(rng):
    labels = np.array([0, 0, 1, 1, 2])
    scores = np.array([[3, 0, 0], [3, 1, 0], [0, 3, 0], [3, 0, 0], [0, 0, 3.0]])
    weights = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    found = class_metrics(scores, labels, "abc", weights)
    assert np.isnan(found["accuracy", "c"]).tolist() == [False, True]
    assert found["balanced accuracy", ""] == pytest.approx([(1 + 0.5 + 1) / 3, (1 + 0.5) / 2])
    for metric, mean in (("AUROC", "AUROC"), ("AUPRC", "AUPRC"), ("F1", "macro F1")):
        assert np.isnan(found[metric, "c"][1])
        assert found[mean, ""][1] == pytest.approx((found[metric, "a"] + found[metric, "b"])[1] / 2)
    alone = class_metrics(scores[:2], labels[:2], "abc")
    assert np.isnan(alone["AUROC", ""]) and alone["accuracy", ""] == 1


def test_constant_predictions_say_nothing(rng):
    labels, y = np.array([0, 1, 0, 0]), rng.random((4, 1))
    found = binary_metrics(np.full(4, 0.3), labels)
    assert found == {("AUROC", ""): 0.5, ("AUPRC", ""): 0.25, ("prevalence", ""): 0.25}
    assert correlations(np.full((4, 1), 0.1), y) == [0]
    assert np.isnan(correlations(y, np.full((4, 1), 0.1)))
    # A draw of one row only, and one of three equal predictions, though not all are equal.
    x, weights = np.array([[0.1], [0.1], [0.1], [0.7]]), np.array([[0, 4, 0, 0], [1, 2, 1, 0]])
    drawn = correlations(x, y, weights)[:, 0]
    assert np.isnan(drawn[0]) and drawn[1] == 0


def test_correlations_are_those_of_repeated_rows_and_leave_missing_values_out(rng):
    x, y = rng.random((2, 20, 3)) + 1e6
    y[4, 1] = np.nan
    weights = rng.integers(0, 3, (5, 20))
    drawn = correlations(x, y, weights)
    for draw, weight in enumerate(weights):
        for gene in range(3):
            rows = np.repeat(np.arange(20), weight)
            rows = rows[np.isfinite(y[rows, gene])]
            assert drawn[draw, gene] == pytest.approx(
                stats.pearsonr(x[rows, gene], y[rows, gene])[0]
            )
    assert correlations(x, y) == pytest.approx(correlations(x, y, np.ones((1, 20)))[0])


def test_groups_are_drawn_whole(rng):
    groups = np.array(list("aabcccd"))
    weights = statistics.cluster_weights(groups, 500, 3)
    of_group = weights[:, [0, 2, 3, 6]]
    assert (weights == of_group[:, [0, 0, 1, 2, 2, 2, 3]]).all()
    assert (of_group.sum(1) == 4).all() and of_group.mean(0) == pytest.approx(1, abs=0.15)
    assert (weights == statistics.cluster_weights(groups, 500, 3)).all()
    assert (weights != statistics.cluster_weights(groups, 500, 4)).any()


def test_groups_are_permuted_whole():
    groups = np.array(list("ababcc"))
    for order in statistics.group_permutations(groups, 20, 1):
        moved = groups[order]
        assert sorted(order) == list(range(6))
        assert moved[0] == moved[2] and moved[1] == moved[3] and moved[4] == moved[5]
    uneven = np.array(list("aaabbc"))
    found = statistics.group_permutations(uneven, 200, 1)
    assert (np.sort(found, 1) == np.arange(6)).all()
    line = "".join(uneven[found[0]])
    assert all(line.count(name * size) == 1 for name, size in (("a", 3), ("b", 2)))
    assert len(np.unique(found, axis=0)) == 6  # 3 groups


def test_the_interval_is_wider_for_few_groups_and_keeps_to_the_metrics_range(rng):
    draws = np.column_stack([1 - rng.exponential(0.1, 4000), np.full(4000, np.nan)]).clip(0, 1)
    (low_5, gone), (high_5, _) = statistics.interval(draws, 5, 5)
    (low_500, _), (high_500, _) = statistics.interval(draws, 500, 5)
    assert low_5 < low_500 < np.quantile(draws[:, 0], 0.025)
    assert np.quantile(draws[:, 0], 0.975) < high_500 < high_5 <= 1 and np.isnan(gone)
    # Many groups: the tails of ±1.96 × 1.5 standard deviations.
    assert statistics.interval(rng.standard_normal(400_000), 10**6, 5) == pytest.approx(
        (-2.94, 2.94), abs=0.05
    )
    assert np.isnan(statistics.interval(draws[:, 0], 1, 5)).all()


def test_nadeau_and_bengio_by_hand():
    found = statistics.corrected_t(np.array([1.0, 2.0, 3.0, 6.0, np.nan]), 20, 80)
    error = np.sqrt(14 / 3 * (1 / 4 + 20 / 80))
    assert found.value == 3
    assert found.p == pytest.approx(2 * stats.t.sf(3 / error, 3))
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 3) * error)


def test_the_papers_p_goes_to_0_as_repeats_grow_and_the_corrected_one_does_not(rng):
    fold = 0.01 + 0.05 * rng.standard_normal(10_000)
    paper = [statistics.paper_t(fold[:n]).p for n in (100, 1000, 10_000)]
    corrected = [statistics.corrected_t(fold[:n], 1, 4).p for n in (100, 1000, 10_000)]
    assert paper[2] < 1e-50 and all(p > 0.5 for p in corrected)
    assert paper[1] == pytest.approx(stats.ttest_1samp(fold[:1000], 0).pvalue)


@pytest.mark.parametrize("test", [lambda d: statistics.corrected_t(d, 1, 4), statistics.paper_t])
def test_differences_that_do_not_vary(test):
    assert test(np.zeros(9)).p == 1
    assert test(np.full(9, 0.1)) == pytest.approx((0.1, 0.1, 0.1, 0))
    assert np.isnan(test(np.array([0.1])).p) and np.isnan(test(np.array([])).p)


def test_a_paired_bootstrap_is_widened_and_knows_how_few_groups_there_are(rng):
    draws = 0.1 + 0.04 * rng.standard_normal((20_000, 2))
    draws[:50, 1] = np.nan
    found = statistics.paired_bootstrap(np.array([0.1, 0.0]), draws, 12, 5)
    error = draws[:, 0].std(ddof=1) * np.sqrt((1 + 5 / 4) * 12 / 11)
    assert found.p[0] == pytest.approx(2 * stats.t.sf(0.1 / error, 11))
    assert found.low[0] == pytest.approx(0.1 - stats.t.ppf(0.975, 11) * error)
    assert found.p[1] == 1
    assert statistics.paired_bootstrap(0.0, np.zeros(9), 12, 5).p == 1
    assert np.isnan(statistics.paired_bootstrap(0.1, draws[:, 0], 1, 5).p)


def test_variance_is_multiplied_as_nadeau_and_bengio_do():
    assert statistics.reuse(5) == pytest.approx((1 / 5 + 20 / 80) / (1 / 5))
    assert statistics.reuse(2) == 3 and 2 < statistics.reuse(1000) < 2.01


def test_training_means_are_those_of_the_training_folds(rng):
    observed, folds = rng.random((12, 2)), np.stack([np.arange(12) % 3, np.arange(12) // 4])
    observed[5, 0] = np.nan
    expected = [
        [np.nanmean(observed[repeat != repeat[row]], axis=0) for row in range(12)]
        for repeat in folds
    ]
    assert statistics.training_means(observed, folds) == pytest.approx(np.mean(expected, axis=0))


def test_a_model_that_knows_only_the_mean_predicts_the_wrong_way_round_until_centred(rng):
    observed = rng.standard_normal((40, 1))
    folds = np.stack([rng.permutation(np.arange(40) % 5) for _ in range(30)])
    means = statistics.training_means(observed, folds)
    assert correlations(means, observed) < -0.8
    assert correlations(means - statistics.training_means(observed, folds), observed) == 0


def test_permutation_finds_what_is_there_and_nothing_else(rng):
    truth = rng.standard_normal((60, 1))
    observed = np.hstack([truth, truth, truth, np.ones((60, 1)), truth])
    predicted = observed + np.hstack([truth, -3 * truth, 50 * rng.random((60, 1)), truth, truth])
    predicted[:, 4] = 0
    observed[3, 0] = np.nan
    p = statistics.permutation_p(predicted, observed, np.arange(60), 5, 999, 0)
    assert p[0] == 1 / 1000 and p[1] == 1 and 0.05 < p[2] < 1  # one-sided
    assert np.isnan(p[3]) and p[4] == 1
    assert np.array_equal(
        p, statistics.permutation_p(predicted, observed, np.arange(60), 5, 999, 0), equal_nan=True
    )


def test_permutation_is_as_wide_as_the_normal_approximation(rng):
    x, y = rng.standard_normal((2, 400, 1))
    y = y - y.mean() - (x - x.mean()) * ((x - x.mean()) * y).mean() / x.var()  # uncorrelated
    predicted = x + 0.15 * y  # r about 0.15: z of 3, but 2 once widened by 1.5
    r = correlations(predicted, y)[0]
    p = statistics.permutation_p(predicted, y, np.arange(400), 5, 4999, 2)[0]
    assert p == pytest.approx(stats.norm.sf(r * np.sqrt(399) / 1.5), rel=0.25)


def test_permutation_moves_groups_not_rows(rng):
    """Ten hospitals of six: the same number for all of a hospital is ten observations, not 60."""
    groups = np.repeat(np.arange(10), 6)
    x = rng.standard_normal((10, 1))
    y = x + 1.2 * rng.standard_normal((10, 1))
    by_group = statistics.permutation_p(x[groups], y[groups], groups, 5, 999, 0)
    by_row = statistics.permutation_p(x[groups], y[groups], np.arange(60), 5, 999, 0)
    assert by_row < 0.02 < by_group


def test_p_of_permuted_labels_counts_ties_and_itself():
    null = np.array([[0.1, 0.5], [0.3, 0.5], [0.2, 0.5]])
    assert statistics.permuted_p(np.array([0.25, 0.5]), null).tolist() == [0.5, 1]
    assert statistics.permuted_p(0.9, null[:, 0]) == 0.25


def test_benjamini_hochberg_leaves_missing_p_out():
    q = statistics.benjamini_hochberg(np.array([0.01, np.nan, 0.04, 0.03]))
    assert q[[0, 2, 3]] == pytest.approx([0.03, 0.04, 0.04]) and np.isnan(q[1])
    assert np.isnan(statistics.benjamini_hochberg(np.array([np.nan]))).all()

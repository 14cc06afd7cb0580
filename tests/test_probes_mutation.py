"""The mutation probe: penalties, solutions and choice as glmnet's, whole groups in inner folds."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.probes import lasso
from tiaft_plugin.probes.mutation import Mutation, inner_folds

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def made_up(n=120, width=40, seed=0, strength=2.0):
    """Features (n, D) float32, targets (n,) driven by the first two, a group a row."""
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=(n, 6)) @ rng.normal(size=(6, width))).astype(np.float32)
    features += rng.normal(size=features.shape).astype(np.float32)
    drive = strength * features[:, :2].sum(axis=1) / features[:, :2].sum(axis=1).std()
    targets = (rng.random(n) < 1 / (1 + np.exp(-drive))).astype(np.int64)
    return features, targets, np.array([f"p{row:03d}" for row in range(n)])


@pytest.fixture(scope="module")
def against_glmnet():
    """The benchmark that asks R; tests that need it skip where glmnet is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import against_glmnet

    if reason := against_glmnet.missing():
        pytest.skip(reason)
    return against_glmnet


def standardised(features):
    """Features as the solver sees them; constant columns are 0."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    scales = centred.std(axis=0)
    return centred / np.where(scales > 0, scales, 1), scales


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(10, 60),
    width=st.integers(1, 80),
    share=st.floats(0.1, 0.9),
    unit=st.sampled_from([1e-4, 1.0, 1e4]),
)
def test_solutions_are_optimal(seed, n, width, share, unit):
    rng = np.random.default_rng(seed)
    features = unit * (rng.normal(size=(n, 3)) @ rng.normal(size=(3, width)))
    features += unit * rng.normal(size=(n, width))
    targets = (rng.random(n) < share).astype(np.int64)
    targets[:2] = 0, 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lasso, "TOLERANCE", 1e-12)
        path = lasso.fit_path(features.astype(np.float32), targets)
    x, scales = standardised(features.astype(np.float32))
    for penalty, intercept, beta in zip(
        path.lambdas, path.intercepts, path.coefficients, strict=True
    ):
        link = features.astype(np.float32).astype(np.float64) @ beta + intercept
        missed = targets - 1 / (1 + np.exp(-link))
        pull, size = x.T @ missed / n, beta * scales
        small = 0.01 * penalty + 1e-5
        assert abs(missed.mean()) < small
        assert (np.abs(pull) < penalty + small).all()
        on = size != 0
        assert np.allclose(pull[on], penalty * np.sign(size[on]), rtol=0, atol=small)


def test_path_starts_empty_and_has_glmnets_grid():
    features, targets, _ = made_up(n=60, width=80)
    path = lasso.fit_path(features, targets)
    x, _ = standardised(features)
    assert path.lambdas[0] == pytest.approx(np.abs(x.T @ (targets - targets.mean())).max() / 60)
    assert not path.coefficients[0].any() and path.coefficients[1].any()
    assert path.intercepts[0] == pytest.approx(np.log(targets.mean() / (1 - targets.mean())))
    steps = path.lambdas[1:] / path.lambdas[:-1]
    assert np.allclose(steps, 0.01 ** (1 / 99))  # fewer rows than columns
    tall = lasso.fit_path(features[:, :10], targets)
    assert np.allclose(tall.lambdas[1:] / tall.lambdas[:-1], 1e-4 ** (1 / 99))
    assert len(tall.lambdas) < 100  # it ends where nothing more is explained
    assert np.diff(tall.explained)[-1] < 1e-5 <= np.diff(tall.explained)[3:-1].min()


def test_path_ends_where_all_is_explained():
    features, targets, _ = made_up(n=60, width=80)
    features[:, 0] = targets + 0.01 * features[:, 1]
    path = lasso.fit_path(features[:, :1], targets)
    assert path.explained[-1] > 0.999 >= path.explained[-2]
    assert np.isfinite(path.coefficients).all()


def test_path_ends_where_passes_are_spent(monkeypatch):
    features, targets, _ = made_up()
    whole = lasso.fit_path(features, targets)
    monkeypatch.setattr(lasso, "MOST_PASSES", 50)
    path = lasso.fit_path(features, targets)
    reached = len(path.lambdas)
    assert 1 < reached < len(whole.lambdas)
    assert (path.coefficients == whole.coefficients[:reached]).all()


def test_constant_columns_change_nothing():
    features, targets, groups = made_up()
    more = np.insert(features, [0, 7, 40], [0.0, 0.1, 5.0], axis=1)
    kept = ~np.isin(np.arange(43), [0, 8, 42])
    path, wider = lasso.fit_path(features, targets), lasso.fit_path(more, targets)
    assert (wider.coefficients[:, kept] == path.coefficients).all()
    assert not wider.coefficients[:, ~kept].any()
    scores = Mutation().fit(np.zeros_like(features), targets, groups, 0)(features)
    assert (scores == 0).all()  # nothing but constant columns: an empty model


def test_link_is_linear_between_penalties_and_holds_beyond():
    features, targets, _ = made_up()
    path = lasso.fit_path(features, targets)
    one, two = path.link(features, path.lambdas[[3, 4]]).T
    assert np.allclose(one, features @ path.coefficients[3] + path.intercepts[3])
    between = path.link(features, np.array([path.lambdas[3:5].mean()]))[:, 0]
    assert np.allclose(between, (one + two) / 2)
    ends = path.link(features, np.array([path.lambdas[0] * 2, path.lambdas[-1] / 2]))
    assert np.allclose(ends, path.link(features, path.lambdas[[0, -1]]))


@pytest.mark.parametrize(("seed", "sizes"), [(0, 1), (1, 3), (2, 7)])
def test_inner_folds_keep_groups_whole(seed, sizes):
    rng = np.random.default_rng(seed)
    groups = np.array([f"p{number}" for number in rng.integers(0, 100 // sizes, size=100)])
    folds = inner_folds(rng.integers(0, 2, size=100), groups, seed)
    assert sorted(set(folds)) == list(range(10))
    for group in set(groups):
        assert len(set(folds[groups == group])) == 1


def test_inner_folds_of_single_patients_are_even_and_random():
    _, targets, groups = made_up(n=95)
    folds = inner_folds(targets, groups, 0)
    assert sorted(np.bincount(folds)) == [9] * 5 + [10] * 5
    assert (folds == inner_folds(targets, groups, 0)).all()
    assert (folds != inner_folds(targets, groups, 1)).any()


def test_fewer_groups_make_fewer_inner_folds():
    _, targets, _ = made_up(n=60)
    for count, expected in ((10, 10), (4, 4), (3, 3)):
        folds = inner_folds(targets, (np.arange(60) % count).astype(str), 0)
        assert folds.max() + 1 == expected
    assert inner_folds(targets, (np.arange(60) % 2).astype(str), 0) is None


@pytest.mark.parametrize("seed", range(10))
def test_few_mutations_are_spread_over_inner_folds(seed):
    features, _, groups = made_up(n=40)
    targets = np.zeros(40, dtype=np.int64)
    targets[[5, 6]] = 1  # by chance both may be in one fold: nothing to learn from the others
    folds = inner_folds(targets, groups, seed)
    assert folds[5] != folds[6]
    scores = Mutation().fit(features, targets, groups, seed)(features)
    assert np.isfinite(scores).all()


def test_mutations_of_a_single_group_give_an_empty_model():
    features, _, groups = made_up(n=40)
    targets = np.zeros(40, dtype=np.int64)
    targets[5] = 1
    assert (Mutation().fit(features, targets, groups, 0)(features) == 0).all()


def test_planted_gene_is_found_and_noise_is_mostly_empty():
    features, targets, groups = made_up(n=200, width=30)
    train, test = slice(0, 120), slice(120, 200)
    scores = Mutation().fit(features[train], targets[train], groups[train], 0)(features[test])
    assert roc_auc_score(targets[test], scores[:, 0]) > 0.7
    assert roc_auc_score(targets[test], scores[:, 1]) > 0.7
    empty = []
    for seed in range(9):
        noise = np.random.default_rng(seed).permutation(targets)
        scores = Mutation().fit(features[train], noise[train], groups[train], seed)(features[test])
        empty.append((scores == 0).all(axis=0))
    assert np.mean(empty, axis=0)[1] > 0.5


def test_scores_are_centred_on_the_training_rows_and_each_is_its_rows_own():
    features, targets, groups = made_up()
    before = features.copy()
    features.flags.writeable = targets.flags.writeable = groups.flags.writeable = False
    model = Mutation().fit(features, targets, groups, 0)
    scores = model(features)
    assert scores.shape == (120, 2) and scores.any(axis=0).all()
    assert np.allclose(scores.mean(axis=0), 0, atol=1e-9)
    for row in (0, 7, 119):
        assert model(features[row : row + 1]).tobytes() == scores[row].tobytes()
    again = pickle.loads(pickle.dumps(Mutation().fit(features, targets, groups, 0)))
    assert again(features).tobytes() == scores.tobytes()
    assert (features == before).all()


def test_features_that_are_not_finite_are_refused():
    features, targets, groups = made_up()
    features[3, 4] = np.nan
    with pytest.raises(TiaftError, match="the features hold NaN or infinity: leave those rows out"):
        Mutation().fit(features, targets, groups, 0)


def test_without_a_folder_for_its_cache_numba_compiles_all_the_same(monkeypatch):
    real = lasso.njit

    def nowhere(function=None, **options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(function)

    monkeypatch.setattr(lasso, "njit", nowhere)
    assert lasso._compiled(lambda a: a + 1)(1) == 2


def test_numba_is_loaded_when_a_probe_is_made_and_not_before():
    code = "import sys, tiaft_plugin.probes.mutation; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


R_PATH = """
suppressMessages(library(glmnet))
folder <- commandArgs(TRUE)[1]
x <- as.matrix(read.csv(file.path(folder, "x.csv"), header = FALSE))
rest <- as.matrix(read.csv(file.path(folder, "rest.csv"), header = FALSE))
m <- cv.glmnet(x, rest[, 1], family = "binomial", foldid = rest[, 2] + 1, thresh = 1e-12)
fit <- m$glmnet.fit
top <- cbind(fit$lambda, m$cvm, m$cvsd, fit$dev.ratio, fit$a0, t(as.matrix(fit$beta)))
write.table(format(top, digits = 17), file.path(folder, "out.csv"), sep = ",", row.names = FALSE,
            col.names = FALSE, quote = FALSE)
cat(m$index - 1)
"""


@pytest.mark.parametrize(("n", "width"), [(90, 120), (90, 12), (25, 12)])
def test_path_and_cross_validation_are_glmnets(n, width, against_glmnet, tmp_path, monkeypatch):
    """The last has fewer than three rows a fold: then cv.glmnet's standard error is of rows."""
    features, targets, groups = made_up(n=n, width=width, strength=1.0)
    folds = inner_folds(targets, groups, 0)
    np.savetxt(tmp_path / "x.csv", features.astype(float), delimiter=",", fmt="%.17g")
    np.savetxt(tmp_path / "rest.csv", np.stack([targets, folds], 1), delimiter=",", fmt="%d")
    (tmp_path / "path.R").write_text(R_PATH)
    command = ["Rscript", "--vanilla", tmp_path / "path.R", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    table = np.loadtxt(tmp_path / "out.csv", delimiter=",")
    monkeypatch.setattr(lasso, "TOLERANCE", 1e-12)
    choice = lasso.choose(features, targets, folds)
    path = choice.path
    assert len(path.lambdas) == len(table)
    assert np.allclose(path.lambdas, table[:, 0], rtol=1e-5)
    assert np.allclose(choice.deviance, table[:, 1], rtol=1e-3)
    assert np.allclose(choice.error, table[:, 2], rtol=1e-3)
    assert np.allclose(path.explained, table[:, 3], atol=1e-5)
    scales = standardised(features)[1]
    assert np.allclose(path.coefficients * scales, table[:, 5:] * scales, atol=0.01)
    assert [choice.minimum, choice.one_error] == [int(text) for text in done.stdout.split()]


def test_auroc_is_glmnets(against_glmnet):
    """On the same outer and inner folds, as the table that the benchmark prints."""
    features, genes = against_glmnet.patients(3, rows=120, columns=150, factors=12)
    outer, inner = against_glmnet.splits(genes, 1)
    scores, counts = against_glmnet.ours(features, genes, outer)
    other, others = against_glmnet.theirs(features, genes, outer, inner, 1e-7)
    ours, theirs = (against_glmnet.auroc(table, genes) for table in (scores, other))
    assert np.abs(ours - theirs).max() < 0.01
    assert (np.abs(counts - others) <= 3).all()

"""Folds: whole groups, even classes, and repeats that are not one and the same split."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiaft_plugin import TiaftError
from tiaft_plugin.probes.folds import make_folds, sha256_of_folds

TEN_SLIDES = np.repeat([f"slide {n:02d}" for n in range(10)], 96)


@given(st.lists(st.integers(0, 12), min_size=8, max_size=60), st.integers(2, 4), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_groups_are_never_split_and_every_fold_tests_something(groups, folds, seed):
    groups = np.array([f"g{n}" for n in groups])
    labels = np.arange(len(groups)) % 3
    if len(set(groups)) < folds:
        with pytest.raises(TiaftError, match="group"):
            make_folds(groups, labels, folds=folds, repeats=2, seed=seed)
        return
    plan = make_folds(groups, labels, folds=folds, repeats=2, seed=seed)
    assert plan.shape == (2, len(groups)) and plan.dtype == np.int16
    for one in plan:
        assert set(one) == set(range(folds))
        for group in set(groups):
            assert len(set(one[groups == group])) == 1


def test_single_rows_are_stratified_evenly():
    keys = np.array([f"p{n:03d}" for n in range(103)])
    labels = (np.arange(103) < 20).astype(int)
    for one in make_folds(keys, labels, folds=5, repeats=10, seed=0):
        assert [int(labels[one == fold].sum()) for fold in range(5)] == [4] * 5
        sizes = np.bincount(one)
        assert sizes.max() - sizes.min() <= 1


def test_numbers_are_split_into_folds_of_one_size():
    keys = np.array([f"p{n:03d}" for n in range(103)])
    for one in make_folds(keys, None, folds=5, repeats=5, seed=0):
        assert sorted(np.bincount(one)) == [20, 20, 21, 21, 21]


def test_repeats_of_few_uneven_groups_differ():
    """scikit-learn's StratifiedGroupKFold gives one and the same split here, whatever its seed."""
    rng = np.random.default_rng(0)
    labels = np.concatenate([rng.choice(8, 96, p=rng.dirichlet(np.ones(8))) for _ in range(10)])
    plan = make_folds(TEN_SLIDES, labels, folds=5, repeats=20, seed=0)
    pairs = {frozenset(frozenset(TEN_SLIDES[one == fold]) for fold in range(5)) for one in plan}
    assert len(pairs) >= 18
    for one in plan:  # two slides a fold, as even as can be
        assert set(np.bincount(one)) == {192}


def test_the_seed_decides_alone_and_repeats_do_not_depend_on_how_many_there_are():
    a = make_folds(TEN_SLIDES, None, folds=5, repeats=3, seed=1)
    b = make_folds(TEN_SLIDES, None, folds=5, repeats=6, seed=1)
    assert (a == b[:3]).all() and sha256_of_folds(a) == sha256_of_folds(b[:3])
    assert sha256_of_folds(a) != sha256_of_folds(
        make_folds(TEN_SLIDES, None, folds=5, repeats=3, seed=2)
    )


def test_too_few_groups_are_named():
    with pytest.raises(TiaftError, match="3 groups .* cannot be split into 5 folds"):
        make_folds(np.array(list("aabbcc")), None, folds=5, repeats=1, seed=0)
    with pytest.raises(TiaftError, match="all rows are of one group"):
        make_folds(np.array(list("aaa")), None, folds=2, repeats=1, seed=0)

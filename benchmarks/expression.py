"""How fast the expression probe is: one kernel for all genes beside a pipeline for each gene.

    python benchmarks/expression.py [--genes G] [--workers N] [--full]

344 made-up patients, 2048 features of low rank, 5 folds. Both ways predict the same genes with one
thread. The last line is the paper's 907 genes × 5 folds × 50 repeats, reckoned from that; with
``--full`` they are computed, and the line says how long that took.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

from tiaft_plugin.probes.expression import Expression

PATIENTS, COLUMNS, RANK, FOLDS = 344, 2048, 20, 5
GENES, REPEATS = 907, 50  # the paper's, section 3.3
Predicted = tuple[np.ndarray, float]  # out-of-fold predictions (N, G), seconds


def made_up(genes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features (N, D) float32, zeros as after a ReLU, and expression (N, G).

    Every other gene is noise.
    """
    rng = np.random.default_rng(0)
    tissue = rng.normal(size=(PATIENTS, RANK))
    features = tissue @ rng.normal(size=(RANK, COLUMNS))
    features = np.maximum(features + 0.5 * rng.normal(size=features.shape), 0)
    signal = tissue @ rng.normal(size=(RANK, genes)) / RANK**0.5 * (np.arange(genes) % 2)
    return features.astype(np.float32), 8 + signal + rng.normal(size=signal.shape)


def shared(train: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predict all genes by our probe."""
    groups = np.arange(len(train)).astype(str)
    return Expression().fit(train, targets, groups, seed=0)(test)


def pipelines(train: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predict each gene by a pipeline of its own, as scikit-learn's users write it."""
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVR

    kept = (train != train[0]).any(axis=0)
    # StandardScaler's sd has n below, e1071's n − 1: by this factor everything is larger.
    more = (len(train) / (len(train) - 1)) ** 0.5
    svr = SVR(gamma=1 / more**2 / kept.sum(), C=more, epsilon=0.1 * more, tol=0.001 * more)
    columns = []
    for gene in targets.T:
        pipeline = make_pipeline(StandardScaler(), svr)
        model = TransformedTargetRegressor(pipeline, transformer=StandardScaler())
        model.fit(train[:, kept].astype(np.float64), gene)
        columns.append(model.predict(test[:, kept].astype(np.float64)))
    return np.stack(columns, axis=1)


def one_repeat(way: Callable, features: np.ndarray, targets: np.ndarray, seed: int) -> Predicted:
    """Cross-validate once with one thread, whose processor time is counted."""
    folds = np.random.default_rng(seed).permutation(len(features)) % FOLDS
    predicted = np.empty(targets.shape)
    with threadpool_limits(1):
        started = time.process_time()
        for fold in range(FOLDS):
            test = folds == fold
            predicted[test] = way(features[~test], targets[~test], features[test])
        return predicted, time.process_time() - started


def beside(genes: int) -> float:
    """Print both ways on the same genes; return the seconds a gene of ours."""
    features, targets = made_up(genes)
    way = {"pipeline per gene": pipelines, "kernel shared": shared}
    found = {name: one_repeat(function, features, targets, 0) for name, function in way.items()}
    print(f"{PATIENTS} patients, {COLUMNS} features, {genes} genes, {FOLDS} folds, one thread")
    for name, (_, seconds) in found.items():
        print(f"{name:20}{seconds:8.2f} s{1000 * seconds / genes / FOLDS:10.2f} ms a gene and fold")
    (one, slow), (other, fast) = found.values()
    print(f"{slow / fast:.1f} times as fast; predictions differ by {abs(one - other).max():.0e}")
    return fast / genes


def full(workers: int) -> float:
    """Compute what the paper's second experiment needs for one feature set; return seconds."""
    features, targets = made_up(GENES)
    jobs = (delayed(one_repeat)(shared, features, targets, seed) for seed in range(REPEATS))
    started = time.perf_counter()
    for _ in Parallel(n_jobs=workers, return_as="generator")(jobs):
        pass
    return time.perf_counter() - started


def main() -> None:
    """Print both ways side by side, and the paper's experiment reckoned or run."""
    parser = argparse.ArgumentParser(description="Time the expression probe.")
    parser.add_argument("--genes", type=int, default=100, help="for the comparison")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--full", action="store_true", help="run 907 genes × 5 folds × 50 repeats")
    options = parser.parse_args()
    a_gene = beside(options.genes)
    what = f"{GENES} genes × {FOLDS} folds × {REPEATS} repeats, {options.workers} workers"
    if options.full:
        print(f"{what}: {full(options.workers) / 60:.1f} minutes")
    else:
        reckoned = a_gene * GENES * REPEATS / options.workers
        print(f"{what}: about {reckoned / 60:.1f} minutes (reckoned; --full runs them)")


if __name__ == "__main__":
    main()

"""How long a path of L1-penalised logistic regressions takes, solver by solver.

    python benchmarks/mutation.py [--limit 20]
    python benchmarks/mutation.py --full [--workers 2]

Made-up patients as many and as wide as the paper's (section 3.3), the rows of an inner fold,
one thread. Each solver follows the same penalties from solution to solution as far as it lets
itself. "violation" is by how much the optimality conditions are missed at worst, as a share of the
penalty. Solvers that are not installed are said to be missing: pip install celer skglm.

`--full` really runs the nine genes through 5 folds, 50 repeats and 10 inner folds each.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from against_glmnet import FOLDS, patients, splits
from threadpoolctl import threadpool_limits

from tiaft_plugin.probes import lasso
from tiaft_plugin.probes.mutation import Mutation

GENES, REPEATS, INNER, CORES = 9, 50, 10, 2
MEASURED = (0, 2, 6)  # genes: a rare one, a noisy one, a common one
Solution = tuple[np.ndarray, float]  # coefficients, intercept


def ours(x: np.ndarray, y: np.ndarray, lambdas: np.ndarray) -> Iterator[Solution]:
    """tiaft_plugin.probes.lasso."""
    path = lasso.fit_path(x, y)
    yield from zip(path.coefficients, path.intercepts, strict=True)


def liblinear(x: np.ndarray, y: np.ndarray, lambdas: np.ndarray) -> Iterator[Solution]:
    """scikit-learn, liblinear; it has no warm start and penalises the intercept."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        l1_ratio=1, solver="liblinear", max_iter=1000, intercept_scaling=100.0
    )
    for penalty in lambdas:
        model.set_params(C=1 / (len(y) * penalty)).fit(x, y)
        yield model.coef_[0].copy(), model.intercept_[0]


def saga(x: np.ndarray, y: np.ndarray, lambdas: np.ndarray) -> Iterator[Solution]:
    """scikit-learn, saga with warm starts."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        l1_ratio=1, solver="saga", tol=1e-3, max_iter=1000, warm_start=True, random_state=0
    )
    for penalty in lambdas:
        model.set_params(C=1 / (len(y) * penalty)).fit(x, y)
        yield model.coef_[0].copy(), model.intercept_[0]


def celer(x: np.ndarray, y: np.ndarray, lambdas: np.ndarray) -> Iterator[Solution]:
    """celer with warm starts; it knows no intercept."""
    from celer import LogisticRegression

    model = LogisticRegression(warm_start=True)
    for penalty in lambdas:
        model.set_params(C=1 / (len(y) * penalty)).fit(x, y)
        yield model.coef_.ravel().copy(), 0.0


def skglm(
    x: np.ndarray, y: np.ndarray, lambdas: np.ndarray, tol: float = 1e-4
) -> Iterator[Solution]:
    """skglm, proximal Newton with warm starts; its own tolerance is 1e-4."""
    from skglm import SparseLogisticRegression

    model = SparseLogisticRegression(warm_start=True, max_iter=50, tol=tol)
    for penalty in lambdas:
        model.set_params(alpha=penalty).fit(x, y)
        yield model.coef_.ravel().copy(), float(model.intercept_.item())


SOLVERS: dict[str, tuple[Callable[..., Iterator[Solution]], str]] = {
    "lasso.py": (ours, "free"),
    "scikit-learn liblinear": (liblinear, "penalised"),
    "scikit-learn saga": (saga, "free"),
    "celer": (celer, "none"),
    "skglm": (skglm, "free"),
    "skglm, tol 1e-5": (partial(skglm, tol=1e-5), "free"),
}


def violation(x: np.ndarray, y: np.ndarray, solution: Solution, penalty: float) -> float:
    """Return by what share of the penalty the worst coefficient misses optimality."""
    beta, intercept = solution
    pull = x.T @ (y - 1 / (1 + np.exp(-(x @ beta + intercept)))) / len(y)
    off = np.where(beta != 0, np.abs(pull - penalty * np.sign(beta)), np.abs(pull) - penalty)
    return float(off.max()) / penalty


def measure(
    solver: Callable, x: np.ndarray, y: np.ndarray, lambdas: np.ndarray, limit: float
) -> tuple[float, int, float]:
    """Return CPU seconds, penalties done within `limit` seconds, and the worst violation."""
    started, spent, worst, done = time.process_time(), 0.0, 0.0, 0
    for solution, penalty in zip(solver(x, y, lambdas), lambdas, strict=False):
        spent += time.process_time() - started
        worst, done = max(worst, violation(x, y, solution, penalty)), done + 1
        if spent > limit:
            break
        started = time.process_time()
    return spent, done, worst


def side_by_side(limit: float) -> None:
    """Print a line a solver."""
    features, genes = patients(GENES)
    inner = splits(genes[:, MEASURED], 1)[1]
    paths = []
    for number, gene in enumerate(MEASURED):
        rows = inner[0, 0, number] > 0  # in the training part of outer fold 0 and inner fold 0
        x = features[rows].astype(np.float64)
        x = np.asfortranarray((x - x.mean(axis=0)) / x.std(axis=0))
        y = genes[rows, gene]
        largest = np.abs(x.T @ (y - y.mean())).max() / len(y)
        paths.append((x, y, largest * np.geomspace(1, lasso.WIDE_SHARE, lasso.POINTS)))
    total = GENES * FOLDS * REPEATS * (INNER + 1)
    x = paths[0][0]
    print(f"{x.shape[0]} rows, {x.shape[1]} columns, mean of {len(paths)} genes; {total} paths in")
    print(f"{GENES} genes x {FOLDS} folds x {REPEATS} repeats x ({INNER} + 1), on {CORES} cores")
    print(f"{'solver':24}{'intercept':>10}{'first use / s':>15}{'path / s':>10}", end="")
    print(f"{'all / h':>9}{'violation':>11}")
    for name, (solver, intercept) in SOLVERS.items():
        try:
            first = measure(solver, *paths[0][:2], paths[0][2][:10], limit)[0]
            found = [measure(solver, *path, limit) for path in paths]
        except ImportError:
            print(f"{name:24} not installed")
            continue
        seconds, done = np.mean([one[0] for one in found]), min(one[1] for one in found)
        late = any(one[0] > limit for one in found)
        worst = max(one[2] for one in found)
        hours = seconds * total / CORES / 3600
        print(f"{name:24}{intercept:>10}{first:15.1f}{seconds:10.2f}{hours:9.1f}", end="")
        given_up = f"  given up at penalty {done}, times are too small" * late
        print(f"{worst:11.4f}{given_up}")


def fit_one(features: np.ndarray, gene: np.ndarray, outer: np.ndarray, fold: int) -> np.ndarray:
    """Return the scores of one gene's test rows."""
    names = np.array([f"patient {row}" for row in range(len(gene))])
    train = outer != fold
    with threadpool_limits(1):
        model = Mutation().fit(features[train], gene[train], names[train], seed=0)
        return model(features[~train])


def full(workers: int) -> None:
    """Run everything; print how long it took."""
    from joblib import Parallel, delayed

    features, genes = patients(GENES)
    outer = splits(genes[:, :0], REPEATS)[0]
    started = time.perf_counter()
    Parallel(n_jobs=workers)(
        delayed(fit_one)(features, genes[:, gene], outer[repeat], fold)
        for repeat, fold, gene in np.ndindex(REPEATS, FOLDS, GENES)
    )
    minutes = (time.perf_counter() - started) / 60
    print(
        f"{GENES} genes, {FOLDS} folds, {REPEATS} repeats, {len(features)} patients, "
        f"{features.shape[1]} columns, {workers} workers: {minutes:.1f} min"
    )


def main() -> None:
    """Compare solvers, or run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=20.0, help="seconds a path at most")
    parser.add_argument("--full", action="store_true", help="run all genes, folds and repeats")
    parser.add_argument("--workers", type=int, default=CORES)
    options = parser.parse_args()
    if options.full:
        full(options.workers)
        return
    warnings.simplefilter("ignore")  # that some did not converge stands in the table
    with threadpool_limits(1):
        side_by_side(options.limit)


if __name__ == "__main__":
    main()

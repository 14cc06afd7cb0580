"""How fast and how exact liblinear's two solvers are on features as a network gives them.

    python benchmarks/tissue.py [ROWS [COLUMNS]]

Made-up features of low rank with zeros as after a ReLU, nine classes that overlap; a fifth of the
rows is predicted. "same" is the share of predictions that the first line, the strictest, shares.
"""

import sys
import time

import numpy as np
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from tiaft_plugin.probes.tissue import Tissue

SIZES = [1500, 400]  # 7180 and 2048 are the paper's: then a line takes minutes
CLASSES, RANK = 9, 60
SOLVERS = (("dual", 1e-4), ("dual", 0.01), ("dual", 0.1), ("primal", 1e-4), ("primal", 0.01))


def made_up(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features (rows, columns) float64, standardised, and classes (rows,)."""
    rng = np.random.default_rng(0)
    classes = np.arange(rows) % CLASSES
    tissue = 0.55 * rng.normal(size=(CLASSES, RANK))[classes] + rng.normal(size=(rows, RANK))
    features = tissue @ rng.normal(size=(RANK, columns)) / RANK**0.5
    features = np.maximum(features + 0.3 * rng.normal(size=features.shape) - 0.5, 0)
    return StandardScaler().fit_transform(features), classes


def main() -> None:
    """Print a line a solver and tolerance; the probe's own is marked."""
    rows, columns = [int(text) for text in sys.argv[1:]] + SIZES[len(sys.argv) - 1 :]
    features, classes = made_up(rows, columns)
    ours, test, first = Tissue().settings["tolerance"], rows // 5, None
    print(f"{rows - test} training rows, {columns} columns, {CLASSES} classes")
    print(f"{'solver':8}{'tolerance':>10}{'seconds':>9}{'rounds':>8}{'accuracy':>10}{'same':>7}")
    for solver, tolerance in SOLVERS:
        svc = LinearSVC(
            tol=tolerance, dual=solver == "dual", max_iter=10_000, random_state=0, C=1.0
        )
        started = time.process_time()
        svc.fit(features[test:], classes[test:])
        seconds = time.process_time() - started
        found = svc.predict(features[:test])
        first = found if first is None else first
        right, same = (found == classes[:test]).mean(), (found == first).mean()
        mark = "  the probe's" if (solver, tolerance) == ("dual", ours) else ""
        row = f"{solver:8}{tolerance:10g}{seconds:9.2f}{svc.n_iter_:8}{right:10.3f}{same:7.3f}"
        print(row + mark, flush=True)


if __name__ == "__main__":
    main()

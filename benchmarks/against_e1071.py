"""Our expression probe beside R's e1071::svm, on the same folds of the same made-up patients.

    python benchmarks/against_e1071.py [GENES [PATIENTS [COLUMNS]]]

Needs Rscript with the package e1071 (Debian: r-cran-e1071). For each gene it prints how the
predictions of 5 folds correlate, and by how much they differ at most (in sd of the gene).
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tiaft_plugin.probes.expression import Expression

FOLDS = 5
SIZES = [12, 344, 2048]  # genes; patients and columns as in the paper

SCRIPT = """
suppressMessages(library(e1071))
folder <- commandArgs(TRUE)[1]
read <- function(name) as.matrix(read.csv(file.path(folder, name), header = FALSE))
x <- read("features.csv"); y <- read("genes.csv"); fold <- read("folds.csv")[, 1]
out <- matrix(0, nrow(y), ncol(y))
for (f in unique(fold)) {
  train <- fold != f
  kept <- apply(x[train, ], 2, function(column) any(column != column[1]))
  for (g in seq_len(ncol(y))) {
    model <- svm(x[train, kept], y[train, g])
    out[!train, g] <- predict(model, x[!train, kept])
  }
}
write(t(format(out, digits = 17)), file.path(folder, "out.csv"), ncolumns = ncol(y), sep = ",")
"""


def missing() -> str:
    """Return why R cannot be asked, or nothing where it can."""
    if not shutil.which("Rscript"):
        return "Rscript is not installed"
    command = ["Rscript", "-e", 'q(status = !requireNamespace("e1071", quietly = TRUE))']
    found = subprocess.run(command, capture_output=True).returncode == 0
    return "" if found else "R has no package e1071 (Debian: r-cran-e1071)"


def made_up(genes: int, patients: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features (N, D) float32, expression (N, G) and folds (N,).

    Features are correlated and, as after a ReLU, many are 0; one column varies in one patient
    only, so it is constant in one training fold. Every third gene is noise.
    """
    rng = np.random.default_rng(0)
    tissue = rng.normal(size=(patients, 6))
    features = tissue @ rng.normal(size=(6, columns))
    features += 0.5 * rng.normal(size=features.shape)
    features = np.maximum(features, 0).astype(np.float32)
    features[:, 7] = 0
    features[3, 7] = 1
    signal = np.tanh(tissue @ rng.normal(size=(6, genes))) * (np.arange(genes) % 3 != 2)
    expression = 8 + 2 * signal + rng.normal(size=(patients, genes))
    return features, expression, rng.permutation(patients) % FOLDS


def ours(features: np.ndarray, expression: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return our out-of-fold predictions (N, G)."""
    predicted = np.empty(expression.shape)
    for fold in range(FOLDS):
        train = folds != fold
        groups = np.array([f"patient {row}" for row in np.flatnonzero(train)])
        predict = Expression().fit(features[train], expression[train], groups, seed=0)
        predicted[~train] = predict(features[~train])
    return predicted


def theirs(features: np.ndarray, expression: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return those of e1071's defaults; columns constant in a training fold are left out."""
    with tempfile.TemporaryDirectory() as name:
        tables = {"features.csv": features.astype(float), "genes.csv": expression}
        for file, table in {**tables, "folds.csv": folds[:, None]}.items():
            np.savetxt(Path(name) / file, table, delimiter=",", fmt="%.17g")
        script = Path(name) / "svm.R"
        script.write_text(SCRIPT)
        subprocess.run(["Rscript", "--vanilla", str(script), name], check=True)
        return np.loadtxt(Path(name) / "out.csv", delimiter=",", ndmin=2)


def compare(genes: int, patients: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each gene: correlation of both predictions, largest difference, r of ours.

    Differences are in standard deviations of the gene; r is that of observed and predicted.
    """
    data = made_up(genes, patients, columns)
    one, other, observed = ours(*data), theirs(*data), data[1]
    pairs = zip(one.T, other.T, strict=True)
    same = np.array([np.corrcoef(a, b)[0, 1] for a, b in pairs])
    apart = np.abs(one - other).max(axis=0) / observed.std(axis=0)
    found = [np.corrcoef(a, b)[0, 1] for a, b in zip(one.T, observed.T, strict=True)]
    return same, apart, np.array(found)


def main() -> None:
    """Print a line a gene, and the worst of all."""
    if reason := missing():
        sys.exit(f"nothing to compare with: {reason}")
    genes, patients, columns = [int(text) for text in sys.argv[1:]] + SIZES[len(sys.argv) - 1 :]
    same, apart, found = compare(genes, patients, columns)
    print(f"{patients} patients, {columns} columns, {FOLDS} folds, svm() with its defaults")
    print(f"{'gene':>6}{'correlation':>14}{'largest difference / sd':>26}{'r with observed':>18}")
    for gene, row in enumerate(zip(same, apart, found, strict=True), 1):
        print(f"{gene:6}{row[0]:14.8f}{row[1]:26.1e}{row[2]:18.2f}")
    print(f"lowest correlation {same.min():.8f}, largest difference {apart.max():.1e} sd")


if __name__ == "__main__":
    main()

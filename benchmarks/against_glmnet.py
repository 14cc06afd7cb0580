"""Our mutation probe beside R's glmnet, on the same outer and inner folds of made-up patients.

    python benchmarks/against_glmnet.py [--genes 9] [--repeats 1] [--thresh 1e-7]

Needs Rscript with the package glmnet (Debian: r-cran-glmnet). For each gene it prints the AUROC of
pooled out-of-fold scores (averaged over repeats) of both, and the coefficients that are not 0 in
a model on average. `--thresh` is glmnet's own tolerance: how its AUROC moves with a smaller one
says how much of a difference is glmnet's rounding.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tiaft_plugin.probes.folds import make_folds
from tiaft_plugin.probes.mutation import VARIANTS, Mutation, inner_folds

PATIENTS, COLUMNS, FACTORS, FOLDS = 344, 2048, 40, 5  # as many as in the paper

SCRIPT = """
suppressMessages(library(glmnet))
folder <- commandArgs(TRUE)[1]; thresh <- as.numeric(commandArgs(TRUE)[2])
read <- function(name) {
  size <- scan(file.path(folder, paste0(name, ".size")), quiet = TRUE)
  t(matrix(readBin(file.path(folder, name), "double", prod(size)), size[2], size[1]))
}
x <- read("features"); genes <- read("genes"); folds <- read("folds"); inner <- read("inner")
lines <- NULL
for (r in seq_len(ncol(folds))) for (f in unique(folds[, r])) for (g in seq_len(ncol(genes))) {
  train <- folds[, r] != f
  foldid <- inner[train, ((r - 1) * max(folds + 1) + f) * ncol(genes) + g] + 1
  model <- cv.glmnet(x[train, ], genes[train, g], family = "binomial", foldid = foldid,
                     thresh = thresh)
  for (s in c("lambda.min", "lambda.1se")) {
    score <- predict(model, x[!train, ], s = s)[, 1] - mean(predict(model, x[train, ], s = s))
    lines <- rbind(lines, c(r, f, g, s == "lambda.1se", sum(coef(model, s = s)[-1] != 0), score,
                            rep(NA, nrow(x) - sum(!train))))
  }
}
writeBin(as.vector(t(lines)), file.path(folder, "out"))
"""


def missing() -> str:
    """Return why R cannot be asked, or nothing where it can."""
    if not shutil.which("Rscript"):
        return "Rscript is not installed"
    command = ["Rscript", "-e", 'q(status = !requireNamespace("glmnet", quietly = TRUE))']
    found = subprocess.run(command, capture_output=True).returncode == 0
    return "" if found else "R has no package glmnet (Debian: r-cran-glmnet)"


def patients(
    genes: int, rows: int = PATIENTS, columns: int = COLUMNS, factors: int = FACTORS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return features (N, D) float32 and mutations (N, G) of 0 and 1.

    Features are as means over tiles are: not negative, and mixtures of few things. Every third
    gene is noise; the others are mutated in 10 to 50 % of the patients and follow three factors.
    """
    rng = np.random.default_rng(seed)
    tissue = rng.normal(size=(rows, factors))
    mixed = tissue @ rng.normal(size=(factors, columns)) / np.sqrt(factors)
    base = rng.gamma(2, 0.1, size=columns)
    features = base * (1 + 0.4 * mixed + 0.1 * rng.normal(size=(rows, columns)))
    strength = np.where(np.arange(genes) % 3 == 2, 0.0, 1.0)
    drive = strength * sum(tissue[:, np.arange(genes) % factors - k] for k in range(3))
    odds = np.linspace(np.log(0.1 / 0.9), 0, genes)
    mutated = rng.random((rows, genes)) < 1 / (1 + np.exp(-drive - odds))
    return np.maximum(features, 0).astype(np.float32), mutated.astype(np.int64)


def splits(genes: np.ndarray, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Return outer folds (repeats, N) and inner ones (repeats, FOLDS, G, N), -1 where tested."""
    names = np.array([f"patient {row}" for row in range(len(genes))])
    outer = make_folds(names, None, folds=FOLDS, repeats=repeats, seed=0)
    inner = np.full((repeats, FOLDS, genes.shape[1], len(genes)), -1)
    for repeat, fold, gene in np.ndindex(inner.shape[:3]):
        train = outer[repeat] != fold
        found = inner_folds(genes[train, gene], names[train], seed=0)
        if found is None:
            raise SystemExit(f"gene {gene + 1} has too few mutations for glmnet")
        inner[repeat, fold, gene, train] = found
    return outer, inner


def ours(features: np.ndarray, genes: np.ndarray, outer: np.ndarray) -> tuple:
    """Return scores (repeats, G, 2, N), and coefficients that are not 0 (repeats, FOLDS, G, 2)."""
    names = np.array([f"patient {row}" for row in range(len(genes))])
    scores = np.empty((len(outer), genes.shape[1], len(VARIANTS), len(genes)))
    counts = np.empty((len(outer), FOLDS, genes.shape[1], len(VARIANTS)))
    for repeat, fold, gene in np.ndindex(counts.shape[:3]):
        train = outer[repeat] != fold
        model = Mutation().fit(features[train], genes[train, gene], names[train], seed=0)
        scores[repeat, gene][:, ~train] = model(features[~train]).T
        counts[repeat, fold, gene] = (model.coefficients != 0).sum(axis=1)  # type: ignore
    return scores, counts


def theirs(
    features: np.ndarray, genes: np.ndarray, outer: np.ndarray, inner: np.ndarray, thresh: float
) -> tuple:
    """Return the same of cv.glmnet with its defaults, and its own `thresh`."""
    flat = inner.reshape(-1, len(genes)).T
    with tempfile.TemporaryDirectory() as name:
        tables = {"features": features, "genes": genes, "folds": outer.T, "inner": flat}
        for file, table in tables.items():
            np.ascontiguousarray(table, dtype=np.float64).tofile(Path(name) / file)
            (Path(name) / f"{file}.size").write_text(f"{table.shape[0]} {table.shape[1]}")
        script = Path(name) / "glmnet.R"
        script.write_text(SCRIPT)
        command = ["Rscript", "--vanilla", str(script), name, str(thresh)]
        subprocess.run(command, check=True, capture_output=True)
        lines = np.fromfile(Path(name) / "out").reshape(-1, 5 + len(genes))
    scores = np.empty((len(outer), genes.shape[1], len(VARIANTS), len(genes)))
    counts = np.empty((len(outer), FOLDS, genes.shape[1], len(VARIANTS)))
    for line in lines:
        repeat, fold, gene, variant = (line[:4] - [1, 0, 1, 0]).astype(int)
        test = outer[repeat] == fold
        scores[repeat, gene, variant, test] = line[5 : 5 + test.sum()]
        counts[repeat, fold, gene, variant] = line[4]
    return scores, counts


def auroc(scores: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """Return the AUROC (G, 2) of scores averaged over repeats."""
    from sklearn.metrics import roc_auc_score

    mean = scores.mean(axis=0)
    both = zip(genes.T, mean, strict=True)
    return np.array([[roc_auc_score(y, one) for one in pair] for y, pair in both])


def main() -> None:
    """Print a line a gene and variant, and the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genes", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--thresh", type=float, default=1e-7)
    options = parser.parse_args()
    if reason := missing():
        sys.exit(f"nothing to compare with: {reason}")
    features, genes = patients(options.genes)
    outer, inner = splits(genes, options.repeats)
    our_scores, our_counts = ours(features, genes, outer)
    scores, counts = theirs(features, genes, outer, inner, options.thresh)
    a, b = auroc(our_scores, genes), auroc(scores, genes)
    print(
        f"{PATIENTS} patients, {COLUMNS} columns, {FOLDS} folds, {options.repeats} repeats, "
        f"cv.glmnet with its defaults, thresh {options.thresh:g}"
    )
    print(f"{'gene':>4} {'mutated':>8} {'penalty':11}{'AUROC ours':>11}{'glmnet':>8}", end="")
    print(f"{'difference':>12}{'coefficients ours':>19}{'glmnet':>8}")
    for gene, variant in np.ndindex(a.shape):
        ends = [table[:, :, gene, variant].mean() for table in (our_counts, counts)]
        one, other = a[gene, variant], b[gene, variant]
        share = genes[:, gene].mean()
        print(f"{gene + 1:4} {share:8.0%} {VARIANTS[variant]:11}{one:11.4f}", end="")
        print(f"{other:8.4f}{one - other:12.4f}{ends[0]:19.1f}{ends[1]:8.1f}")
    print(f"largest difference {np.abs(a - b).max():.4f}")


if __name__ == "__main__":
    main()

"""What the report says to those who are not statisticians: baselines and words explained."""

from tiaft_plugin.probes.baselines import SAMPLED_ROWS

INTERVAL = "95 % interval"
NOISE = "split noise (sd over repeats)"
CLUSTER_P = "p (cluster bootstrap)"
FOLDS_P = "p (corrected for overlapping folds)"
PAPER_P = "p (as in the paper, invalid: its p goes to 0 as repeats grow)"

_SAMPLED = f"Of more than {SAMPLED_ROWS:,} rows a sample of as many is used. "
BASELINES = {
    "colour": "The same protocol with nothing but the pictures' colour: mean and spread of red, "
    "green and blue, and a histogram of each. What colour alone reaches needs no network; a "
    "feature set that is not clearly above it has learnt no tissue. Its values stand as “colour” "
    "beside the others in the tables and figures above.",
    "labels permuted": "The labels were dealt out anew at random, whole groups (patients or "
    "slides) at a time, and cross-validated again, with one repeat for each draw; so are the true "
    "labels here, which is why they may differ a little from the result above. p is the share of "
    "draws that reach at least what the true labels do, these counted among them: it cannot be "
    f"below 1/(draws + 1). {_SAMPLED}A small p says that the features know something about the "
    "labels; a large one, that the result above may be chance.",
    "leak control": "Each group (patient or slide) was given one random label or number, which no "
    "tissue can explain. Ungrouped folds can look good all the same, because the probe "
    f"recognises the patient or the slide; grouped folds must stay near chance. {_SAMPLED}Where "
    "grouped folds are far above chance, the result above is not to be believed.",
}

_WORDS = {
    "": {
        INTERVAL: "Another cohort of the same size would give another value; the interval is made "
        "to cover the true one in 95 of 100 cohorts. Whole groups (patients or slides) are drawn "
        "with replacement from the predictions averaged over repeats (cluster bootstrap), so that "
        "many tiles of few patients do not look like many patients. It is widened, because each "
        "group also trains the models that predict the others, and because groups are few.",
        NOISE: "How much the value moves when the same rows are cut into other folds. It says how "
        "stable the procedure is, not how sure the result: more repeats make their mean steadier, "
        "but bring no new patients. It is never used as an interval here.",
        CLUSTER_P: "For correlations, AUROC and AUPRC: how often a difference as large, either "
        "way, would be seen if both feature sets were equally good. A t test with the spread of "
        "the cluster bootstrap, the same groups drawn for both sets, widened as the interval is.",
        FOLDS_P: "For accuracies and F1: Nadeau and Bengio's t test of the differences in each "
        "fold. The difference in the table is the mean over folds; it may be a little other than "
        "that of the two values above, which are of predictions averaged over repeats. Training "
        "parts of different folds share most of their rows, and the variance is made larger for "
        "it: s² × (1/(k·r) + n_test/n_train), with k·r − 1 degrees of freedom.",
        PAPER_P: "The plain paired test over repeats, for comparison with the paper only. "
        "It takes repeats on the same patients for new patients; with enough repeats any "
        "difference, however small, becomes “significant”.",
    },
    "classes": {
        "accuracy": "The share of rows whose class is right; for one class, of the rows that are "
        "truly of it. Balanced accuracy is the mean over classes, so that small classes count as "
        "much as large ones; macro F1 is the mean over classes of F1, which also counts what was "
        "wrongly given to a class.",
    },
    "numbers": {
        "correlation r": "Pearson's correlation of observed and predicted values, over patients, "
        "of the predictions averaged over repeats, each taken relative to the mean of the patients "
        "that its model was trained on. 0: nothing is predicted; 1: everything.",
        "p and q of a gene": "p is one-sided, by permutation of patients: how often predictions "
        "paired with the wrong patients correlate at least as well (widened as the interval is). q "
        "is p after Benjamini and Hochberg over all genes: of the genes chosen by q < "
        "0.05, say, about 5 % are expected to be false.",
    },
    "binary": {
        "empty models": "LASSO may find nothing worth keeping; it then says the same of every "
        "patient. Such models count as AUROC 0.5 and are counted in the table.",
        "lambda.min and lambda.1se": "Two strengths of LASSO's penalty, chosen by inner "
        "cross-validation: the best one, and the strongest within one standard error of it, "
        "which keeps fewer features.",
    },
}
_AREAS = {
    "AUROC": "How well the scores put positives above negatives: 0.5 is guessing, 1 is perfect. It "
    "does not depend on how many positives there are.",
    "AUPRC and prevalence": "The area under precision and recall: guessing reaches the prevalence, "
    "the share of positives, so that 0.30 is good where 5 % are positive and poor where 30 % are. "
    "It is therefore never shown without the prevalence.",
}


def words_of(kind: str) -> dict[str, str]:
    """Return the words that a report of a probe of that kind uses, and what they mean."""
    areas = _AREAS if kind != "numbers" else {}
    return _WORDS[""] | _WORDS.get(kind, {}) | areas

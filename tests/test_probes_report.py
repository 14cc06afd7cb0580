"""The probes' report: one page for each kind of result, for good data and for bad."""

import copy
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from tiaft_plugin.page import visible
from tiaft_plugin.probes.cells import Scores, decimals, p_value
from tiaft_plugin.probes.figures import short
from tiaft_plugin.probes.interface import Result
from tiaft_plugin.probes.report import build_report

TISSUES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
MUTATED = ("TP53", "KRAS", "EGFR", "STK11", "KEAP1", "FAT4", "LRP1B", "NF1", "FAT1")
SETS = ("imgnet2048", "ftx2048")
EVIL = "<script>alert('1')</script>$\\frac{x\x00&\u202e"


def base_summary(kind, unit, sets, names, rows, groups):
    hashes = {name: f"{number:064x}" for number, name in enumerate(sets, start=10**70)}
    title = {"classes": "Tissue of tiles", "numbers": "Expression", "binary": "Mutation"}[kind]
    return {
        "schema": "tiaft-probe",
        "version": 1,
        "probe": {"name": kind, "title": title, "kind": kind, "unit": unit,
                  "plugin": "tiaft_plugin", "settings": {"cost": 1.0, "epsilon": 0.1}},
        "answer": f"{sets[-1]} predicts better than {sets[0]}.",
        "data": {"rows": rows, "groups": groups, "grouped": True, "unit": unit,
                 "names": list(names), "counts": dict.fromkeys(names, rows // 9),
                 "left_out": {"no label": 3}},
        "protocol": {"folds": 5, "repeats": 50, "seed": 0, "grouped": True, "stratified": True,
                     "permutations": 99, "draws": 2000, "folds_sha256": "ab" * 32,
                     "reference": sets[0]},
        "inputs": {"features": {name: {"format": "npz", "sha256": hashes[name],
                                       "models": [{"name": name, "sha256": hashes[name]}]}
                                for name in sets},
                   "labels": {"format": "csv", "sha256": "cd" * 32}},
        "versions": {"tiaft_plugin": "0.1.0", "numpy": "2.2.0"},
        "warnings": ["class DEB has few rows: 12"],
    }  # fmt: skip


def score(name, target, metric, value, *, variant="", width=0.02, **more):
    return {"features": name, "target": target, "variant": variant, "metric": metric,
            "value": value, "low": value - width, "high": min(value + width, 1.0),
            "split_sd": 0.0021, "n": 500} | more  # fmt: skip


def versus(a, b, metric, difference, *, target="", variant="", width=0.02):
    return {"a": a, "b": b, "target": target, "variant": variant, "metric": metric,
            "difference": difference, "low": difference - width, "high": difference + width,
            "p_bootstrap": 0.004, "p_corrected": 0.031, "p_paper": 2.2e-16}  # fmt: skip


def baselines(sets, metric, values, chance, variants=("",), target=""):
    """What permuted labels reach, and what the leak control does in ungrouped folds."""
    rows = []
    for name in sets:
        for variant in variants:
            rows.append({"baseline": "labels permuted", "features": name, "target": target,
                         "variant": variant, "metric": metric, "value": chance,
                         "low": chance - 0.02, "high": chance + 0.02, "observed": values[0],
                         "p": 0.01, "draws": 99})  # fmt: skip
        for folds, value in (("grouped", chance + 0.01), ("ungrouped", values[1])):
            rows.append({"baseline": "leak control", "features": name, "target": "", "variant": "",
                         "metric": metric, "value": value, "low": value - 0.1, "high": value + 0.1,
                         "chance": chance, "draws": 10, "folds": folds})  # fmt: skip
    return rows


def as_run(summary, scores, controls):
    """Let colour be a baseline, as a run writes it."""
    colour = [{"baseline": "colour"} | row for row in scores if row["features"] == "colour"]
    return summary | {
        "scores": [row for row in scores if row["features"] != "colour"],
        "baselines": colour + controls,
    }


def tissue_result(sets=SETS, names=TISSUES, repeats=50):
    rng = np.random.default_rng(0)
    summary = base_summary("classes", "tile", sets, names, 7180, 50)
    scores, rows, comparisons = [], [], []
    shown = (*sets, "colour")
    for place, name in enumerate(shown):
        level = 0.62 if name == "colour" else 0.96 + 0.02 * place / len(sets)
        for metric, drop in (("accuracy", 0), ("balanced accuracy", 0.01), ("macro F1", 0.012),
                             ("AUROC", -0.01), ("AUPRC", 0.02)):  # fmt: skip
            scores.append(score(name, "", metric, level - drop, width=0.006, n=7180))
        for number, target in enumerate(names):
            own = np.clip(level - 0.09 * (number == 7) + 0.01 * np.sin(number), 0, 0.999)
            scores.append(score(name, target, "accuracy", own, n=7180, positive=400))
            scores.append(score(name, target, "AUPRC", own - 0.01, n=7180,
                                prevalence=0.11))  # fmt: skip
        for repeat in range(repeats):
            for fold in range(5):
                row = {
                    "features": name,
                    "target": "",
                    "variant": "",
                    "repeat": repeat,
                    "fold": fold,
                    "n": 1436,
                    "accuracy": level + rng.normal(0, 0.003),
                }
                rows.append(row)  # fmt: skip
    for b in sets[1:]:
        comparisons.append(versus(sets[0], b, "accuracy", 0.02, width=0.006))
        comparisons.append(versus(sets[0], b, "AUPRC", 0.004))
        comparisons += [versus(sets[0], b, "accuracy", 0.03, target=name) for name in names]
    matrix = np.diag(np.full(len(names), 700)) + rng.poisson(3, (len(names), len(names)))
    summary |= {
        "comparisons": comparisons,
        "confusion": {name: matrix.tolist() for name in shown},
    }
    summary = as_run(summary, scores, baselines(sets, "balanced accuracy", (0.95, 0.81), 0.11))
    return Result(summary, rows, {"keys": np.array(["a"])})


def expression_result(sets=SETS, genes=907, patients=344):
    rng = np.random.default_rng(1)
    names = [f"GENE{number}" for number in range(genes)]
    names[:4] = ["CD274", "CD3G", "TNFRSF9", "RAC2"][:genes]
    summary = base_summary("numbers", "patient", sets, names, patients, patients)
    observed = rng.normal(5, 1.5, (patients, genes))
    base = rng.beta(1.5, 6, genes)
    base[:4] = (0.45, 0.5, 0.41, 0.52)[:genes]
    rows, scores = [], []
    predictions = {"observed": observed}
    selected = base > 0.3
    for place, name in enumerate((*sets, "colour")):
        shift = -0.12 if name == "colour" else 0.04 * place
        r = np.clip(base + shift + rng.normal(0, 0.04, genes), -0.2, 0.95)
        noise = rng.normal(0, 1, observed.shape)
        predicted = 5 + 0.4 * (r * (observed - 5) / 1.5 + np.sqrt(1 - r**2) * noise)
        predictions[f"average/{name}/0/0"] = predicted
        for gene, value, chosen in zip(names, r.tolist(), selected.tolist(), strict=True):
            rows.append({"features": name, "target": gene, "n": patients, "r": value,
                         "low": value - 0.1, "high": value + 0.1, "split_sd": 0.01,
                         "p": float(np.exp(-60 * value**2)), "q": float(np.exp(-40 * value**2)),
                         "selected": chosen})  # fmt: skip
        scores.append(score(name, "", "median_r", float(np.median(r)), width=0.03, n=genes))
        scores.append(score(name, "", "share_significant", 0.19) | {"low": None, "high": None})
    count = int(selected.sum())
    summary |= {
        "comparisons": [versus(sets[0], b, "median_r", 0.03) | {"p_corrected": None}
                        for b in sets[1:]],
        "genes": {"alpha": 0.05, "selected_by": "union",
                  "significant": dict.fromkeys((*sets, "colour"), count // 2),
                  "significant_unadjusted": dict.fromkeys((*sets, "colour"), count),
                  "selected": count, "better": dict.fromkeys(sets[1:], count // 2)},
    }  # fmt: skip
    summary = as_run(summary, scores, baselines(sets, "median_r", (0.2, 0.05), 0.0))
    return Result(summary, rows, predictions)


def mutation_result(sets=SETS, genes=MUTATED, variants=("lambda.min", "lambda.1se")):
    rng = np.random.default_rng(2)
    summary = base_summary("binary", "patient", sets, genes, 344, 344)
    scores, comparisons, empty = [], [], {}
    for number, gene in enumerate(genes):
        prevalence = round(0.5 / (1 + number % 20), 3)
        for variant in variants:
            for name in (*sets, "colour"):
                value = 0.52 if name == "colour" else float(rng.uniform(0.5, 0.75))
                scores.append(score(name, gene, "AUROC", value, variant=variant, width=0.07,
                                    prevalence=prevalence))  # fmt: skip
                scores.append(score(name, gene, "AUPRC", prevalence + 0.1, variant=variant,
                                    width=0.06, prevalence=prevalence))  # fmt: skip
                empty.setdefault(name, {}).setdefault(gene, {})[variant] = [number, 250]
            for b in sets[1:]:
                comparisons.append(versus(sets[0], b, "AUROC", 0.01, target=gene,
                                          variant=variant, width=0.05))  # fmt: skip
    summary |= {
        "comparisons": comparisons,
        "empty_models": empty,
    }
    controls = [
        row for gene in genes for row in baselines(sets, "AUROC", (0.64, 0.5), 0.5, variants, gene)
    ]
    summary = as_run(summary, scores, [row for row in controls if row["target"]])
    return Result(summary, [], {})


MAKERS = {"classes": tissue_result, "numbers": expression_result, "binary": mutation_result}
SMALL = {
    "classes": {"names": TISSUES[:3], "repeats": 2},
    "numbers": {"genes": 2, "patients": 20},
    "binary": {"genes": MUTATED[:3]},
}


class Page(HTMLParser):
    """Reads a page, and complains of what is not closed, or closed twice."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.links, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.links += [v for k, v in attributes if k in ("href", "src", "xlink:href", "action")]
        assert not [k for k, _ in attributes if k.startswith("on")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(params=list(MAKERS))
def result(request):
    return MAKERS[request.param](**SMALL[request.param])


def changed(result, **summary):
    return replace(result, summary=copy.deepcopy(result.summary) | summary)


def test_a_page_needs_nothing_but_itself_and_is_well_formed(result):
    text = build_report(result)
    page = Page(text)
    assert "http" not in text and "@import" not in text and "url(http" not in text
    assert not {"script", "link", "iframe", "img", "object"} & set(page.seen)
    assert all(link.startswith("#") for link in page.links)
    inside = {link[1:] for link in page.links}
    assert inside <= set(re.findall(r'id="([^"]+)"', text))
    assert text.encode("utf-8")


def test_the_same_result_gives_the_same_bytes_on_any_desk(result):
    import matplotlib

    text = build_report(result)
    odd = {"axes.facecolor": "black", "font.size": 20, "svg.fonttype": "path", "axes.grid": True}
    with matplotlib.rc_context(odd):
        assert build_report(copy.deepcopy(result)) == text
        assert matplotlib.rcParams["font.size"] == 20


def test_a_page_says_what_was_asked_and_the_answer_first(result):
    page = Page(build_report(result))
    parts = [
        result.summary["answer"],
        "Feature sets: imgnet2048, ftx2048",
        "Warning: class DEB has few rows",
        "Comparison",
        "Baselines",
        "Probe and protocol",
        "How to read this",
    ]
    places = [page.text.index(part) for part in parts]
    assert places[:3] == sorted(places[:3]) and places[4:] == sorted(places[4:])
    for name in result.summary["inputs"]["features"].values():
        assert name["sha256"] in page.text
    assert "cd" * 32 in page.text and "ab" * 32 in page.text
    assert "split noise (sd over repeats)" in page.text
    assert "as in the paper, invalid: its p goes to 0 as repeats grow" in page.text
    assert "2.2·10⁻¹⁶" in page.text


def test_each_kind_has_its_figures():
    drawn = {"classes": 2, "numbers": 3, "binary": 2}
    titles = {"classes": ("figure 2", "figure 3", "Confusion matrix"),
              "numbers": ("figure 4", "figure 5", "Genes that are predicted"),
              "binary": ("figure 6", "lambda.1se", "empty models")}  # fmt: skip
    for kind, make in MAKERS.items():
        text = build_report(make(genes=9) if kind == "numbers" else make())
        page = Page(text)
        assert text.count('role="img"') == drawn[kind]
        assert all(title in page.text for title in titles[kind])


@pytest.mark.parametrize("kind", list(MAKERS))
@pytest.mark.parametrize("sets", [("only",), ("a", "b", "c"), ("x" * 200, "x" * 199 + "y")])
def test_one_set_or_many_and_long_names(kind, sets):
    result = MAKERS[kind](sets=sets, **SMALL[kind])
    page = Page(build_report(result))
    assert ("Comparison" in page.text) == (len(sets) > 1)
    assert all(name in page.text for name in sets)


@pytest.mark.parametrize("kind", list(MAKERS))
def test_hostile_names_stay_names(kind):
    # matplotlib would take $ for a formula, a leading _ for no label, and NUL is no XML
    sets = (EVIL, "_hidden")
    names = (EVIL, "_ADI", "<b>", 'a"b', "$x^")
    if kind == "numbers":
        result = expression_result(sets=sets, genes=5, patients=30)
        wild = dict(zip(result.summary["data"]["names"], names, strict=True))
        result.summary["data"]["names"] = list(names)
        for row in result.rows:
            row["target"] = wild[row["target"]]
    else:
        result = MAKERS[kind](sets, names)
    text = build_report(changed(result, answer=EVIL, warnings=[EVIL]))
    page = Page(text)
    assert "script" not in page.seen and "b" in page.seen and "<b>" in page.text
    assert "&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;$\\frac{x\ufffd&amp;\ufffd" in text
    assert visible(EVIL) in page.text and "_hidden" in page.text
    assert "\x00" not in text and "\u202e" not in text


def test_what_a_result_lacks_is_left_out(result):
    for lost in (("probe", "data"), ("protocol", "inputs", "versions"), ("scores", "genes"),
                 ("comparisons", "baselines", "confusion", "empty_models")):  # fmt: skip
        less = {key: value for key, value in result.summary.items() if key not in lost}
        Page(build_report(replace(result, summary=less)))
    nothing = Page(build_report(Result({}, [], {})))
    assert "No answer was given" in nothing.text
    empty = {"probe": result.summary["probe"], "scores": [], "comparisons": []}
    Page(build_report(Result(empty, [], {})))
    Page(build_report(replace(result, rows=[], predictions={})))


def test_missing_values_are_dashes(result):
    kept = ("features", "target", "variant", "metric", "a", "b", "baseline", "repeat", "folds")

    def holed(rows):  # every second row has nothing but its names
        nothing = [None, float("nan"), ""]
        return [
            {k: v if k in kept or place % 2 else nothing[place % 3] for k, v in row.items()}
            for place, row in enumerate(rows)
        ]

    parts = {name: holed(result.summary[name]) for name in ("scores", "comparisons", "baselines")}
    arrays = {name: np.full_like(array, np.nan) if array.dtype.kind == "f" else array
              for name, array in result.predictions.items()}  # fmt: skip
    page = Page(
        build_report(replace(changed(result, **parts), rows=holed(result.rows), predictions=arrays))
    )
    assert not [word for word in page.words if re.search(r"\bnan\b|None", word)]
    assert "–" in page.words


def test_auprc_never_stands_without_its_prevalence():
    for make in (tissue_result, mutation_result):
        text = build_report(make())
        for heads, body in re.findall(r"<table[^>]*><tr>(.*?)</tr>(.*?)</table>", text):
            names = re.findall("<th>(.*?)</th>", heads)
            rows = [re.findall("<td>(.*?)</td>", row) for row in body.split("</tr>")[:-1]]
            whole = any(name.startswith("AUPRC") for name in names)
            for row in rows:
                if whole or "AUPRC" in row:
                    assert float(row[names.index("prevalence")]) > 0
    assert "prevalence" in Page(build_report(tissue_result())).text


def test_colour_stands_beside_the_feature_sets():
    page = Page(build_report(tissue_result()))
    assert "Colour alone (not drawn): 0.620 (0.614 to 0.626)." in page.text
    assert "Feature sets: imgnet2048, ftx2048." in page.text
    bare = tissue_result()
    bare.summary["baselines"] = [b for b in bare.summary["baselines"] if b["baseline"] != "colour"]
    assert "Colour alone" not in Page(build_report(bare)).text


def test_a_page_of_907_genes_stays_small():
    text = build_report(expression_result())
    assert len(text.encode()) < 3_000_000
    page = Page(text)
    assert "The 50 best of 907 genes" in page.text and "results.csv has every gene" in page.text
    assert "the genes of the paper's figure, then the best predicted ones" in page.text
    counts = re.search(r"ftx2048 predicts (\d+) of (\d+) .*?, imgnet2048 (\d+) of", page.text)
    better, of, worse = (int(number) for number in counts.groups())
    rows = {}
    for row in expression_result().rows:
        if row["selected"]:
            rows.setdefault(row["target"], {})[row["features"]] = row["r"]
    assert of == len(rows) == better + worse
    assert better == sum(row["ftx2048"] > row["imgnet2048"] for row in rows.values())


def test_hundreds_of_mutated_genes_are_cut_and_it_is_said():
    genes = tuple(f"GENE{number}" for number in range(120))
    page = Page(build_report(mutation_result(genes=genes)))
    assert "The first 50 of 120; summary.json has all." in page.text
    assert "GENE49" in page.text and "GENE50 " not in page.text.split("Baselines")[0]


def test_ungrouped_folds_are_named():
    result = tissue_result(repeats=2)
    result.summary["protocol"]["grouped"] = False
    assert (
        "with ungrouped folds: rows of one group stand in training and test"
        in Page(build_report(result)).text
    )


def test_rows_read_from_csv_give_the_same_page():
    result = expression_result(genes=4, patients=20)
    read = [{k: repr(v) if isinstance(v, float) else str(v) for k, v in row.items()}
            for row in result.rows]  # fmt: skip
    assert build_report(replace(result, rows=read)) == build_report(result)


def test_numbers_are_written_for_people():
    assert [decimals(x) for x in (0.98449, -0.0123, None, "", float("inf"))] == [
        "0.984", "−0.012", "–", "–", "–"]  # fmt: skip
    assert [decimals(x, sign=True) for x in (0.5, -0.5, 0.0001, -0.0001)] == [
        "+0.500", "−0.500", "0.000", "0.000"]  # fmt: skip
    assert [p_value(x) for x in (0.0314, 1.0, 2.2e-6, 0.0, None)] == [
        "0.031", "1", "2.2·10⁻⁶", "0", "–"]  # fmt: skip
    assert short("a" * 20 + "b" * 20, 11) == "aaaaa…bbbbb"


def test_the_overall_auprc_has_the_mean_prevalence():
    rows = [score("a", "", "AUPRC", 0.9), score("a", "x", "AUPRC", 0.9, prevalence=0.25),
            score("a", "y", "AUPRC", 0.9, prevalence=0.75)]  # fmt: skip
    assert Scores.of(rows).prevalence("a", "", "auprc") == pytest.approx(0.5)

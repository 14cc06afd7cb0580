"""The evaluation of models by tasks: the table, retrieval, and the picture of embeddings."""

import csv
import json
import re
import shutil
import sys
from dataclasses import replace
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tiaft_extensions.transcriptomics.cli import transcriptomics as command
from tiaft_extensions.transcriptomics.evaluate import measures
from tiaft_extensions.transcriptomics.evaluate import run as evaluation
from tiaft_extensions.transcriptomics.evaluate.embedding import flatten, read_embeddings
from tiaft_extensions.transcriptomics.evaluate.features import FeatureCache
from tiaft_extensions.transcriptomics.evaluate.finished import read_finished, read_learnt
from tiaft_extensions.transcriptomics.evaluate.held_out import run_held_out
from tiaft_extensions.transcriptomics.evaluate.measures import (
    Measured,
    difference,
    gain_difference,
    joint_draws,
    mean_difference,
    measured,
)
from tiaft_extensions.transcriptomics.evaluate.models import Candidate, identity_of, read_models
from tiaft_extensions.transcriptomics.evaluate.rows import pooled_stores
from tiaft_extensions.transcriptomics.evaluate.tasks import PEARSON, read_tasks
from tiaft_plugin import TiaftError
from tiaft_plugin.network import create_network, save_model
from tiaft_plugin.probes.interface import FeatureTable, Targets
from tiaft_plugin.probes.metrics import class_metrics
from tiaft_plugin.probes.outputs import read_result
from tiaft_plugin.probes.statistics import cluster_weights, interval
from tiaft_plugin.probes.tissue import Tissue
from tiaft_plugin.zoo import names
from tiaft_plugin.zoo.folder import add_model
from tiaft_plugin.zoo.names import NamedModel

TINY = "test_resnet"  # timm's own backbone for tests
SLIDES, TILES, GENES = 12, 6, 6


def tiaft(*arguments: object) -> SimpleNamespace:
    """Run the extension's commands; what a person would see of an error is its text."""
    found = CliRunner().invoke(command, [str(a) for a in arguments])
    text = str(found.exception) if isinstance(found.exception, TiaftError) else ""
    if found.exception and not text and not isinstance(found.exception, SystemExit):
        raise found.exception
    return SimpleNamespace(code=found.exit_code, said=found.output, error=text)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Slides of red and blue tiles, two a patient; half of the genes go with the share of red."""
    root, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    tiles, shares = ["file,label,group"], rng.integers(1, TILES, SLIDES)
    (root / "tiles").mkdir()
    for slide, red in enumerate(shares.tolist()):
        for tile in range(TILES):
            pixels = rng.integers(0, 90, (32, 32, 3)).astype(np.uint8)
            pixels[..., 0 if tile < red else 2] += 90
            Image.fromarray(pixels).save(root / "tiles" / f"{slide}-{tile}.png")
            tiles.append(f"{slide}-{tile}.png,{'red' if tile < red else 'blue'},s{slide}")
    write(root / "tiles" / "manifest.csv", *tiles)
    of = [f"p{slide // 2}" for slide in range(SLIDES)]
    write(root / "patients.csv", "slide,patient", *(f"s{n},{p}" for n, p in enumerate(of)))
    side = ["many" if red > np.median(shares) else "few" for red in shares.tolist()]
    write(root / "sides.csv", "slide,side,stage",
          *(f"s{n}.svs,{s},IV" for n, s in enumerate(side)))  # fmt: skip
    patients = sorted(set(of))
    values = rng.normal(3, 0.05, (len(patients), GENES))
    values[:, : GENES // 2] += shares.reshape(-1, 2).mean(axis=1)[:, None] / TILES
    head = ",".join(["patient", *(f"G{n}" for n in range(GENES))])
    write(root / "genes.csv", head, *(
        ",".join([p, *map(repr, row)])
        for p, row in zip(patients, values.tolist(), strict=True)))  # fmt: skip
    write(
        root / "tasks.csv",
        "task,tiles,labels,column,metric,level,patients,repeats,note",
        "colour,tiles,,,balanced accuracy,tile,patients.csv,2,of no data set",
        "side,tiles,sides.csv,side,AUROC,slide,patients.csv,,",
        "genes,tiles,genes.csv,,mean pearson,patient,patients.csv,,",
    )
    for number, name in enumerate(("base", "tuned")):
        net = create_network(TINY, init="random", tile_size=32, mpp=1.0, seed=number)
        save_model(net, root / f"{name}.safetensors")
    return root


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """The evaluation of two models, whole."""
    out = tmp_path_factory.mktemp("done") / "out"
    found = tiaft(*arguments(world, out))
    assert found.code == 0, found.error + found.said
    return SimpleNamespace(out=out, said=found.said)


def arguments(world, out, *more):
    base, tuned = world / "base.safetensors", world / "tuned.safetensors"
    return ["evaluate", world / "tasks.csv", "--model", base, "--model", f"{tuned}={base}",
            "--out", out, "--folds", 3, "--repeats", 1, "--draws", 100,
            "--device", "cpu", *more]  # fmt: skip


def test_each_task_is_measured_by_the_probe_and_against_the_models_own_base(done):
    rows = {(row["task"], row["model"]): row for row in rows_of(done.out / "evaluation.csv")}
    assert list(rows) == [(t, m) for t in ("colour", "side", "genes") for m in ("base", "tuned")]
    for (task, model), row in rows.items():
        assert (row["delta"] == "") == (model == "base")
        if model == "tuned":
            delta = float(row["value"]) - float(rows[task, "base"]["value"])
            assert float(row["delta"]) == pytest.approx(delta)
            assert float(row["delta_low"]) <= delta <= float(row["delta_high"])
        assert row["patients"] == "6"
    assert [rows[task, "base"]["rows"] for task in ("colour", "side", "genes")] == ["72", "12", "6"]
    folder = next((done.out / "probes" / "colour").glob("base-*"))
    scores = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["scores"]
    own = next(s for s in scores if s["metric"] == "balanced accuracy" and not s["target"])
    row = rows["colour", "base"]
    assert [float(row[name]) for name in ("value", "low", "high")] == [
        own[name] for name in ("value", "low", "high")
    ]
    result = read_result(next((done.out / "probes" / "side").glob("base-*")))
    assert result.summary["protocol"]["repeats"] == 1 and result.summary["data"]["unit"] == "slide"
    mean = rows_of(done.out / "means.csv")
    deltas = [float(row["delta"]) for row in rows.values() if row["delta"]]
    assert float(mean[0]["delta"]) == pytest.approx(np.mean(deltas)) and mean[0]["tasks"] == "3"
    assert "tuned − base" in done.said and "mean, other tasks" in done.said
    page = (done.out / "report.html").read_text(encoding="utf-8")
    assert "probes/colour/base-" in page and "<svg" in page


def test_interrupted_it_goes_on_to_the_same_bytes(world, done, tmp_path, monkeypatch):
    out, run, asked = tmp_path / "out", evaluation.run_probe, []
    shutil.copytree(done.out, out)
    for lost in (*out.glob("probes/side/*"), next(out.glob("features/tuned/*.npz"))):
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    for name in ("evaluation.csv", "means.csv", "report.html"):
        (out / name).unlink()

    def killed(*given, **options):
        asked.append(given[1][0].name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return run(*given, **options)

    monkeypatch.setattr(evaluation, "run_probe", killed)
    CliRunner().invoke(command, [str(a) for a in arguments(world, out)])
    assert asked == ["base", "tuned"] and not (out / "evaluation.csv").exists()
    made = {path: path.stat().st_mtime_ns for path in (out / "features").rglob("*.npz")}
    assert len(made) == 2
    assert tiaft(*arguments(world, out)).code == 0
    assert asked == ["base", "tuned", "tuned"]
    assert made == {path: path.stat().st_mtime_ns for path in (out / "features").rglob("*.npz")}
    for name in ("evaluation.csv", "means.csv", "report.html"):
        assert (out / name).read_bytes() == (done.out / name).read_bytes()


def test_what_a_user_gets_wrong_is_said_with_the_row(world, tmp_path):
    base = world / "base.safetensors"
    head = "task,tiles,labels,column,metric,level"
    write(world / "tiles" / "one.csv", "file,label", "0-0.png,tissue", "0-1.png,tissue")
    refused = {
        "row 2, task a: no metric is called 'AUC': there is balanced accuracy,": "a,tiles,,,AUC,",
        f"row 2, task a: labels {world / 'no.csv'}: no such file": "a,tiles,no.csv,side,,slide",
        f"row 2, task a: tiles {world / 'no'}: no such file or folder": "a,no,,,,",
        "row 2, task a: all 12 rows are of one class, IV": "a,tiles,sides.csv,stage,,slide",
        "sides.csv: no column grade, which names the class": "a,tiles,sides.csv,grade,,slide",
        "row 2, task a: balanced accuracy by slide needs labels": "a,tiles,,,,slide",
        "mean Pearson is of genes, and a row a patient": "a,tiles,genes.csv,,mean Pearson,slide",
        f"row 2, task a: {world / 'tiles'} holds one class (tissue): two": "a,tiles/one.csv,,,,",
        "row 2, task a: one of the columns tiles, slides, features": "a,,,,,",
    }
    for message, line in refused.items():
        write(world / "wrong.csv", head, line)
        found = tiaft("evaluate", world / "wrong.csv", "--model", base, "--out", tmp_path / "out")
        assert message in found.error and "\n" not in found.error
    assert not (tmp_path / "out" / "features").exists()
    write(world / "wrong.csv", "task,tiles,colour", "a,tiles,red")
    with pytest.raises(TiaftError, match="no column of a task is called colour"):
        read_tasks(world / "wrong.csv")
    with pytest.raises(TiaftError, match="none of the models: add --model other"):
        read_models([str(base), f"{world / 'tuned.safetensors'}=other"])
    with pytest.raises(TiaftError, match="no such model file"):
        read_models([str(world / "none.safetensors")])
    with pytest.raises(TiaftError, match="two models are called base"):
        read_models([str(base), str(base)])


def test_a_task_that_fails_stops_no_other_and_what_is_there_stays(world, done, monkeypatch):
    run, asked = evaluation.run_probe, []
    monkeypatch.setattr(
        evaluation,
        "run_probe",
        lambda *given, **o: asked.append(given[3].parent.name) or run(*given, **o),
    )
    write(world / "short.csv", "slide,side", *(f"s{n},{'ab'[n % 2]}" for n in range(SLIDES - 1)))
    write(world / "some.csv", "task,tiles,labels,column,level,patients,repeats",
          "short,tiles,short.csv,side,slide,,", "colour,tiles,,,,patients.csv,2")  # fmt: skip
    given = ["evaluate", world / "some.csv", "--model", world / "base.safetensors", "--out",
             done.out, "--folds", 3, "--repeats", 1, "--draws", 100, "--device", "cpu"]  # fmt: skip
    found = tiaft(*given)
    assert "1 failed: short by base: features and labels do not match" in found.error
    assert [row["failed"] != "" for row in rows_of(done.out / "evaluation.csv")] == [True, False]
    assert asked == ["short"]  # colour by base has been asked before


def test_which_of_two_models_gained_more_is_told_and_of_one_task_that_it_is_one(
    world, done, tmp_path
):
    out, other = tmp_path / "out", tmp_path / "other.safetensors"
    shutil.copytree(done.out, out)
    shutil.copy(world / "base.safetensors", other)
    write(world / "one.csv", "task,tiles,level,patients,repeats", "colour,tiles,,patients.csv,2")
    given = arguments(world, out, "--model", f"{other}={world / 'base.safetensors'}")
    found = tiaft("evaluate", world / "one.csv", *given[2:])
    assert found.code == 0, found.error + found.said
    rows = {row["model"]: row for row in rows_of(out / "evaluation.csv")}
    gain = rows_of(out / "gains.csv")
    assert [(row["model"], row["other"], row["tasks"]) for row in gain] == [("other", "tuned", "1")]
    lost = -float(rows["tuned"]["delta"])  # the other is the base itself, and gained nothing
    assert float(gain[0]["difference"]) == pytest.approx(lost)
    ends = [-float(rows["tuned"][name]) for name in ("delta_high", "delta_low", "delta_p")]
    assert float(gain[0]["low"]) == pytest.approx(ends[0])
    assert float(gain[0]["high"]) == pytest.approx(ends[1])
    assert float(gain[0]["p"]) == pytest.approx(-ends[2]) and gain[0]["tasks_low"] == ""
    assert "other − tuned, both from base" in found.said
    assert found.said.count("(one task: no interval)") == 3  # two means and what is between them
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Which gained more" in page and "other − tuned, both from base" in page
    told = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert told["gains"][0]["difference"] == pytest.approx(lost)
    assert told["gains"][0]["tasks_p"] is None and told["tasks"][0]["rows"] == 72
    assert rows_of(done.out / "gains.csv") == []  # one model with a base is held against none


def test_a_data_sets_own_split_is_learnt_from_and_measured_once(world, done, tmp_path):
    rng, out = np.random.default_rng(1), tmp_path / "out"
    part = {slide: "Test" if slide >= 6 else "train" for slide in range(SLIDES)} | {0: ""}
    labels = {f"{slide}-{tile}.png": "ab"[rng.integers(2)]
              for slide in range(SLIDES) for tile in range(TILES)}  # fmt: skip
    table = write(tmp_path / "parts.csv", "file,label,part", *(
        f"{name},{label},{part[int(name.split('-')[0])]}" for name, label in labels.items()
    ))  # fmt: skip
    tasks = write(
        tmp_path / "tasks.csv",
        "task,tiles,labels,split,patients",
        f"own,{world / 'tiles'},parts.csv,part,{world / 'patients.csv'}",
        f"alone,{world / 'tiles'},parts.csv,part,",
    )
    shutil.copytree(done.out / "features", out / "features")
    given = ["evaluate", tasks, *arguments(world, out)[2:]]
    found = tiaft(*given)
    assert found.code == 0, found.error + found.said
    rows = {(row["task"], row["model"]): row for row in rows_of(out / "evaluation.csv")}
    row = rows["own", "base"]
    assert (row["rows"], row["patients"]) == ("36", "3")
    with np.load(next((out / "features" / "base").glob("*.npz"))) as arrays:
        keys, features = arrays["keys"].tolist(), arrays["features"]
    slide = np.array([int(key.split("-")[0]) for key in keys])
    classes = np.array([labels[key] for key in keys])
    learnt, tested = (slide > 0) & (slide < 6), slide >= 6
    scores = Tissue().fit(features[learnt], classes[learnt], slide[learnt], 0)(features[tested])
    right = np.array(["a", "b"])[scores.argmax(axis=1)] == classes[tested]
    recalls = [right[classes[tested] == name].mean() for name in "ab"]
    assert float(row["value"]) == pytest.approx(np.mean(recalls)) and np.mean(recalls) < 1
    weights = cluster_weights(np.array([f"p{n // 2}" for n in slide[tested]]), 100, 0)
    codes = (classes[tested] == "b").astype(int)
    draws = class_metrics(scores, codes, "ab", weights)["balanced accuracy", ""]
    ends = float(row["low"]), float(row["high"])
    assert ends == pytest.approx(interval(draws, 3, 1))  # of patients, with no folds to widen it
    tuned = rows["own", "tuned"]
    assert float(tuned["delta"]) == pytest.approx(float(tuned["value"]) - np.mean(recalls))
    with np.load(next((out / "probes" / "own").glob("base-*/held_out.npz"))) as held:
        assert "labels: 6 rows have no part of the split: left out" in held["warnings"].tolist()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "are learnt from its training rows" in page and "train and test" in page
    made = {path: path.stat().st_mtime_ns for path in out.glob("probes/*/*/held_out.npz")}
    assert tiaft(*given).code == 0 and len(made) == 4
    assert made == {path: path.stat().st_mtime_ns for path in out.glob("probes/*/*/held_out.npz")}
    text = table.read_text(encoding="utf-8")
    for word, message in {
        "val": f"row 2, task own: {table}: column part holds val: train and test are known, and",
        "": "the split has no test row that has features",
    }.items():
        table.write_text(text.replace("Test", word), encoding="utf-8")
        assert message in tiaft(*given).error
    write(world / "parts.csv", *text.splitlines())
    for line, message in {
        "own,tiles,parts.csv,part,3,": "folds of which split? Column split takes their place",
        "own,tiles,,part,,": "split part is a column of labels, and labels names no table",
        "own,tiles,genes.csv,part,,mean Pearson": "split is for classes: mean Pearson is measured",
    }.items():
        wrong = write(world / "wrong.csv", "task,tiles,labels,split,folds,metric", line)
        with pytest.raises(TiaftError, match=re.escape(message)):
            read_tasks(wrong)


def test_what_makes_a_split_look_better_than_it_is_is_said(tmp_path):
    keys = np.array([f"k{n:02d}" for n in range(12)])
    values = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    parts, groups = np.array(["train"] * 8 + ["test"] * 4), np.array(list("PQRSTUVWPQXY"))
    noted = {"notes": ["1 of 13 slides of the table have no store: fold-1/s.svs"]}
    table = FeatureTable("m", keys, values, groups, parts, source=noted)
    targets = Targets("classes", keys, np.array(list("abababababcc")), ("a", "b", "c"))
    task = SimpleNamespace(level="tile", probe="tissue")
    found = run_held_out(task, table, targets, tmp_path / "one", evaluation.Protocol(0, 100, 99))
    said = "; ".join(found.warnings)
    assert "2 patients stand in train and test, and results look better than they are: P, Q" in said
    assert "classes of which no row is learnt from: c" in said
    assert "labels are not permuted" in said and "m: 1 of 13 slides" in said
    assert found.scores["m"].shape == (4, 3) and found.scores["m"].argmax(axis=1).max() < 2
    alone = run_held_out(
        task, replace(table, groups=None), targets, tmp_path / "two", evaluation.Protocol()
    )
    said = "; ".join(alone.warnings)
    assert "no slide or patient is known of the rows: nothing says" in said
    one = replace(table, groups=np.array(["P"] * 8 + ["Q"] * 4))
    one = run_held_out(task, one, targets, tmp_path / "three", evaluation.Protocol())
    assert "of a fold" not in said and not any("folds" in text for text in one.warnings)


def test_features_that_there_are_already_serve_by_the_models_name(world, done, tmp_path):
    for name in ("base", "tuned"):
        made = next((done.out / "features" / name).glob("*.npz"))
        (tmp_path / f"{name}.npz").write_bytes(made.read_bytes())
    write(tmp_path / "tasks.csv", "task,features,level", "colour,{model}.npz,tile")
    given = ["evaluate", tmp_path / "tasks.csv", "--model", world / "base.safetensors",
             "--out", tmp_path / "out", "--folds", 3, "--repeats", 1, "--draws", 100]  # fmt: skip
    assert tiaft(*given).code == 0
    (tmp_path / "base.npz").unlink()
    assert "base.npz: no such file or folder" in tiaft(*given).error


def test_a_model_without_a_file_is_known_by_its_weights_or_by_versions(monkeypatch):
    def of_plugin(seed):
        net = create_network(TINY, init="random", tile_size=32, mpp=1.0, seed=seed)
        model = NamedModel("m", "m", "features", 32, 1.0, (), load=lambda: net)
        with monkeypatch.context() as patch:
            patch.setattr(names, "find", lambda name: model)
            return identity_of("m")

    assert of_plugin(0) == of_plugin(0) != of_plugin(1)
    assert f"resnet18, tiatoolbox {version('tiatoolbox')}, timm " in identity_of("resnet18")


def of_numbers(value, draws, groups, folds=5) -> Measured:
    problem = SimpleNamespace(groups=groups, clusters=len(set(groups.tolist())), count=folds)
    return Measured(problem, lambda weights: weights.mean(axis=1) * value, value, draws)


def test_mean_pearson_is_that_of_the_genes_of_the_probes_table(done):
    folder = next((done.out / "probes" / "genes").glob("tuned-*"))
    result = read_result(folder)
    own = [float(row["r"]) for row in result.rows if row["features"] == "tuned"]
    found = measured(result, PEARSON, "tuned")
    assert found.value == pytest.approx(np.mean(own), abs=1e-12)
    assert difference(found, found)[:3] == (0, 0, 0)
    folds = found.problem.folds[:, ::-1]
    other = {"folds": folds, "targets": found.problem.targets[:, 1:]}
    for name, values in other.items():
        with pytest.raises(TiaftError, match="other rows"):
            difference(found, replace(found, problem=replace(found.problem, **{name: values})))


def test_the_mean_over_tasks_is_plain_and_draws_shared_patients_once():
    alone, pair = np.array(list("abcd")), np.array(list("wxyz"))
    drawn = joint_draws([pair, alone, pair[::-1]], 50, 0)
    assert drawn[1] is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "BLOCK", 100)  # 25 draws at a time
        one, other = (list(its.weights()) for its in (drawn[0], drawn[2]))
    assert [its.shape for its in one] == [(25, 4), (25, 4)]
    one, other = np.concatenate(one), np.concatenate(other)
    assert np.array_equal(one, other[:, ::-1])  # the same patients in both tasks
    both = cluster_weights(np.concatenate([pair, pair[::-1]]), 50, 0)
    assert np.array_equal(np.concatenate([one, other], axis=1), both)
    chain = joint_draws([np.array(["a"]), np.array(["a", "b"]), np.array(["b"])], 50, 0)
    assert all(each is not None for each in chain)
    rng = np.random.default_rng(0)
    groups = [np.array([f"{task}-{n}" for n in range(30)]) for task in range(3)]
    noise = [rng.normal(0, 0.1, 4000) for _ in groups]
    pairs = [(of_numbers(d, d + n, g), of_numbers(0, 0 * n, g))
             for d, n, g in zip((0.1, 0.2, 0.6), noise, groups, strict=True)]  # fmt: skip
    found = mean_difference(pairs, 4000, 0)
    assert found.value == pytest.approx(0.3) and found.number == 3
    widened = 0.1 / np.sqrt(3) * np.sqrt(2.25 * 30 / 29) * 2.045  # t of 29
    assert found.patients.high - 0.3 == pytest.approx(widened, rel=0.05)
    spread = np.std([0.1, 0.2, 0.6], ddof=1) / np.sqrt(3) * 4.303  # t of 2
    assert found.tasks.high - 0.3 == pytest.approx(spread, rel=1e-3)
    less = [(of_numbers(0, 0 * n, g), of_numbers(0.1, 0.1 + n, g))  # all lose 0.1
            for n, g in zip(noise, groups, strict=True)]  # fmt: skip
    more = gain_difference(list(zip(pairs, less, strict=True)), 4000, 0)
    assert more.value == pytest.approx(0.4) and more.tasks.high - 0.4 == pytest.approx(spread, 1e-3)
    assert more.patients.high - 0.4 == pytest.approx(2 * widened, rel=0.05)  # both lean on noise
    same = gain_difference([(pair, pair) for pair in pairs], 4000, 0)
    assert (same.value, same.patients.p, same.tasks.p) == (0, 1, 1)
    twins = [(of_numbers(0.1, 0.1 + noise[0], its), of_numbers(0, 0 * noise[0], its))
             for its in groups[:2]]  # fmt: skip
    alike = mean_difference(twins, 4000, 0)  # as many patients, and the same draws, but others
    widened = 2.045 * noise[0].std() / np.sqrt(2) * np.sqrt(2.25 * 30 / 29)
    assert alike.patients.high - 0.1 == pytest.approx(widened, rel=0.05)
    alone = gain_difference([(pairs[0], less[0])], 4000, 0)
    assert alone.patients.low < alone.value < alone.patients.high and np.isnan(alone.tasks.low)


def test_slides_are_extracted_once_and_a_patient_is_the_mean_of_its_tiles(tiny_model, tmp_path):
    from conftest import write_slide

    rng = np.random.default_rng(0)
    lines = []
    for name, patient, height in (("a", "P", 64), ("b", "P", 96), ("c", "Q", 96)):
        pixels = rng.integers(60, 200, (height, 64, 3)).astype(np.uint8)
        write_slide(tmp_path / f"{name}.ome.tiff", pixels)
        Image.fromarray(np.full((height // 8, 8), 255, np.uint8)).save(tmp_path / f"{name}.png")
        lines.append(f"{name}.ome.tiff,{patient},{name}.png")
    table = write(tmp_path / "slides.csv", "slide,patient,mask", *lines)
    model = Candidate("tiny", str(tiny_model), "", identity_of(str(tiny_model)))
    cache = FeatureCache(tmp_path / "features", "cpu")
    folder = cache.of_slides(table, model)
    slides = pooled_stores(folder, "tiny", "slide", {})
    assert slides.keys.tolist() == ["a.ome", "b.ome", "c.ome"]
    assert slides.groups.tolist() == ["P", "P", "Q"]
    patients = pooled_stores(folder, "tiny", "patient", {})
    whole = (slides.values[0] * 4 + slides.values[1] * 6) / 10  # tiles of 32 px
    assert np.allclose(patients.values[0], whole, atol=1e-5)
    assert patients.colour.shape == (2, slides.colour.shape[1])


@pytest.fixture(scope="module")
def tuned_run(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "run"
    found = tiaft(
        "tune", world / "tiles", "--expression", world / "genes.csv", "--patients",
        world / "patients.csv", "--unit", "ln(tpm+1)", "--genes-in", "columns", "--out", out,
        "--init", world / "base.safetensors", "--epochs", 1, "--set", "width=4",
        "--val-share", 0, "--test-share", 0.5, "--mpp", 1, "--device", "cpu",
    )  # fmt: skip
    assert found.code == 0, found.error + found.said
    return out


def test_retrieval_asks_about_new_patients_and_agrees_with_the_tuning(world, tuned_run, tmp_path):
    given = ["retrieve", world / "tiles", "--run", tuned_run, "--expression", world / "genes.csv",
             "--patients", world / "patients.csv", "--unit", "ln(tpm+1)", "--genes-in", "columns",
             "--out", tmp_path / "out", "--base", world / "base.safetensors",
             "--device", "cpu"]  # fmt: skip
    found = tiaft(*given)
    assert found.code == 0, found.error
    sets = {row["patient"]: row["set"] for row in rows_of(tuned_run / "slides.csv")}
    asked = {row["patient"] for row in rows_of(tmp_path / "out" / "ranks.csv")}
    assert asked == {patient for patient, name in sets.items() if name == "test"}
    assert len(asked) == 3
    scores = {(r["measure"], r["way"], r["against"]): float(r["value"])
              for r in rows_of(tmp_path / "out" / "retrieval.csv")}  # fmt: skip
    own = {(r["measure"], r["way"], r["against"]): float(r["value"])
           for r in rows_of(tuned_run / "test.csv")}  # fmt: skip
    for key in (("recall@1 image to expression", "joint space", ""),
                ("median rank expression to image", "joint space", ""),
                ("median rank image to expression", "base + ridge", ""),
                ("recall@1 image to expression", "chance", "")):  # fmt: skip
        assert scores[key] == pytest.approx(own[key], rel=1e-4)
    assert "3 patients that the run has not seen; base + ridge learnt from 3" in found.said
    into_run = [tuned_run if part == tmp_path / "out" else part for part in given]
    assert "is the run itself" in tiaft(*into_run).error
    write(tmp_path / "few.csv", "patient,G0", "p0,1.5", "p1,2.5")
    given[5] = tmp_path / "few.csv"
    assert "lacks 5 of the 6 genes" in tiaft(*given).error
    del given[6:8]  # --patients
    table = (world / "genes.csv").read_text(encoding="utf-8").splitlines()
    write(tmp_path / "by_slide.csv", table[0].replace("patient", "slide"), *(
        f"s{n}{table[1 + n // 2].removeprefix(f'p{n // 2}')}" for n in range(SLIDES)))  # fmt: skip
    given[5] = tmp_path / "by_slide.csv"
    assert tiaft(*given).code == 0
    asked = {row["patient"] for row in rows_of(tmp_path / "out" / "ranks.csv")}
    assert asked == {row["slide"] for row in rows_of(tuned_run / "slides.csv")
                     if row["set"] == "test"}  # fmt: skip
    given[3] = world
    assert "is no finished run of `tiaft transcriptomics tune`" in tiaft(*given).error


def test_patients_that_a_model_has_learnt_from_are_said_and_left_out(world, tuned_run, tmp_path):
    write(world / "one.csv", "task,tiles,level,patients", "colour,tiles,tile,patients.csv")
    given = ["evaluate", world / "one.csv", "--model", tuned_run / "model.safetensors", "--out",
             tmp_path / "out", "--folds", 3, "--repeats", 1, "--draws", 100]  # fmt: skip
    found = tiaft(*given)
    note = f"colour: run has learnt from 3 of the 6 patients: --leave-out {tuned_run} leaves"
    assert note in found.said
    found = tiaft(*given, "--leave-out", tuned_run)
    assert found.code == 0 and "has learnt from" not in found.said
    row = rows_of(tmp_path / "out" / "evaluation.csv")[0]
    assert (row["patients"], row["rows"], row["model"]) == ("3", "36", "run")
    add_model("named", tuned_run / "model.safetensors")  # a copy knows of no run
    given[3] = "named"
    note = "named was fine-tuned on expression of patients that its file does not name: --leave-out"
    assert note in tiaft(*given).said
    found = tiaft(*given, "--leave-out", tuned_run)
    assert found.code == 0 and "note: named" not in found.said
    write(world / "one.csv", "task,tiles,level", "colour,tiles,tile")  # slides stand for patients
    assert tiaft(*given, "--leave-out", tuned_run).code == 0
    row = rows_of(tmp_path / "out" / "evaluation.csv")[0]
    assert (row["patients"], row["rows"]) == ("6", "36")
    assert "has no slides.csv" in tiaft(*given, "--leave-out", world).error


@pytest.mark.parametrize("text", ["", "slide,pa", "slide,patient,set\n", "slide,patient,set\na,b,"])
def test_who_has_learnt_is_not_guessed_from_a_table_cut_short(tmp_path, text):
    (tmp_path / "slides.csv").write_text(text)
    with pytest.raises(TiaftError, match=r"slides.csv: columns slide, patient and set expected"):
        read_learnt(tmp_path)


def test_a_table_of_slides_that_lies_about_is_no_runs(world, tuned_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "models"):
        folder.mkdir(exist_ok=True)
        write(folder / "slides.csv", "slide,mpp", "a.svs,0.5")
    model = shutil.copy(world / "base.safetensors", tmp_path / "models" / "model.safetensors")
    assert Candidate("named", "named", "", "").run is None
    assert Candidate("base", str(model), "", "").run is None
    assert Candidate("run", str(tuned_run / "model.safetensors"), "", "").run == tuned_run


def test_layers_may_learn_after_a_head_but_no_head_on_a_head(world, tuned_run, tmp_path):
    given = ["tune", world / "tiles", "--expression", world / "genes.csv", "--patients",
             world / "patients.csv", "--unit", "ln(tpm+1)", "--genes-in", "columns", "--init",
             tuned_run / "model.safetensors", "--epochs", 1, "--set", "width=4", "--val-share", 0,
             "--test-share", 0, "--mpp", 1, "--device", "cpu", "--out",
             tmp_path / "out"]  # fmt: skip
    assert "has a learnt projection already: give the encoder before" in tiaft(*given).error
    assert not (tmp_path / "out").exists()
    found = tiaft(*given, "--train", "last")
    assert found.code == 0, found.error
    finished = read_finished(tmp_path / "out")
    features = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    assert not np.allclose(finished.embed(features), features.mean(axis=0))  # goes through its own


@pytest.fixture
def texts(tmp_path):
    """Embeddings of 20 slides and reports, of two widths, near each other by their class."""
    rng = np.random.default_rng(0)
    label = np.arange(20) % 2
    for name, width in (("images", 6), ("reports", 9)):
        values = rng.normal(0, 0.3, (20, width)) + 2 * label[:, None]
        values[:, 0] = 1
        write(tmp_path / f"{name}.csv", ",".join(["slide", *(f"x{n}" for n in range(width))]), *(
            ",".join([f"s{n}", *map(repr, row)]) for n, row in enumerate(values.tolist())
        ))  # fmt: skip
    write(tmp_path / "grades.csv", "slide,grade", *(f"s{n}.svs,{c}" for n, c in enumerate(label)))
    return tmp_path


def test_embeddings_are_drawn_side_by_side_the_same_each_time(texts):
    for out in ("one", "two"):
        found = tiaft(
            "embed",
            texts / "images.csv",
            texts / "reports.csv",
            "--labels",
            texts / "grades.csv",
            "--column",
            "grade",
            "--out",
            texts / out,
        )
        assert found.code == 0, found.error
    assert "images and reports share 20 slides" in found.said
    rows = rows_of(texts / "one" / "embedding.csv")
    assert len(rows) == 40 and {row["label"] for row in rows} == {"0", "1"}
    places = np.array([[float(row["x"]), float(row["y"])] for row in rows[:20]])
    own = np.array([row["label"] for row in rows[:20]])
    far = np.linalg.norm(places[own == "0"].mean(0) - places[own == "1"].mean(0))
    assert far > np.linalg.norm(places[own == "0"] - places[own == "0"].mean(0), axis=1).mean()
    for name in ("embedding.csv", "embedding.png"):
        assert (texts / "one" / name).read_bytes() == (texts / "two" / name).read_bytes()
    with Image.open(texts / "one" / "embedding.png") as picture:
        assert picture.width > picture.height


@pytest.mark.parametrize("values", [np.ones((6, 3)), np.arange(1.0, 7)[:, None]])
def test_slides_that_differ_in_nothing_are_refused(values):  # scikit-learn's t-SNE crashes
    alike = FeatureTable("alike", np.array(list("abcdef")), values)
    with pytest.raises(TiaftError, match="alike makes no picture: its slides have one number each"):
        flatten([alike])


def test_what_cannot_be_drawn_is_said(texts, monkeypatch):
    tables = [read_embeddings(texts / f"{name}.csv", name) for name in ("images", "reports")]
    with pytest.raises(TiaftError, match="of one space, these have widths images 6, reports 9"):
        flatten(tables, together=True)
    few = replace(tables[0], keys=tables[0].keys[:3], values=tables[0].values[:3])
    with pytest.raises(TiaftError, match="fewer than 5 slides"):
        flatten([few])
    together = flatten([tables[0], replace(tables[0], name="again")], together=True)
    assert [len(flat.keys) for flat in together] == [20, 20]
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(TiaftError, match="umap-learn: pip install umap-learn"):
        flatten(tables, method="umap")
    write(texts / "words.csv", "slide,text", "s0,adenocarcinoma")
    with pytest.raises(TiaftError, match="1 cell that should be a number is none, in text"):
        read_embeddings(texts / "words.csv", "words")

"""The files of a run, its report, and the baselines beside it, from results made by hand."""

import copy
import csv
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tiaft_plugin.finetune import baseline, outputs
from tiaft_plugin.finetune.baseline import blind_baseline, colour_baseline, evaluation_of
from tiaft_plugin.finetune.interface import FinetuneJob
from tiaft_plugin.finetune.measured import Measured, StageResult
from tiaft_plugin.finetune.outputs import write_run
from tiaft_plugin.finetune.recipes import RECIPES
from tiaft_plugin.finetune.report import TIME
from tiaft_plugin.finetune.sets import Sets
from tiaft_plugin.finetune.stages import run_stages
from tiaft_plugin.network import create_network, load_model, read_card
from tiaft_plugin.tiles import stain
from tiaft_plugin.tiles.tileset import TileSet

SIZE = 16
COLOURS = {"TUM": (110, 70, 150), "STR": (230, 180, 200), "LYM": (60, 40, 90)}
TWO, ONE = RECIPES["ftx2048"], RECIPES["graziani"]


def tile_set(root: Path, each: int, seed: int, grouped: bool = True, noise: int = 30) -> TileSet:
    """Write noisy tiles of a colour a class; each set has slides of its own."""
    rng, names, files = np.random.default_rng(seed), tuple(COLOURS), []
    root.mkdir(parents=True)
    for name, colour in COLOURS.items():
        for number in range(each):
            pixels = np.array(colour) + rng.integers(-noise, noise + 1, (SIZE, SIZE, 3))
            files.append(root / f"{name}-{number}.png")
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(files[-1])
    labels = tuple(name for name in names for _ in range(each))
    groups = tuple(f"slide{seed}" if grouped else None for _ in files)
    return TileSet(root, tuple(files), labels, groups, names, SIZE, 0.5)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Three sets of different slides; nobody changes them."""
    root = tmp_path_factory.mktemp("sets")
    return Sets(*(tile_set(root / n, e, i) for i, (n, e) in enumerate(
        {"train": 6, "val": 3, "test": 4}.items())))  # fmt: skip


def several(tiles: TileSet) -> TileSet:
    """Give tiles any number of labels: what is dark, and what is blue."""
    labels = {"TUM": "blue", "STR": "", "LYM": "dark;blue"}
    return replace(
        tiles,
        labels=tuple(labels[name] for name in tiles.labels),
        classes=("dark", "blue"),
        multilabel=True,
    )


def guessed(tiles: TileSet | None, right: float, seed: int = 0):
    """Return an evaluation of random probabilities that lean to what is true."""
    if tiles is None:
        return None
    targets = np.array(tiles.targets)
    truth = targets if targets.ndim == 2 else targets[:, None] == np.arange(len(tiles.classes))
    given = np.random.default_rng(seed).uniform(0, 1, truth.shape) + right * truth
    given = given / (1 + right) if targets.ndim == 2 else given / given.sum(1, keepdims=True)
    return evaluation_of(tiles, given)


@cache
def network(classes):
    return create_network("test_resnet", classes, init="random", tile_size=SIZE, mpp=0.5, hidden=())


def results_of(recipe, sets: Sets, seconds: float = 1.0) -> list[StageResult]:
    """Return what the stages of a recipe, two epochs each, could have left."""
    results = []
    for stage in recipe.stages:
        rows = [
            {"stage": stage.number, "epoch": epoch, "split": split, "loss": 1 / epoch,
             "accuracy": 0.5, "lr": stage.lr, "seconds": seconds}
            for epoch in (1, 2) for split in ("train", "val") if split == "train" or sets.val
        ]  # fmt: skip
        found = (guessed(tiles, stage.number) for tiles in (sets.val, sets.test))
        measured = Measured(rows, *found, "Adam", 2, seconds, seconds)
        own = copy.deepcopy(network(sets.train.classes))
        results.append(StageResult(stage, own, measured, False))
    return results


def written(out: Path, sets: Sets, recipe=TWO, warnings=(), seconds=1.0, name="tiles", **changes):
    job = FinetuneJob(out=out, train=sets.train, val=sets.val, test=sets.test, **changes)
    data = {"name": name, "fingerprint": "0" * 64, "tiles": sets.train.counts}
    return write_run(
        job, recipe, results_of(recipe, sets, seconds), data, sets, tuple(warnings),
        {"checks": seconds}, {"threads": 1, "torch version": "2"},
    )  # fmt: skip


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_its_files_and_the_test_set_is_the_headline(tmp_path, sets):
    result = written(tmp_path / "run", sets)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "confusion.csv", "metrics.csv", "model.safetensors", "report.html", "stage1.safetensors",
        "tiles.csv",
    ]  # fmt: skip
    found = guessed(sets.test, 2)
    assert result.last["accuracy"] == found.accuracy
    assert result.last["majority_baseline"] == pytest.approx(1 / 3)
    matrix = [[int(row[name]) for name in COLOURS] for row in rows_of(result.confusion)]
    assert matrix == found.confusion.tolist()
    rows = rows_of(result.metrics)
    assert list(rows[0]) == ["stage", "epoch", "split", "loss", "accuracy", "balanced_accuracy",
                             "lr", "seconds"]  # fmt: skip
    assert [row["balanced_accuracy"] for row in rows] == [""] * 8
    assert f"Test accuracy {found.accuracy:.3f}" in result.summary
    assert f"(validation: {guessed(sets.val, 2).accuracy:.3f}, on 9)" in result.summary
    for who in ("after stage 1", "after stage 2", "colour alone", "always the commonest class"):
        assert re.search(
            rf"^{who} +\d\.\d{{3}} +\d\.\d{{3}} +\d\.\d{{3}} +\d", result.summary, re.M
        )


def test_every_held_out_tile_has_its_line(tmp_path, sets):
    written(tmp_path / "run", sets)
    rows = rows_of(tmp_path / "run" / "tiles.csv")
    assert [row["set"] for row in rows] == ["test"] * 12 + ["val"] * 9
    found = guessed(sets.test, 2)
    for i in range(12):
        assert rows[i]["file"] == sets.test.files[i].name
        assert (rows[i]["group"], rows[i]["class"]) == ("slide2", sets.test.labels[i])
        given = [float(rows[i][f"probability of {name}"]) for name in COLOURS]
        assert given == pytest.approx(found.probabilities[i].tolist(), rel=1e-5)
        assert rows[i]["predicted"] == list(COLOURS)[int(np.argmax(given))]
        assert float(rows[i]["loss"]) == pytest.approx(found.losses[i], rel=1e-5)


def test_nothing_stays_of_the_run_that_is_overwritten(tmp_path, sets):
    out = tmp_path / "run"
    first = written(out, sets).model.read_bytes()
    alone = Sets(sets.train)
    result = written(out, alone, ONE, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == [
        "metrics.csv", "model.safetensors", "report.html"
    ]  # fmt: skip
    assert result.model.read_bytes() != first
    assert (result.stage1, result.confusion, result.last) == (None, None, {})
    assert "No tiles were held out" in result.summary
    assert "Confusion" not in result.report.read_text(encoding="utf-8")


def test_a_model_is_written_last(tmp_path, sets, monkeypatch):
    out = tmp_path / "run"
    written(out, sets)

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(outputs, "_write_metrics", fail)
    with pytest.raises(KeyboardInterrupt):
        written(out, sets, overwrite=True)
    assert not list(out.iterdir())  # the old model beside the new tables would be a lie


def test_the_card_says_how_it_was_made_and_not_how_long_it_took(tmp_path, sets, monkeypatch):
    facts = {"name": "macenko", "target": "reference"}
    monkeypatch.setattr(stain, "normaliser", lambda name: SimpleNamespace(facts=facts))
    recipe = replace(ONE, balance="weights", augment=("flips", "hed"), keep="best")
    one = written(tmp_path / "a", sets, recipe, precision="bfloat16", seed=3, stain="macenko")
    training = read_card(one.model).training
    wanted = {
        "recipe": "graziani", "optimizer": "sgd", "momentum": 0.9, "schedule": "inverse-time",
        "decay": 1e-6, "batch_size": 32, "augment": ["flips", "hed"], "balance": "weights",
        "keep": "best", "precision": "bfloat16", "seed": 3, "environment": {"threads": 1},
        "stain": facts,
    }  # fmt: skip
    assert {name: training[name] for name in wanted} == wanted
    assert not {"factor", "patience", "min_lr", "out"} & set(training)
    stage = training["stages"][0]
    assert (stage["trains"], stage["epochs"], stage["kept_epoch"]) == ("all", 30, 2)
    assert stage["metrics"]["train"] == {"loss": 0.5, "accuracy": 0.5}
    assert stage["metrics"]["test"]["macro_f1"] == guessed(sets.test, 1).macro_f1
    text = read_card(one.model).to_json()
    assert str(tmp_path) not in text
    again = written(tmp_path / "b", sets, recipe, precision="bfloat16", seed=3,
                    stain="macenko", seconds=5.0)  # fmt: skip
    assert again.model.read_bytes() == one.model.read_bytes()


def test_only_time_and_memory_differ_from_run_to_run(tmp_path, sets):
    texts = [
        written(tmp_path / name, sets, seconds=took).report.read_text(encoding="utf-8")
        for name, took in (("a", 1.0), ("b", 4000.0))
    ]
    assert texts[0] != texts[1]
    assert "1 h 6 min" in texts[1]
    before, after = zip(*(text.split(f"<h2>{TIME}</h2>") for text in texts), strict=True)
    assert before[0] == before[1]
    assert "<h2>" not in after[0]


def before_time(result) -> str:
    return result.report.read_text(encoding="utf-8").split(f"<h2>{TIME}</h2>")[0]


def test_a_matplotlibrc_does_not_change_the_report(tmp_path, sets):
    import matplotlib

    plain = before_time(written(tmp_path / "a", sets))
    odd = {"axes.facecolor": "black", "font.size": 20, "axes.grid": True, "svg.fonttype": "path"}
    with matplotlib.rc_context(odd):
        assert before_time(written(tmp_path / "b", sets)) == plain
        assert matplotlib.rcParams["font.size"] == 20


def test_the_report_is_one_page_that_trusts_no_name(tmp_path, sets):
    classes = ("<script>alert(1)</script>", 'STR & "co", or so', "$x$")
    names = dict(zip(COLOURS, classes, strict=True))
    odd = Sets(
        *(
            replace(
                tiles,
                classes=classes,
                labels=tuple(names[label] for label in tiles.labels),
                groups=("<b>slide",) * len(tiles),
            )
            for tiles in sets.named().values()
        )
    )
    result = written(tmp_path / "run", odd, warnings=["<u>warned</u>"], name="<i>tiles")
    text = result.report.read_text(encoding="utf-8")
    assert not re.search("<script|<b>slide|<i>|<u>", text)
    assert "STR &amp; &quot;co&quot;, or so" in text
    assert "&lt;u&gt;warned" in text
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:image/jpeg;base64)""", text)
    assert str(tmp_path) not in text
    assert text.count("<svg") == 4
    assert text.count("<img") == 12
    assert list(rows_of(result.confusion)[0])[1:] == list(classes)


def test_several_labels_a_tile_have_no_confusion_but_a_line_each(tmp_path, sets):
    labels = Sets(*map(several, sets.named().values()))
    result = written(tmp_path / "run", labels)
    assert result.confusion is None
    found = guessed(labels.test, 2)
    rows = rows_of(tmp_path / "run" / "labels.csv")
    assert [(row["label"], row["tiles"]) for row in rows] == [("dark", "4"), ("blue", "8")]
    assert float(rows[0]["auroc"]) == pytest.approx(found.auroc["dark"], rel=1e-5)
    assert float(rows[1]["prevalence"]) == pytest.approx(2 / 3, rel=1e-5)
    tiles = rows_of(tmp_path / "run" / "tiles.csv")
    assert [row["class"] for row in tiles[3:9:4]] == ["blue", ""]
    assert tiles[11]["class"] == "dark;blue"
    text = result.report.read_text(encoding="utf-8")
    assert "Confusion matrix" not in text
    for words in ("AUPRC", "prevalence", "always what most training tiles have", "Each label"):
        assert words in text
    assert result.last["auroc"] == pytest.approx(np.mean(list(found.auroc.values())))
    assert re.search(r"^dark +4 +0\.333", result.summary, re.MULTILINE)


@pytest.mark.parametrize(
    ("recipe", "tested", "said"),
    [
        (replace(TWO, keep="best"), False, "measured on chose which epoch is kept. Test"),
        (RECIPES["peng"], False, "is kept and decided when the learning rate fell"),
        (replace(TWO, keep="best"), True, ""),
        (TWO, False, ""),
    ],
)
def test_numbers_that_are_too_good_are_said_to_be(tmp_path, sets, recipe, tested, said):
    sets = sets if tested else replace(sets, test=None)
    result = written(tmp_path / "run", sets, recipe)
    page = result.report.read_text(encoding="utf-8")
    assert ("These numbers are optimistic" in page) == bool(said)
    assert said in page
    assert said in result.summary
    assert "probably optimistic" not in page


def test_tiles_of_unknown_slides_are_doubted(tmp_path, sets):
    unknown = replace(sets, test=replace(sets.test, groups=(None,) * 12))
    text = written(tmp_path / "run", unknown).report.read_text(encoding="utf-8")
    assert "probably optimistic: it is not known which slide or patient" in text


def test_a_tile_that_is_lost_does_not_cost_the_model(tmp_path, sets):
    test = tile_set(tmp_path / "tiles", 2, 5)
    test.files[0].unlink()
    result = written(tmp_path / "run", replace(sets, test=test))
    assert load_model(result.model)
    warning = "the colour baseline could not be computed: .*TUM-0.png cannot be decoded"
    assert any(re.match(warning, text) for text in result.warnings)
    text = result.report.read_text(encoding="utf-8")
    assert "The file cannot be read" in text
    assert "colour alone" not in text


def test_a_run_without_epochs_has_no_curves(tmp_path, sets):
    results = [
        replace(
            result,
            stage=replace(result.stage, epochs=0),
            measured=replace(result.measured, rows=[], kept=0, optimizer=""),
        )
        for result in results_of(TWO, sets)
    ]
    job = FinetuneJob(out=tmp_path / "run", train=sets.train)
    data = {"name": "tiles", "fingerprint": "0", "tiles": {}}
    result = write_run(job, TWO, results, data, sets, (), {})
    assert "No epoch was trained" in result.report.read_text(encoding="utf-8")
    assert "after stage 2 (not trained)" in result.summary


def test_colours_are_told_apart_by_colour(sets):
    found = colour_baseline(sets.train, sets.test)
    assert (found.evaluation.accuracy, found.learnt, found.there) == (1.0, 18, 18)
    assert found.evaluation.loss < 0.5
    labels = colour_baseline(several(sets.train), several(sets.test)).evaluation
    assert labels.auroc == {"dark": 1.0, "blue": 1.0}
    assert labels.accuracy == 1.0


def test_many_tiles_are_drawn_from_by_seed(sets, monkeypatch):
    monkeypatch.setattr(baseline, "MOST_TILES", 9)
    given = [colour_baseline(sets.train, sets.val, seed) for seed in (0, 0, 1)]
    assert (given[0].learnt, given[0].there) == (9, 18)
    first, same, other = (found.evaluation.probabilities for found in given)
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_tiles_without_any_colour_or_of_one_class_are_no_fault(tmp_path, sets):
    flat = tile_set(tmp_path / "flat", 2, 0, noise=0)
    for file in flat.files:
        Image.new("RGB", (SIZE, SIZE), "white").save(file)
    found = colour_baseline(flat, sets.test).evaluation
    assert np.allclose(found.probabilities, 1 / 3, atol=1e-6)
    one = colour_baseline(sets.train.subset(range(6)), sets.test).evaluation
    assert one.recalls == {"TUM": 1.0, "STR": 0.0, "LYM": 0.0}
    assert np.isfinite(one.loss)


def test_an_answer_without_looking_is_that_of_the_training_tiles(sets):
    train = sets.train.subset([0, 6, 7, 8])
    found = blind_baseline(train, sets.test)
    assert found.accuracy == found.recalls["STR"] / 3 == pytest.approx(1 / 3)
    assert found.loss == pytest.approx(-np.log([0.25, 0.75, 1e-6]).mean(), rel=1e-4)
    labels = blind_baseline(several(sets.train), several(sets.test))
    assert labels.accuracy == pytest.approx(2 / 3)
    assert found.baseline(train.counts) == found.accuracy


def test_a_run_killed_while_it_writes_its_files_goes_on(tmp_path, sets, monkeypatch):
    job = FinetuneJob(
        out=tmp_path / "run", train=sets.train, val=sets.val, backbone="test_resnet",
        init="random", hidden=(4,), epochs=(1, 0), batch_size=6, device="cpu",
    )  # fmt: skip
    save = outputs.save_model

    def fail(net, path):
        if path.name == outputs.MODEL:
            raise KeyboardInterrupt
        return save(net, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(outputs, "save_model", fail)
        run_stages(job)
    assert (job.out / outputs.REPORT).exists()
    assert load_model(run_stages(job).model)

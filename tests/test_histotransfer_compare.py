"""Encoders compared: how they are named, made and measured, and the table that they end in."""

import csv
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import TINY, write_slide
from PIL import Image
from torch import nn

from tiaft_extensions.histotransfer.cli import histotransfer
from tiaft_extensions.histotransfer.compare import questions, study
from tiaft_extensions.histotransfer.compare.costs import Cost, cost_of, measure
from tiaft_extensions.histotransfer.compare.encoders import (
    Encoder,
    grid_of,
    make_model,
    read_encoder,
    read_encoders,
)
from tiaft_extensions.histotransfer.compare.figures import draw_costs
from tiaft_extensions.histotransfer.compare.questions import Pair, how_deep, how_large
from tiaft_extensions.histotransfer.compare.rows import Row, Value
from tiaft_extensions.histotransfer.compare.stores import extract, stored
from tiaft_extensions.histotransfer.compare.study import _costs
from tiaft_plugin import TiaftError
from tiaft_plugin.engine.jobs import SlideJob
from tiaft_plugin.files import sha256_of
from tiaft_plugin.network import create_network, load_model, read_card
from tiaft_plugin.probes.outputs import read_result
from tiaft_plugin.probes.run import _pieces
from tiaft_plugin.probes.settings import Settings

# How encoders are named


@pytest.fixture
def mine(tiny_model, tmp_path):
    return shutil.copy(tiny_model, tmp_path / "mine.safetensors")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("resnet18", ("resnet18-imagenet", "resnet18", "", "imagenet", "imagenet")),
        ("resnet18@random", ("resnet18-random", "resnet18", "", "random", "random")),
        ("resnet18:layer2", ("resnet18-layer2-imagenet", "resnet18", "layer2", "imagenet",
                             "imagenet")),
        ("short=densenet121:denseblock3@random", ("short", "densenet121", "denseblock3", "random",
                                                  "random")),
    ],
)  # fmt: skip
def test_backbones_cuts_and_weights(text, wanted):
    found = read_encoder(text)
    assert (found.name, found.backbone, found.cut, found.weights, found.init) == wanted
    assert found.model == ""


def test_models_their_cuts_and_their_twins(mine):
    whole, cut, twin = (read_encoder(f"{mine}{more}") for more in ("", ":T1", "@random"))
    assert (whole.name, whole.backbone, whole.weights) == ("mine", TINY, "mine")
    assert whole.model == str(mine)
    assert (cut.name, cut.cut, cut.weights, cut.init) == (
        f"{TINY}-T1-mine",
        "T1",
        "mine",
        str(mine),
    )
    assert (twin.name, twin.init, twin.like.tile_size) == (f"{TINY}-random", "random", 32)


def test_a_registered_name_is_a_model_and_weights(mine, model_folder):
    model_folder.mkdir()
    shutil.copy(mine, model_folder / "ours.safetensors")
    assert read_encoder("ours").model == "ours"
    assert read_encoder("ours:T2").init == str(model_folder / "ours.safetensors")
    assert read_encoder("resnet18@ours").weights == "ours"


def test_weights_of_all_sizes_are_called_the_same(tmp_path):
    for name in ("resnet18", "resnet50"):
        file = tmp_path / f"{name}-kather100k.pth"
        file.touch()
        assert read_encoder(f"{name}@{file}").weights == "kather100k"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected is"),
        ("resnet18@", "expected is"),
        ("resnet18:", "expected is"),
        ("resnet18@nothing", "nothing is neither imagenet, random, a file nor the name of a model"),
        ("none.safetensors", "none.safetensors: no such file"),
        ("imgnet2048", "has no weights in"),
        ("a b=resnet18", "'a b' cannot name an encoder"),
    ],
)
def test_what_names_no_encoder(text, said):
    with pytest.raises(TiaftError, match=re.escape(said)):
        read_encoder(text)


def test_two_of_a_name_are_refused():
    with pytest.raises(TiaftError, match="there is one called resnet18-random already"):
        read_encoders(["resnet18@random", "resnet18@random"])


# Their models


def test_a_cut_model_is_the_beginning_of_the_whole(mine, tmp_path):
    made = make_model(read_encoder(f"{mine}:T2"), tmp_path / "made", 32, 1.0, seed=0)
    card = read_card(made.model)
    assert (card.backbone, card.tile_size, card.mpp, card.classes) == (f"{TINY}:T2", 32, 1.0, ())
    whole, part = (load_model(path).part_a.state_dict() for path in (mine, made.model))
    assert part and all((whole[name] == value).all() for name, value in part.items())
    before = sha256_of(made.model)
    assert make_model(read_encoder(f"{mine}:T2"), tmp_path / "made", 32, 1.0, seed=0) == made
    assert sha256_of(made.model) == before


def test_imagenet_weights_are_had_once(tmp_path, monkeypatch):
    encoder, calls = read_encoder(TINY), []

    def create(backbone, **given):
        calls.append(backbone)
        net = create_network(backbone, **{**given, "init": "random"}, source="Part A from timm x")
        return net

    monkeypatch.setattr("tiaft_plugin.network.create_network", create)
    for size in (32, 32, 64):
        make_model(encoder, tmp_path, size, 1.0, seed=0)
    assert calls == [TINY, TINY]


def test_weights_that_cannot_be_had_are_named_as_they_were_typed(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise TiaftError("they cannot be had: pass --init FILE with weights, or --init random")

    monkeypatch.setattr("tiaft_plugin.network.create_network", refuse)
    with pytest.raises(TiaftError, match="pass resnet18@FILE with weights, or resnet18@random"):
        make_model(read_encoder("resnet18"), tmp_path, 32, 1.0, seed=0)


def test_tiles_are_those_of_the_first_model(mine):
    plain, like = read_encoder("resnet18@random"), read_encoder(f"{mine}:T1")
    assert grid_of([plain]) == (224, 0.5)
    assert grid_of([plain, like]) == (32, 1.0)


# What they cost


def test_costs_are_counted_by_hand():
    convolution = {"kernel_size": 1, "bias": False}
    net = nn.Sequential(nn.Conv2d(3, 8, **convolution), nn.ReLU(), nn.Conv2d(8, 8, **convolution))
    weights, tile, maps = 4 * (24 + 64), 4 * 3 * 100, 4 * 2 * 8 * 100
    assert measure(net, 10) == Cost(24 + 64, 100 * (24 + 64), weights + 32 * (tile + maps))


def test_the_cost_of_a_model_is_that_of_its_features(tiny_model):
    found = cost_of(str(tiny_model))
    net = load_model(tiny_model)
    parts = (net.part_a, net.part_b.hidden)
    assert found.parameters == sum(p.numel() for part in parts for p in part.parameters())
    assert found.macs > 0 and found.memory > 4 * found.parameters
    assert cost_of(str(tiny_model), sha256="of another") == Cost()
    assert cost_of("nobody's") == Cost()


# Questions


class Known:
    """Draws of sets whose AUROC is known; the bootstrap moves all by the same, but for noise."""

    def __init__(self, **values):
        rng = np.random.default_rng(0)
        self.values = values
        self.draws = {n: v + 0.003 * rng.normal(size=500) for n, v in values.items()}
        self._clusters, self._folds = 50, 5

    pair, slope = questions.Draws.pair, questions.Draws.slope
    _tested = questions.Draws._tested


def row(name, parameters, cut="", weights="imagenet", auroc=0.8, backbone="net"):
    encoder = Encoder(name, backbone, cut, weights)
    value = Value(auroc, auroc - 0.1, auroc + 0.1)
    cost = Cost(parameters, 10 * parameters, 0)
    return Row(encoder, None, cost, {"AUROC": value}, Value(), Value())


def test_complexity_is_a_slope_over_doublings():
    rows = [row(name, size, backbone=name) for name, size in (("a", 10), ("b", 20), ("c", 40))]
    found = how_large(rows, Known(a=0.7, b=0.75, c=0.8))
    assert (
        "(a, b, c): each doubling of the parameters changes AUROC by +0.050" in found.sentences[0]
    )
    assert found.sentences[0].endswith(": it helps.")
    assert [(pair.a, pair.b) for pair in found.pairs] == [("a", "c")]
    assert found.pairs[0].difference.value == pytest.approx(0.1)
    flat = how_large(rows, Known(a=0.75, b=0.75, c=0.75)).sentences
    assert flat[0].endswith("not shown to help.")
    assert flat[1].endswith("no difference that these data show.")


def test_networks_with_other_weights_are_not_mixed():
    rows = [row("a", 10, backbone="a"), row("b", 20, backbone="b", weights="random")]
    assert how_large(rows, Known(a=0.7, b=0.9)).sentences == []
    cut = [row("a", 10), row("b", 5, cut="T1")]
    assert how_large(cut, Known(a=0.7, b=0.9)).sentences == []


def test_the_smallest_cut_that_loses_little_is_enough():
    rows = [row("whole", 100), row("half", 50, cut="T2"), row("tenth", 10, cut="T1")]
    (said,) = how_deep(rows, Known(whole=0.9, half=0.9, tenth=0.6), 0.02).sentences
    assert "T2 is enough, with 50% of the parameters and 50% of the multiply-accumulates" in said
    (said,) = how_deep(rows, Known(whole=0.9, half=0.8, tenth=0.6), 0.02).sentences
    assert "no cut is shown to lose less than 0.02; the nearest to it is T2" in said


def test_a_pair_is_clear_where_its_interval_leaves_0_out():
    assert Pair("a", "b", Value(0.1, 0.01, 0.2), 0.01).clear
    assert not Pair("a", "b", Value(0.1, -0.01, 0.2), 0.1).clear
    assert not Pair("a", "b", Value(0.1), float("nan")).clear


def test_the_figure_stands_without_costs():
    unknown = Row(Encoder("x", "", "", "x"), None, Cost(), {"AUROC": Value(0.7)}, Value(), Value())
    drawn, png = draw_costs([unknown, row("a", 10), row("b", 5, cut="T1")])
    assert png[:4] == b"\x89PNG"
    assert ">x<" in drawn and ">T1<" in drawn and ">cut off<" in drawn


# The command


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Four slides of four tiles, 32 px at 1 µm/px; half of them have a red tile."""
    root = tmp_path_factory.mktemp("slides")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(4):
        pixels = rng.integers(90, 160, (64, 64, 3)).astype(np.uint8)
        if number % 2:
            pixels[:32, :32] = (200, 20, 20)
        path = write_slide(root / f"s{number}.ome.tiff", pixels)
        rows.append([path.name, "red" if number % 2 else "plain"])
    turned = [[slide, "plain" if label == "red" else "red"] for slide, label in rows]
    for name, lines in (("labels.csv", rows), ("twisted.csv", turned)):
        with (root / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["slide", "label"], *lines])
    return root


QUICK = ("--no-mask", "--folds", 2, "--repeats", 1, "--draws", 100, "--epochs", 1)


def compare(slides, *arguments, labels="labels.csv"):
    asked = [*sorted(slides.glob("*.tiff")), "--labels", slides / labels, *QUICK, *arguments]
    return CliRunner().invoke(histotransfer, ["compare", *map(str, asked)])


@pytest.fixture(scope="module")
def done(slides, tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "out"
    asked = ["--encoder", tiny_model, "--encoder", f"{tiny_model}:T1", "--encoder"]
    asked += [f"{tiny_model}@random", "--out", out]
    result = compare(slides, *asked)
    assert result.exit_code == 0, (result.output, result.exception)
    return out, asked, result.output


def table_of(out):
    with (out / "comparison.csv").open(encoding="utf-8") as file:
        return {line["encoder"]: line for line in csv.DictReader(file)}


def test_a_table_with_a_line_for_each_encoder(done, tiny_model):
    out, _, said = done
    lines = table_of(out)
    assert set(lines) == {"tiny", f"{TINY}-T1-tiny", f"{TINY}-random", "colour only"}
    whole, cut = lines["tiny"], lines[f"{TINY}-T1-tiny"]
    cost = cost_of(str(tiny_model))
    assert (int(whole["parameters"]), int(whole["macs"])) == (cost.parameters, cost.macs)
    assert int(cut["parameters"]) < cost.parameters
    assert (cut["backbone"], cut["cut"], cut["weights"]) == (TINY, "T1", "tiny")
    assert whole["tiles"] == "16" and float(whole["tiles_per_second"]) > 0
    for metric in ("auroc", "auprc", "balanced_accuracy", "mean_pooling_auroc"):
        assert 0 <= float(whole[metric]) <= 1
    assert whole["difference"] == "" and cut["difference"] != ""
    assert "Does the whole network" not in said
    assert "Is the whole network needed?" in said and "Do the weights matter?" in said


def test_the_numbers_are_the_probes(done):
    out, _, _ = done
    found = read_result(out / "probe")
    scores = {(r["features"], r["metric"]): r for r in found.summary["scores"] if not r["target"]}
    for name, line in table_of(out).items():
        if name != "colour only":
            assert float(line["auroc"]) == pytest.approx(scores[name, "AUROC"]["value"], abs=1e-6)
    pairs = {(r["a"], r["b"]): r for r in found.summary["comparisons"] if r["metric"] == "AUROC"
             and not r["target"]}  # fmt: skip
    draws = questions.Draws(found)
    (a, b), wanted = next((k, v) for k, v in pairs.items() if k[1] == f"{TINY}-random")
    own = draws.pair(a, b)
    assert own.difference == Value.of(wanted, "difference")
    assert own.p == pytest.approx(wanted["p_bootstrap"], nan_ok=True)


def test_the_page_answers_and_shows(done):
    out, _, _ = done
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1
    for text in ("Is the whole network needed?", "colour only", "Tiles/s as the features"):
        assert text in page
    with Image.open(out / "comparison.png") as image:
        image.verify()
    about = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert about["reference"] == "tiny" and len(about["encoders"]) == 3
    with (out / "differences.csv").open(encoding="utf-8") as file:
        asked = {(line["question"], line["b"]) for line in csv.DictReader(file)}
    assert ("Is the whole network needed?", f"{TINY}-T1-tiny") in asked


def test_it_goes_on_and_encoders_may_be_added(done, slides, tiny_model, tmp_path, monkeypatch):
    out = shutil.copytree(done[0], tmp_path / "out")
    asked = [*done[1][:-1], out]
    before = table_of(out)
    trained = []

    run = study.run_probe
    monkeypatch.setattr(
        study, "run_probe", lambda *a, **k: (trained.append(a[1][0].name), run(*a, **k))
    )
    more = ["--features", f"again={out / 'features' / 'tiny'}"]
    result = compare(slides, *asked, *more, "--sort", "parameters")
    assert result.exit_code == 0, (result.output, result.exception)
    assert trained == ["again"]
    lines = table_of(out)
    assert {name: lines[name] for name in before} == before
    assert lines["again"]["auroc"] == lines["tiny"]["auroc"]
    assert next(iter(lines)) == f"{TINY}-T1-tiny"


@pytest.mark.parametrize(
    ("more", "labels", "said"),
    [
        (("--repeats", 2), "labels.csv", "--repeats changed since"),
        (("--epochs", 2), "labels.csv", "--epochs changed since"),
        ((), "twisted.csv", "the labels changed since"),
    ],
)
def test_what_changed_is_not_mixed(done, slides, more, labels, said):
    result = compare(slides, *done[1], *more, labels=labels)
    assert isinstance(result.exception, TiaftError)
    assert said in str(result.exception)
    assert "pass --overwrite to begin anew" in str(result.exception)


def test_other_patients_are_not_mixed_with_earlier_ones(done, slides, tmp_path):
    patients = tmp_path / "patients.csv"
    lines = [f"s{number}.ome.tiff,P{number // 2}" for number in range(4)]
    patients.write_text("\n".join(["slide,patient", *lines]), encoding="utf-8")
    result = compare(slides, *done[1], "--patients", patients)
    assert "the patients of slides changed since" in str(result.exception)


def test_a_cost_that_was_not_known_is_asked_for_again(tiny_model, tmp_path):
    facts = {"x": SimpleNamespace(sha256=sha256_of(tiny_model))}
    for model, known in (("gone", False), (str(tiny_model), True), ("gone", True)):
        found = _costs([Encoder("x", "", "", "", model=model)], facts, tmp_path)
        assert (found["x"] != Cost()) == known


def test_a_slide_that_fails_is_named(slides, tiny_model, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("s0.ome.tiff", "s1.ome.tiff", "labels.csv"):
        shutil.copy(slides / name, folder)
    (folder / "bad.ome.tiff").write_bytes(b"no slide")
    asked = ["--encoder", tiny_model, "--encoder", f"{tiny_model}:T1", "--out", tmp_path / "out"]
    earlier = json.dumps({"schema": "tiaft-comparison", "reference": "earlier"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/comparison.json").write_text(earlier)
    result = compare(folder, *asked)
    assert re.search("tiny: 1 of 3 slides failed: bad.ome.tiff", str(result.exception))
    assert result.exception.exit_code == 1
    assert (tmp_path / "out/comparison.json").read_text() == earlier


def test_folders_of_tiles_are_bags_too(tiny_model, tmp_path):
    rng = np.random.default_rng(0)
    jobs = []
    for number in range(3):
        folder = tmp_path / "bags" / f"b{number}"
        folder.mkdir(parents=True)
        jobs.append(SlideJob(folder, mpp=1.0))
        for tile in range(2):
            pixels = rng.integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{tile}.png")
    (tmp_path / "bags/neighbour").mkdir()
    (tmp_path / "bags/neighbour/notes.txt").write_text("none of the bags that are compared")
    encoder, out = read_encoder(str(tiny_model)), tmp_path / "out"
    extract(encoder, jobs[:2], out, device="cpu")
    kept = sha256_of(out / "b0.zarr" / "zarr.json")
    shutil.rmtree(out / "b1.zarr" / "features")
    extract(encoder, jobs, out, device="cpu")  # goes on
    assert sha256_of(out / "b0.zarr" / "zarr.json") == kept
    found = stored(out, "x")
    assert (found.slides, found.tiles, found.width, found.tile_size) == (3, 6, 16, 32)
    with pytest.raises(TiaftError, match="has stores of other slides, too: b2.zarr"):
        extract(encoder, jobs[:2], out, device="cpu")
    other = make_model(read_encoder(f"{tiny_model}:T1"), tmp_path, 32, 1.0, seed=0)
    with pytest.raises(TiaftError, match="b0.zarr is of another model"):
        extract(other, jobs, out, device="cpu")
    shutil.copy(jobs[0].slide / "0.png", jobs[2].slide / "0.png")
    with pytest.raises(TiaftError, match="b2.zarr is of .* other tiles than .*b2 holds now"):
        extract(encoder, jobs, out, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing argument 'SLIDES...'|SLIDES need encoders"),
        (["--encoder", "resnet18@random"], "a comparison needs two encoders"),
        (["--encoder", "..=resnet18@random"], "'..' cannot name an encoder"),
        (["--encoder", "resnet18@random", "--encoder", "resnet34@random", "--reference", "x"],
         "--reference x: no encoder has this name; there are resnet18-random, resnet34-random"),
        (["--encoder", "resnet18:nowhere@random", "--encoder", "resnet18@random"],
         "resnet18 has no cut 'nowhere'"),
    ],
)  # fmt: skip
def test_wrong_usage(arguments, said, slides, tmp_path):
    result = compare(slides, *arguments, "--out", tmp_path / "out")
    assert re.search(said, f"{result.output} {result.exception}")
    assert getattr(result.exception, "exit_code", result.exit_code) == 2
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("name", ["mine.txt", "comparison.json"])
def test_a_folder_of_others_is_left_alone(slides, tiny_model, tmp_path, name):
    (tmp_path / name).write_text("[]")
    asked = ["--encoder", tiny_model, "--encoder", f"{tiny_model}:T1", "--out", tmp_path]
    result = compare(slides, *asked, "--overwrite")
    assert "is not of `tiaft histotransfer compare`: choose another folder" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_was_compared_stays_where_it_cannot_be_compared_anew(slides, tiny_model, tmp_path):
    study.begin(tmp_path)
    kept = tmp_path / "encoders/mine.safetensors"
    kept.parent.mkdir()
    shutil.copy(tiny_model, kept)
    settings = study.Settings(slides / "labels.csv")
    for model, slide, said in (
        (tiny_model, tmp_path / "none.tiff", "1 slides are not there: .*none.tiff"),
        (kept, tmp_path, "--overwrite would remove .*mine.safetensors"),
    ):
        encoders = read_encoders([str(model), f"{model}:T1"])
        jobs = [SlideJob(slide)]
        with pytest.raises(TiaftError, match=said):
            study.run_comparison(encoders, jobs, {}, tmp_path, settings, overwrite=True)
        assert kept.is_file()


@pytest.mark.parametrize("wanted", [True, False])
def test_the_leak_control_can_be_left_out(wanted):
    """It trains 20 times more than a repeat, and compares no encoders."""
    problem = SimpleNamespace(clusters=2, groups=np.array(["a", "a", "b", "b"]))
    settings = Settings(repeats=1, permutations=0, leak_control=wanted)
    pieces = _pieces(["x"], [problem], settings)
    assert any(piece[0].startswith("leak") for piece in pieces) == wanted

"""The truncation study: its grid, measures, choice and search, and that it survives anything."""

import csv
import itertools
import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import tiaft
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score
from torch import nn

from tiaft_extensions.truncation.backbones.cuts import WHOLE, Cut
from tiaft_extensions.truncation.backbones.macs import macs_of, parameters_of
from tiaft_extensions.truncation.study import costs, report
from tiaft_extensions.truncation.study.grid import Variant, cells_of, share_of, variants_of
from tiaft_extensions.truncation.study.measures import MEAN, Scores
from tiaft_extensions.truncation.study.run import STUDY, hold_out, plan, run_study
from tiaft_extensions.truncation.study.search import block_ends, layers_around
from tiaft_extensions.truncation.study.settings import StudySettings
from tiaft_extensions.truncation.study.summary import bootstrap_weights, choose
from tiaft_extensions.truncation.study.training import PART_A_LR, Trainer, backbone_of
from tiaft_plugin import TiaftError
from tiaft_plugin.errors import Stopped
from tiaft_plugin.files import locked
from tiaft_plugin.finetune import stage
from tiaft_plugin.network import create_network, load_model, read_card, save_model
from tiaft_plugin.network.backbone import create_backbone
from tiaft_plugin.tiles.tileset import read_tileset

pytestmark = pytest.mark.usefixtures("no_figures", "quick")

BACKBONE = "test_efficientnet"  # 0.1 million weights, five stages
SIZE = 32
COLOURS = {"LYM": (60, 40, 90), "STR": (230, 180, 200), "TUM": (110, 70, 150)}


def make_tiles(root, each=12, labels=("LYM", "STR", "TUM"), groups=6):
    """Write coloured, noisy tiles with a manifest; each tile has the first colour of its label."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    rows = [("file", "label", "group")]
    for name in labels:
        for number in range(each):
            colour = np.array(COLOURS[name.partition(";")[0]] if name else (245, 245, 245))
            pixels = (colour + rng.integers(-60, 61, (SIZE, SIZE, 3))).clip(0, 255)
            file = f"{name.replace(';', '-') or 'none'}{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(root / file)
            rows.append((file, name, f"s{number % groups}"))
    with (root / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


@pytest.fixture(scope="module")
def quick():
    """Measure in a moment how many tiles a second a network takes."""
    with pytest.MonkeyPatch.context() as patch:
        short = partial(costs.tiles_per_second, seconds=0.01)
        patch.setattr(costs, "tiles_per_second", lambda *given, seconds: short(*given))
        yield


@pytest.fixture(autouse=True)
def no_figures_of_studies(monkeypatch):
    """Draw those of `done` alone, which tests look at."""
    for name in ("draw_both", "draw_choice", "draw_classes", "draw_costs", "draw_fractions"):
        monkeypatch.setattr(report, name, lambda *given: "<svg></svg>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiles(tmp_path_factory.mktemp("tiles") / "tiles")


@pytest.fixture(scope="module")
def sets(folder):
    return hold_out(folder, val_groups=("s0",), test_groups=("s1",), mpp=0.5)[0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of the whole backbone, as if they had been trained before."""
    from safetensors.torch import save_file

    net = create_network(BACKBONE, init="random", tile_size=SIZE, seed=9)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(net.part_a.state_dict(), path)
    return path


def settings_on(out, weights, **changes) -> StudySettings:
    """Return a study of seconds: two cuts, one epoch."""
    return StudySettings(**{
        "out": out, "backbone": BACKBONE, "cuts": ("T2",), "inits": ("pretrained",),
        "percents": (100,), "repeats": 2, "baselines": ("lwft", "tf"), "weights": str(weights),
        "epochs": 1, "lr": 1e-2, "batch_size": 8, "augment": (), "device": "cpu",
    } | changes)  # fmt: skip


@pytest.fixture(scope="module")
def done(sets, weights, tmp_path_factory):
    """A study that was not disturbed, which its tests only look at."""
    asked = settings_on(tmp_path_factory.mktemp("done") / "study", weights)
    return asked, run_study(asked, sets)


# ---- measures -------------------------------------------------------------------------------


def test_the_papers_two_classifiers_are_told_apart_by_precision_and_not_by_roc():
    """The seed's example: 10 positives among 990 negatives, in the top 12 or in the top 30."""
    rng = np.random.default_rng(0)
    found: dict[int, list] = {12: [], 30: []}
    for top, measured in found.items():
        for _ in range(40):
            truth = np.zeros(1000, dtype=int)
            truth[rng.choice(top, 10, replace=False)] = 1
            scores = np.linspace(1, 0, 1000)
            both = np.stack([truth, 1 - truth], 1), np.stack([scores, 1 - scores], 1)
            rare = Scores(("ill", "well"), *both).measured()["ill"]
            measured.append([rare[name] for name in ("auroc", "auprc", "auprc_trapezoid")])
    (roc_a, prc_a, line_a), (roc_b, prc_b, line_b) = (np.mean(found[top], 0) for top in (12, 30))
    assert roc_a - roc_b < 0.01 and roc_b > 0.98
    assert prc_a > 0.8 and prc_b < 0.45  # 0.2 false positives a true one against 2
    assert line_a > 0.8 and line_b < 0.45


def test_measures_are_scikit_learns_one_class_against_the_rest():
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 3, 80), rng.random((80, 3)).round(1)  # with ties
    truth = np.eye(4, dtype=int)[labels]
    scores = np.hstack([scores, np.zeros((80, 1))])
    found = Scores(("a", "b", "c", "no tile has it"), truth, scores).measured()
    assert list(found) == [MEAN, "a", "b", "c"]
    for column, name in enumerate("abc"):
        own = truth[:, column], scores[:, column]
        precision, recall, _ = precision_recall_curve(*own)
        assert found[name]["auroc"] == pytest.approx(roc_auc_score(*own), abs=1e-12)
        assert found[name]["auprc"] == pytest.approx(average_precision_score(*own), abs=1e-12)
        assert found[name]["auprc_trapezoid"] == pytest.approx(auc(recall, precision), abs=1e-12)
    mean = np.mean([found[name]["auprc"] for name in "abc"])
    assert found[MEAN]["auprc"] == pytest.approx(mean)


def test_draws_of_ones_are_the_measures_themselves():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, (40, 2))
    scores = Scores(("a", "b"), truth, rng.random((40, 2)))
    for metric in ("auroc", "auprc"):
        drawn = scores.draws(metric.upper(), np.ones((1, 40)))
        for name, found in scores.measured().items():
            assert drawn[name][0] == pytest.approx(found[metric])


def test_tiles_of_one_class_rank_nothing_and_break_nothing():
    scores = Scores(("a", "b"), np.eye(2, dtype=int)[[0, 0, 0]], np.full((3, 2), 0.5))
    assert list(scores.measured()) == [MEAN] and np.isnan(scores.measured()[MEAN]["auprc"])
    assert np.isnan(scores.draws("AUPRC", np.ones((4, 3)))[MEAN]).all()


def test_a_bootstrap_draws_slides_where_there_are_enough():
    many = [f"s{number // 4}" for number in range(48)]
    drawn = bootstrap_weights(many, 48, 0).reshape(-1, 12, 4)
    assert (drawn == drawn[:, :, :1]).all()
    few = bootstrap_weights(["a", "b"] * 24, 48, 0)
    assert not (few == few[:, :1]).all() and (few.sum(1) == 48).all()


# ---- grid -----------------------------------------------------------------------------------


def test_the_whole_network_is_always_there_and_nothing_twice():
    found = variants_of(
        "resnet50", ("T1", "T2", "T1", WHOLE), ("pretrained", "random"), also=("c",)
    )
    names = [variant.title for variant in found]
    assert names == [
        "resnet50:T1, pretrained", "resnet50:T2, pretrained", "resnet50, pretrained",
        "resnet50:T1, random", "resnet50:T2, random", "resnet50, random",
        "LWFT T1", "LWFT T2", "TF T1", "TF T2", "c, random",
    ]  # fmt: skip
    assert len({cell.name for cell in cells_of(found, (10, 100), 3)}) == 66


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inits": ("imagenet",)}, "--init imagenet: there is pretrained, random, meanvar"),
        ({"baselines": ("ttl",)}, "--baselines ttl: there is lwft, tf"),
    ],
)
def test_words_that_are_not_known_are_refused(changes, message):
    with pytest.raises(TiaftError, match=message):
        variants_of("resnet50", ("T1",), **({"inits": ("random",)} | changes))


@pytest.mark.parametrize("percents", [(0,), (101, 5), ()])
def test_percentages_are_above_0_and_up_to_100(percents):
    with pytest.raises(TiaftError, match="--fractions .*: percentages of the training tiles"):
        cells_of([], percents, 1)


@given(st.lists(st.floats(0.1, 100), min_size=2, max_size=4), st.integers(0, 5))
def test_shares_lie_within_each_other_and_keep_every_class(sets, percents, repeat):
    shares = [share_of(sets.train, percent, 0, repeat) for percent in sorted(percents)]
    for small, large in itertools.pairwise(shares):
        assert set(small.files) <= set(large.files)
    for percent, share in zip(sorted(percents), shares, strict=True):
        for name, count in share.counts.items():
            whole = sets.train.counts[name]
            assert max(2, whole * percent / 100) <= count <= max(2, whole * percent / 100 + 1)


def test_another_repeat_has_other_tiles(sets):
    first, again, other = (share_of(sets.train, 30, 0, repeat).files for repeat in (0, 0, 1))
    assert first == again != other


# ---- networks -------------------------------------------------------------------------------


def test_multiply_accumulates_and_weights_by_hand():
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip
    assert macs_of(module, 16) == 64 * 8 * 27 + 64 * 8 * 9 + 8 * 5
    assert parameters_of(module) == 8 * 27 + 8 + 16 + 72 + 45


def test_transfusions_resnet50_has_the_papers_weights():
    """Paper 3's TF-2: 12.9 million weights, 3.56 GMACs (with what is no convolution)."""
    module = create_backbone("resnet50:tf-layer3", 224)
    assert parameters_of(module) == 12_945_472
    assert macs_of(module, 224) / 1e9 == pytest.approx(3.53, abs=0.005)
    assert module.num_features == 1024
    whole = create_backbone("resnet50", 224).state_dict()
    own = module.state_dict()
    changed = {name for name in whole if own[name].shape != whole[name].shape}
    assert changed and all(name.startswith("layer4.") for name in changed)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnext_atto:tf-stages.1", "convnext_atto after stages.1 cannot have a top of half the"),
        ("resnet18:tf-layer4", "resnet18 after layer4 has no top"),
    ],
)
def test_a_top_that_cannot_be_halved_is_refused(name, message):
    with pytest.raises(TiaftError, match=message):
        create_backbone(name, 64)


def test_each_variant_begins_with_its_weights(sets, weights, tmp_path):
    """TF: the bottom is pretrained; mean-var: none of it is, and each tensor is as large."""
    trainer = Trainer(settings_on(tmp_path, weights), sets)
    pretrained = trainer.whole()
    for variant in (
        Variant("tf", BACKBONE, "T2", "pretrained"), Variant("ttl", BACKBONE, "T2", "meanvar")
    ):  # fmt: skip
        from safetensors.torch import load_file

        begun = load_file(trainer._beginning(cells_of([variant], (100,), 1)[0]))
        bottom = {k: v for k, v in begun.items() if k.startswith(("conv_stem", "blocks.0."))}
        same = [torch.equal(value, pretrained[name]) for name, value in bottom.items()]
        assert all(same) if variant.strategy == "tf" else not all(same)
        stem, whole = begun["conv_stem.weight"], pretrained["conv_stem.weight"]
        assert stem.std() == pytest.approx(float(whole.std()), rel=0.15)
        top = [name for name in begun if name.startswith("blocks.2.")]
        assert bool(top) == (variant.strategy == "tf")


def test_batchnorm_is_frozen_where_all_of_it_is_pretrained(sets, weights, tmp_path):
    """The random top of TF has no statistics that are worth keeping."""
    trainer = Trainer(settings_on(tmp_path, weights, freeze_batchnorm=True), sets)
    for strategy, init, frozen in (
        ("ttl", "pretrained", True), ("ttl", "meanvar", False), ("tf", "pretrained", False)
    ):  # fmt: skip
        cell = cells_of([Variant(strategy, BACKBONE, "T2", init)], (100,), 1)[0]
        assert trainer._job(cell, sets.train, "random").freeze_batchnorm is frozen


def test_networks_from_random_weights_get_the_pixels_that_pretrained_ones_get(sets, tmp_path):
    """What the model file of the weights says of them, unless something else is asked for."""
    about = {"mean": (0.1, 0.2, 0.3), "backbone_args": {"pad_type": "same"}}
    net = create_network(BACKBONE, init="random", tile_size=SIZE, **about)
    weights = save_model(net, tmp_path / "weights.safetensors")
    once = {"cuts": ("T2",), "inits": ("random",), "baselines": (), "repeats": 1}
    card = read_card(run_study(settings_on(tmp_path / "s", weights, **once), sets).model)
    assert (card.mean, card.backbone_args) == (about["mean"], about["backbone_args"])
    asked = settings_on(tmp_path, weights, mean=(0.5,) * 3, backbone="resnet18")
    assert asked.as_weights_ask() == asked  # which are of another backbone


def test_lwft_freezes_up_to_the_cut_and_slows_the_rest(done, sets):
    asked, _ = done
    trainer = Trainer(asked, sets)
    cell = cells_of([Variant("lwft", BACKBONE, "T2", "pretrained")], (100,), 1)[0]
    model = load_model(trainer.folder(cell) / "model.safetensors")
    training = read_card(trainer.folder(cell) / "model.safetensors").training
    after = model.part_a.state_dict()
    before = trainer.whole()
    moved = {
        name.rpartition(".")[0] for name in after if not torch.equal(after[name], before[name])
    }
    frozen = set(training["frozen"].split(","))
    assert {"conv_stem", "bn1"} < frozen and any(name.startswith("blocks.1.") for name in frozen)
    assert moved and moved.isdisjoint(frozen)
    assert moved | frozen == {name.rpartition(".")[0] for name in after}
    assert training["part_a_lr"] == PART_A_LR


# ---- choice and search ----------------------------------------------------------------------


def found_of(variant, values, percent=100, test=0.0):
    return [
        {**vars(variant), "percent": percent, "repeat": repeat,
         "sets": {"val": {MEAN: {"auprc": value}}, "test": {MEAN: {"auprc": test}}}}
        for repeat, value in enumerate(values)
    ]  # fmt: skip


def test_the_smallest_within_one_standard_error_of_the_best_is_chosen():
    tiny, small, large = (Variant("ttl", "n", cut, "random") for cut in ("T1", "T2", WHOLE))
    cells = [
        *found_of(tiny, (0.70, 0.90), test=1.0),  # the test tiles have no say
        *found_of(small, (0.85, 0.87)),
        *found_of(large, (0.83, 0.95)),  # mean .89, standard error .06
        *found_of(tiny, (1.0, 1.0), percent=10),  # nor has another share
    ]
    parameters = {tiny: 1, small: 2, large: 3}
    choice = choose(cells, parameters)
    assert (choice.best, choice.chosen) == (large, small)
    assert choice.least == pytest.approx(0.83)
    assert choice.enough == (small, large)
    single = [found for found in cells if found["repeat"] == 0]
    assert choose(single, parameters).chosen == small  # the best itself: .85


def test_validation_tiles_that_rank_nothing_choose_nothing():
    variant = Variant("ttl", "n", "T1", "random")
    with pytest.raises(TiaftError, match="no class has validation tiles both with and without it"):
        choose(found_of(variant, (float("nan"),)), {variant: 1})


def test_the_search_looks_between_the_neighbours_of_the_best():
    names = ["a.0", "a", "b.0", "b.1", "b.2", "b", "c.0", "c", WHOLE]
    stages = {"a": "T1", "b": "T2", "c": "T3", WHOLE: "T4"}
    cuts = [Cut(n, stages.get(n, ""), "." in n, 1, 1, 1) for n in names]
    assert block_ends(cuts) == ["T1", "T2", "T3", "T4"]
    tried = ["T1", "T2", "T3", WHOLE]
    assert layers_around(cuts, tried, "T2", 8) == ["b.0", "b.1", "b.2", "c.0"]
    assert layers_around(cuts, tried, "T2", 2) == ["b.0", "c.0"]
    assert layers_around(cuts, tried, "T1", 8) == ["a.0", "b.0", "b.1", "b.2"]
    assert layers_around(cuts, tried, WHOLE, 8) == []


# ---- the study ------------------------------------------------------------------------------


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_study_ends_with_tables_a_report_and_a_model(done):
    _, result = done
    cells, models = rows_of(result.cells), rows_of(result.models)
    kinds = {(row["strategy"], row["cut"]) for row in models}
    assert kinds == {("ttl", "T2"), ("ttl", WHOLE), ("lwft", "T2"), ("tf", "T2")}
    assert len(cells) == 4 * 2 * 2 * 4  # kinds, repeats, sets, mean and three classes
    chosen = [row for row in models if row["chosen"] == "yes"]
    assert len(chosen) == 1 and chosen[0]["within_one_se"] == "yes"
    card = read_card(result.model)
    assert card.backbone == backbone_of(result.choice.chosen)
    assert card.classes == ("TUM", "STR", "LYM")
    tile = np.zeros((1, SIZE, SIZE, 3), dtype=np.uint8)
    assert load_model(result.model)(tile).shape == (1, 3)
    page = result.report.read_text(encoding="utf-8")
    assert all(f"(figure {number})" in page for number in range(3, 9))
    assert page.count("<svg") == 8 and result.choice.chosen.title in result.text
    assert "http" not in page.replace("http://www.w3.org", "")


def test_intervals_hold_the_means(done):
    rows = [row for row in rows_of(done[1].summary) if row["metric"] in ("auroc", "auprc")]
    assert rows
    for row in rows:
        assert float(row["low"]) - 1e-6 <= float(row["mean"]) <= float(row["high"]) + 1e-6


class PulledPlug(BaseException):
    """Nobody catches it, as nobody catches a power cut."""


def test_interrupted_in_the_middle_it_ends_with_the_same_tables(done, sets, tmp_path, monkeypatch):
    asked, undisturbed = done
    again = replace(asked, out=tmp_path / "study", baselines=("tf",), repeats=1)
    made = stage._Loop._step
    for steps in (2, 8):
        left = [steps]

        def step(self, *arguments, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise PulledPlug
            made(self, *arguments)

        monkeypatch.setattr(stage._Loop, "_step", step)
        with pytest.raises(PulledPlug):
            run_study(again, sets)
    monkeypatch.setattr(stage._Loop, "_step", made)
    said: list[str] = []
    result = run_study(again, sets, say=said.append)
    assert said[0] == "3 trainings, 2 of them done before"
    rows = [row for row in rows_of(undisturbed.cells) if row["repeat"] == "0"]
    assert rows_of(result.cells) == [row for row in rows if row["strategy"] != "lwft"]
    for model in (again.out / "cells").glob("*/model.safetensors"):
        same = asked.out / "cells" / model.parent.name / model.name
        assert model.read_bytes() == same.read_bytes()


def test_a_grid_may_grow_and_what_is_there_stays(done, sets):
    asked, _ = done
    files = sorted((asked.out / "cells").glob("*/cell.json"))
    before = {file: file.stat().st_mtime_ns for file in files}
    said: list[str] = []
    wider = replace(asked, inits=("pretrained", "meanvar"), percents=(50, 100), repeats=1)
    grown = run_study(replace(wider, baselines=()), sets, say=said.append)
    assert said[0] == "8 trainings, 2 of them done before"
    half = {row["train_tiles"] for row in rows_of(grown.cells) if row["percent"] == "50"}
    assert half == {"12"}
    assert all(file.stat().st_mtime_ns == before[file] for file in files)
    assert {row["init"] for row in rows_of(grown.models)} == {"pretrained", "meanvar"}
    run_study(asked, sets)  # as it was, for other tests


def test_another_studys_folder_is_refused(done, sets):
    asked, _ = done
    with pytest.raises(TiaftError, match="holds another study: epochs, seed changed: choose"):
        run_study(replace(asked, epochs=2, seed=1), sets)


def test_overwrite_removes_a_study_only_for_one_that_is_possible(done, sets, tmp_path):
    asked, result = done
    out = shutil.copytree(asked.out, tmp_path / "study")
    other = replace(asked, out=out, lr=0.5)
    with pytest.raises(TiaftError, match="has no cut 'T99'"):
        run_study(replace(other, cuts=("T99",)), sets, overwrite=True)
    assert (out / result.report.name).read_bytes() == result.report.read_bytes()
    with locked(out / STUDY, wait=False), pytest.raises(TiaftError, match="another run"):
        run_study(other, sets, overwrite=True)
    assert (out / result.cells.name).read_bytes() == result.cells.read_bytes()
    run_study(replace(other, repeats=1, baselines=()), sets, overwrite=True)
    assert json.loads((out / STUDY).read_text())["lr"] == 0.5
    assert len(list((out / "cells").glob("*r0"))) == len(list((out / "cells").iterdir())) == 2


def test_a_study_that_never_began_leaves_its_folder_to_another(sets, weights, tmp_path):
    asked = settings_on(tmp_path / "study", weights, baselines=(), repeats=1, augment=("x",))
    with pytest.raises(TiaftError, match="no augmentation x: there is"):
        run_study(asked, sets)
    assert run_study(replace(asked, augment=()), sets).model.is_file()


def test_an_out_that_is_a_file_is_refused_in_one_line(done, sets, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TiaftError, match="file/study.json cannot be written.*choose another"):
        run_study(replace(done[0], out=tmp_path / "file"), sets)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_training_that_fails_is_named_and_the_others_go_on(sets, weights, tmp_path, monkeypatch):
    from tiaft_extensions.truncation.study import training

    asked = settings_on(tmp_path / "study", weights, percents=(100,), baselines=(), repeats=1)
    finetune = training.Trainer._finetune

    def fail(self, cell, train):
        if cell.variant.cut == WHOLE:
            raise Stopped("the loss is no longer a number")
        return finetune(self, cell, train)

    monkeypatch.setattr(training.Trainer, "_finetune", fail)
    with pytest.raises(Stopped, match="1 of 2 trainings failed: ttl_test_efficientnet_whole_.*num"):
        run_study(asked, sets)
    assert (asked.out / "report.html").exists()
    monkeypatch.undo()
    result = run_study(asked, sets)
    assert "one repeat has no standard error" in result.report.read_text(encoding="utf-8")


def test_the_search_tries_layers_by_validation_tiles(sets, weights, tmp_path):
    asked = settings_on(tmp_path / "study", weights, cuts=(), percents=(100,), baselines=(),
                        repeats=1, search=True, search_layers=2, inits=("random",))  # fmt: skip
    said: list[str] = []
    result = run_study(asked, sets, say=said.append)
    assert len(said) >= 2 and said[1].startswith("search: test_efficientnet")
    tried = {row["cut"] for row in rows_of(result.models)}
    ends = {variant.cut for variant in plan(asked, SIZE)}
    assert ends <= tried and WHOLE in ends


def test_several_labels_a_tile(tmp_path, weights):
    folder = make_tiles(tmp_path / "tiles", labels=("LYM", "STR", "TUM;STR", ""))
    sets, notes = hold_out(folder, multilabel=True, mpp=0.5, seed=3)
    assert all(sets.named().values()) and len(sets.named()) == 3
    asked = settings_on(tmp_path / "study", weights, percents=(40,), repeats=1, baselines=())
    result = run_study(asked, sets, notes)
    assert read_card(result.model).multilabel
    found = json.loads(next((asked.out / "cells").glob("*/cell.json")).read_text())
    assert {"LYM", "STR", "TUM"} >= set(found["sets"]["val"]) - {MEAN} != set()


def test_without_test_tiles_results_are_said_to_be_too_good(folder):
    sets, notes = hold_out(folder, test_share=0.0)
    assert sets.test is None
    assert any("results are those of the validation tiles" in note for note in notes)


# ---- the command ----------------------------------------------------------------------------


def command(folder, out, *arguments):
    return tiaft("truncate", "study", folder, "--out", out, "--device", "cpu", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cuts", "T9"], f"{BACKBONE} has no cut 'T9'; there are"),
        (["--init", "xavier"], "--init xavier: there is pretrained, random, meanvar"),
        (["--fractions", "5,200"], "--fractions 200: percentages"),
        (["--weights", "none.safetensors", "--init", "pretrained", "--repeats", "1"],
         "--weights none.safetensors: neither imagenet nor a file"),
        (["--also", "cbr_huge"], "cbr_huge"),
        (["--val-share", "0"], "a study chooses by validation tiles"),
        (["--register", "x"], "the tiles' µm/px is not known: pass --mpp"),
    ],
)  # fmt: skip
def test_what_cannot_be_studied_is_refused_in_one_line(folder, tmp_path, arguments, message):
    given = ["--backbone", BACKBONE, "--init", "random", "--cuts", "T2", "--epochs", "1"]
    found = command(folder, tmp_path / "out", *given, *arguments)
    lines = [line for line in found.stderr.splitlines() if line.startswith("Error")]
    assert found.returncode == 2, found.stderr
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "out" / "cells").exists()


def test_one_class_is_refused(tmp_path):
    folder = make_tiles(tmp_path / "tiles", labels=("TUM",))
    found = command(folder, tmp_path / "out", "--backbone", BACKBONE)
    assert found.returncode == 2
    assert "holds one class (TUM): two or more are needed" in found.stderr


def test_the_command_ends_with_a_registered_model(folder, tmp_path, model_folder):
    found = command(
        folder, tmp_path / "out", "--backbone", BACKBONE, "--init", "random", "--cuts", "T2",
        "--baselines", "none", "--fractions", "100", "--repeats", "2", "--epochs", "1", "--lr",
        "0.01", "--batch-size", "8", "--augment", "none", "--mpp", "0.5", "--register", "enough",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "The smallest network within one standard error of the best is" in found.stdout
    from tiaft_plugin.zoo.folder import file_of

    assert file_of("enough").exists()
    assert read_tileset(folder).classes == read_card(file_of("enough")).classes

"""Bags of tiles, attention pooling, and the probe of bags."""

import csv
import json
import pickle
import random
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import tiaft
from PIL import Image
from processes import Process
from sklearn.metrics import roc_auc_score

from tiaft_extensions.histotransfer import bags, kept, training
from tiaft_extensions.histotransfer.attention import AttentionNet, load_head, save_head
from tiaft_extensions.histotransfer.bags import read_bags
from tiaft_extensions.histotransfer.mil import Mil
from tiaft_extensions.histotransfer.training import Recipe, choose_rows, train
from tiaft_plugin import TiaftError, plugins
from tiaft_plugin.engine import store
from tiaft_plugin.probes.aggregate import find_aggregator
from tiaft_plugin.probes.features import read_patients
from tiaft_plugin.probes.reading import read_inputs
from tiaft_plugin.probes.run import run_probe
from tiaft_plugin.testing import check_probe
from tiaft_plugin.tiles.colour import colour_features

QUICK = {"epochs": 10, "lr": 1e-2, "hidden": (16, 8), "attention": 4}
FEW = {"folds": 3, "repeats": 1, "permutations": 0, "draws": 100, "verbose": False}
WIDTH = 6


def make_store(path: Path, features, colour=None, *, patient=None, model="a" * 64) -> Path:
    """Write a store of n tiles, (n, D) features, and their colour, (n, 54)."""
    settings = {
        "kind": "features",
        "slide": {
            "name": f"{path.stem}.svs",
            "fingerprint": path.stem,
            "size": [9, 9],
            "mpp": None,
        },
        "model": {"name": "m", "sha256": model},
        "classes": [],
        "grid": {"tile_size": [1, 1], "stride": [1, 1], "resolution": 1.0, "units": "mpp"},
        "scale_to_baseline": [1.0, 1.0],
        "precision": "float32",
        "stain_normalisation": None,
    }
    about = store.describe(
        settings, patient=patient, batch_size=1, threads=1, device="", versions={}
    )
    x = np.arange(len(features))
    at = np.stack([x, x * 0, x + 1, x * 0 + 1], axis=1)
    beside = () if colour is None else ("colour",)
    group = store.open_for_writing(
        path, about, at, np.ones(len(x)), width=features.shape[1], beside=beside
    )
    for number in range(group["chunk_crc32"].shape[0]):
        rows = store.chunk_slice(number, store.CHUNK_ROWS)
        more = {} if colour is None else {"colour": colour[rows]}
        store.write_chunk(group, number, features[rows], more)
    return path


def table(path: Path, rows, head=("slide", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def planted(folder: Path, count: int = 24, tiles: int = 20, seed: int = 0) -> Path:
    """Write stores of which half hold two tiles of another kind, and ``labels.csv`` beside them.

    Two slides are of one patient. The other kind is as far off to one side as a third kind, which
    all bags have, is to the other: their mean tells little.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        features = rng.normal(size=(tiles, WIDTH))
        features[:, 1] += rng.normal() * 2  # the slide's own stain
        positive = number // 2 % 2
        if positive:
            features[:2, 0] += 6
        path = make_store(
            folder / f"slide-{number:02d}.zarr",
            features.astype(np.float32),
            rng.random((tiles, 54), np.float32),
            patient=f"patient-{number // 2:02d}",
        )
        rows.append([path.stem, "tumour" if positive else "normal"])
    return table(folder / "labels.csv", rows)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    planted(folder)
    return folder


@pytest.fixture
def quick(monkeypatch):
    """The probe `quick`: `mil` with a small network and few epochs."""
    manager = plugins.Manager()
    manager.add_hookspecs(plugins.hookspecs)
    monkeypatch.setattr(plugins, "plugin_manager", lambda: manager)
    monkeypatch.setattr("tiaft_plugin.probes.run.plugin_manager", lambda: manager)
    manager.sources["mine"] = "built in"
    monkeypatch.setattr("tiaft_plugin.probes.baselines.LEAK_DRAWS", 1)

    class Mine:
        @plugins.hookspecs.hookimpl
        def register_probes(self, register):
            register("quick", Mil(**QUICK))

    manager.register(Mine(), "mine")
    return Mil(**QUICK)


def inputs(folder: Path, labels: Path | None = None):
    return read_inputs(Mil(), [f"mine={folder}"], labels or folder / "labels.csv")


# Bags


def test_a_bag_is_a_slide_or_a_patient(cohort):
    slides, patients = (read_bags(cohort, "mine", unit) for unit in ("slide", "patient"))
    assert (len(slides.keys), len(patients.keys)) == (24, 12)
    assert slides.groups[:3].tolist() == ["patient-00", "patient-00", "patient-01"]
    assert patients.values.tiles.tolist() == [40] * 12
    both = np.concatenate([slides.values.load(0), slides.values.load(1)])
    assert np.array_equal(patients.values.load(0), both)
    assert np.array_equal(np.concatenate(list(patients.values.blocks(0))), both)
    assert patients.values.load(0).dtype == np.float32
    assert slides.colour.load(0).shape == (20, 54)


def test_the_scale_is_that_of_all_tiles(cohort):
    found = read_bags(cohort, "mine", "slide").values[np.array([3, 5, 6])]
    tiles = np.concatenate([found.load(row) for row in range(3)])
    mean, sd = found.scale()
    assert np.allclose(mean, tiles.mean(axis=0)) and np.allclose(sd, tiles.std(axis=0))
    assert np.allclose(found.means[1], found.load(1).mean(axis=0))


def test_a_constant_feature_is_not_scaled(tmp_path):
    make_store(tmp_path / "s.zarr", np.full((7, 2), 0.1, np.float32))
    assert read_bags(tmp_path, "mine").values.scale()[1].tolist() == [1.0, 1.0]


def test_bags_are_picked_as_rows_are(cohort):
    found = read_bags(cohort, "mine", "slide").values
    odd = np.arange(24) % 2 == 1
    assert [bag.key for bag in found[odd].bags] == [f"slide-{n:02d}" for n in range(1, 24, 2)]
    assert found[odd].sha256 == found[np.flatnonzero(odd)].sha256 != found.sha256


def test_what_is_held_in_memory_has_a_bound(cohort, monkeypatch):
    size = 20 * WIDTH * 4
    held = bags._Held(3 * size)
    monkeypatch.setattr(bags, "_HELD", held)
    found = read_bags(cohort, "mine", "slide").values
    for row in [*range(24), 23, 22, 0]:
        assert len(found.load(row)) == 20
    assert held.used == 3 * size and len(held.bags) == 3


def test_a_bag_larger_than_the_bound_is_read_all_the_same(cohort, monkeypatch):
    monkeypatch.setattr(bags, "_HELD", bags._Held(10))
    assert len(read_bags(cohort, "mine").values.load(0)) == 40


def test_bags_without_a_tile_are_left_out_and_named(tmp_path):
    make_store(tmp_path / "full.zarr", np.ones((3, 2), np.float32))
    make_store(tmp_path / "bare.zarr", np.ones((0, 2), np.float32))
    found = read_bags(tmp_path, "mine", "slide")
    assert found.keys.tolist() == ["full"]
    assert any("slides without a tile are left out: bare" in note for note in found.source["notes"])


def test_only_empty_bags_are_refused(tmp_path):
    make_store(tmp_path / "bare.zarr", np.ones((0, 2), np.float32))
    with pytest.raises(TiaftError, match="no store has a tile"):
        read_bags(tmp_path, "mine")


def test_nan_is_refused_and_named(tmp_path, monkeypatch):
    features = np.ones((5, 2), np.float32)
    path = make_store(tmp_path / "s.zarr", features)
    import zarr

    features[3, 1] = np.nan
    group = zarr.open_group(path, mode="r+")
    group["features"][:] = features
    group["chunk_crc32"][0] = store._crc32([features])
    with pytest.raises(TiaftError, match="NaN or infinite in 1 tiles of chunk 0, rows 3"):
        read_bags(tmp_path, "mine")


def test_stores_of_two_models_are_refused(tmp_path):
    make_store(tmp_path / "a.zarr", np.ones((3, 2), np.float32))
    make_store(tmp_path / "b.zarr", np.ones((3, 2), np.float32), model="b" * 64)
    with pytest.raises(TiaftError, match="stores of different models make no feature set"):
        read_bags(tmp_path, "mine")


# Labels


def test_a_table_of_slides_makes_slides_bags(cohort):
    (found, means), targets = inputs(cohort)
    assert (found.unit, means.name) == ("slide", "mine (mean pooling)")
    assert means.values.shape == (24, WIDTH) and means.values.dtype == np.float32
    assert targets.keys.tolist() == found.keys.tolist()


def test_a_table_of_patients_makes_patients_bags(cohort, tmp_path):
    labels = table(
        tmp_path / "l.csv", [[f"patient-{n:02d}", n % 2] for n in range(12)], ("patient", "label")
    )
    (found, _), targets = inputs(cohort, labels)
    assert found.unit == "patient" and targets.keys.tolist() == found.keys.tolist()


def test_slides_may_have_the_ending_of_their_file(cohort, tmp_path):
    labels = table(tmp_path / "l.csv", [[f"slide-{n:02d}.svs", n % 2] for n in range(24)])
    (found, _), targets = inputs(cohort, labels)
    assert targets.keys.tolist() == found.keys.tolist()


def test_the_table_may_name_patients(tmp_path):
    for name in "abcd":
        make_store(tmp_path / f"{name}.zarr", np.ones((3, 2), np.float32))
    rows = [["a", "P", "x"], ["b", "P", "y"], ["c", "Q", "x"], ["d", "", "y"]]
    labels = table(tmp_path / "l.csv", rows, ("slide", "patient", "label"))
    (found, _), targets = inputs(tmp_path, labels)
    assert found.groups.tolist() == ["P", "P", "Q", "d"] and targets.groups is None


def test_a_coarser_group_is_what_folds_respect(tmp_path):
    for name in "abcd":
        make_store(tmp_path / f"{name}.zarr", np.ones((3, 2), np.float32))
    rows = [["a", "P", "H", "x"], ["b", "P", "H", "y"], ["c", "Q", "H", "x"], ["d", "R", "I", "y"]]
    labels = table(tmp_path / "l.csv", rows, ("slide", "patient", "group", "label"))
    (found, _), targets = inputs(tmp_path, labels)
    assert found.groups is None and targets.groups.tolist() == ["H", "H", "H", "I"]


def test_two_patients_of_a_slide_are_refused(tmp_path):
    make_store(tmp_path / "a.zarr", np.ones((3, 2), np.float32))
    labels = table(tmp_path / "l.csv", [["a", "P", "x"]], ("slide", "patient", "label"))
    patients = table(tmp_path / "p.csv", [["a", "Q"]], ("slide", "patient"))
    with pytest.raises(TiaftError, match="slide a is of patient P, but of Q in the table"):
        read_inputs(Mil(), [str(tmp_path)], labels, patients=patients)


def test_labels_are_needed(cohort):
    with pytest.raises(TiaftError, match="bags bring no labels: pass --labels TABLE"):
        read_inputs(Mil(), [str(cohort)])


def test_a_store_without_label_and_a_label_without_store_are_named(cohort, tmp_path, quick):
    rows = [[f"slide-{n:02d}", n % 2] for n in range(1, 24)] + [["gone", 1]]
    tables, targets = inputs(cohort, table(tmp_path / "l.csv", rows))
    with pytest.raises(
        TiaftError, match="1 row has no label: slide-00; .*1 label has no row: gone"
    ):
        run_probe("quick", tables, targets, **FEW)


def test_one_class_is_refused(cohort, tmp_path, quick):
    labels = table(tmp_path / "l.csv", [[f"slide-{n:02d}", "x"] for n in range(24)])
    with pytest.raises(TiaftError, match="all 24 rows are of one class, x: nothing to learn"):
        run_probe("quick", *inputs(cohort, labels), **FEW)


def test_too_few_patients_for_the_folds_are_refused(cohort, quick):
    with pytest.raises(TiaftError, match="12 groups .* cannot be split into 13 folds"):
        run_probe("quick", *inputs(cohort), **{**FEW, "folds": 13})


# The network


def test_the_network_is_the_papers():
    net = AttentionNet(1280, 2)
    widths = [
        (p.in_features, p.out_features) for p in net.modules() if isinstance(p, torch.nn.Linear)
    ]
    assert widths == [(1280, 256), (256, 64), (64, 32), (32, 1), (64, 2)]
    x = torch.randn(9, 1280)
    h = torch.relu(net.encode[2](torch.relu(net.encode[0](x))))
    raw = net.weigh(torch.tanh(net.look(h)))[:, 0]
    logits, said = net(x)
    assert torch.allclose(said, raw)
    assert torch.allclose(logits, net.classify((torch.softmax(raw, 0)[:, None] * h).sum(0)))


def test_the_order_of_tiles_and_doubling_them_change_nothing():
    net, x = AttentionNet(5, 3, gated=True), torch.randn(7, 5)
    assert torch.allclose(net(x)[0], net(x.flip(0))[0], atol=1e-6)
    assert torch.allclose(net(x)[0], net(torch.cat([x, x]))[0], atol=1e-6)


def test_a_network_takes_in_the_scale_of_its_features():
    net, x = AttentionNet(5, 3), torch.randn(7, 5) * 100 + 30
    mean, sd = x.double().mean(0), x.double().std(0)
    before = net(((x - mean) / sd).float())[0]
    net.take_in(mean, sd)
    assert torch.allclose(net(x)[0], before, atol=1e-4)


@pytest.mark.parametrize("gated", [False, True])
def test_a_head_is_read_as_it_was_written(tmp_path, gated):
    net = AttentionNet(5, 2, (8, 4), 3, gated)
    path = save_head(tmp_path / "h.safetensors", net, ("a", "ü"), {"fold": 1})
    found, x = load_head(path), torch.randn(4, 5)
    assert (found.classes, found.about) == (("a", "ü"), {"fold": 1})
    assert torch.equal(found.net(x)[0], net(x)[0])


def test_what_is_no_head_is_refused(tmp_path):
    (tmp_path / "h.safetensors").write_bytes(b"nothing")
    with pytest.raises(TiaftError, match="is no attention head .*`tiaft probe mil` writes them"):
        load_head(tmp_path / "h.safetensors")


# Training


def test_training_is_repeatable_and_leaves_global_randomness_alone(cohort):
    found = read_bags(cohort, "mine", "slide")
    codes = np.arange(24) // 2 % 2
    state = torch.random.get_rng_state()
    one, other = (train(found.values, codes, 2, found.groups, 3, Recipe(**QUICK)) for _ in "12")
    assert torch.equal(state, torch.random.get_rng_state())
    for a, b in zip(one.net.parameters(), other.net.parameters(), strict=True):
        assert torch.equal(a, b)
    third = train(found.values, codes, 2, found.groups, 4, Recipe(**QUICK))
    assert not torch.equal(one.net.classify.weight, third.net.classify.weight)


def test_ctrl_c_while_training_is_handed_on(cohort, monkeypatch):
    def stop(*_):
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    found = read_bags(cohort, "mine", "slide")
    monkeypatch.setattr(training.Learner, "training_step", stop)
    try:
        with pytest.raises(KeyboardInterrupt):  # Lightning would exit with 1
            train(found.values, np.arange(24) // 2 % 2, 2, found.groups, 3, Recipe(**QUICK))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # nor be deaf
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_rows_that_choose_the_epoch_are_whole_groups_of_all_classes():
    groups = np.repeat([f"p{n}" for n in range(20)], 3)
    codes = np.repeat(np.arange(20) % 2, 3)
    rows = choose_rows(codes, groups, 5, 0)
    assert rows.sum() == 12 and set(codes[rows]) == {0, 1}
    assert not set(groups[rows]) & set(groups[~rows])


@pytest.mark.parametrize(
    ("codes", "groups"),
    [([0, 1, 0, 1], "aabb"), ([0, 0, 0, 0, 1], "abcde")],
    ids=["few groups", "a class of one bag"],
)
def test_where_too_few_could_choose_none_does(codes, groups):
    chosen = [choose_rows(np.array(codes), np.array(list(groups)), 5, seed) for seed in range(20)]
    rest = [set(np.array(codes)[~rows]) for rows in chosen]
    assert all(len(classes) == 2 for classes in rest)
    assert not any(rows.sum() == 1 for rows in chosen)


def test_the_best_epoch_is_kept(cohort, monkeypatch):
    found = read_bags(cohort, "mine", "slide")
    said = iter([(0.5, 1.0), (1.0, 0.9), (1.0, 0.4), (1.0, 0.4), (0.9, 0.1), *[(0.5, 0.0)] * 5])
    weights = []

    def end(learner):
        right, loss = next(said)
        learner._said = [(right, loss)]
        weights.append(learner.net.classify.weight.detach().clone())
        kept_end(learner)

    kept_end = training.Learner.on_validation_epoch_end
    monkeypatch.setattr(training.Learner, "on_validation_epoch_end", end)
    done = train(found.values, np.arange(24) // 2 % 2, 2, found.groups, 0, Recipe(**QUICK))
    assert done.epoch == 3 and torch.equal(done.net.classify.weight, weights[2])


# The probe


def test_the_probe_keeps_the_promises_of_probes():
    check_probe(Mil(**QUICK))


@pytest.fixture(scope="module")
def run(cohort, tmp_path_factory):
    """A run of `quick` on planted slides."""
    patch = pytest.MonkeyPatch()
    try:
        probe = quick.__wrapped__(patch)
        out = tmp_path_factory.mktemp("run") / "out"
        tables, targets = read_inputs(probe, [f"mine={cohort}"], cohort / "labels.csv")
        return out, run_probe("quick", tables, targets, out, **FEW)
    finally:
        patch.undo()


def value(result, name, metric="AUROC"):
    rows = [*result.summary["scores"], *result.summary["baselines"]]
    return next(r["value"] for r in rows if r["features"] == name and r["metric"] == metric)


def test_attention_learns_what_two_tiles_say(run):
    _, result = run
    assert value(result, "mine") > 0.9
    assert abs(value(result, "colour") - 0.5) < 0.3
    assert result.summary["data"]["unit"] == "slide"
    assert result.summary["data"]["groups"] == 12


def test_attention_is_kept_for_every_tile(run, cohort):
    out, _ = run
    found = kept.read_run(out)
    assert (found.name, found.unit, found.classes, found.count) == (
        "mine",
        "slide",
        ("normal", "tumour"),
        3,
    )
    assert set(found.groups[found.folds == 0]).isdisjoint(found.groups[found.folds == 1])
    areas = []
    for key, label in zip(found.keys, found.labels, strict=True):
        tiles = found.tiles(cohort / f"{key}.zarr")
        assert tiles.logits.shape == (3, 20) and tiles.bag == key
        assert np.isclose(tiles.attention.sum(), 1)
        held = np.exp(tiles.held_out.astype(float))
        assert np.allclose(tiles.attention, held / held.sum(), atol=1e-6)
        if label == "tumour":
            areas.append(roc_auc_score(np.arange(20) < 2, tiles.attention))
    assert np.mean(areas) > 0.9


def test_the_kept_heads_are_those_that_were_measured(run, cohort):
    out, result = run
    found, loaded = kept.read_run(out), read_bags(cohort, "mine", "slide").values
    average = result.predictions["average/mine/0/0"]
    for row in range(24):
        head = found.head(int(found.folds[row]))
        with torch.no_grad():
            logits = head.net(torch.tensor(loaded.load(row)))[0].double().log_softmax(0)
        assert np.allclose(logits.numpy(), average[row], atol=1e-6)


def test_a_run_names_what_it_does_not_know(run, cohort, tmp_path):
    found = kept.read_run(run[0])
    with pytest.raises(TiaftError, match="knows no store other.zarr, but slide-00.zarr"):
        found.tiles("other.zarr")
    make_store(tmp_path / "slide-00.zarr", np.ones((3, WIDTH), np.float32))
    with pytest.raises(TiaftError, match="has other tiles than `tiaft probe mil` saw"):
        found.tiles(tmp_path / "slide-00.zarr")
    features = store.read_store(cohort / "slide-01.zarr").values[:]
    make_store(tmp_path / "slide-01.zarr", features, model="b" * 64)
    with pytest.raises(TiaftError, match="features of another model than `tiaft probe mil` saw"):
        found.tiles(tmp_path / "slide-01.zarr")
    with pytest.raises(TiaftError, match="holds no attention"):
        kept.read_run(tmp_path)
    with pytest.raises(TiaftError, match="holds no attention of yours, but of mine"):
        kept.read_run(run[0], "yours")


def test_an_interrupted_run_goes_on_to_the_same_bytes(run, cohort, tmp_path, quick, monkeypatch):
    whole, out = run[0], tmp_path / "out"
    tables, targets = inputs(cohort)
    done = []

    def stop(*arguments):
        done.append(1)
        if len(done) == 4:
            raise KeyboardInterrupt
        return learn(*arguments)

    learn = training.train
    monkeypatch.setattr(training, "train", stop)
    monkeypatch.setattr(kept, "train", stop)
    for _ in range(2):  # among the folds, then among the heads
        done.clear()
        with pytest.raises(KeyboardInterrupt):
            run_probe("quick", tables, targets, out, **FEW)
    done.extend("12345")
    run_probe("quick", tables, targets, out, **FEW)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert len(files) == 5 + 1 + 3 + 24
    for file in files:
        if file.name != "run.json" or file.parent.name:
            assert (out / file).read_bytes() == (whole / file).read_bytes(), file


def test_bags_travel_to_other_processes(cohort):
    found = read_bags(cohort, "mine", "slide").values
    again = pickle.loads(pickle.dumps(found))
    assert again.sha256 == found.sha256 and len(pickle.dumps(found)) < 20_000
    assert np.array_equal(again.load(3), found.load(3))


def test_the_command_has_what_bags_need():
    from tiaft_plugin.cli.probe import _command

    text = " ".join(CliRunner().invoke(_command("mil", Mil()), ["--help"]).output.split())
    assert "--patients" in text and "--aggregate NAME" not in text and "3; x>=1]" in text
    assert "[default: 20; x>=1]" in text and "[default: 256,64]" in text


GIVEN = (
    "--folds 2 --repeats 1 --permutations 0 --draws 100 --no-leak-control "
    "--epochs 2 --lr 0.01 --hidden 9,5 --attention 3 --held-out 4 --as-they-are"
)


def test_the_training_is_set_on_the_command_line(cohort, tmp_path):
    labels = ["--labels", cohort / "labels.csv", "--out", tmp_path / "o"]
    done = tiaft("probe", "mil-gated", cohort, *labels, *GIVEN.split())
    assert done.returncode == 0, done.stderr
    shape = kept.read_run(tmp_path / "o").head(0).net.shape
    assert shape == {"width": 6, "classes": 2, "hidden": [9, 5], "attention": 3, "gated": True}
    assert "warning: The leak control was left out: nothing says" in done.stdout
    summary = json.loads((tmp_path / "o/summary.json").read_text())
    assert summary["protocol"]["leak_control"] is False
    assert {"torch", "lightning"} <= summary["versions"].keys()
    told = summary["probe"]["settings"]
    wanted = {"epochs": 2, "lr": 0.01, "hidden": [9, 5], "held_out": 4, "standardise": False}
    assert told.items() >= wanted.items() and told["epoch kept"].startswith(
        "best accuracy on one of 4"
    )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["--hidden", ""], "--hidden: one layer is the least"),
        (["--hidden", "8,0"], "8, 0: 1 or more, please"),
        (["--lr", "0"], "'--lr'"),
        (["--held-out", "1"], "'--held-out'"),
    ],
)
def test_settings_that_cannot_be_are_refused(given, text, cohort, tmp_path):
    labels = ["--labels", cohort / "labels.csv", "--out", tmp_path / "o"]
    done = tiaft("probe", "mil", cohort, *labels, *given)
    assert done.returncode == 2 and text in done.stderr and not (tmp_path / "o").exists()


def test_options_are_for_probes_that_have_them(cohort):
    with pytest.raises(TiaftError, match="layers: unknown; there are epochs, lr, hidden"):
        Mil().with_options(layers=3)
    with pytest.raises(TiaftError, match="the probe tissue has no options of its own"):
        run_probe("tissue", *inputs(cohort), options={"epochs": 3})


# Pooling by another cohort's run


def renamed(cohort: Path, folder: Path) -> Path:
    """Copy three stores under names that no run knows."""
    for number in range(3):
        make_store(
            folder / f"new-{number}.zarr",
            np.asarray(store.read_store(cohort / f"slide-0{number}.zarr").values[:]),
            patient=f"new patient {number}",
        )
    return folder


def test_attention_of_another_cohort_pools_tiles(run, cohort, tmp_path):
    pooled = read_patients(
        renamed(cohort, tmp_path), "new", aggregate=find_aggregator(f"attention={run[0]}")
    )
    heads = kept.read_run(run[0]).heads()
    assert len(heads) == 3 and pooled.values.shape == (3, WIDTH)
    tiles = torch.tensor(np.asarray(store.read_store(tmp_path / "new-1.zarr").values[:]))
    weights = torch.stack([head.net(tiles)[1].softmax(0) for head in heads]).mean(0)
    assert np.allclose(pooled.values[1], (weights @ tiles).numpy(), atol=1e-5)


def test_a_run_does_not_pool_the_patients_it_has_learnt_from(run, cohort):
    pool = find_aggregator(f"attention={run[0]}")
    with pytest.raises(
        TiaftError, match="has learnt from the labels of slide-00.svs, slide-01.svs: its"
    ):
        read_patients(cohort, "mine", aggregate=pool)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("attention", "--aggregate attention needs to know which: --aggregate attention=RUN"),
        ("attention=nowhere", "nowhere holds no attention: `tiaft probe mil"),
        ("mean=RUN", "--aggregate mean takes nothing after it: ask for it as mean"),
    ],
)
def test_an_aggregator_is_named_with_what_it_needs(name, text):
    with pytest.raises(TiaftError, match=re.escape(text)):
        find_aggregator(name)


def test_other_features_than_the_run_had_are_refused(run, cohort, tmp_path):
    pool = find_aggregator(f"attention={run[0]}")
    features = np.asarray(store.read_store(cohort / "slide-00.zarr").values[:])
    make_store(tmp_path / "new.zarr", features, model="b" * 64)
    wanted = (
        r"features new\): features are of the model m \(SHA-256 b{16}\), the attention of .*/mine "
        r"is for those of m \(SHA-256 a{16}\): extract with that one"
    )
    with pytest.raises(TiaftError, match=wanted):
        read_patients(tmp_path, "new", aggregate=pool)
    with pytest.raises(TiaftError, match="is for features of width 6, not 7: extract with"):
        pool(np.ones((3, 7), np.float32), np.array(["new"] * 3))


# Killed

LONG = "--folds 3 --repeats 2 --permutations 0 --draws 100 --epochs 10 --hidden 16,8"
MAIN = """
from tiaft_plugin.probes import baselines
baselines.LEAK_DRAWS = 0
from tiaft_plugin.cli import main
main()
"""


@pytest.mark.slow
def test_killed_twice_it_ends_with_the_same_bytes(cohort, tmp_path):
    """SIGKILL while folds are measured, and while attention is written."""

    def started(out: str) -> Process:
        files = [cohort, "--labels", cohort / "labels.csv", "--out", tmp_path / out]
        return Process(
            MAIN, "probe", "mil", *files, *LONG.split(), out=tmp_path, OMP_NUM_THREADS="1"
        )

    def kept_files() -> int:
        return sum(path.is_file() for path in (tmp_path / "killed/.unfinished").rglob("*"))

    assert started("whole").wait() == 0
    rng = random.Random(3)
    for wanted in (2, 10):
        process = started("killed")
        while kept_files() < wanted and process.wait(timeout=0.2) is None:
            pass
        code = process.wait(timeout=rng.uniform(0, 0.05))
        process.kill()
        assert code is None, "it ended before it was killed"
    assert started("killed").wait() == 0
    whole = tmp_path / "whole"
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert len(files) == 5 + 1 + 3 + 24
    for file in files:
        if file.name != "run.json" or file.parent.name:
            assert (tmp_path / "killed" / file).read_bytes() == (whole / file).read_bytes(), file


# Real tiles


def real_bags(data: Path, folder: Path, *, bags_each=8, tiles=24, seed=0) -> dict[str, np.ndarray]:
    """Write bags of real tiles, of one source slide each; three tumour tiles make one positive."""
    root = data / "kather2016"
    with (root / "manifest.csv").open(newline="", encoding="utf-8") as file:
        known = list(csv.DictReader(file))
    known = [r for n, r in enumerate(known) if n % 3 == 0 or "TUMOR" in r["label"]]  # enough
    pixels = np.stack([np.asarray(Image.open(root / row["file"]).convert("RGB")) for row in known])
    features = colour_features(pixels)
    tumour = np.array(["TUMOR" in row["label"] for row in known])
    source = np.array([row["group"] for row in known])
    rng, rows, truth = np.random.default_rng(seed), [], {}
    for patient in np.unique(source):
        own = np.flatnonzero((source == patient) & tumour)
        others = np.flatnonzero((source == patient) & ~tumour)
        for number in range(bags_each):
            positive = number % 2 == 0 and len(own) >= 3
            count = int(rng.integers(3, 7)) if positive else int(rng.integers(0, 3))
            count = min(count, len(own))
            of = [*rng.choice(own, count, replace=False)]
            of += [*rng.choice(others, tiles - count, replace=len(others) < tiles - count)]
            of = rng.permutation(of)
            name = f"{patient}-{number}"
            make_store(folder / f"{name}.zarr", features[of], patient=f"P{patient}")
            truth[name] = tumour[of]
            rows.append([name, "tumour" if tumour[of].sum() >= 3 else "none"])
    table(folder / "labels.csv", rows)
    return truth


def test_attention_finds_real_tumour_tiles(data, tmp_path):
    truth = real_bags(data, tmp_path)
    (found, _), targets = inputs(tmp_path)
    held_out = np.isin(found.groups, np.unique(found.groups)[::4])
    codes = (targets.values == "tumour").astype(np.int64)
    learning = found.values[~held_out], codes[~held_out], 2, found.groups[~held_out]
    net = train(*learning, 0, Recipe(**QUICK)).net
    areas = [
        roc_auc_score(truth[found.keys[row]], net(torch.tensor(found.values.load(row)))[1])
        for row in np.flatnonzero(held_out & (codes == 1))
    ]
    print(f"AUROC of attention against truth {np.mean(areas):.3f}, {len(areas)} bags")
    assert len(areas) >= 5 and np.mean(areas) > 0.8

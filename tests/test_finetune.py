"""The two-stage finetuner: what trains, what is frozen, what is written, and what is refused."""

import csv
import os
import re
import signal
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tiaft_plugin import TiaftError, hookimpl
from tiaft_plugin.cli.finetune import finetune as command
from tiaft_plugin.errors import Stopped
from tiaft_plugin.files import sha256_of
from tiaft_plugin.finetune.data import Order, PooledBatches
from tiaft_plugin.finetune.interface import FinetuneJob, FinetuneResult, Samples
from tiaft_plugin.finetune.origin import licence_of
from tiaft_plugin.finetune.run import finetune, finetune_tiles
from tiaft_plugin.finetune.stage import StageModule
from tiaft_plugin.finetune.stages import run_stages
from tiaft_plugin.kather100k import KATHER100K
from tiaft_plugin.network import create_network, load_model, read_card, save_model
from tiaft_plugin.plugins import plugin_manager
from tiaft_plugin.tiles.known import KNOWN_SETS
from tiaft_plugin.tiles.tileset import read_tileset
from tiaft_plugin.zoo.promises import Promise

pytestmark = pytest.mark.usefixtures("no_figures")

SIZE = 32
BACKBONE = "test_efficientnet"  # 0.1 million weights, and it has BatchNorm
COLOURS = {"STR": (230, 180, 200), "TUM": (110, 70, 150), "LYM": (60, 40, 90)}


def make_tiles(root: Path, each: int = 6, classes=("STR", "TUM"), seed=0, groups=2, size=SIZE):
    """Write coloured, noisy tiles and their manifest; tiles go round the groups."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True)
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "label", "group"))
        for name in classes:
            for number in range(each):
                pixels = np.array(COLOURS[name]) + rng.integers(-40, 41, (size, size, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(root / f"{name}{number}.png")
                group = f"s{seed}-{number % groups}" if groups else ""
                writer.writerow((f"{name}{number}.png", name, group))
    return root


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two small sets of different slides, to train on and to hold out; nobody changes them."""
    root = tmp_path_factory.mktemp("sets")
    train, val = make_tiles(root / "train", 9), make_tiles(root / "val", 3, seed=1)
    return read_tileset(train, mpp=0.5), read_tileset(val, mpp=0.5)


def job_on(sets, out: Path) -> FinetuneJob:
    """Return a job with numbers that let weights move visibly."""
    return FinetuneJob(
        out=out,
        train=sets[0],
        val=sets[1],
        backbone=BACKBONE,
        init="random",
        hidden=(8,),
        epochs=(2, 2),
        lrs=(1e-2, 1e-3),
        batch_size=4,
        device="cpu",
    )


@pytest.fixture
def job(sets, tmp_path):
    return job_on(sets, tmp_path / "run")


@pytest.fixture(scope="module")
def done(sets, tmp_path_factory):
    """A run as `job` asks for, which its tests only look at."""
    return run_stages(job_on(sets, tmp_path_factory.mktemp("done") / "run"))


@pytest.fixture
def plugin():
    """Register objects as plug-ins for one test."""
    registered = []

    def register(thing):
        plugin_manager().register(thing)
        registered.append(thing)
        return thing

    yield register
    for thing in registered:
        plugin_manager().unregister(thing)


class Brighten:
    """An augmentation that draws from its generator, in both stages."""

    @hookimpl
    def choose_augmentation(self, stage, tile_size):
        return brighten


def brighten(tile, rng):
    return (tile * rng.uniform(0.5, 1)).astype(np.uint8)


def nothing_but_unfinished(out: Path) -> bool:
    """Whether a run left no result, only what it needs to go on."""
    return not out.exists() or [path.name for path in out.iterdir()] == [".unfinished"]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def part(state, name):
    return {key: value for key, value in state.items() if key.startswith(name)}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_run_ends_with_a_model_that_knows_what_it_is(job, done):
    net = load_model(done.model)
    tile = np.array(Image.open(job.val.files[0]))[None]
    assert net(tile).shape == (1, 2)
    assert net.features(tile).shape == (1, 8)
    card = net.card
    assert (card.classes, card.tile_size, card.mpp) == (("TUM", "STR"), SIZE, 0.5)
    assert card.data["tiles"] == {"TUM": 9, "STR": 9}
    assert card.data["groups"] == 2
    assert card.data["held_out"]["groups"] == 2
    assert re.fullmatch("[0-9a-f]{64}", card.data["fingerprint"])
    stages = card.training["stages"]
    assert [(s["trains"], s["epochs"], s["lr"], s["optimizer"]) for s in stages] == [
        ("part_b", 2, 1e-2, "Adam"),
        ("part_a", 2, 1e-3, "Adam"),
    ]
    assert len(read_card(done.stage1).training["stages"]) == 1


def test_a_run_writes_its_files_alone_and_shows_bars_on_stderr_alone(
    job, monkeypatch, tmp_path, capfd
):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    run_stages(replace(job, epochs=(1, 1)))
    assert sorted(path.name for path in job.out.iterdir()) == [
        "confusion.csv", "metrics.csv", "model.safetensors", "report.html", "stage1.safetensors",
        "tiles.csv",
    ]  # fmt: skip
    assert not list((tmp_path / "cwd").iterdir())  # no lightning_logs
    output = capfd.readouterr()
    assert output.out == ""
    assert "GPU available" not in output.err
    assert all(f"{bar}: 100%" in output.err for bar in ("Part A, frozen", "Stage 2 of 2"))


def test_metrics_have_a_row_for_each_stage_epoch_and_split(done):
    rows = rows_of(done.metrics)
    assert list(rows[0]) == [
        "stage", "epoch", "split", "loss", "accuracy", "balanced_accuracy", "lr", "seconds"
    ]  # fmt: skip
    keys = [(row["stage"], row["epoch"], row["split"], float(row["lr"])) for row in rows]
    assert keys == [
        (stage, epoch, split, lr)
        for stage, lr in (("1", 1e-2), ("2", 1e-3))
        for epoch in ("1", "2")
        for split in ("train", "val")
    ]
    assert all(0 <= float(r["accuracy"]) <= 1 and float(r["loss"]) > 0 for r in rows)


def test_what_is_measured_is_what_the_written_model_does(job, done):
    net, confusion = load_model(done.model), np.zeros((2, 2), int)
    tiles = np.stack([np.array(Image.open(file)) for file in job.val.files])
    with torch.inference_mode():
        np.add.at(confusion, (job.val.targets, net(tiles).argmax(1).numpy()), 1)
    written = [[int(row["TUM"]), int(row["STR"])] for row in rows_of(done.confusion)]
    assert written == confusion.tolist()
    assert done.last["accuracy"] == confusion.trace() / 6


def test_colours_are_learnt(job):
    result = run_stages(replace(job, hidden=(64,), epochs=(12, 0), lrs=(1e-1, 1e-3)))
    assert result.last["accuracy"] == 1
    assert "Held-out accuracy 1.000, balanced 1.000, on 6 tiles" in result.summary


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("freeze_batchnorm", [False, True])
def test_frozen_means_frozen(job, plugin, augmented, freeze_batchnorm):
    if augmented:
        plugin(Brighten())
    result = run_stages(replace(job, freeze_batchnorm=freeze_batchnorm))
    before = create_network(
        BACKBONE, job.train.classes, init="random", hidden=(8,), tile_size=SIZE
    ).state_dict()
    stage1, last = (load_model(path).state_dict() for path in (result.stage1, result.model))
    assert same(part(stage1, "part_a"), part(before, "part_a"))  # BatchNorm's statistics too
    assert not same(part(stage1, "part_b"), part(before, "part_b"))
    assert same(part(last, "part_b"), part(stage1, "part_b"))
    statistics = [key for key in last if key.endswith(("running_mean", "running_var"))]
    moved = {not torch.equal(last[key], before[key]) for key in statistics}
    assert moved == {not freeze_batchnorm}
    weights = [k for k in part(last, "part_a") if k.endswith(("weight", "bias"))]
    assert all(not torch.equal(last[k], before[k]) for k in weights)  # scale and shift too


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("freeze_batchnorm", [False, True])
def test_whoever_calls_train_leaves_the_frozen_part_in_eval_mode(number, freeze_batchnorm):
    net = create_network(BACKBONE, ("A", "B"), init="random", hidden=(8,), tile_size=SIZE)
    trains = {1: "part_b", 2: "part_a"}[number]
    module = StageModule(net, trains, freeze_batchnorm=freeze_batchnorm)
    module.train()
    assert (net.part_a.training, net.part_b.training) == (number == 2, number == 1)
    layers = [m for m in net.part_a.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {layer.training for layer in layers} == {number == 2 and not freeze_batchnorm}
    trains = {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    assert trains == {"part_b" if number == 1 else "part_a"}


def test_the_same_job_gives_the_same_bytes_with_any_number_of_workers(job, plugin, tmp_path):
    plugin(Brighten())
    runs = {}
    for name, changes in {"a": {}, "b": {"workers": 2}, "c": {"seed": 1}}.items():
        result = run_stages(replace(job, out=tmp_path / name, **changes))
        torch.rand(1)  # whoever draws from the global generator changes nothing
        report, heading, times = result.report.read_text().partition("<h2>Time and memory")
        assert heading and times
        runs[name] = [result.model.read_bytes(), result.stage1.read_bytes(), report]
    assert runs["a"] == runs["b"]
    assert runs["a"][0] != runs["c"][0]


def test_a_run_leaves_the_global_generator_alone(job):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run_stages(replace(job, epochs=(1, 1)))
    assert torch.equal(torch.rand(3), expected)


def test_part_a_computed_once_gives_what_computing_it_each_epoch_gives(job, done, plugin):
    once = load_model(done.stage1).state_dict()

    class Identity:
        @hookimpl
        def choose_augmentation(self):
            return lambda tile, rng: tile

    plugin(Identity())
    each = load_model(run_stages(replace(job, epochs=(2, 0))).stage1).state_dict()
    for key, value in once.items():
        torch.testing.assert_close(value, each[key], rtol=1e-4, atol=1e-5)


@pytest.fixture
def hears_ctrl_c():
    """What a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_training_is_a_keyboard_interrupt_and_leaves_no_file(job, plugin, hears_ctrl_c):
    class Impatient:
        @hookimpl
        def epoch_ended(self, stage, epoch):
            if (stage, epoch) == (2, 1):
                signal.raise_signal(signal.SIGINT)

    plugin(Impatient())
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_stages(job)
    assert nothing_but_unfinished(job.out)
    assert signal.getsignal(signal.SIGINT) is before  # Lightning would ignore the next one


def test_hooks_see_stages_and_epochs_and_choose_the_optimiser(job, plugin):
    class Watcher:
        def __init__(self):
            self.seen = []

        @hookimpl
        def stage_started(self, stage, network):
            self.seen.append(("start", stage, network.card.classes))

        @hookimpl
        def epoch_ended(self, stage, epoch, metrics):
            self.seen.append((stage, epoch, sorted(metrics)))
            assert metrics["train"]["lr"] == 0.5 or stage == 2

        @hookimpl
        def stage_ended(self, stage, network):
            self.seen.append(("end", stage, network.training))

        @hookimpl
        def choose_optimizer(self, stage, parameters, lr):
            return torch.optim.SGD(parameters, lr=0.5) if stage == 1 else None

    watcher = plugin(Watcher())
    card = read_card(run_stages(job).model)
    assert watcher.seen == [
        ("start", 1, ("TUM", "STR")),
        (1, 1, ["train", "val"]),
        (1, 2, ["train", "val"]),
        ("end", 1, False),
        ("start", 2, ("TUM", "STR")),
        (2, 1, ["train", "val"]),
        (2, 2, ["train", "val"]),
        ("end", 2, False),
    ]
    assert [stage["optimizer"] for stage in card.training["stages"]] == ["SGD", "Adam"]


@pytest.mark.parametrize("hook", ["stage_started", "choose_augmentation", "choose_optimizer",
                                  "epoch_ended", "stage_ended"])  # fmt: skip
def test_a_plugin_that_fails_in_a_run_is_named(job, plugin, hook):
    def fail(self):
        raise ZeroDivisionError("a fault of mine")

    plugin(type("Failing", (), {hook: hookimpl(fail)})())
    with pytest.raises(
        TiaftError, match=f"plug-in .* failed in {hook}: ZeroDivisionError: a fault of mine"
    ):
        run_stages(replace(job, epochs=(1, 0)))
    assert nothing_but_unfinished(job.out)


def test_an_optimiser_that_is_none_is_refused(job, plugin):
    class Named:
        @hookimpl
        def choose_optimizer(self):
            return "SGD"

    plugin(Named())
    with pytest.raises(TiaftError, match="choose_optimizer gave 'SGD', which is no torch optimi"):
        run_stages(job)


def crop(tile, rng):
    return tile[1:]


def stumble(tile, rng):
    return tile[rng.missing]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (crop, r"TUM\d.png: .* of plug-in \d+ made uint8 \(31, 32, 3\) of a uint8 tile"),
        (stumble, r"TUM\d.png: .* of plug-in \d+ failed: AttributeError: .*missing"),
    ],
)
def test_an_augmentation_that_fails_is_named_in_one_line(job, plugin, workers, augment, message):
    class Augmenting:
        @hookimpl
        def choose_augmentation(self):
            return augment

    plugin(Augmenting())
    with pytest.raises(Stopped, match=message) as error:
        run_stages(replace(job, workers=workers))
    assert "\n" not in str(error.value)


def test_resizing_changes_the_resolution_and_the_card_says_so(job):
    card = read_card(run_stages(replace(job, tile_size=64, epochs=(1, 0))).model)
    assert (card.tile_size, card.mpp) == (64, 0.25)
    assert card.data["resized"] == {"from_px": SIZE, "from_mpp": 0.5}


def test_without_a_resolution_a_model_can_have_no_name(job):
    unknown = replace(job, train=replace(job.train, mpp=None), val=None, epochs=(1, 0))
    with pytest.raises(TiaftError, match=r"µm/px is not known, .* pass --mpp, or give manifest"):
        finetune(unknown, register="nameless")
    assert not job.out.exists()
    with pytest.warns(UserWarning, match="µm/px is not known.*can have no name: pass --mpp"):
        result = run_stages(unknown)
    assert read_card(result.model).mpp is None
    assert "unknown resolution" in result.report.read_text()


def test_results_do_not_go_among_the_tiles(job):
    inside = job.train.root / "run"
    with pytest.raises(TiaftError, match="run lies among the tiles of .*choose another --out"):
        run_stages(replace(job, out=inside))
    with pytest.raises(TiaftError, match="run lies among the tiles of .*another --cache"):
        run_stages(replace(job, cache=inside))
    assert not inside.exists()


def test_a_model_file_to_begin_with_brings_backbone_and_normalisation(job, tmp_path):
    begin = create_network(
        BACKBONE, init="random", tile_size=SIZE, mean=(0.1, 0.2, 0.3), std=(0.4,) * 3, seed=7,
        backbone_args={"drop_rate": 0.1},
    )  # fmt: skip
    file = save_model(begin, tmp_path / "begin.safetensors")
    result = run_stages(replace(job, backbone=None, init=str(file), epochs=(1, 1)))
    card = read_card(result.model)
    assert (card.backbone, card.backbone_args) == (BACKBONE, {"drop_rate": 0.1})
    assert (card.mean, card.std) == ((0.1, 0.2, 0.3), (0.4,) * 3)
    found = part(load_model(result.stage1).state_dict(), "part_a")
    assert same(found, part(begin.state_dict(), "part_a"))
    assert card.training["init"] == "file"  # and no path, which would tell of its owner
    assert card.training["init_sha256"] == sha256_of(file)


def test_the_card_has_the_licences_of_weights_and_tiles(job, tmp_path):
    begin = create_network(BACKBONE, init="random", tile_size=SIZE, licence="CC BY-NC 4.0")
    file = save_model(begin, tmp_path / "begin.safetensors")
    known = replace(job.train, known=KNOWN_SETS[0])
    tiles = "training tiles: CC BY 4.0, 10.5281/zenodo.1214456"
    once = replace(job, train=known, init=str(file), epochs=(0, 0))
    first = run_stages(once)
    assert read_card(first.model).licence == f"weights: CC BY-NC 4.0; {tiles}"
    again = run_stages(replace(once, init=str(first.model), out=tmp_path / "again"))
    assert read_card(again.model).licence == f"weights: CC BY-NC 4.0; {tiles}"
    bare = run_stages(replace(once, init="random", out=tmp_path / "bare"))
    assert read_card(bare.model).licence == tiles
    assert "init_sha256" not in read_card(bare.model).training


@pytest.mark.parametrize(
    ("backbone", "licence"),
    [("convnextv2_tiny", "cc-by-nc-4.0"), ("keras_xception", "apache-2.0")],
)
def test_timm_tells_the_licence_of_its_weights(backbone, licence):
    assert licence_of("imagenet", backbone) == licence
    assert licence_of("random", backbone) == ""


def test_an_existing_run_is_refused_before_training_unless_asked(job, plugin):
    result = run_stages(replace(job, epochs=(1, 1)))
    before = result.model.read_bytes()
    with pytest.raises(TiaftError, match=r"model.safetensors exists already: .* --overwrite"):
        run_stages(job)
    assert result.model.read_bytes() == before
    again = run_stages(replace(job, val=None, overwrite=True))
    assert again.model.read_bytes() != before
    assert again.confusion is None
    assert not (job.out / "confusion.csv").exists()  # it would be of the old model


def test_a_file_in_the_place_of_the_folder_is_refused(job, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TiaftError, match="cannot be a folder for results"):
        run_stages(replace(job, out=tmp_path / "file" / "run"))


def test_without_held_out_tiles_the_report_says_that_nothing_is_known(job):
    result = run_stages(replace(job, val=None))
    assert result.last == {}
    assert "No tiles were held out" in result.summary
    assert "no tiles were held out" in result.report.read_text(encoding="utf-8")


def test_held_out_tiles_may_lack_a_class_but_have_none_of_their_own(job, tmp_path):
    train = read_tileset(make_tiles(tmp_path / "three", 3, tuple(COLOURS)), mpp=0.5)
    result = run_stages(replace(job, train=train, epochs=(1, 1)))
    assert any("no held-out tile is of class LYM" in text for text in result.warnings)
    assert "LYM" in result.summary
    with pytest.raises(TiaftError, match="classes that the training tiles lack: LYM"):
        run_stages(replace(job, val=replace(train, groups=(None,) * 9), overwrite=True))


def test_a_slide_on_both_sides_is_refused(job, tmp_path):
    val = replace(job.val, groups=("s0-1", *job.val.groups[1:]))
    with pytest.raises(TiaftError, match=r"slides or patients stand on both sides .*: s0-1"):
        run_stages(replace(job, val=val))


def test_doubts_about_the_split_are_warned_of(job):
    val = replace(
        job.val,
        files=(job.train.files[0], *job.val.files[1:]),
        groups=(None,) * 6,
        mpp=0.25,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run_stages(replace(job, val=val, epochs=(0, 0)))
    for text in (
        "1 of 6 validation tiles are training tiles, too (same bytes)",
        "not every tile has a group: slides or patients may stand on both sides of the split",
        "held-out tiles have 0.25 µm/px, training tiles 0.5: they look other",
    ):
        assert text in result.warnings
        assert text in result.report.read_text(encoding="utf-8")
        assert text in [str(warning.message) for warning in caught]


def test_held_out_tiles_of_another_size_are_refused(job, tmp_path):
    val = read_tileset(make_tiles(tmp_path / "large", 2, seed=2, size=40), mpp=0.5)
    with pytest.raises(TiaftError, match=r"has tiles of 40 px, .* of 32 px: cut both at one size"):
        run_stages(replace(job, val=val))


def test_a_tile_that_cannot_be_decoded_is_named_before_training(job, tmp_path):
    train = read_tileset(make_tiles(tmp_path / "train"), mpp=0.5)
    file = train.files[4]
    file.write_bytes(file.read_bytes()[:1500])  # the header is whole
    with pytest.raises(TiaftError, match=r"train: 1 of 12 tiles cannot be decoded: STR4.png"):
        run_stages(replace(job, train=train))
    assert not job.out.exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_tile_that_breaks_during_training_is_named_in_one_line(job, plugin, workers, tmp_path):
    train = read_tileset(make_tiles(tmp_path / "train"), mpp=0.5)
    file = train.files[4]

    class Breaking:
        @hookimpl
        def stage_ended(self):
            file.write_bytes(file.read_bytes()[:1500])

    plugin(Breaking())
    with pytest.raises(Stopped, match=f"^{re.escape(str(file))} cannot be decoded") as error:
        run_stages(replace(job, train=train, workers=workers))
    assert "\n" not in str(error.value)
    assert nothing_but_unfinished(job.out)


def test_batchnorm_statistics_that_are_placeholders_are_warned_of(job, tmp_path):
    net = create_network(BACKBONE, init="random", tile_size=SIZE)
    file = str(save_model(net, tmp_path / "folded.safetensors"))
    folded = replace(job, init=file, epochs=(0, 0))
    assert any("pass --freeze-batchnorm" in text for text in run_stages(folded).warnings)
    kept = run_stages(replace(folded, freeze_batchnorm=True, overwrite=True))
    assert not any("pass --freeze-batchnorm" in text for text in kept.warnings)
    random = run_stages(replace(folded, init="random", overwrite=True))
    assert not any("BatchNorm" in text for text in random.warnings)


def test_a_loss_that_explodes_is_named(job, plugin):
    class Saboteur:
        @hookimpl
        def stage_started(self, stage, network):
            if stage == 2:
                with torch.no_grad():
                    network.part_b.classifier.bias[0] = float("nan")

    plugin(Saboteur())
    with pytest.raises(Stopped, match=r"stage 2, epoch 1: the loss is no longer a number: lower"):
        run_stages(job)
    assert nothing_but_unfinished(job.out)


def test_no_epochs_leave_a_stage_out(job):
    result = run_stages(replace(job, epochs=(0, 1)))
    assert {row["stage"] for row in rows_of(result.metrics)} == {"2"}
    before = create_network(BACKBONE, job.train.classes, init="random", hidden=(8,), tile_size=SIZE)
    assert same(load_model(result.stage1).state_dict(), before.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": (1,)}, "epochs 1: recipe ftx2048 has 2 stages: give 2 num"),
        ({"epochs": (1, -1)}, "epochs -1: 0 or more"),
        ({"lrs": (1e-3, float("nan"))}, "learning rates are positive numbers"),
        ({"batch_size": 1}, "batch_size is 1: 2 or more"),
        ({"options": {"alpha": 1}}, "two-stage has no setting alpha: --finetuner-arg takes opt"),
        ({"device": "cuda:99"}, "there is no device cuda:99 here .*: pass --device cpu"),
        ({"device": "warp"}, "there is no device warp here"),
        ({"backbone": "mobilnet"}, "timm has no backbone 'mobilnet'"),
    ],
)
def test_wrong_jobs_are_refused(job, changes, message):
    with pytest.raises(TiaftError, match=message):
        run_stages(replace(job, **changes))


@given(st.integers(2, 60), st.integers(2, 20), st.integers(0, 5))
def test_every_epoch_shows_each_tile_once_and_no_batch_is_of_one(count, batch_size, epoch):
    order = Order(count, batch_size, seed=(3, 1))
    order.epoch = epoch
    batches = list(order)
    assert len(batches) == len(order)
    assert sorted(where for batch in batches for where in batch) == [
        (epoch, index) for index in range(count)
    ]
    assert min(map(len, batches)) >= 2
    assert max(map(len, batches)) <= batch_size + 1
    assert list(order) == batches


def test_epochs_are_shuffled_differently_and_held_out_tiles_are_not():
    shuffled, plain = Order(50, 10, seed=(0, 1)), Order(50, 10)
    first = [index for batch in shuffled for _, index in batch]
    shuffled.epoch = 1
    assert first != [index for batch in shuffled for _, index in batch] != list(range(50))
    assert [index for batch in plain for _, index in batch] == list(range(50))


def test_batches_of_pooled_outputs_hold_the_right_targets():
    pooled = np.arange(10.0, dtype=np.float32)[:, None]
    for inputs, targets, indices in PooledBatches(pooled, list(range(10)), Order(10, 4, (1,))):
        assert torch.equal(inputs[:, 0].long(), targets)
        assert torch.equal(indices, targets)


def test_finetuners_are_found_by_name_and_refuse_what_they_do_not_take(job):
    with pytest.raises(TiaftError, match=r"there is no finetuner other: there is .*two-stage"):
        finetune(job, "other")
    with pytest.raises(
        TiaftError, match="takes tiles with classes, multilabel, not bags with regr"
    ):
        finetune(replace(job, inputs="bags", targets="regression"))
    samples = Samples(job.train.root, ((job.train.files[0],),), ((1.0,),), ("gene",), (None,))
    with pytest.raises(TiaftError, match="two-stage takes tile sets"):
        finetune(replace(job, train=samples))


def test_an_alias_registers_under_its_name_and_stage_1s(job, model_folder, monkeypatch):
    monkeypatch.setattr(Promise, "check", lambda promise, card: None)
    model_folder.mkdir()
    taken = model_folder / "xception-kather100k-stage1.safetensors"
    taken.touch()
    with pytest.raises(TiaftError, match="there is a model xception-kather100k-stage1 already"):
        finetune(job, register="ftx2048")
    taken.unlink()
    finetune(replace(job, epochs=(0, 0)), register="ftx2048")
    assert {path.stem for path in model_folder.glob("*.safetensors")} == {
        "xception-kather100k", "xception-kather100k-stage1"
    }  # fmt: skip


def test_a_promise_that_the_init_file_breaks_is_refused_before_training(job, tmp_path):
    begin = create_network(BACKBONE, init="random", tile_size=SIZE)
    file = save_model(begin, tmp_path / "begin.safetensors")
    wanted = replace(
        job,
        train=replace(job.train, classes=KATHER100K),
        tile_size=224,
        mpp=0.5 * 224 / SIZE,
        hidden=(2048,),
        backbone=None,
        init=str(file),
    )
    with pytest.raises(TiaftError, match=r"this model is \(backbone test_efficientnet, not leg"):
        finetune(wanted, register="xception-kather100k")
    assert not job.out.exists()


def test_a_model_is_registered_and_a_taken_name_is_refused_before_training(job, model_folder):
    result = finetune(replace(job, epochs=(1, 1)), register="mine")
    assert (model_folder / "mine.safetensors").read_bytes() == result.model.read_bytes()
    assert (model_folder / "mine-stage1.safetensors").read_bytes() == result.stage1.read_bytes()
    other = replace(job, out=job.out.parent / "other")
    with pytest.raises(TiaftError, match="there is a model mine already"):
        finetune(other, register="mine")
    with pytest.raises(TiaftError, match="resnet18 is a model of"):
        finetune(other, register="resnet18")
    assert not other.out.exists()


def arguments(tmp_path, *more):
    return [
        str(tmp_path / "tiles"), "--out", str(tmp_path / "run"), "--backbone", BACKBONE, "--init",
        "random", "--epochs", "1,1", "--hidden", "8", "--device", "cpu", *more,
    ]  # fmt: skip


def test_the_command_says_what_came_out_and_where(tmp_path):
    make_tiles(tmp_path / "tiles", 12, groups=4)
    options = ("--mpp", "0.5", "--val-groups", "s0-1,s0-3", "--backbone-arg", "drop_rate=0.2")
    done = CliRunner().invoke(command, arguments(tmp_path, *options))
    assert done.exit_code == 0, done.output
    assert re.search(r"Held-out accuracy [01]\.\d{3}, balanced .* on 12 tiles", done.output)
    assert re.search(r"^TUM +\d+ +\d+ +[01]\.\d{3}$", done.output, re.MULTILINE)
    card = read_card(tmp_path / "run" / "model.safetensors")
    assert (card.mpp, card.backbone_args, card.hidden) == (0.5, {"drop_rate": 0.2}, (8,))
    assert card.data["held_out"]["groups"] == 2
    for name in ("model.safetensors", "stage1.safetensors", "metrics.csv", "report.html"):
        assert str(tmp_path / "run" / name) in done.output


def test_a_plugins_finetuner_gets_its_settings(tmp_path, plugin):
    class Other:
        inputs, targets, options = {"tiles"}, {"classes"}, None

        def __call__(self, job):
            self.options = job.options
            return FinetuneResult(job.out, job.out, job.out)

    other = Other()

    class Registering:
        @hookimpl
        def register_finetuners(self, register):
            register("other", other)

    plugin(Registering())
    make_tiles(tmp_path / "tiles")
    chosen = ("--finetuner", "other", "--finetuner-arg", "alpha=0.5", "--finetuner-arg", "kind=ad")
    ended = CliRunner().invoke(command, arguments(tmp_path, *chosen))
    assert ended.exit_code == 0, ended.output
    assert other.options == {"alpha": 0.5, "kind": "ad"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epochs", "2,1.5"), "whole numbers, one for each stage"),
        (("--epochs", "-1,2"), "0 or more"),
        (("--lr", "0,1e-4"), "or more"),
        (("--lr", "nan,1e-4"), "or more"),
        (("--mean", "0.5,0.5"), "three numbers"),
        (("--std", "0,1,1"), "or more"),
        (("--hidden", "0"), "1 or more"),
        (("--batch-size", "1"), "x>=2"),
        (("--mpp", "0"), "x>0"),
        (("--backbone-arg", "pad_type"), "KEY=VALUE"),
        (("--finetuner-arg", "alpha"), "KEY=VALUE"),
    ],
)
def test_wrong_options_are_usage_errors(tmp_path, options, message):
    done = CliRunner().invoke(command, arguments(tmp_path, *options))
    assert done.exit_code == 2
    assert message in done.output


def test_two_ways_to_hold_out_exclude_each_other(tmp_path):
    make_tiles(tmp_path / "tiles")
    with pytest.raises(TiaftError, match="either another tile set or groups of this one"):
        finetune_tiles(
            tmp_path / "tiles", out=tmp_path, val=tmp_path / "tiles", val_groups=("s0-0",)
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_learns_the_same_colours(job):
    result = run_stages(replace(job, device="cuda", hidden=(64,), epochs=(12, 0), lrs=(1e-1, 1e-3)))
    assert result.last["accuracy"] == 1


def test_real_tiles_of_held_out_slides_are_told_apart(data, tmp_path):
    """A few of the slides, one epoch of stage 1: far above always saying one class."""
    tiles = read_tileset(data / "kather2016")
    slides = {"CRC-Prim-HE-03": 4, "CRC-Prim-HE-05": 4, "CRC-Prim-HE-06": 4, "CRC-Prim-HE-09": 3}
    taken, seen = [], {}
    for index, key in enumerate(zip(tiles.labels, tiles.groups, strict=True)):
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= slides.get(key[1], 0):
            taken.append(index)
    some = tiles.subset(taken)
    held_out = [i for i, group in enumerate(some.groups) if group == "CRC-Prim-HE-09"]
    train = some.subset(i for i in range(len(some)) if i not in held_out)
    result = run_stages(
        FinetuneJob(
            out=tmp_path / "run",
            train=train,
            val=some.subset(held_out),
            backbone="mobilenetv2_100",
            backbone_args={"pad_type": "same"},
            init=str(data / "weights" / "mobilenetv2_100.imagenet.safetensors"),
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            tile_size=96,
            epochs=(20, 0),
            lrs=(1e-3, 5e-5),
            batch_size=16,
            freeze_batchnorm=True,
            device="cpu",
        )
    )
    assert result.last["accuracy"] > 0.5
    assert result.last["majority_baseline"] < 0.3
    assert read_card(result.model).mpp == pytest.approx(0.495 * 150 / 96)


def test_nothing_heavy_is_imported_to_list_finetuners():
    import subprocess
    import sys

    code = (
        "import sys; import tiaft_plugin.finetune.builtin, tiaft_plugin.cli.finetune; "
        "print([m for m in ('torch', 'lightning', 'matplotlib', 'PIL') if m in sys.modules])"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert found.stdout.strip() == "[]", found.stderr

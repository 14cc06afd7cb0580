"""Top-k fine-tuning: which tiles, what learns, what comes out, and that kills change nothing."""

import csv
import json
import multiprocessing
import os
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import write_slide
from PIL import Image

from tiaft_extensions.histotransfer.attention import load_head
from tiaft_extensions.histotransfer.cli.tune import tune
from tiaft_extensions.histotransfer.kept import read_run
from tiaft_extensions.histotransfer.mil import Mil
from tiaft_extensions.histotransfer.tile_stores import write_tile_stores
from tiaft_extensions.histotransfer.topk import card, held_out, outputs, tiles, tuned
from tiaft_extensions.histotransfer.topk.finetuner import TopK
from tiaft_extensions.histotransfer.topk.folds import tune_folds
from tiaft_extensions.histotransfer.topk.prepare import prepare
from tiaft_plugin import TiaftError, hookspecs, plugins
from tiaft_plugin.engine.jobs import SlideJob
from tiaft_plugin.engine.run import make_engine, run_slides
from tiaft_plugin.engine.store import read_store
from tiaft_plugin.finetune.epochs import Progress
from tiaft_plugin.finetune.interface import FinetuneJob, Samples
from tiaft_plugin.network import create_network, load_model, save_model
from tiaft_plugin.probes.reading import read_inputs
from tiaft_plugin.probes.run import run_probe
from tiaft_plugin.probes.statistics import Difference, reuse
from tiaft_plugin.tiles.stain import make_stain
from tiaft_plugin.tiles.tileset import read_tileset

TINY = "test_efficientnet"  # timm's smallest with BatchNorm
SIZE = 32  # px of a tile; a slide has 3×3
QUICK = {"epochs": 5, "lr": 1e-2, "hidden": (16, 8), "attention": 4}
FEW = {"folds": 3, "repeats": 1, "permutations": 0, "draws": 100, "verbose": False}
OPTIONS = {"k": 3, "epochs": 2, "lr": 1e-3, "chunk": 2}


def planted_tiles(folder: Path, count: int = 12, seed: int = 0) -> list[list[str]]:
    """Write bags of 9 tiles, two of a patient; half of them have two tiles with stripes."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        name, positive = f"s{number:02d}", number // 2 % 2
        (folder / name).mkdir(parents=True)
        pixels = rng.integers(120, 220, (9, SIZE, SIZE, 3)).astype(np.uint8)
        if positive:
            pixels[rng.choice(9, 2, replace=False), ::4] = (60, 10, 90)
        for tile, its in enumerate(pixels):
            Image.fromarray(its).save(folder / name / f"{tile}.png")
        rows.append([name, f"P{number // 2}", "odd" if positive else "even"])
    return rows


def write_table(path: Path, rows, head=("slide", "patient", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A folder with bags of tiles, labels, a model, stores, and a run of attention pooling."""
    root = tmp_path_factory.mktemp("study")
    rows = planted_tiles(root / "tiles")
    labels = write_table(root / "labels.csv", rows)
    net = create_network(TINY, init="random", tile_size=SIZE, mpp=1.0)
    model = save_model(net, root / "base.safetensors")
    found = read_tileset(root / "tiles", mpp=1.0)
    write_tile_stores(found, str(model), root / "stores", device="cpu")
    patch = pytest.MonkeyPatch()
    try:
        probe = register_quick(patch)
        tables, targets = read_inputs(probe, [f"base={root / 'stores'}"], labels)
        run_probe("quick", tables, targets, root / "run", **FEW)
    finally:
        patch.undo()
    return root


@pytest.fixture(scope="module")
def slides(study, tmp_path_factory) -> Path:
    """Slides of two bags, 3×3 tiles each, and their stores beside them."""
    root = tmp_path_factory.mktemp("slides")
    for name in ("s00", "s02"):
        pixels = pixels_of(study / "tiles" / name).reshape(3, 3, SIZE, SIZE, 3)
        write_slide(root / f"{name}.ome.tiff", np.vstack([np.hstack(row) for row in pixels]))
    model = str(study / "base.safetensors")
    engine = make_engine("features", model, auto_mask=False, device="cpu")
    engine.verbose = False
    for result in run_slides(engine, [SlideJob(path) for path in root.glob("*.tiff")], root):
        assert result.tiles == 9, result.reason
    return root


def pixels_of(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.iterdir())])


def register_quick(patch) -> Mil:
    manager = plugins.Manager()
    manager.add_hookspecs(hookspecs)
    patch.setattr(plugins, "plugin_manager", lambda: manager)
    patch.setattr("tiaft_plugin.probes.run.plugin_manager", lambda: manager)
    patch.setattr("tiaft_plugin.probes.baselines.LEAK_DRAWS", 1)
    manager.sources["mine"] = "built in"

    class Mine:
        @hookspecs.hookimpl
        def register_probes(self, register):
            register("quick", Mil(**QUICK))

    manager.register(Mine(), "mine")
    return Mil(**QUICK)


def tuned_folds(study: Path, out: Path, **changes):
    options = {**OPTIONS, "slides": [study / "tiles"], **changes.pop("options", {})}
    given = {"model": str(study / "base.safetensors"), "device": "cpu", **changes}
    return tune_folds(study / "stores", study / "run", out, options=options, **given)


@pytest.fixture(scope="module")
def whole(study, tmp_path_factory):
    """All folds, undisturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, tuned_folds(study, out)


# Which tiles


def test_the_highest_raw_logits_are_chosen_and_ties_go_by_row():
    raw = np.array([0.0, 3.0, -1.0, 3.0, 2.0, 3.0], np.float32)
    assert tuned.highest(raw, 2).tolist() == [1, 3]
    assert tuned.highest(raw, 4).tolist() == [1, 3, 4, 5]
    assert tuned.highest(raw, 64).tolist() == list(range(6))


def test_a_bags_tiles_are_those_of_its_slides(study, slides):
    stores = [slides / f"{name}.ome.zarr" for name in ("s00", "s02")]
    bag = tiles.bag_of_stores(stores, [slides], SIZE)
    cut = np.concatenate([pixels_of(study / "tiles" / name) for name in ("s00", "s02")])
    rows = np.array([1, 8, 9, 17])
    assert np.array_equal(np.concatenate(list(bag.read(rows))), cut[rows])
    assert np.array_equal(np.concatenate(list(bag.read())), cut)
    features = np.concatenate(list(bag.features(None)))
    assert np.array_equal(features[:9], read_store(stores[0]).values[:])
    (slides / "s02.ome.tiff").write_bytes(b"another")
    with pytest.raises(TiaftError, match=r"is of another s02\.ome\.tiff than"):
        bag.parts[1].check()


def test_tiles_are_read_once(slides, tmp_path, monkeypatch):
    bag = tiles.bag_of_stores([slides / "s00.ome.zarr"], [slides], SIZE)
    path = tiles.cached(bag, np.array([2, 5]), tmp_path)
    found = np.load(path)
    assert found.dtype == np.uint8 and found.shape == (2, SIZE, SIZE, 3)
    monkeypatch.setattr(tiles, "read_store_tiles", None)
    assert tiles.cached(bag, np.array([2, 5]), tmp_path) == path
    with pytest.raises(TypeError):
        tiles.cached(bag, np.array([2, 6]), tmp_path)


def test_tiles_are_kept_with_what_was_done_to_their_stains(study):
    files = tuple(sorted((study / "tiles/s00").iterdir()))
    plain, stained = (tiles.TileImages(files, SIZE, make_stain(s)) for s in (None, "macenko"))
    assert plain.identity != stained.identity
    assert plain.identity == tiles.TileImages(files, SIZE).identity


# What learns


def test_batchnorm_stays_in_eval_mode_and_its_affine_part_learns():
    net = create_network(TINY, "ab", init="random", tile_size=SIZE, mpp=1.0, hidden=(7,))
    encoder = tuned.Encoder(net).train()
    assert encoder.training and not any(module.training for module in net.modules())
    learns = {name for name, p in net.named_parameters() if p.requires_grad}
    assert {"part_a.bn1.weight", "part_b.hidden.fc1.weight"} <= learns
    assert not any("classifier" in name for name in learns)
    assert encoder(torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8)).shape == (2, 7)


def test_looking_block_by_block_is_looking_at_all(study):
    head = load_head(study / "run/attention/base/fold-0.safetensors").net
    features = np.random.default_rng(0).normal(size=(9, head.shape["width"])).astype(np.float32)
    seen = tuned.look(head, np.array_split(features, 3), k=4)
    with torch.no_grad():
        wanted, raw = head(torch.from_numpy(features))
        of_k, _ = head(torch.from_numpy(features[tuned.highest(raw.numpy(), 4)]))
    assert np.allclose(seen.by_all, wanted, atol=1e-5)
    assert np.allclose(seen.by_k, of_k, atol=1e-5) and not np.allclose(of_k, wanted, atol=1e-3)
    assert np.allclose(seen.raw, raw, atol=1e-5)


# A run


def rows_of(path: Path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_fold_ends_in_an_encoder_that_learnt(whole, study):
    out, _ = whole
    before = load_model(study / "base.safetensors").state_dict()
    for fold in range(3):
        net = load_model(out / f"fold-{fold}" / "model.safetensors")
        for name, value in net.state_dict().items():
            if "running" in name or "num_batches" in name:
                assert torch.equal(value, before[name])
        changed = {n for n, v in net.state_dict().items() if not torch.equal(v, before[n])}
        assert {"part_a.conv_stem.weight", "part_a.bn1.weight"} <= changed
        training = net.card.training
        assert (training["finetuner"], training["k"], training["init"]) == ("top-k", 3, "file")
        assert net.card.data["bags"] == {"train": 8, "test": 4} or "val" in net.card.data["bags"]
        epochs = [row["epoch"] for row in rows_of(out / f"fold-{fold}" / "metrics.csv")]
        assert epochs[-1] == "2" and not (out / f"fold-{fold}" / ".unfinished").exists()
    assert not list(out.glob(".*"))


def test_held_out_bags_are_judged_by_what_never_saw_them(whole, study):
    """Both columns are made again here: by the run of the probe, and from the files alone."""
    out, _ = whole
    attention = read_run(study / "run")
    with np.load(study / "run/predictions.npz") as file:
        probed = file["average/base/0/0"]
    table = rows_of(out / "held_out.csv")
    assert sorted(row["key"] for row in table) == attention.keys.tolist()
    for row in table:
        place = attention.keys.tolist().index(row["key"])
        fold = int(row["fold"])
        assert fold == attention.folds[place] and row["group"] == attention.groups[place]
        frozen, found = (
            [float(row[f"{name}: {label}"]) for label in attention.classes]
            for name in ("frozen", "top-k")
        )
        assert np.allclose(frozen, probed[place], atol=1e-5)
        net = load_model(out / f"fold-{fold}" / "model.safetensors")
        head = load_head(out / f"fold-{fold}" / "head.safetensors")
        bag = tiles.bag_of_stores(
            [study / "stores" / f"{row['key']}.zarr"], [study / "tiles"], SIZE
        )
        with torch.no_grad():
            features = net.features(np.concatenate(list(bag.read())))
            wanted = head.net(features)[0].double().log_softmax(0).numpy()
        assert np.allclose(found, wanted, atol=1e-4) and not np.allclose(found, frozen, atol=1e-4)


def test_held_out_bags_change_nothing(whole, study, tmp_path):
    """The same job without them, and with other tiles in them, is the same model."""
    out, _ = whole
    attention = read_run(study / "run")
    learn = attention.folds != 0
    chose = attention.head(0).about["bags that chose the epoch"]
    assert set(chose) <= set(attention.keys[learn])
    val = np.isin(attention.keys, chose)
    sets = {"train": learn & ~val, "val": val}
    job = job_of(study, tmp_path, {n: attention.keys[rows] for n, rows in sets.items()})
    model = TopK()(job).model
    wanted = load_model(out / "fold-0/model.safetensors").state_dict()
    for name, value in load_model(model).state_dict().items():
        assert torch.equal(value, wanted[name])


def samples(study: Path, keys) -> Samples:
    attention = read_run(study / "run")
    places = [attention.keys.tolist().index(key) for key in keys]
    return Samples(
        root=study,
        files=tuple((study / "stores" / f"{key}.zarr",) for key in keys),
        targets=tuple(
            tuple(float(attention.labels[p] == name) for name in attention.classes) for p in places
        ),
        target_names=attention.classes,
        groups=tuple(attention.groups[places].tolist()),
    )


def job_of(study: Path, out: Path, keys: dict, **options) -> FinetuneJob:
    sets = {name: samples(study, its) for name, its in keys.items() if len(its)}
    head = study / "run/attention/base/fold-0.safetensors"
    given = {**OPTIONS, "attention": head, "slides": study / "tiles", **options}
    return FinetuneJob(
        out=out / "job",
        **sets,
        inputs="slides",
        init=str(study / "base.safetensors"),
        device="cpu",
        options=given,
    )


def test_a_run_without_its_held_out_bags_is_not_finished(whole, tmp_path):
    folder = shutil.copytree(whole[0] / "fold-0", tmp_path / "fold-0")
    assert outputs.read_result(folder) is not None
    (folder / outputs.HELD_OUT).unlink()
    assert outputs.read_result(folder) is None


def test_the_report_says_in_words_what_came_out(whole):
    out, study = whole
    text = (out / "report.html").read_text(encoding="utf-8")
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    for its in summary["compared"]["differences"].values():
        assert "by a margin of 2 points of AUROC" in its["verdict"] and its["verdict"][1:] in text
    assert study.compared.bags == 12 and study.compared.groups == 6
    assert set(summary["folds"]) == {"0", "1", "2"}
    assert "http" not in text and "Fold by fold" in text


def test_tiles_of_files_teach_the_same_as_tiles_of_a_slide(whole, study, tmp_path):
    attention = read_run(study / "run")
    learn = attention.keys[attention.folds != 0]
    jobs = [job_of(study, tmp_path, {"train": learn}, epochs=1)]
    files = tuple(tuple(sorted((study / "tiles" / key).iterdir())) for key in learn.tolist())
    train = replace(jobs[0].train, files=files)
    jobs.append(replace(jobs[0], out=tmp_path / "bags", inputs="bags", train=train))
    nets = [load_model(TopK()(job).model) for job in jobs]
    same, other = (net.features(np.zeros((1, SIZE, SIZE, 3), np.uint8)) for net in nets)
    assert torch.allclose(same, other, atol=1e-5)


# Folders of tiles


def test_folders_of_tiles_are_bags_like_slides(study, slides, tmp_path):
    from tiaft_extensions.histotransfer.cli.bags import bags as command

    folder, out = tmp_path / "tiles", tmp_path / "stores"
    for name in ("s00", "s01"):
        shutil.copytree(study / "tiles" / name, folder / name)
    patients = write_table(tmp_path / "p.csv", [["s00", "P7"], ["s01", "P8"]], ("slide", "patient"))
    model = study / "base.safetensors"
    arguments = [folder, "--model", model, "--out", out, "--mpp", 1, "--patients", patients]
    done = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    assert done.stdout.endswith(f"2 bags of 18 tiles -> {out}\n")
    found = read_store(out / "s00.zarr", verify=True)
    assert found.facts["patient"] == "P7" and found.facts["grid"]["resolution"] == 1.0
    of_slide = read_store(slides / "s00.ome.zarr").values[:]
    assert np.allclose(found.values[:], of_slide, atol=1e-4)
    bag = tiles.bag_of_stores([out / "s00.zarr"], [folder], SIZE)
    rows = np.array([0, 4, 7])
    wanted = pixels_of(folder / "s00")[rows]
    assert np.array_equal(np.concatenate(list(bag.read(rows))), wanted)
    with pytest.raises(TiaftError, match=r"s00\.zarr exists already"):
        CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    for place in (folder, folder / "s00"):
        with pytest.raises(TiaftError, match="lies among the tiles of .*: choose another --out"):
            inside = [*map(str, arguments), "--out", str(place)]
            CliRunner().invoke(command, inside, catch_exceptions=False)
    (folder / "s00/9.png").write_bytes((folder / "s00/8.png").read_bytes())
    with pytest.raises(TiaftError, match="is of another s00 than .*: the fingerprints differ"):
        bag.parts[0].check()
    (folder / "s00/notes.txt").touch()
    with pytest.raises(TiaftError, match=r"notes\.txt \(not an image|holds other files"):
        CliRunner().invoke(command, [*map(str, arguments), "--overwrite"], catch_exceptions=False)


def test_the_groups_of_a_manifest_are_the_patients_of_bags(study, tmp_path):
    model, found = str(study / "base.safetensors"), read_tileset(study / "tiles", mpp=1.0)
    tiles = found.subset(row for row, name in enumerate(found.labels) if name in ("s00", "s01"))
    of_each = replace(tiles, groups=("P1",) * 9 + ("P2",) * 9)
    stores = write_tile_stores(of_each, model, tmp_path, device="cpu")
    assert [read_store(path).facts["patient"] for path in stores] == ["P1", "P2"]
    mixed = replace(tiles, groups=("P1", "P2") * 9)
    with pytest.raises(TiaftError, match=r"s00: its tiles are of several groups \(P1, P2\), and"):
        write_tile_stores(mixed, model, tmp_path / "o", device="cpu")


# What is said of it


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.05, "better than the frozen encoder, so non-inferior by a margin of 2 points"),
        (-0.019, 0.05, "non-inferior by a margin of 2 points of AUROC: the 95 % interval of the "
         "difference is −0.019 to +0.050"),
        (-0.021, 0.05, "not shown to be non-inferior by a margin of 2 points"),
        (-0.05, -0.021, "inferior by a margin of 2 points"),
        (np.nan, np.nan, "nothing can be said by a margin of 2 points"),
    ],
)  # fmt: skip
def test_verdicts(low, high, words):
    assert held_out.verdict(Difference(0.0, low, high, 0.5)).startswith(words)


def compared_to(tuned_scores, frozen_scores, folds=1):
    codes = np.arange(40) % 2
    scores = {
        name: np.stack([-s, s], axis=1)
        for name, s in (("frozen", frozen_scores), ("top-k", tuned_scores))
    }
    groups = np.array([f"p{n // 2}" for n in range(40)])
    of = np.arange(40) // 2 % folds
    found = held_out.HeldOut(("a", "b"), of, groups, groups, codes, scores)
    return held_out.compare(found)


def test_the_comparison_is_by_patient_and_paired():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=40)
    frozen = np.arange(40) % 2 * 0.5 + noise
    same = compared_to(frozen, frozen)
    assert (same.difference.value, same.difference.low, same.difference.high) == (0, 0, 0)
    assert same.groups == 20 and same.verdict.startswith("non-inferior")
    better = compared_to(np.arange(40) % 2 * 3.0 + noise, frozen)
    assert better.difference.low > 0 and better.verdict.startswith("better")
    assert compared_to(frozen, frozen + 3 * (np.arange(40) % 2)).verdict.startswith("inferior")
    pooled = compared_to(np.arange(40) % 2 * 3.0 + noise, frozen, folds=5)
    width, wider = (d.high - d.low for d in (better.difference, pooled.difference))
    assert wider == pytest.approx(width * reuse(5) ** 0.5, rel=1e-6) and reuse(1) == 1


# Interruptions


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"  # a killed process's, which nobody holds
    }


def work(study: Path, out: Path) -> None:
    """One run, with many instants to be killed at."""
    torch.set_num_threads(1)
    tuned_folds(study, out, folds=(0, 1), checkpoint_steps=1)


def kill_and_go_on(study: Path, folder: Path, kills: int) -> int:
    """Kill runs so many times; return how many left something to go on with."""
    context = multiprocessing.get_context("forkserver")  # which imports everything once
    context.set_forkserver_preload(["tiaft_extensions.histotransfer.topk.folds"])

    def started(out: str) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=work, args=(study, folder / out))
        process.start()
        return process

    begun = time.monotonic()
    process = started("whole")
    process.join()
    took = time.monotonic() - begun  # the server's own start, too: kills come early rather
    assert process.exitcode == 0
    rng, killed, going, round_ = random.Random(4), 0, 0, 0
    while killed < kills:
        process = started(f"killed-{round_}")
        process.join(timeout=took * rng.uniform(0.1, 0.7))
        if process.exitcode is None:
            process.kill()
            process.join()
            killed += 1
            left = (folder / f"killed-{round_}").rglob("*")
            going += any(path.suffix in (".pt", ".npy", ".npz") for path in left)
        else:
            assert process.exitcode == 0
        if (folder / f"killed-{round_}/summary.json").exists():  # all was done before
            round_ += 1
    wanted = bytes_in(folder / "whole")
    for number in range(round_ + 1):
        if not (folder / f"killed-{number}/summary.json").exists():
            process = started(f"killed-{number}")
            process.join()
            assert process.exitcode == 0
        assert bytes_in(folder / f"killed-{number}") == wanted
    return going


def test_killed_at_random_moments_it_ends_with_the_same_bytes(study, tmp_path):
    """TIAFT_KILLS=10 kills more often."""
    assert kill_and_go_on(study, tmp_path, int(os.environ.get("TIAFT_KILLS", "3")))


def test_an_unfinished_run_goes_on_with_the_same_settings_only(study, tmp_path, monkeypatch):
    from tiaft_plugin.finetune import checkpoint

    save, left = checkpoint.save, [2]

    def save_and_stop(path, content):
        save(path, content)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        tuned_folds(study, tmp_path / "out", folds=[0])
    with pytest.raises(TiaftError, match="unfinished run with other settings: lr 0.1, was 0.001"):
        tuned_folds(study, tmp_path / "out", folds=[0], options={"lr": 0.1})
    (tmp_path / "out/.report-0123abcd.html").touch()  # as a kill leaves them
    (tmp_path / "out/fold-0/.model-0123abcd.safetensors").touch()
    tuned_folds(study, tmp_path / "out", folds=[0])
    assert not list((tmp_path / "out").rglob(".*"))
    with pytest.raises(TiaftError, match=r"summary\.json exists already"):
        tuned_folds(study, tmp_path / "out", folds=[0])
    with pytest.raises(TiaftError):
        tuned_folds(study, tmp_path / "out", folds=[0], overwrite=True, options={"k": 0})
    assert (tmp_path / "out/summary.json").exists() and (tmp_path / "out/report.html").exists()
    tuned_folds(study, tmp_path / "out", folds=[0], overwrite=True, options={"epochs": 1})
    assert json.loads((tmp_path / "out/summary.json").read_text())["settings"]["epochs"] == 1


# The command


def test_the_command_ends_in_a_named_model_that_tiatoolbox_runs(study, tmp_path):
    arguments = [
        study / "stores", "--attention", study / "run", "--slides", study / "tiles", "--out",
        tmp_path / "out", "--fold", 1, "-k", 2, "--epochs", 1, "--lr", 1e-3, "--model",
        study / "base.safetensors", "--register", "tuned", "--device", "cpu",
    ]  # fmt: skip
    done = CliRunner().invoke(tune, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "4 held-out bags of 2 patients" in done.output
    assert "by a margin of 2 points of AUROC" in done.output
    from tiatoolbox.models.architecture import get_pretrained_model

    import tiaft_plugin  # noqa: F401

    model, config = get_pretrained_model("tuned")
    assert list(config.patch_input_shape) == [SIZE, SIZE]
    batch = torch.randint(0, 255, (2, SIZE, SIZE, 3), dtype=torch.uint8)
    found = model.infer_batch(model, batch, device="cpu")[0]
    wanted = load_model(tmp_path / "out/fold-1/model.safetensors").features(batch)
    assert np.allclose(found, wanted.detach().numpy(), atol=1e-5)


def test_a_stranger_is_told_what_is_wrong(study, tmp_path):
    def refused(match: str, **changes) -> None:
        with pytest.raises(TiaftError, match=match):
            tuned_folds(study, tmp_path / "out", **changes)
        assert not (tmp_path / "out").exists()

    refused(r"s00\.zarr: its slide s00 is not in .*stores", options={
        "slides": [study / "stores"]})  # fmt: skip
    refused("has folds 0 to 2, not 3", folds=[3])
    refused("gone has no model file here, and top-k tunes one: pass --model FILE", model="gone")
    other = save_model(
        create_network(TINY, init="random", tile_size=SIZE, mpp=1.0, seed=5),
        tmp_path / "other.safetensors",
    )
    refused("is not the base.safetensors that made the features of", model=str(other))
    refused("xception-kather100k", register="ftx2048")
    refused("resnet18 is a model of", register="resnet18")
    refused("setting k is 0: 1 or more", options={"k": 0})
    refused("no setting is called speed", options={"speed": 1})
    refused("holds no attention of mine, but of base", name="mine")
    few = tmp_path / "few"
    shutil.copytree(study / "stores/s00.zarr", few / "s00.zarr")
    with pytest.raises(TiaftError, match="11 of 12 stores of .* are not here: s01.zarr"):
        tune_folds(few, study / "run", tmp_path / "out", options=OPTIONS)
    with pytest.raises(TiaftError, match="holds no attention: `tiaft probe mil … --out` writes it"):
        tune_folds(few, few, tmp_path / "out", options=OPTIONS)


def test_bags_that_do_not_fit_are_refused_before_training(study, tmp_path):
    keys = [f"s{n:02d}" for n in range(12)]
    job = job_of(study, tmp_path, {"train": keys[:8], "test": keys[8:]})
    other = create_network(TINY, init="random", tile_size=SIZE, mpp=1.0, seed=5)
    wide = create_network(TINY, "ab", init="random", tile_size=SIZE, mpp=1.0, hidden=(7,))
    train = job.train
    refused = {
        "1 patients stand in train and test: P3": replace(job, test=samples(study, keys[6:])),
        "1 patients stand in train and test: bag 1": replace(
            job,
            train=replace(train, groups=("bag 1", *train.groups[1:])),
            test=replace(job.test, groups=("bag 1",) * len(job.test.groups)),
        ),
        "4 bags of 1 classes to learn from": replace(
            job, train=samples(study, [*keys[:2], *keys[4:6]])
        ),
        "classes are x, y, the head's even, odd": replace(
            job, train=replace(train, target_names=("x", "y"))
        ),
        "each bag has 1 for its class": replace(
            job, train=replace(train, targets=((1.0, 1.0), *train.targets[1:]))
        ),
        "bags without a tile: number 0": replace(
            job, train=replace(train, files=((), *train.files[1:]))
        ),
        "has features of model base.safetensors, not of": replace(
            job, init=str(save_model(other, tmp_path / "other.safetensors"))
        ),
        "features, .* gives 7: give the model that the attention run's": replace(
            job, init=str(save_model(wide, tmp_path / "wide.safetensors"))
        ),
        "is no model file of tiaft's": replace(job, init="imagenet"),
        "leave out --devices": replace(job, devices=2),
        "give option attention": replace(job, options={"k": 3}),
        "is no attention head": replace(
            job, options={**job.options, "attention": tmp_path / "other.safetensors"}
        ),
    }
    for message, wrong in refused.items():
        with pytest.raises(TiaftError, match=message):
            TopK()(wrong)
    assert not job.out.exists()


def test_doubts_are_told(study, tmp_path):
    attention = read_run(study / "run")
    keys = attention.keys.tolist()
    ready = prepare(job_of(study, tmp_path, {"train": keys[:8], "val": keys[8:]}))
    rows = [{"epoch": n, "split": "val", "accuracy": 0.5, "loss": 1.0 - n} for n in range(2)]
    assert card.doubts_of(ready, Progress(rows=rows)) == []
    rows[1]["loss"] = 1.1
    told = card.doubts_of(ready, Progress(rows=rows))
    assert len(told) == 1 and "better than the frozen encoder, which is kept: more" in told[0]
    ready.net.card = replace(ready.net.card, classes=("a", "b"))
    del ready.sets["val"]
    told = card.doubts_of(ready, Progress())
    assert "not tuned with its features" in told[0] and "the last epoch is kept" in told[1]


def test_the_plug_in_registers_it():
    from tiaft_extensions.histotransfer import plugin

    found = {}
    plugin.register_finetuners(lambda name, thing: found.update({name: thing}))
    assert found["top-k"].inputs == {"slides", "bags"} and found["top-k"].targets == {"classes"}

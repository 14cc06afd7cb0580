"""Slides to stores: the same as TIAToolbox's engines, whatever happens on the way."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import zarr
from conftest import tiaft, write_slide
from tiatoolbox.models import DeepFeatureExtractor, PatchPredictor

from tiaft_plugin import FeatureExtractor, TiaftError, hookimpl
from tiaft_plugin.engine import slides
from tiaft_plugin.engine.jobs import SlideJob, match_masks, read_patients
from tiaft_plugin.engine.run import make_engine, run_slides
from tiaft_plugin.engine.sinks import named_sinks
from tiaft_plugin.engine.store import read_store
from tiaft_plugin.errors import SlidesFailed
from tiaft_plugin.plugins import plugin_manager
from tiaft_plugin.zoo import folder

SQUARE = {  # the slide's left quarter, as QuPath exports it
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[0, 0], [128, 0], [128, 512], [0, 512], [0, 0]]],
            },
            "properties": {"objectType": "annotation", "classification": {"name": "Tumor"}},
        }
    ],
}


def extract(model, jobs, out, kind="features", overwrite=False, sinks=(), **options):
    engine = make_engine(kind, str(model), **options)
    engine.verbose = False
    return list(run_slides(engine, jobs, out, sinks=named_sinks(sinks), overwrite=overwrite))


# The same as TIAToolbox


@pytest.mark.parametrize("stride", [32, 20])
def test_features_and_coordinates_are_those_of_the_stock_engine(
    tiny_model, slide, tmp_path, stride
):
    folder.add_model("tiny", tiny_model)
    run = {"patch_mode": False, "stride_shape": (stride, stride), "batch_size": 7}
    stock = DeepFeatureExtractor("tiny-features", verbose=False)
    stock = zarr.open(stock.run([slide], save_dir=tmp_path / "stock", **run)[slide], mode="r")
    ours = FeatureExtractor("tiny-features", verbose=False)
    ours = read_store(ours.run([slide], save_dir=tmp_path / "ours", **run)[slide], verify=True)
    np.testing.assert_array_equal(ours.coordinates[:], stock["coordinates"][:])
    np.testing.assert_allclose(ours.values[:], stock["features"][:], rtol=1e-4, atol=1e-5)
    assert len(ours) > 0 and (np.asarray(ours.tissue[:]) > 0).all()


def test_a_stock_model_that_loses_rows_in_the_stock_engine(slide, tmp_path):
    """TIAToolbox's own CNNModel returns arrays; its DeepFeatureExtractor keeps one row a batch."""
    from tiatoolbox.models.architecture.vanilla import CNNModel
    from tiatoolbox.models.engine.io_config import IOPatchPredictorConfig

    config = IOPatchPredictorConfig(
        patch_input_shape=[64, 64], input_resolutions=[{"units": "mpp", "resolution": 1.0}]
    )
    model = CNNModel("mobilenet_v3_small", num_classes=4)
    model.preproc_func = _to_float
    engine = FeatureExtractor(model, batch_size=5, verbose=False)
    out = engine.run([slide], patch_mode=False, save_dir=tmp_path / "o", ioconfig=config)
    found = read_store(out[slide])
    assert found.values.shape == (len(found.coordinates[:]), 4) and len(found) > 5


def _to_float(image):
    return image.astype(np.float32) / 255


def test_patch_mode_is_tiatoolbox_s(tiny_model):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    engine = FeatureExtractor(tiny_model, batch_size=2, verbose=False)
    assert engine.run(images, patch_mode=True)["features"].shape == (5, 16)


def test_predictions_are_those_of_the_stock_engine(tiny_model, slide, tmp_path):
    folder.add_model("tiny", tiny_model)
    stock = PatchPredictor("tiny", verbose=False, batch_size=8)
    stock = stock.run(
        [slide], patch_mode=False, save_dir=tmp_path / "stock", return_probabilities=True
    )
    [ours] = extract("tiny", [SlideJob(slide)], tmp_path / "ours", kind="predictions")
    found = read_store(ours.store)
    assert found.classes == ("a", "b", "c") and found.kind == "predictions"
    expected = zarr.open(stock[slide], mode="r")["probabilities"][:]
    np.testing.assert_allclose(found.values[:], expected, rtol=1e-4, atol=1e-6)


def test_the_facts_of_a_store(tiny_model, slide, tmp_path):
    jobs = [SlideJob(slide, patient="P1")]
    [result] = extract(tiny_model, jobs, tmp_path, resolution=2.0, min_tissue=0.5)
    found = read_store(result.store)
    assert found.facts["scale_to_baseline"] == [2.0, 2.0] and found.facts["patient"] == "P1"
    assert found.facts["slide"]["size"] == [512, 512] and found.facts["slide"]["mpp"] == [1.0, 1.0]
    assert (np.asarray(found.tissue[:]) >= 0.5).all()
    bounds = np.concatenate([bounds for bounds, _ in found.blocks()])
    assert (bounds[:, 2] - bounds[:, 0] == 64).all() and bounds.max() <= 512
    assert str(tmp_path) not in json.dumps(found.facts)


# What goes wrong with slides


def test_bad_slides_do_not_stop_the_good_one(tiny_model, slide, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "empty.svs").touch()
    (bad / "text.svs").write_text("not a slide")
    (bad / "folder.svs").mkdir()
    (bad / "unknown.xyz").write_text("?")
    (bad / "cut.ome.tiff").write_bytes(slide.read_bytes()[:2000])
    pixels = np.full((300, 300, 3), 240, np.uint8)
    write_slide(bad / "glass.ome.tiff", pixels)
    noise = np.random.default_rng(0).normal(240, 3, (300, 300, 3)).clip(0, 255).astype(np.uint8)
    write_slide(bad / "noise.ome.tiff", noise)
    write_slide(bad / "nompp.ome.tiff", pixels, mpp=None)
    jobs = [SlideJob(p) for p in [*sorted(bad.iterdir()), bad / "nowhere.svs", slide]]
    results = {r.slide.name: r for r in extract(tiny_model, jobs, tmp_path / "out")}
    assert results[slide.name].status == "done"
    reasons = {name: r.reason for name, r in results.items() if r.status == "failed"}
    assert len(reasons) == 9 and all("\n" not in reason and reason for reason in reasons.values())
    assert reasons["empty.svs"] == "is empty"
    assert reasons["folder.svs"] == "is a folder, not a slide: name the slides in it"
    assert reasons["nowhere.svs"] == "no such file"
    assert reasons["text.svs"].startswith("cannot be opened as a slide (")
    assert "pass it with --mpp" in reasons["nompp.ome.tiff"]
    assert reasons["glass.ome.tiff"] == reasons["noise.ome.tiff"]
    assert reasons["glass.ome.tiff"] == "no tissue found; --no-mask takes every tile"
    with (tmp_path / "out" / "summary.csv").open() as file:
        rows = {row["slide"]: row for row in csv.DictReader(file)}
    assert {row["status"] for row in rows.values()} == {"done", "failed"} and len(rows) == 10
    assert rows[str(bad / "empty.svs")]["reason"] == "is empty"
    left = [p.name for p in (tmp_path / "out").iterdir()]
    assert sorted(left) == ["colon.ome.zarr", "summary.csv"]


def test_run_reports_failures_after_the_others_are_done(tiny_model, slide, tmp_path):
    engine = FeatureExtractor(tiny_model, verbose=False)
    with pytest.raises(SlidesFailed, match="1 of 2 slides failed: .*no such file") as caught:
        engine.run([tmp_path / "no.svs", slide], patch_mode=False, save_dir=tmp_path / "o")
    assert len(read_store(caught.value.results[slide])) > 0


def test_mpp_is_for_slides_that_have_none(tiny_model, slide, tmp_path):
    from skimage.data import immunohistochemistry

    silent = write_slide(tmp_path / "silent.ome.tiff", immunohistochemistry(), mpp=None)
    for path, mpp in ((silent, 0.5), (slide, 1.0)):
        [result] = extract(tiny_model, [SlideJob(path, mpp=0.5)], tmp_path / "o", resolution=1.0)
        assert read_store(result.store).facts["slide"]["mpp"] == [mpp, mpp]


def test_an_existing_folder_and_what_is_in_it_stay(tiny_model, slide, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    engine = FeatureExtractor(tiny_model, verbose=False)
    for overwrite in (False, True):
        engine.run([slide], patch_mode=False, save_dir=tmp_path, overwrite=overwrite)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["colon.ome.zarr", "mine.txt"]


def test_slides_of_one_name_never_share_a_store(tiny_model, slide, tmp_path):
    from skimage.data import immunohistochemistry

    copies = [tmp_path / part / "s.ome.tiff" for part in "abc"]
    for number, path in enumerate(copies[:2]):
        path.parent.mkdir()
        write_slide(path, np.roll(immunohistochemistry(), 40 * number, axis=0))
    copies[2].parent.mkdir()
    shutil.copy(copies[0], copies[2])  # the very same slide again
    out = tmp_path / "o"
    together = [r.store for r in extract(tiny_model, [SlideJob(p) for p in copies], out)]
    assert len(set(together)) == 3 and together[0].name == "s.ome.zarr"
    for path, stored in zip(copies[:2], together[:2], strict=True):
        [again] = extract(tiny_model, [SlideJob(path)], out)
        assert (again.status, again.store) == ("exists", stored)


def test_tiles_go_to_other_processes_with_the_slide_closed(tiny_model, slide):
    """Forked workers would share one position in an open file; spawned ones cannot be sent it."""
    import pickle

    from tiaft_plugin.engine.prepare import PreparedTiles

    engine = make_engine("features", str(tiny_model))
    dataset, _ = engine._tiles_of(slides.open_slide(slide), SlideJob(slide))
    tiles = PreparedTiles(dataset, engine.prepare(dataset.preproc_func))
    first = tiles.first()
    assert dataset.reader is None
    again = pickle.loads(pickle.dumps(tiles))[0]
    for name in ("image", "colour"):
        np.testing.assert_array_equal(again[name], first[name])


# Interruption


@pytest.mark.parametrize(("resolution", "warned"), [(0.5, True), (0.985, False), (2.0, False)])
def test_only_what_is_enlarged_by_more_than_2_percent_is_warned_of(
    tiny_model, slide, tmp_path, resolution, warned
):
    done = tiaft(
        "extract", slide, "--model", tiny_model, "--out", tmp_path, "--resolution", resolution
    )
    assert done.returncode == 0 and "Read: Scale" not in done.stderr
    assert (
        "is coarser than the tiles are to be: they are enlarged 2 times" in done.stderr
    ) is warned


def test_a_full_disk_stops_with_one_line(tiny_model, slide, tmp_path, monkeypatch):
    import errno

    from tiaft_plugin.engine import store

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_chunk", full)
    with pytest.raises(
        TiaftError, match="No space left on device; put that right and run the same"
    ):
        extract(tiny_model, [SlideJob(slide)], tmp_path)


# What is there already


def test_a_person_s_file_is_not_overwritten(tiny_model, slide, tmp_path):
    drawn = tmp_path / "colon.ome.geojson"
    drawn.write_text(json.dumps(SQUARE))
    arguments = ("predict", slide, "--model", tiny_model, "--out", tmp_path)
    done = tiaft(*arguments)
    assert done.returncode == 1 and "colon.ome.geojson exists already: move it" in done.stderr
    done = tiaft(*arguments, "--masks", drawn, "--overwrite")
    assert done.returncode == 1 and "was given as slide or mask" in done.stderr
    assert json.loads(drawn.read_text()) == SQUARE
    assert tiaft(*arguments, "--overwrite").returncode == 0
    assert len(json.loads(drawn.read_text())["features"]) > 1


def test_a_file_of_another_model_does_not_pass_for_this_one_s(tiny_model, slide, tmp_path):
    from conftest import TINY

    from tiaft_plugin.network import create_network, save_model

    net = create_network(TINY, "abc", init="random", tile_size=32, mpp=1.0, hidden=(16,), seed=9)
    other = save_model(net, tmp_path / "other.safetensors")
    common = {"kind": "predictions", "out": tmp_path, "jobs": [SlideJob(slide)]}
    extract(tiny_model, **common, sinks=["geojson"])
    [result] = extract(other, **common, sinks=["annotationstore"])
    assert "was made with other settings (model: " in result.reason
    [result] = extract(other, **common, sinks=["annotationstore"], overwrite=True)
    assert result.status == "done"
    [result] = extract(other, **common, sinks=["geojson"])
    assert "colon.ome.geojson exists already" in result.reason


def test_another_slide_s_mask_and_an_absurd_resolution(tiny_model, slide, tmp_path):
    wide = np.ones((10, 50), np.uint8)
    [result] = extract(tiny_model, [SlideJob(slide, mask=wide)], tmp_path)
    assert "has another shape than the slide" in result.reason
    [result] = extract(tiny_model, [SlideJob(slide)], tmp_path, resolution=100.0)
    assert "far larger than the slide" in result.reason
    assert not list(tmp_path.glob("*.zarr"))


@pytest.mark.parametrize(
    ("suffix", "fault"),
    [(".zarr", "and the store itself both write .zarr"), (".geojson", "both write .geojson"),
     ("csv", "has no suffix: 'csv'")],
)  # fmt: skip
def test_sinks_that_would_write_over_each_other(suffix, fault):
    class Plugin:
        @hookimpl
        def register_sinks(self, register):
            register("other", print, suffix=suffix)

    plugin = Plugin()
    plugin_manager().register(plugin, name="other")
    try:
        with pytest.raises(TiaftError, match=fault):
            named_sinks(["geojson", "other"])
    finally:
        plugin_manager().unregister(plugin)


def test_two_runs_share_a_summary(tiny_model, slide, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from tiaft_plugin.engine.jobs import SlideResult
    from tiaft_plugin.engine.summary import add_to_summary, read_summary

    def add(number):
        result = SlideResult(tmp_path / f"{number}.svs", "done")
        add_to_summary(tmp_path / "summary.csv", result)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    assert len(read_summary(tmp_path / "summary.csv")) == 40
    assert [p.name for p in tmp_path.iterdir()] == ["summary.csv"]


def test_a_store_that_another_run_works_on_is_left_to_it(tiny_model, slide, tmp_path):
    from tiaft_plugin.files import locked

    code = (
        "import sys, time; from tiaft_plugin.files import locked\n"
        f"with locked({str(tmp_path / 'colon.ome.zarr')!r}, wait=False):\n"
        "    print('mine', flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "mine\n"
        [result] = extract(tiny_model, [SlideJob(slide)], tmp_path)
        assert "another run is working on it" in result.reason
    finally:
        other.kill()
        other.wait()
    with locked(tmp_path / "colon.ome.zarr", wait=False):  # a killed process lets go
        pass


# Masks, patients


def test_masks(tiny_model, slide, tmp_path):
    from PIL import Image

    left = np.zeros((64, 64), np.uint8)
    left[:, :16] = 255  # the slide's left quarter
    Image.fromarray(np.stack([left] * 3, -1)).save(tmp_path / "colon.ome.png")
    drawn = tmp_path / "drawn.geojson"
    drawn.write_text(json.dumps(SQUARE))
    for mask in ("colon.ome.png", "drawn.geojson"):
        done = tiaft(
            "extract",
            slide,
            "--model",
            tiny_model,
            "--out",
            tmp_path / mask[:5],
            "--masks",
            tmp_path / mask,
        )
        assert done.returncode == 0, done.stderr
        found = read_store(tmp_path / mask[:5] / "colon.ome.zarr")
        coordinates = np.asarray(found.coordinates[:])
        assert len(coordinates) == 64 and coordinates[:, 0].max() == 96
    done = tiaft(
        "extract", slide, "--model", tiny_model, "--out", tmp_path / "x",
        "--masks", drawn, "--mask-class", "Stroma",
    )  # fmt: skip
    assert done.returncode == 1 and "Stroma" in done.stderr


def test_each_slide_needs_its_mask(tmp_path):
    slides_ = [tmp_path / "a.svs", tmp_path / "b.svs"]
    masks = tmp_path / "masks"
    masks.mkdir()
    (masks / "a.png").touch()
    with pytest.raises(TiaftError, match=r"b.svs has no mask of its name: give one b.png"):
        match_masks(slides_, [masks])
    (masks / "b.geojson").touch()
    assert match_masks(slides_, [masks])[slides_[1]].name == "b.geojson"
    (masks / "b.png").touch()
    with pytest.raises(TiaftError, match="b.svs has several masks"):
        match_masks(slides_, [masks])


def test_tables_of_patients(tmp_path):
    (tmp_path / "p.csv").write_text("slide,patient\na/b.svs,P1\n")
    assert read_patients(tmp_path / "p.csv") == {"b.svs": "P1"}
    (tmp_path / "p.csv").write_text("file;who\nx;y\n")
    (tmp_path / "q.csv").write_text("slide,patient\na.svs,P1\na.svs,P2\n")
    with pytest.raises(TiaftError, match="a.svs has two patients, P1 and P2"):
        read_patients(tmp_path / "q.csv")
    with pytest.raises(TiaftError, match="columns slide and patient expected"):
        read_patients(tmp_path / "p.csv")
    for text in ("", "slide,patient,patient\na.svs,P1,P2\n"):
        (tmp_path / "p.csv").write_text(text)
        with pytest.raises(TiaftError, match="columns slide and patient expected"):
            read_patients(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text("slide,patient\n")  # as if there were no table
    with pytest.raises(TiaftError, match="p.csv names no patient: it has no rows but its header"):
        read_patients(tmp_path / "p.csv")


# The command line


def test_predict_writes_its_sinks(tiny_model, slide, tmp_path):
    folder.add_model("tiny", tiny_model)
    done = tiaft(
        "predict", slide, "--model", "tiny", "--out", tmp_path / "o",
        "--to", "geojson,annotationstore,picture",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = sorted(p.name for p in (tmp_path / "o").iterdir())
    assert names == [
        "colon.ome.db",
        "colon.ome.geojson",
        "colon.ome.png",
        "colon.ome.zarr",
        "summary.csv",
    ]
    found = json.loads((tmp_path / "o" / "colon.ome.geojson").read_text())
    assert len(found["features"]) == len(read_store(tmp_path / "o" / "colon.ome.zarr"))
    assert "colon.ome.tiff" in done.stdout and "INFO" not in done.stdout
    again = tiaft("predict", slide, "--model", "tiny", "--out", tmp_path / "o")
    assert again.returncode == 0 and "was there already" in again.stdout


def test_a_measurement_of_a_plugin_reaches_the_sinks(tiny_model, slide, tmp_path):
    class Plugin:
        @hookimpl
        def measure_tiles(self, slide, tiles):
            return {"left": tiles.bounds[:, 0]}

    plugin = Plugin()
    plugin_manager().register(plugin)
    try:
        extract(tiny_model, [SlideJob(slide)], tmp_path, kind="predictions", sinks=["geojson"])
    finally:
        plugin_manager().unregister(plugin)
    found = json.loads((tmp_path / "colon.ome.geojson").read_text())["features"]
    for feature in found:
        left = min(x for x, _ in feature["geometry"]["coordinates"][0])
        assert feature["properties"]["measurements"]["left"] == left


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["extract", "s.svs", "--model", "nobody", "--out", "o"], 2, "no model 'nobody'"),
        (["extract", "s.svs", "--model", "no.safetensors", "--out", "o"], 2, "no such model file"),
        (["extract", "--model", "m", "--out", "o"], 2, "Missing argument"),
        (["predict", "s.svs", "--model", "m", "--out", "o", "--to", "x"], 2, "no sink 'x'"),
        (["extract", "s.svs", "--model", "m", "--out", "o", "--mpp", "0"], 2, "0.0 is not in"),
        (
            ["extract", "s.svs", "--model", "m", "--out", "o", "--mask-class", "T"],
            2,
            "needs --masks",
        ),
    ],
)
def test_wrong_usage(arguments, code, text, tmp_path):
    done = tiaft(*arguments)
    assert done.returncode == code and text in done.stderr and "Traceback" not in done.stderr


def test_a_feature_model_cannot_predict(tmp_path, slide):
    from conftest import TINY

    from tiaft_plugin.network import create_network, save_model

    net = create_network(TINY, init="random", tile_size=32, mpp=1.0)
    path = save_model(net, tmp_path / "f.safetensors")
    with pytest.raises(TiaftError, match="gives features, not classes"):
        make_engine("predictions", str(path))
    folder.add_model("plain", path)
    with pytest.raises(TiaftError, match="plain gives features, not classes"):
        make_engine("predictions", "plain")


# Slides


def test_fingerprints(tmp_path):
    a, b = tmp_path / "a.svs", tmp_path / "b.svs"
    content = np.random.default_rng(0).bytes(10 << 20)
    a.write_bytes(content)
    b.write_bytes(content)
    assert slides.fingerprint(a) == slides.fingerprint(b)
    for place in (0, len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1
        b.write_bytes(changed)
        assert slides.fingerprint(a) != slides.fingerprint(b)
    b.write_bytes(content + b"x")
    assert slides.fingerprint(a) != slides.fingerprint(b)


def test_tissue_fractions_agree_with_tiatoolbox_s_filter():
    from tiatoolbox.tools.patchextraction import PatchExtractor
    from tiatoolbox.wsicore.wsireader import VirtualWSIReader

    rng = np.random.default_rng(0)
    mask = (rng.random((37, 53)) > 0.7).astype(np.uint8)
    shape = np.array([530, 370])
    corner = rng.integers(0, [500, 340], (300, 2))
    coordinates = np.concatenate([corner, corner + 25], 1)
    fractions = slides.tissue_fractions(mask, coordinates, shape)
    for ratio in (0, 0.25, 0.5):
        kept = PatchExtractor.filter_coordinates(
            VirtualWSIReader(mask), coordinates, wsi_shape=shape, min_mask_ratio=ratio
        )
        np.testing.assert_array_equal(kept, (fractions > ratio) | (fractions == 1))


# Real slides


@pytest.mark.slow
def test_real_slides(data, tiny_model, tmp_path):
    good, silent = "CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs"
    cut = tmp_path / "cut.svs"
    cut.write_bytes((data / "slides" / good).read_bytes()[:900_000])
    jobs = [SlideJob(p) for p in (cut, data / "slides" / silent, data / "slides" / good)]
    results = extract(tiny_model, jobs, tmp_path / "o", resolution=4.0)
    assert [r.status for r in results] == ["failed", "failed", "done"]
    assert "pass it with --mpp" in results[1].reason
    [again] = extract(
        tiny_model, [SlideJob(jobs[1].slide, mpp=0.25)], tmp_path / "o", resolution=4.0
    )
    assert again.status == "done" and read_store(again.store).scale.tolist() == [16, 16]

"""Maps of attention: pictures, tables, the page, and attention beside the probabilities."""

import csv
import json
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import tiaft, write_slide
from PIL import Image

from tiaft_extensions.histotransfer.kept import read_run
from tiaft_extensions.histotransfer.maps.figures import heat_of, map_of
from tiaft_extensions.histotransfer.maps.report import write_pictures
from tiaft_extensions.histotransfer.maps.scores import (
    ATTENTION,
    keep_attention_beside,
    measurement_names,
)
from tiaft_extensions.histotransfer.maps.study import attention_to, predicted_by, source_of
from tiaft_extensions.interpretability.gradcam.scores import read_scores, scores_path
from tiaft_plugin.engine.predictions import predictions_of
from tiaft_plugin.engine.store import read_store
from tiaft_plugin.errors import TiaftError

TILE, SIDE = 32, 128  # px
TILES = (SIDE // TILE) ** 2
LOST = ("stranger", "s2.ome")
MIL = "--folds 2 --repeats 1 --permutations 0 --draws 100 --epochs 2 --hidden 8 --attention 4"


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_model):
    """Four patients of two slides each, their features and predictions, and a run of `mil`."""
    from skimage.data import immunohistochemistry

    root, pixels = tmp_path_factory.mktemp("study"), immunohistochemistry()
    (root / "slides").mkdir()
    rows = [["slide", "patient"]]
    for number in range(8):
        x, y = number % 4 * SIDE, number // 4 * SIDE
        part = pixels[y : y + SIDE, x : x + SIDE]
        write_slide(root / f"slides/s{number}.ome.tiff", part)
        rows.append([f"s{number}.ome.tiff", f"P{number // 2}"])
    write_table(root / "patients.csv", rows)
    labels = [[f"P{number}", "ab"[number % 2]] for number in range(4)]
    write_table(root / "labels.csv", [["patient", "label"], *labels])
    how = ["--model", tiny_model, "--no-mask", "--device", "cpu"]
    features, slides = root / "features", root / "slides"
    must(
        "extract",
        *sorted(slides.iterdir()),
        *how,
        "--patients",
        root / "patients.csv",
        "--out",
        features,
    )
    must("predict", slides / "s0.ome.tiff", *how, "--out", root / "predictions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiaft_plugin.probes.baselines.LEAK_DRAWS", 0)
        labelled = ["--labels", root / "labels.csv", *MIL.split()]
        must("probe", "mil", features, *labelled, "--out", root / "run")
    return SimpleNamespace(root=root, features=features, slides=slides, run=root / "run")


def must(*arguments) -> str:
    done = tiaft(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_table(path: Path, rows) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def maps(study, *more) -> SimpleNamespace:
    return tiaft("histotransfer", "maps", study.run, study.features, *more)


@pytest.fixture(scope="module")
def drawn(study):
    """What the command wrote of all slides, with predictions of one."""
    out = study.root / "maps"
    done = maps(
        study, "--slides", study.slides, "--predictions", study.root / "predictions",
        "--count", 3, "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "8 of 8 slides drawn" in done.stdout
    return out


def test_every_slide_has_a_map_its_tiles_and_a_line(drawn, study):
    rows = read_table(drawn / "slides.csv")
    assert [row["slide"] for row in rows] == [f"s{number}.ome.tiff" for number in range(8)]
    shares = defaultdict(float)
    run = read_run(study.run)
    for row in rows:
        shares[row["patient"]] += float(row["share_of_bag"])
        at = run.keys.tolist().index(row["bag"])
        assert (row["label"], int(row["fold"])) == (run.labels[at], run.folds[at])
        assert 1 <= int(row["tiles_with_half"]) <= TILES / 2
        for name in row["pictures"].split(";"):
            assert Image.open(drawn / name).size[0] > 200
    assert len(shares) == 4 and np.allclose(list(shares.values()), 1, atol=1e-4)
    predicted = predicted_by(run)
    assert {row["bag"]: row["predicted"] for row in rows} == predicted
    page = (drawn / "report.html").read_text(encoding="utf-8")
    wrong = sum(row["label"] != row["predicted"] for row in rows)
    assert f"Of the 8 slides here, {wrong} are of a patient" in page and "://" not in page


def test_the_tiles_with_the_most_held_out_attention_come_first(drawn, study):
    run, tiles = read_run(study.run), defaultdict(list)
    for row in read_table(drawn / "tiles.csv"):
        tiles[row["slide"]].append(row)
    assert {len(rows) for rows in tiles.values()} == {3}
    for slide, rows in tiles.items():
        store = read_store(study.features / f"{Path(slide).stem}.zarr")
        known = run.tiles(store.path)
        order = np.argsort(-known.held_out)[:3]
        assert [float(row["logit"]) for row in rows] == pytest.approx(
            known.held_out[order], rel=1e-5
        )
        assert [float(row["attention"]) for row in rows] == pytest.approx(
            known.attention[order], rel=1e-5
        )
        bag = 2 * TILES  # a patient has two slides
        assert float(rows[0]["times_mean"]) == pytest.approx(known.attention.max() * bag, rel=1e-5)
        assert float(rows[0]["percentile"]) == 100
        x, y = store.coordinates[:][order[0], :2]
        assert (float(rows[0]["x"]), float(rows[0]["y"])) == (x, y)


def seen(study, name="s0.ome", slides=True):
    run, store = read_run(study.run), read_store(study.features / f"{name}.zarr")
    source = source_of(store, study.slides / f"{name}.tiff" if slides else None, None)
    return run, attention_to(run, store, source, {})


def test_tiles_are_the_slides_own_pixels(study):
    _, found = seen(study)
    pixels = np.array(Image.open(study.slides / "s0.ome.tiff"))
    rows = found.order[:2].tolist()
    for row, tile in zip(rows, found.pixels(rows), strict=True):
        x, y = found.bounds[row, :2].astype(int)
        assert np.array_equal(tile, pixels[y : y + TILE, x : x + TILE])


def test_a_folder_of_tiles_gives_pictures_and_no_map(study, tmp_path):
    _, found = seen(study, slides=False)
    folder, rng = tmp_path / "tiles", np.random.default_rng(0)
    folder.mkdir()
    tiles = rng.integers(0, 256, (TILES, TILE, TILE, 3), dtype=np.uint8)
    for number, tile in enumerate(tiles):
        Image.fromarray(tile).save(folder / f"{number:02d}.png")
    found = replace(found, source=source_of(found.store, folder, None))
    assert np.array_equal(found.pixels([3, 5]), tiles[[3, 5]])
    write_pictures(tmp_path, found, count=5)
    assert [path.name for path in tmp_path.glob("*.png")] == ["s0.ome-tiles.png"]


def test_the_colours_have_one_scale_for_all_slides():
    assert np.allclose(heat_of(np.array([0, 0.1, 1, 10, 99])), [0, 0, 0.5, 1, 1])


def test_a_map_colours_the_tiles_that_have_attention(study):
    _, found = seen(study, slides=False)
    found.times[:] = 0
    found.times[5] = 10
    x0, y0, x1, y1 = found.bounds[5]
    drawn = map_of(found)
    scale = drawn.shape[0] / SIDE
    coloured = (drawn != 255).any(axis=2)
    there = np.zeros_like(coloured)
    there[round(y0 * scale) : round(y1 * scale), round(x0 * scale) : round(x1 * scale)] = True
    assert np.array_equal(coloured, there)


def test_attention_stands_beside_the_probabilities_for_qupath(drawn, study):
    run, found = seen(study)
    times, percentile = measurement_names(run)
    assert times == "Attention times mean: run/features"
    file = json.loads((drawn / "s0.ome.geojson").read_text())
    at = {tuple(bounds[:2]): row for row, bounds in enumerate(found.bounds)}
    for feature in file["features"]:
        measured = feature["properties"]["measurements"]
        assert {"Probability: a", times, percentile} <= measured.keys()
        row = at[tuple(feature["geometry"]["coordinates"][0][0])]
        assert measured[times] == pytest.approx(found.times[row], rel=1e-5)
        assert measured[percentile] == pytest.approx(found.percentile[row], rel=1e-5)
    store = read_store(study.root / "predictions/s0.ome.zarr")  # whatever is made of it later
    [block] = predictions_of(store, study.slides / "s0.ome.tiff").blocks()
    assert np.isfinite(block.measurements[times]).all()


def test_predictions_on_another_grid_are_refused_and_none_is_said(study, tiny_model, tmp_path):
    how = ["--model", tiny_model, "--no-mask", "--device", "cpu", "--resolution", 1.1]
    must("predict", study.slides / "s1.ome.tiff", *how, "--out", tmp_path / "p")
    given = ["--predictions", tmp_path / "p", "--out", tmp_path / "o"]
    done = tiaft("histotransfer", "maps", study.run, study.features / "s1.ome.zarr", *given)
    assert done.returncode == 2
    assert "has no tile where" in done.stderr and "with the same tile size" in done.stderr
    assert not (tmp_path / "o").exists()
    both = [study.features / f"s{number}.ome.zarr" for number in (1, 2)]
    done = tiaft("histotransfer", "maps", study.run, *both, *given)
    assert done.returncode == 1 and "s2.ome.tiff is not among --predictions" in done.stdout
    pictures = sorted(path.name for path in (tmp_path / "o").glob("*.png"))
    assert pictures == ["s2.ome-map.png"]  # none without a line in the table
    assert not any(path.is_dir() for path in (tmp_path / "o").iterdir())
    assert not scores_path(tmp_path / "p/s1.ome.zarr", ATTENTION).exists()


def test_attention_of_other_runs_stays_whatever_tiles_they_had(study, tmp_path):
    run, found = seen(study)
    shutil.copytree(study.root / "predictions/s0.ome.zarr", tmp_path / "s0.ome.zarr")
    store = read_store(tmp_path / "s0.ome.zarr")
    other = replace(run, name="other")
    for of, its in ((other, replace(found, bounds=found.bounds[:4])), (run, found)):
        keep_attention_beside(of, its, store)
    kept = read_scores(scores_path(store.path, ATTENTION), ATTENTION)
    known = [np.isfinite(kept[measurement_names(of)[0]]).sum() for of in (other, run)]
    assert known == [4, TILES]


def test_without_slides_maps_lie_on_white_and_no_tile_is_shown(study, tmp_path):
    done = tiaft(
        "histotransfer", "maps", study.run, study.features / "s3.ome.zarr", "--out", tmp_path / "o"
    )
    assert done.returncode == 0, done.stderr
    files = {path.name for path in (tmp_path / "o").iterdir()}
    assert files == {"report.html", "slides.csv", "tiles.csv", "s3.ome-map.png"}
    (tmp_path / "none").mkdir()
    done = maps(study, "--slides", tmp_path / "none", "--out", tmp_path / "o", "--overwrite")
    assert "s0.ome.tiff is not among --slides: its map lies on white" in done.stdout


def test_one_bad_store_does_not_keep_the_others(study, tmp_path):
    shutil.copytree(study.features / "s0.ome.zarr", tmp_path / "stranger.zarr")
    shutil.copytree(study.features / "s2.ome.zarr", tmp_path / "s2.ome.zarr")
    shutil.rmtree(tmp_path / "s2.ome.zarr/coordinates/c")  # zarr then reads zeros
    stores = [study.features / "s1.ome.zarr", *(tmp_path / f"{n}.zarr" for n in LOST)]
    done = tiaft("histotransfer", "maps", study.run, *stores, "--out", tmp_path / "o")
    assert done.returncode == 1 and "1 of 3 slides drawn" in done.stdout
    assert "FAILED" in done.stderr and "knows no store stranger.zarr" in done.stderr
    assert "s2.ome.zarr is damaged (coordinates)" in done.stderr
    assert "knows no store stranger.zarr" in (tmp_path / "o/report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere", "STORES"], "nowhere holds no attention: `tiaft probe mil"),
        (["RUN", "nowhere"], "nowhere"),
        (["RUN", "STORES", "--set", "other"], "holds no attention of other, but of features"),
        (["RUN", "STORES", "--to", "geojson"], "--to needs --predictions"),
        (["RUN", "STORES", "--predictions", "STORES"], "holds features: `tiaft predict` makes"),
        (["RUN", "S0", "--slides", "S1"], "is of another s0.ome.tiff"),
        (["RUN", "STORES", "S0", "AGAIN"], "two stores are called s0.ome.zarr"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments, text, study, tmp_path):
    places = {
        "RUN": study.run, "STORES": study.features, "S0": study.features / "s0.ome.zarr",
        "S1": study.slides / "s1.ome.tiff", "AGAIN": tmp_path / "again/s0.ome.zarr",
    }  # fmt: skip
    shutil.copytree(places["S0"], places["AGAIN"])
    given = [places.get(argument, argument) for argument in arguments]
    done = tiaft("histotransfer", "maps", *given, "--out", tmp_path / "o")
    assert done.returncode == 2 and text in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "o").exists()


def test_a_folder_of_others_is_left_alone(study, drawn, tmp_path):
    (tmp_path / "mine").mkdir()
    done = maps(study, "--out", tmp_path / "mine", "--overwrite")
    assert done.returncode == 2 and "is not of `tiaft histotransfer maps`" in done.stderr
    (tmp_path / "mine/slides.csv").touch()  # `tiaft transcriptomics tune` has one, too
    done = maps(study, "--out", tmp_path / "mine", "--overwrite")
    assert done.returncode == 2 and (tmp_path / "mine/slides.csv").exists()
    done = maps(study, "--out", drawn)
    assert done.returncode == 2 and "exists already" in done.stderr


def test_a_run_without_its_predictions_is_refused(study, tmp_path):
    shutil.copytree(study.run / "attention", tmp_path / "attention")
    with pytest.raises(TiaftError, match=r"predictions\.npz is damaged or gone: run `tiaft probe"):
        predicted_by(read_run(tmp_path))

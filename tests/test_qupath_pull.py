"""Annotations out of QuPath as tiles: what lies where, under which label, and what is said."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID, uuid5

import click
import numpy as np
import pytest
import shapely
from conftest import tiaft, write_slide
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from shapely.geometry import mapping

from tiaft_plugin.cli.qupath_pull import pull as command
from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.qupath.marks import Mark, shape_text
from tiaft_plugin.qupath.objects import Found
from tiaft_plugin.qupath.pulling.asked import How, Where
from tiaft_plugin.qupath.pulling.corrections import Extent, agreed_extent, probability_of
from tiaft_plugin.qupath.pulling.cover import (
    Cover,
    Grid,
    cover,
    grid_of,
    label_tiles,
    seen_from_above,
)
from tiaft_plugin.qupath.pulling.cut import Area, plan_tiles
from tiaft_plugin.qupath.pulling.drawings import read_drawings, slide_of
from tiaft_plugin.qupath.pulling.labels import Labels, folder_names
from tiaft_plugin.qupath.pulling.pull import pull
from tiaft_plugin.tiles.tileset import read_tileset

SHA = "ab" * 32
NAMES = UUID(int=5)


def drawn(shape, class_name=None, number=0, **properties) -> dict:
    """A Feature as QuPath 0.5 to 0.7 write it."""
    geometry = shape if isinstance(shape, dict) else mapping(shape)
    given = {"classification": {"name": class_name, "color": [200, 0, 0]}} if class_name else {}
    return {
        "type": "Feature",
        "id": str(uuid5(NAMES, str(number or (class_name, geometry)))),
        "geometry": geometry,
        "properties": {"objectType": "annotation", **given, **properties},
    }


def pushed(box, given, now, probabilities, sha256=SHA, model="mini", **more) -> dict:
    """A tile as tiaft pushed it, with its class now."""
    mark = Mark(model, sha256, "grid", given, more.pop("shape", ""))
    measurements = {f"Probability: {name}": value for name, value in probabilities.items()}
    return drawn(
        shapely.box(*box), now, objectType=more.pop("objectType", "tile"),
        measurements=measurements, metadata=mark.metadata(), **more,
    )  # fmt: skip


def save(path: Path, *features) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def rows_of(out: Path) -> list[dict]:
    with (out / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def place(tmp_path, slide) -> Path:
    """A folder with a slide, 512×512 px at 1 µm/px, under the name of QuPath's exports."""
    (tmp_path / "colon.ome.tiff").symlink_to(slide)
    return tmp_path


SIZE = {"tile_size": 32, "mpp": 1.0}


# Coverage, against pixels that are counted


corner = st.tuples(st.integers(-40, 140), st.integers(-40, 140))
polygons = st.lists(corner, min_size=3, max_size=9).map(
    lambda corners: shapely.make_valid(shapely.Polygon(corners))
)
grids = st.tuples(st.integers(4, 40), st.integers(2, 50), st.integers(1, 4), st.integers(1, 4))


def solid(shape):
    parts = [part for part in shapely.get_parts(shape) if part.geom_type == "Polygon"]
    return shapely.union_all(parts)


@settings(max_examples=150, deadline=None)
@given(shapes=st.lists(polygons, min_size=1, max_size=4), form=grids, hole=st.booleans())
def test_coverage_is_what_counting_pixels_gives(shapes, form, hole):
    shapes = [solid(shape) for shape in shapes]
    if hole:
        shapes = [shape - shapely.box(20, 20, 60, 50) for shape in shapes]
    shapes = [shape for shape in shapes if shape.area]
    assume(shapes)
    grid = Grid(*form)
    found = cover(np.array(shapes, dtype=object), grid)
    shares = np.zeros((len(shapes), grid.columns * grid.rows))
    shares[found.areas, found.tiles] = found.shares
    assert len(found.tiles) == len(
        set(zip(found.tiles.tolist(), found.areas.tolist(), strict=True))
    )
    steps = (np.arange(grid.size * 3) + 0.5) / 3
    for number, shape in enumerate(shapes):
        shapely.prepare(shape)
        for tile, (x, y) in enumerate(grid.corners(np.arange(shares.shape[1])).tolist()):
            across, down = np.meshgrid(x + steps, y + steps)
            counted = shapely.contains_xy(shape, across, down).mean()
            inside = shapely.intersection(shape, shapely.box(x, y, x + grid.size, y + grid.size))
            border = inside.length / 3 / grid.size**2
            assert abs(shares[number, tile] - counted) <= border + 0.02


@settings(max_examples=60, deadline=None)
@given(shapes=st.lists(polygons, min_size=2, max_size=6), data=st.data())
def test_seen_from_above_each_point_is_the_smallest_area_s(shapes, data):
    shapes = [shape for shape in map(solid, shapes) if shape.area]
    assume(shapes)
    ids = [str(number) for number in range(len(shapes))]
    visible, overlaps = seen_from_above(np.array(shapes, dtype=object), ids)
    point = shapely.Point(data.draw(corner)[0] + 0.37, data.draw(corner)[1] + 0.41)
    over = [number for number, shape in enumerate(shapes) if shape.contains(point)]
    seen = [number for number, shape in enumerate(visible) if shape.contains(point)]
    if over and min(shape.exterior.distance(point) if hasattr(shape, "exterior") else 1
                    for shape in shapes) > 1e-6:  # fmt: skip
        assert seen == [min(over, key=lambda number: (shapes[number].area, ids[number]))]
    for pair in overlaps:
        assert shapes[pair.upper].area <= shapes[pair.lower].area
        both = shapely.intersection(shapes[pair.upper], shapes[pair.lower]).area
        assert pair.area == pytest.approx(both)


def test_a_grid_has_only_tiles_that_lie_on_the_slide():
    assert grid_of(100, 64, 32, 32) == Grid(32, 32, 3, 2)
    assert grid_of(100, 31.9, 32, 32) == Grid(32, 32, 3, 0)
    assert grid_of(95.9999999999, 32, 32, 16) == Grid(32, 16, 5, 1)
    assert len(cover(np.array([shapely.box(0, 0, 9, 9)]), grid_of(31, 31, 32, 32)).tiles) == 0


def test_many_tiles_are_covered_without_looking_at_each():
    turn = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    reach = 30_000 + 2_000 * np.sin(25 * turn)
    outline = np.column_stack([40_000 + reach * np.cos(turn), 40_000 + reach * np.sin(turn)])
    shape = shapely.Polygon(outline)
    grid = grid_of(80_000, 80_000, 100, 100)
    found = cover(np.array([shape]), grid)
    assert len(found.tiles) > 250_000
    assert found.shares.sum() * 100**2 == pytest.approx(shape.area, rel=1e-6)


def test_a_tile_gets_the_label_that_covers_most_and_the_first_of_two():
    found = Cover(
        np.array([0, 0, 0, 1, 1, 2, 3]), np.array([0, 1, 2, 0, 1, 3, 2]),
        np.array([0.3, 0.3, 0.35, 0.5, 0.5, 1.0, 0.49]),
    )  # fmt: skip
    labelled = label_tiles(found, np.array([1, 1, 0, -1]), 0.5)
    # Areas 0 and 1 have label 1; tile 2 lies in what only takes place away, tile 3 in too little.
    assert labelled.tiles.tolist() == [0, 1] and labelled.labels.tolist() == [1, 1]
    assert labelled.areas.tolist() == [0, 0] and labelled.shares.tolist() == [0.6, 1.0]
    even = label_tiles(found, np.array([1, 0, 2, 2]), 0.3)
    assert even.labels.tolist() == [2, 0, 2, 2]


# Overlaps, and annotations without a tile


def planned(*areas, size=32, stride=None, min_coverage=0.5, over=()):
    return plan_tiles(
        areas, (128, 128), np.array([1.0, 1.0]), size, stride or size, min_coverage, over
    )


def test_tiles_too_small_to_count_are_refused():
    with pytest.raises(TiaftError, match=r"tiles of 32 px would lie on the slide: a larger --mpp"):
        plan_tiles(
            [Area("a", shapely.box(0, 0, 64, 64), "x")], (128, 128), np.full(2, 1e-9), 32, 32, 0.5
        )


def labels_of(plan) -> dict:
    return {(tile.x, tile.y): tile.label for tile in plan.tiles}


def test_a_small_annotation_lies_on_a_large_one_whatever_their_order():
    large = Area("large", shapely.box(0, 0, 128, 64), "Stroma")
    small = Area("small", shapely.box(30, 0, 64, 40), "Tumor")
    for areas in [(large, small), (small, large)]:
        plan = planned(*areas)
        labels = labels_of(plan)
        assert labels[32, 0] == "Tumor" and labels[0, 0] == "Stroma" and len(labels) == 8
        assert labels[32, 32] == "Stroma"  # three quarters of it
        ((upper, lower, area),) = plan.overlaps
        assert (upper.id, lower.id, area) == ("small", "large", 34 * 40)
    (tile,) = [tile for tile in planned(large, small).tiles if (tile.x, tile.y) == (32, 32)]
    assert tile.annotation == "large" and tile.coverage == pytest.approx(0.75)


def test_annotations_of_one_class_count_once_where_they_overlap():
    plan = planned(
        Area("a", shapely.box(0, 0, 12, 32), "Tumor"), Area("b", shapely.box(8, 0, 20, 32), "Tumor")
    )
    (tile,) = plan.tiles
    assert tile.coverage == pytest.approx(20 / 32) and plan.overlaps == []
    assert planned(Area("a", shapely.box(0, 0, 12, 32), "Tumor"),
                   Area("a2", shapely.box(0, 0, 12, 32), "Tumor")).tiles == []  # fmt: skip


def test_what_has_no_label_still_takes_place_away():
    plan = planned(
        Area("tumor", shapely.box(0, 0, 64, 32), "Tumor"),
        Area("fold", shapely.box(0, 0, 20, 32), None),
    )
    assert labels_of(plan) == {(32, 0): "Tumor"}
    assert [(a.id, b.id) for a, b, _ in plan.overlaps] == [("fold", "tumor")]


def test_annotations_without_a_tile_are_named_with_the_reason():
    plan = planned(
        Area("dot", shapely.box(1, 1, 9, 17), "Tumor"),
        Area("away", shapely.box(500, 500, 900, 900), "Tumor"),
        Area("under", shapely.box(64, 64, 96, 96), "Stroma"),
        Area("over", shapely.box(64, 64, 96, 80), "Tumor"),
        Area("over too", shapely.box(64, 80, 96, 96), "Tumor"),
    )
    reasons = {area.id: reason for area, reason in plan.without}
    assert reasons == {
        "dot": "it covers 12% of a tile at most",
        "away": "it lies outside the slide",
        "under": "others lie over all of it",
    }
    assert labels_of(plan) == {(64, 64): "Tumor"}
    rim = planned(Area("rim", shapely.box(120, 0, 128, 128), "Tumor"), size=30)
    assert [reason for _, reason in rim.without] == ["no whole tile of the slide's grid lies on it"]


@settings(max_examples=60, deadline=None)
@given(first=polygons, second=polygons)
def test_a_tile_lies_in_one_place_whatever_else_is_drawn(first, second):
    areas = [Area("a", solid(first), "A"), Area("b", solid(second), "B")]
    areas = [area for area in areas if area.geometry.area]
    assume(areas)
    plan = planned(*areas, stride=16)
    assert len({(tile.x, tile.y) for tile in plan.tiles}) == len(plan.tiles)
    assert all(tile.x % 16 == 0 and tile.y % 16 == 0 for tile in plan.tiles)
    assert all(0 <= tile.x <= 96 and 0 <= tile.y <= 96 for tile in plan.tiles)


# From GeoJSON to a tile set


TUMOR, STROMA = shapely.box(0, 0, 128, 128), shapely.box(160, 100, 300, 300)


def test_a_pull_is_a_tile_set_that_finetuning_takes(place, tiny_model, tmp_path):
    save(place / "colon.geojson", drawn(TUMOR, "Tumor", 1), drawn(STROMA, "Stroma: Loose", 2))
    out = tmp_path / "tiles"
    (result,) = pull([place / "colon.geojson"], out, How(**SIZE))
    assert result.reason == "" and result.counts == {"Stroma: Loose": 24, "Tumor": 16}
    tiles = read_tileset(out)
    assert tiles.classes == ("Stroma: Loose", "Tumor") and len(tiles) == 40
    assert tiles.tile_size == 32 and tiles.mpp == 1.0 and set(tiles.groups) == {"colon.ome.tiff"}
    assert (out / "Stroma_ Loose").is_dir()
    about = json.loads((out / "pull.json").read_text())
    assert about["slides"][0]["tiles"] == result.counts and about["tile_size"] == 32
    done = tiaft(
        "finetune", out, "--out", tmp_path / "run", "--init", tiny_model, "--epochs", "1,0",
        "--val-share", "0", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_every_tile_shows_what_lies_at_its_place(place, tmp_path, slide):
    import tifffile

    pixels = tifffile.imread(slide)
    save(place / "colon.geojson", drawn(shapely.box(40, 70, 301, 333), "Tumor"))
    pull([place], tmp_path / "out", How(**SIZE, stride=24))
    rows = rows_of(tmp_path / "out")
    assert len(rows) > 50
    for row in rows:
        x, y = (int(float(row[name])) for name in ("x", "y"))
        assert (row["width"], row["height"]) == ("32.00", "32.00") and x % 24 == y % 24 == 0
        assert row["file"] == f"Tumor/colon.ome_{x}_{y}.png"
        tile = np.asarray(Image.open(tmp_path / "out" / row["file"]))
        np.testing.assert_array_equal(tile, pixels[y : y + 32, x : x + 32])
        inside = shapely.box(40, 70, 301, 333) & shapely.box(x, y, x + 32, y + 32)
        assert float(row["coverage"]) == pytest.approx(inside.area / 32**2, abs=1e-4)


def test_tiles_of_a_real_slide_are_those_that_predict_reads(data, tmp_path):
    from tiatoolbox.models.dataset import WSIPatchDataset

    slide = data / "slides" / "CMU-1-Small-Region.svs"
    area = shapely.Point(1100, 1500).buffer(400) - shapely.box(1000, 1400, 1200, 1600)
    save(tmp_path / "CMU-1-Small-Region.geojson", drawn(area, "Tumor"))
    how, where = How(tile_size=64, mpp=1.0, min_coverage=0.9), Where([slide.parent])
    (result,) = pull([tmp_path], tmp_path / "out", how, where)
    read = WSIPatchDataset(
        slide, patch_input_shape=(64, 64), stride_shape=(64, 64), resolution=1.0,
        units="mpp", auto_get_mask=False,
    )  # fmt: skip
    where_is = {tuple(box[:2].tolist()): number for number, box in enumerate(read.inputs)}
    rows = rows_of(tmp_path / "out")
    assert len(rows) == result.counts["Tumor"] and len(rows) > 15
    for row in rows[::5]:
        scale = 64 / float(row["width"])
        assert scale == pytest.approx(0.499, abs=1e-3)
        place = tuple(round(float(row[name]) * scale) for name in ("x", "y"))
        tile = np.asarray(Image.open(tmp_path / "out" / row["file"]))
        np.testing.assert_array_equal(tile, np.asarray(read[where_is[place]]["image"]))


def test_classes_are_renamed_left_out_and_skipped(place, tmp_path):
    path = save(
        place / "colon.geojson",
        drawn(shapely.box(0, 0, 64, 64), "Tumor"),
        drawn(shapely.box(64, 0, 128, 64), "Stroma"),
        drawn(shapely.box(128, 0, 192, 64), "Ignore*"),
        drawn(shapely.box(0, 0, 60, 32), "Region*"),
        drawn(shapely.box(192, 0, 256, 64)),
        drawn(shapely.Point(4, 4), "Tumor", 7),
        drawn(shapely.LineString([(0, 0), (9, 9)]), "Tumor", 8),
        drawn(shapely.box(0, 0, 9, 9), objectType="cell"),
    )
    labels = Labels({"Tumor": "TUM"}, frozenset({"TUM"}))
    (result,) = pull([path], tmp_path / "out", How(**SIZE, labels=labels))
    assert result.counts == {"TUM": 4}  # Region*, drawn smaller, takes nothing away
    assert set(result.notes) == {
        f"{uuid5(NAMES, '7')} left out: it encloses no area (Point)",
        f"{uuid5(NAMES, '8')} left out: it encloses no area (LineString)",
        "1 annotation without a class",
        "1 object that is no annotation",
        "1 of class Stroma: not wanted as a label",
        "1 of class Ignore*: not wanted as a label",
        "1 of class Region*: not wanted as a label",
    }
    renamed = Labels({"Ignore*": "BACK", "Stroma": "Rest*"})
    (result,) = pull([path], tmp_path / "all", How(**SIZE, labels=renamed))
    assert result.counts == {"BACK": 4, "Tumor": 4}


def test_bad_polygons_are_repaired_or_named(place, tmp_path):
    bow = {"type": "Polygon", "coordinates": [[[0, 0], [99, 99], [99, 0], [0, 99], [0, 0]]]}
    broken = {"type": "Polygon", "coordinates": [[[0, 0], [1, "x"], [5, 5], [0, 0]]]}
    save(place / "colon.geojson", drawn(bow, "Tumor", 1), drawn(broken, "Tumor", 2))
    (result,) = pull([place], tmp_path / "out", How(**SIZE))
    assert result.counts["Tumor"] > 2
    assert sorted(result.notes) == sorted([
        f"{uuid5(NAMES, '1')} repaired: Self-intersection[49.5 49.5]",
        f"{uuid5(NAMES, '2')} left out: its coordinates are not all pairs of numbers",
    ])  # fmt: skip


def test_patients_are_groups(place, tmp_path):
    save(place / "colon.geojson", drawn(TUMOR, "Tumor"))
    (tmp_path / "patients.csv").write_text("slide,patient\ncolon.ome.tiff,P7\n")
    where = Where(patients=tmp_path / "patients.csv")
    pull([place], tmp_path / "out", How(**SIZE), where)
    assert {row["group"] for row in rows_of(tmp_path / "out")} == {"P7"}
    (tmp_path / "patients.csv").write_text("slide,patient\nother.svs,P8\n")
    with pytest.raises(TiaftError, match="colon.ome.tiff is not in the table of patients"):
        pull([place], tmp_path / "out2", How(**SIZE), where)


def test_one_slide_that_fails_does_not_stop_the_others(place, tmp_path, monkeypatch):
    save(place / "colon.geojson", drawn(TUMOR, "Tumor"))
    save(place / "gone.geojson", drawn(TUMOR, "Tumor"))
    (place / "text.geojson").write_text("none")
    (place / "text.svs").touch()
    results = {Path(each.slide).name: each for each in pull([place], tmp_path / "out", How(**SIZE))}
    assert results["colon.ome.tiff"].counts == {"Tumor": 16}
    assert (
        "gone.geojson: no slide of that name: say with --slides" in results["gone.geojson"].reason
    )
    assert "is no JSON" in results["text.geojson"].reason
    assert len(rows_of(tmp_path / "out")) == 16


def test_a_slide_that_cannot_be_read_to_the_end_leaves_no_tile(place, tmp_path, monkeypatch):
    from tiaft_plugin.qupath.pulling import tile_files

    rng = np.random.default_rng(0)
    write_slide(place / "good.ome.tiff", rng.integers(0, 255, (256, 256, 3), dtype=np.uint8))
    for name in ("colon", "good"):
        save(place / f"{name}.geojson", drawn(TUMOR, name))
    read = tile_files.cut_tiles

    def cut_tiles(reader, *rest):
        for number, each in enumerate(read(reader, *rest)):
            if number == 3 and "colon" in str(reader.input_path):
                raise Stopped("cannot be read at (96, 0): bad block")
            yield each

    monkeypatch.setattr(tile_files, "cut_tiles", cut_tiles)
    results = pull([place], tmp_path / "out", How(**SIZE))
    assert [each.reason for each in results] == ["cannot be read at (96, 0): bad block", ""]
    assert {row["label"] for row in rows_of(tmp_path / "out")} == {"good"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "good", "manifest.csv", "pull.json",
    ]  # fmt: skip
    (place / "good.geojson").unlink()
    with pytest.raises(Stopped, match=r"^colon.ome.tiff: cannot be read at \(96, 0\): bad block$"):
        pull([place], tmp_path / "none", How(**SIZE))
    assert not (tmp_path / "none").exists()


def test_a_full_disk_leaves_nothing_behind(place, tmp_path, monkeypatch):
    save(place / "colon.geojson", drawn(TUMOR, "Tumor"))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(Stopped, match="out cannot be written: No space left on device"):
        pull([place], tmp_path / "out", How(**SIZE))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("features", "how", "message"),
    [
        ([], {}, "no tile to pull: nobody drew an annotation with a class"),
        ([drawn(TUMOR, "Tumor")], {"labels": Labels({"Tumr": "TUM"})},
         "--class: nothing has the class Tumr; there are: Tumor"),
        ([drawn(TUMOR, "Tumor")], {"labels": Labels({}, {"Stroma"})},
         "--classes: nothing has the class Stroma; there are: Tumor"),
        ([drawn(TUMOR, "a;b")], {}, "no label can be called 'a;b': rename it with --class"),
        ([drawn(TUMOR, "Tumor"), drawn(STROMA, "tumor")], {},
         "classes differ only in case: Tumor and tumor: give them one name with --class"),
        ([drawn(shapely.box(1, 1, 5, 5), "Tumor", 3)], {},
         r"no tile to pull: colon.ome.tiff: .* \(Tumor\) gave no tile: it covers 2% of a tile"),
        ([drawn(TUMOR, "Tumor")], {"mpp": None}, "pass --tile-size and --mpp"),
        ([drawn(TUMOR, "Tumor")], {"corrections_of": "mini"},
         "no objects of 'mini': none here carry a model's mark"),
    ],
)  # fmt: skip
def test_what_cannot_be_pulled_is_said(place, tmp_path, features, how, message):
    save(place / "colon.geojson", *features)
    with pytest.raises(TiaftError, match=message):
        pull([place], tmp_path / "out", How(**{**SIZE, **how}))
    assert not (tmp_path / "out").exists()


def test_sources_that_are_none_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.svs").touch()
    for path, message in [
        (tmp_path / "nowhere.geojson", "no such file"),
        (tmp_path / "empty", "holds neither a QuPath project nor GeoJSON"),
        (tmp_path / "a.svs", "is neither a QuPath project nor GeoJSON"),
    ]:
        with pytest.raises(TiaftError, match=message):
            pull([path], tmp_path / "out", How(**SIZE))


def test_only_an_earlier_pull_is_replaced(place, tmp_path):
    save(place / "colon.geojson", drawn(TUMOR, "Tumor"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    for overwrite, message in [(False, "exists already"), (True, "is not what .* pull` made")]:
        with pytest.raises(TiaftError, match=message):
            pull([place], out, How(**SIZE), overwrite=overwrite)
    assert (out / "thesis.txt").read_text() == "mine"
    pull([place], tmp_path / "again", How(**SIZE))
    save(place / "colon.geojson", drawn(STROMA, "Stroma"))
    pull([place], tmp_path / "again", How(**SIZE), overwrite=True)
    assert {row["label"] for row in rows_of(tmp_path / "again")} == {"Stroma"}
    assert not (tmp_path / "again" / "Tumor").exists()


def test_slides_without_a_resolution_need_one(tmp_path):
    pixels = np.full((64, 64, 3), 99, dtype=np.uint8)
    write_slide(tmp_path / "bare.ome.tiff", pixels, mpp=None)
    save(tmp_path / "bare.geojson", drawn(shapely.box(0, 0, 64, 64), "Tumor"))
    with pytest.raises(TiaftError, match="pass it with --slide-mpp"):
        pull([tmp_path], tmp_path / "out", How(**SIZE))
    pull([tmp_path], tmp_path / "out", How(**SIZE), Where(mpp=0.5))
    (row,) = rows_of(tmp_path / "out")
    assert (row["x"], row["width"]) == ("0.00", "64.00")


def test_slides_are_found_by_name(tmp_path):
    names = ["a.svs", "a.svs.png", "b.ome.tif", "c.svs", "c.ndpi", "d_e.svs"]
    slides = [tmp_path / name for name in names]
    for file, slide in [
        ("a.geojson", "a.svs"), ("a.svs.geojson", "a.svs"), ("b.geojson", "b.ome.tif"),
        ("b.ome.tif.geojson", "b.ome.tif"), ("c.ndpi.geojson", "c.ndpi"), ("A.json", "a.svs"),
        ("d_e.geojson", "d_e.svs"),
    ]:  # fmt: skip
        assert slide_of(tmp_path / file, slides).name == slide
    with pytest.raises(TiaftError, match=r"may belong to .*c.svs, .*c.ndpi: name one with --slide"):
        slide_of(tmp_path / "c.geojson", slides)
    with pytest.raises(TiaftError, match="no slide of that name"):
        slide_of(tmp_path / "x.geojson", slides[:1])
    assert slide_of(tmp_path / "x.geojson", slides[:1], only=True).name == "a.svs"


def test_labels_have_folders_of_their_own():
    names = folder_names(["A: b", "A_ b", "a_ B", "..", "x/y", "Tumor"])
    assert names["Tumor"] == "Tumor" and names["A: b"] == "A_ b"
    assert len({name.casefold() for name in names.values()}) == 6
    assert all(set(name).isdisjoint('<>:"/\\|?*') for name in names.values())
    assert not any(name.startswith(".") for name in names.values())


# Corrections


def corrected(**more) -> list[dict]:
    """Six pushed tiles of 64 px at 1 µm/px, shown on the slide: three have another class now."""
    said = {"TUM": 0.75, "STR": 0.25}
    boxes = [(64 * column, 64, 64 * column + 64, 128) for column in range(6)]
    now = ["TUM", "STR", "MUC", "TUM", None, "Tumor: x"]
    return [pushed(box, "TUM", name, said, **more) for box, name in zip(boxes, now, strict=True)]


def test_tiles_whose_class_was_changed_come_back_at_their_place(place, tmp_path, slide):
    import tifffile

    save(place / "colon.geojson", *corrected(), drawn(shapely.box(0, 192, 128, 320), "NORM"))
    how = How(labels=Labels({"Tumor: x": "TUM"}), corrections_of="mini")
    (result,) = pull([place], tmp_path / "out", how)
    assert result.corrected == 3 and result.counts == {"MUC": 1, "NORM": 4, "STR": 1, "TUM": 1}
    assert "2 predictions that nobody changed" in result.notes
    assert "1 corrected tile without a class" in result.notes
    rows = rows_of(tmp_path / "out")
    told = [tuple(row[name] for name in ("label", "predicted", "predicted_probability",
                                         "label_probability", "x", "y", "width", "mpp"))
            for row in rows if row["predicted"]]  # fmt: skip
    assert told == [
        ("STR", "TUM", "0.75", "0.25", "64.00", "64.00", "64.00", "1"),
        ("MUC", "TUM", "0.75", "", "128.00", "64.00", "64.00", "1"),
        ("TUM", "TUM", "0.75", "0.75", "320.00", "64.00", "64.00", "1"),
    ]
    tile = np.asarray(Image.open(tmp_path / "out" / rows[1]["file"]))
    np.testing.assert_array_equal(tile, tifffile.imread(slide)[64:128, 128:192])
    only = How(corrections_of=SHA[:8], annotations=False, tile_size=32)
    (result,) = pull([place], tmp_path / "only", only)
    assert result.counts == {"MUC": 1, "STR": 1, "Tumor: x": 1}
    assert {(row["mpp"], row["width"]) for row in rows_of(tmp_path / "only")} == {("2", "64.00")}
    assert read_tileset(tmp_path / "only", classes=["MUC", "STR", "Tumor: x"]).tile_size == 32


def test_without_being_asked_for_corrections_are_left_out_and_said(place, tmp_path):
    save(place / "colon.geojson", *corrected(), drawn(shapely.box(0, 192, 128, 320), "NORM"))
    (result,) = pull([place], tmp_path / "out", How(**SIZE))
    assert result.counts == {"NORM": 16}
    assert "3 corrected tiles left out: --corrections-of mini" in result.notes
    assert "predicted" not in rows_of(tmp_path / "out")[0]


def test_corrections_of_another_size_or_that_contradict_are_left_out(place, tmp_path):
    said = {"TUM": 1.0}
    save(
        place / "colon.geojson",
        pushed((0, 0, 64, 64), "TUM", "STR", said),
        pushed((64, 0, 128, 64), "TUM", "STR", said),
        pushed((128, 0, 192, 64), "TUM", "STR", said, number=4),
        pushed((128, 0, 192, 64), "TUM", "MUC", said, number=5),
        pushed((0, 128, 32, 160), "TUM", "MUC", said),
        pushed((192, 0, 256, 64), "TUM", "STR", said, sha256="cd" * 32, model="other"),
    )
    (result,) = pull([place], tmp_path / "out", How(corrections_of="mini"))
    assert result.counts == {"STR": 2}
    notes = " | ".join(result.notes)
    assert "the same tile was given the classes MUC and STR" in notes
    assert "1 corrected tiles left out: they are not 64 µm wide" in notes
    assert "1 corrected tiles left out: --corrections-of other" in notes
    with pytest.raises(TiaftError, match=r"no objects of 'nobody': here are those of mini \(abab"):
        pull([place], tmp_path / "x", How(corrections_of="nobody"))


def test_a_correction_lies_over_annotations(place, tmp_path):
    save(
        place / "colon.geojson",
        pushed((64, 64, 128, 128), "TUM", "STR", {"TUM": 1.0}),
        drawn(shapely.box(0, 0, 192, 192), "TUM"),
    )
    how = How(tile_size=64, mpp=1.0, corrections_of="mini")
    (result,) = pull([place], tmp_path / "out", how)
    assert result.counts == {"STR": 1, "TUM": 8}
    assert len({(row["x"], row["y"]) for row in rows_of(tmp_path / "out")}) == 9


def test_pushed_annotations_are_labels_once_a_person_changed_them(place, tmp_path):
    box = (0, 0, 64, 64)
    shape = shape_text(box, 4096)
    more = {"objectType": "annotation", "shape": shape}
    save(
        place / "colon.geojson",
        pushed(box, "TUM", "TUM", {}, number=1, **more),
        pushed((64.004, 0, 128, 64), "TUM", "TUM", {}, number=2, objectType="annotation",
               shape=shape_text((64, 0, 128, 64), 4096)),
        pushed((0, 128, 64, 192), "TUM", "STR", {}, number=3, objectType="annotation",
               shape=shape_text((0, 128, 64, 192), 4096)),
        pushed((0, 256, 64, 352), "TUM", "TUM", {}, number=4, objectType="annotation",
               shape=shape_text((0, 256, 64, 320), 4096)),
    )  # fmt: skip
    (result,) = pull([place], tmp_path / "out", How(**SIZE))
    assert result.counts == {"STR": 4, "TUM": 6}
    assert "2 predictions that nobody changed" in result.notes


@given(
    size=st.integers(16, 600), mpp=st.sampled_from([0.25, 0.5, 1.0, 1.14, 2.0, 0.2325]),
    baseline=st.floats(0.1, 1.0), tiles=st.integers(1, 30),
)  # fmt: skip
def test_size_and_resolution_of_a_model_s_tiles_are_found_again(size, mpp, baseline, tiles):
    side = size * mpp / baseline
    assume(side > 40)
    corners = np.round(np.arange(tiles + 1) * side, 2)  # as GeoJSON keeps them
    extents = (np.diff(corners) * baseline).tolist()
    assert agreed_extent(extents, baseline, mpp=mpp) == Extent(size, mpp)
    found = agreed_extent(extents, baseline, size=size)
    assert found.size == size and found.mpp == pytest.approx(mpp, rel=0.03 / side)
    bare = agreed_extent(extents, baseline)
    assert abs(bare.size - side) < 1
    assert bare.size * bare.mpp == pytest.approx(size * mpp, rel=1e-3)


def test_probabilities_are_found_by_qupath_s_names():
    numbers = {"Probability: Tumor:Positive": 0.5, "Probability: STR": 0.1, "Area": 3.0}
    assert probability_of(numbers, "Tumor: Positive") == 0.5
    assert probability_of(numbers, "Stroma", "STR") == 0.1
    assert probability_of(numbers, "Area") is None


# From projects, without Java: what reads them is a stand-in


@dataclass(frozen=True)
class Entry:
    """An image of a project, as project_file.ImageEntry."""

    name: str
    file_name: str
    data: Path
    where: Path | None
    size: tuple[int, int] = (512, 512)
    mpp: tuple[float, float] | None = (1.0, 1.0)


class FakeImage:
    """What image_data.open_image gives."""

    def __init__(self, annotations, found, numbers):
        self._annotations, self._found, self._numbers = annotations, found, numbers

    def annotations(self):
        return self._annotations

    def found(self):
        return self._found

    def measurements(self, rows):
        return [self._numbers] * len(rows)


@pytest.fixture
def project(place, monkeypatch):
    """A project of two images; Java's part is a stand-in."""
    import sys

    from tiaft_plugin.qupath.project import matching, project_file
    from tiaft_plugin.qupath.pulling import drawings

    (place / "P").mkdir()
    (place / "P" / "project.qpproj").write_text("{}")
    (place / "data.qpdata").touch()
    entries = [
        Entry("colon", "colon.ome.tiff", place / "data.qpdata", place / "colon.ome.tiff"),
        Entry("bare", "bare.svs", place / "nothing.qpdata", None),
    ]

    def annotation(shape, class_name, mark=None):
        return SimpleNamespace(id=str(uuid5(NAMES, str(shape))), name=None, class_name=class_name,
                               geometry=shape, locked=False, mark=mark)  # fmt: skip

    mark = Mark("mini", SHA, "grid", "TUM")
    found = Found(
        [uuid5(NAMES, "t1"), uuid5(NAMES, "t2")],
        np.array([[0, 64, 64, 128.0], [64, 64, 128, 128]]),
        [mark, mark], ["STR", "TUM"], ["", ""],
    )  # fmt: skip
    bow = shapely.Polygon([(0, 200), (99, 299), (99, 200), (0, 299)])
    image = FakeImage(
        [annotation(shapely.box(192, 192, 320, 320), "NORM"), annotation(bow, "NORM"),
         annotation(shapely.Point(1, 1), "NORM")],
        found, {"Probability: TUM": 0.8, "Probability: STR": 0.2},
    )  # fmt: skip
    java = SimpleNamespace(start_java=lambda: "0.6.0")
    monkeypatch.setitem(sys.modules, "tiaft_plugin.qupath.java.start", java)
    fake = SimpleNamespace(open_image=lambda entry: image)
    monkeypatch.setitem(sys.modules, "tiaft_plugin.qupath.java.image_data", fake)
    monkeypatch.setattr(
        project_file, "read_project", lambda path: SimpleNamespace(path=path, images=entries)
    )
    monkeypatch.setattr(matching, "locate", lambda entry, moved=(): entry.where)
    monkeypatch.setattr(
        drawings, "frame_of", lambda entry, size, bounds: drawings._as_exported(size, bounds)
    )
    return SimpleNamespace(path=place / "P", entries=entries, java=java)


def test_a_project_gives_annotations_and_corrections(project, tmp_path):
    how = How(tile_size=64, mpp=1.0, corrections_of="mini")
    (result,) = pull([project.path], tmp_path / "out", how)
    assert result.counts == {"NORM": 4, "STR": 1} and result.corrected == 1
    assert any("repaired: Self-intersection" in note for note in result.notes)
    assert any("left out: it encloses no area" in note for note in result.notes)
    row = rows_of(tmp_path / "out")[0]
    assert row["annotation"] == str(uuid5(NAMES, "t1"))
    assert (row["predicted_probability"], row["label_probability"]) == ("0.8", "0.2")


def test_a_project_s_slide_is_looked_for_where_it_is_now(project, place, tmp_path):
    gone = Entry("colon", "colon.ome.tiff", place / "data.qpdata", Path("/gone/colon.ome.tiff"))
    project.entries[0] = gone
    with pytest.raises(TiaftError, match=r"not at .*gone.*colon.ome.tiff: say with --map OLD=NEW"):
        pull([project.path], tmp_path / "out", How(**SIZE))
    (result,) = pull([project.path], tmp_path / "out", How(**SIZE), Where([place]))
    assert result.counts == {"NORM": 20}


def test_without_java_geojson_is_the_way(project, tmp_path):
    def start_java():
        raise TiaftError("no QuPath found")

    project.java.start_java = start_java
    with pytest.raises(TiaftError, match=r"no QuPath found.*export the annotations as GeoJSON"):
        pull([project.path], tmp_path / "out", How(**SIZE))


def test_the_same_slide_in_two_sources_is_one(project, place, tmp_path):
    shape = shapely.box(192, 192, 320, 320)
    same = drawn(shape, "NORM")
    same["id"] = str(uuid5(NAMES, str(shape)))
    save(place / "colon.geojson", same, drawn(TUMOR, "TUM"))
    sources = [project.path, place / "colon.geojson"]
    (result,) = pull(sources, tmp_path / "out", How(**SIZE), Where([place]))
    assert result.counts == {"NORM": 20, "TUM": 16}
    assert not any("lies over" in note for note in result.notes)


def test_openslide_s_bounds_are_where_qupath_begins_to_count(place):
    save(place / "colon.geojson", drawn(TUMOR, "Tumor"))
    (drawing,) = read_drawings([place], [])
    frame = drawing.frame((1000, 800), (100, 50, 600, 500))
    moved = frame.geometry_to_slide(drawing.annotations[0].geometry)
    assert moved.bounds == (100, 50, 228, 178)


# The command


def run(*arguments: object) -> SimpleNamespace:
    from click.testing import CliRunner

    group = click.Group("qupath", commands=[command])
    result = CliRunner().invoke(group, ["pull", *map(str, arguments)], catch_exceptions=True)
    return SimpleNamespace(code=result.exit_code, text=result.output, error=result.exception)


def test_the_command_says_what_it_cut(place, tmp_path):
    save(
        place / "colon.geojson", drawn(TUMOR, "Tumor"), drawn(STROMA, "Stroma"),
        drawn(shapely.box(10, 10, 20, 20), "Stroma", 9), drawn(shapely.box(0, 0, 9, 9)),
    )  # fmt: skip
    asked = [
        place,
        "--out",
        tmp_path / "out",
        "--tile-size",
        32,
        "--mpp",
        1,
        "--class",
        "Tumor=TUM",
    ]
    dry = run(*asked, "--dry-run")
    assert dry.code == 0 and not (tmp_path / "out").exists()
    assert "40 tiles (Stroma 24, TUM 16) would be cut" in dry.text
    done = run(*asked)
    assert done.code == 0
    assert "colon.ome.tiff: 40 tiles (Stroma 24, TUM 16)" in done.text
    assert (
        f"{uuid5(NAMES, '9')} (Stroma) gave no tile: it covers 10% of a tile at most" in done.text
    )
    assert "lies over" in done.text and "1 annotation without a class" in done.text
    assert done.text.endswith(f"40 tiles (Stroma 24, TUM 16) -> {tmp_path / 'out'}\n")
    one = run(*asked, "--classes", "TUM", "--overwrite", "--min-coverage", 1)
    assert "To fine-tune on them takes two classes or more" in one.text
    (place / "lost.geojson").write_text("{}")
    failed = run(*asked, "--overwrite")
    assert failed.code == 1 and "FAILED" in failed.text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--class", "Tumor"], "'Tumor' is not OLD=NEW"),
        (["--class", "Tumor=A", "--class", "Tumor=B"], "two new names, A and B"),
        (["--corrections-only"], "--corrections-only needs --corrections-of"),
        (["--min-coverage", "0"], "0.0 is not in the range 0<x<=1"),
        (["--min-coverage", "nan"], "is no number"),
        (["--map", "x"], "give it as OLD=NEW"),
    ],
)
def test_wrong_usage_is_said(place, tmp_path, more, message):
    save(place / "colon.geojson", drawn(TUMOR, "Tumor"))
    result = run(place, "--out", tmp_path / "out", "--tile-size", 32, "--mpp", 1, *more)
    assert result.code != 0 and message in result.text + str(result.error)

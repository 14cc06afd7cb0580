import json
import os
import signal
import textwrap
import tracemalloc
from itertools import pairwise
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import processes
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tiaft_plugin.engine.predictions import TileBlock, TilePredictions
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.plugins import collect
from tiaft_plugin.qupath.geojson import write_geojson
from tiaft_plugin.qupath.names import measurement_name, path_class, path_classes


def predictions_from(*blocks: TileBlock, classes=("TUM", "STR"), count=None) -> TilePredictions:
    total = sum(len(block.bounds) for block in blocks) if count is None else count
    return TilePredictions(
        Path("/patients/Jane Doe/slide 1.svs"), (1000, 800), tuple(classes), "ftx", "ab" * 32,
        total, lambda: iter(blocks),
    )  # fmt: skip


def tiles(count: int, classes: int = 2, first: int = 0, **measurements) -> TileBlock:
    rng = np.random.default_rng(first)
    x = np.arange(first, first + count) * 10.0
    bounds = np.stack([x, x + 1, x + 10, x + 21], axis=1)
    probabilities = rng.dirichlet(np.ones(classes), count).astype(np.float32)
    ids = [UUID(int=number) for number in range(first, first + count)]
    return TileBlock(bounds, probabilities, ids, measurements)


def written(predictions: TilePredictions, folder: Path) -> dict:
    path = folder / "tiles.geojson"
    write_geojson(predictions, path)
    return strict_json(path.read_text(encoding="utf-8"))


def strict_json(text: str) -> dict:
    """RFC 8259: no NaN, no Infinity, no name twice in an object."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    def unique(pairs):
        assert len(dict(pairs)) == len(pairs), f"a name stands twice in {pairs}"
        return dict(pairs)

    return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)


def check_rfc7946(collection: dict) -> None:
    """What RFC 7946 asks of a collection of polygons."""
    assert collection["type"] == "FeatureCollection"
    assert not {"crs", "coordinates", "geometry", "geometries", "properties"} & set(collection)
    for feature in collection["features"]:
        assert feature["type"] == "Feature"
        assert isinstance(feature["id"], str | int | float)
        assert isinstance(feature["properties"], dict)
        assert not {"coordinates", "geometries", "features"} & set(feature)
        assert feature["geometry"].keys() == {"type", "coordinates"}
        assert feature["geometry"]["type"] == "Polygon"
        (ring,) = feature["geometry"]["coordinates"]
        assert len(ring) >= 4 and ring[0] == ring[-1]
        assert all(len(position) == 2 for position in ring)
        assert all(type(value) in (int, float) for position in ring for value in position)
        twice_area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(ring))
        assert twice_area > 0, "an exterior ring runs clockwise"


def test_qupath_sees_tile_objects_with_class_colour_and_probabilities(tmp_path):
    block = TileBlock(
        np.array([[0.0, 0, 224, 224], [224.5, 0, 449.25, 224]]),
        np.array([[0.25, 0.75], [0.9, 0.1]], dtype=np.float32),
        [UUID(int=1), UUID(int=2)],
        {"tissue": np.array([1.0, 0.5])},
    )
    collection = written(predictions_from(block), tmp_path)
    assert collection["features"][0] == {
        "type": "Feature",
        "id": "00000000-0000-0000-0000-000000000001",
        "geometry": {
            "type": "Polygon",
            "coordinates": [[[0, 0], [224, 0], [224, 224], [0, 224], [0, 0]]],
        },
        "properties": {
            "objectType": "tile",
            "classification": {"name": "STR", "color": [86, 180, 233]},
            "measurements": {"Probability: TUM": 0.25, "Probability: STR": 0.75, "tissue": 1.0},
        },
    }
    second = collection["features"][1]
    assert second["properties"]["classification"]["name"] == "TUM"
    assert second["geometry"]["coordinates"][0][2] == [449.25, 224]


def test_whole_pixels_are_written_as_integers(tmp_path):
    block = TileBlock(
        np.array([[-0.001, 3.0, 200.004, 227.0]]), np.array([[1.0, 0.0]], np.float32), [uuid4()]
    )
    path = tmp_path / "tiles.geojson"
    write_geojson(predictions_from(block), path)
    assert "[[[0,3],[200,3],[200,227],[0,227],[0,3]]]" in path.read_text()


def test_no_tiles_give_an_empty_collection(tmp_path):
    collection = written(predictions_from(), tmp_path)
    check_rfc7946(collection)
    assert collection["features"] == []


def test_blocks_follow_each_other(tmp_path):
    blocks = (tiles(3), tiles(0), tiles(2, first=3), tiles(1, first=5))
    collection = written(predictions_from(*blocks), tmp_path)
    check_rfc7946(collection)
    assert [UUID(f["id"]).int for f in collection["features"]] == list(range(6))


def test_origin_names_model_and_slide_but_no_folder(tmp_path):
    collection = written(predictions_from(tiles(1)), tmp_path)
    assert collection["tiaft"]["model_sha256"] == "ab" * 32
    assert collection["tiaft"]["slide"] == "slide 1.svs"
    assert "Jane" not in json.dumps(collection)


bound = st.floats(0, 200_000, allow_nan=False)
size = st.floats(0.1, 5000, allow_nan=False)
class_name = st.text(min_size=1, max_size=12).filter(
    lambda name: name.strip() and not set(name) & {"\n", "\r", ":"}
)


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(class_name, min_size=1, max_size=4, unique_by=str.strip),
    boxes=st.lists(st.tuples(bound, bound, size, size), max_size=5),
    data=st.data(),
)
def test_any_class_name_and_any_bounds_give_valid_geojson(tmp_path_factory, names, boxes, data):
    bounds = np.array([[x, y, x + w, y + h] for x, y, w, h in boxes]).reshape(-1, 4)
    chance = st.floats(0, 1, width=32)
    rows = st.lists(chance, min_size=len(names), max_size=len(names))
    rows = [data.draw(rows) for _ in boxes]
    probabilities = np.array(rows, dtype=np.float32).reshape(-1, len(names))
    block = TileBlock(bounds, probabilities, [uuid4() for _ in boxes])
    collection = written(predictions_from(block, classes=names), tmp_path_factory.mktemp("geojson"))
    check_rfc7946(collection)
    for feature, box, row in zip(collection["features"], bounds, probabilities, strict=True):
        polygon = shapely.geometry.shape(feature["geometry"])
        assert polygon.is_valid and polygon.exterior.is_ccw
        assert np.allclose(polygon.bounds, box, atol=0.0051, rtol=0)
        properties = feature["properties"]
        assert properties["classification"]["name"] == names[row.argmax()].strip()
        for name, value in zip(names, row, strict=True):
            assert np.float32(properties["measurements"][measurement_name(name)]) == value


def test_numbers_that_json_lacks_are_written_as_qupath_writes_them(tmp_path):
    odd = np.array([np.nan, np.inf, -np.inf, 1e-30])
    collection = written(predictions_from(tiles(4, odd=odd)), tmp_path)
    values = [f["properties"]["measurements"]["odd"] for f in collection["features"]]
    assert values == ["NaN", "Infinity", "-Infinity", 1e-30]


def test_integer_measurements_are_taken(tmp_path):
    collection = written(predictions_from(tiles(2, cells=np.array([3, 4]))), tmp_path)
    assert [f["properties"]["measurements"]["cells"] for f in collection["features"]] == [3, 4]


def test_a_measurement_does_not_overwrite_a_probability(tmp_path):
    block = tiles(2, **{measurement_name("TUM"): np.zeros(2)})
    with pytest.raises(TiaftError, match="a plug-in measures 'Probability: TUM'"):
        write_geojson(predictions_from(block), tmp_path / "tiles.geojson")
    assert not list(tmp_path.iterdir())


def test_colons_make_derived_classes_as_in_qupath(tmp_path):
    collection = written(predictions_from(tiles(9), classes=("Tumor: Positive", "x")), tmp_path)
    classes = [f["properties"]["classification"] for f in collection["features"]]
    assert {"names": ["Tumor", "Positive"], "color": [230, 159, 0]} in classes
    assert path_class("Tumor:Positive") == ("Tumor", "Positive")


@pytest.mark.parametrize("name", ["two\nlines", "two\rlines", "Tumor:", ": Positive", "a::b", " "])
def test_class_names_that_qupath_refuses_are_refused_before_writing(tmp_path, name):
    with pytest.raises(TiaftError, match=r"QuPath takes no class called .*: rename it"):
        write_geojson(predictions_from(tiles(1), classes=("TUM", name)), tmp_path / "t.geojson")
    assert not list(tmp_path.iterdir())


def test_classes_that_qupath_cannot_tell_apart_are_refused():
    with pytest.raises(TiaftError, match="cannot tell the classes 'a: b' and 'a:b ' apart"):
        path_classes(["a: b", "c", "a:b "])


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("a tile without area", {"bounds": np.array([[5.0, 5, 5, 9]])}),
        ("a tile without area", {"bounds": np.array([[0, 0, np.nan, 9]])}),
        ("a probability that is no number", {"probabilities": np.array([[np.nan, 1]])}),
        (r"\(1, 3\) probabilities", {"probabilities": np.ones((1, 3))}),
        ("2 different ids for 1 tiles", {"ids": [UUID(int=1), UUID(int=2)]}),
    ],
)
def test_damaged_blocks_are_refused_and_leave_no_file(tmp_path, fault, change):
    good = tiles(3)
    parts = {"bounds": good.bounds[:1], "probabilities": good.probabilities[:1], "ids": [uuid4()]}
    bad = TileBlock(**(parts | change))
    with pytest.raises(TiaftError, match=rf"slide 1.svs: .*{fault}.* among tiles 3 to 3"):
        write_geojson(predictions_from(good, bad, count=4), tmp_path / "tiles.geojson")
    assert not list(tmp_path.iterdir())


def test_missing_tiles_are_noticed(tmp_path):
    with pytest.raises(TiaftError, match="3 tiles came instead of 5"):
        write_geojson(predictions_from(tiles(3), count=5), tmp_path / "tiles.geojson")


def peak_memory(count: int, folder: Path) -> int:
    def blocks():
        for first in range(0, count, 500):
            yield tiles(500, classes=9, first=first)

    predictions = TilePredictions(
        Path("s.svs"), (10**6, 100), tuple("ABCDEFGHI"), "m", "0", count, blocks
    )
    tracemalloc.start()
    write_geojson(predictions, folder / f"{count}.geojson")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_tiles(tmp_path):
    peak_memory(500, tmp_path)  # what is loaded once
    small, large = peak_memory(1000, tmp_path), peak_memory(10_000, tmp_path)
    assert large < 1.2 * small
    size = (tmp_path / "10000.geojson").stat().st_size
    assert large < size / 2, "the whole file was in memory"


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL on Windows")
def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "tiles.geojson"
    path.write_text("old")
    code = f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_qupath_geojson import tiles, predictions_from, write_geojson
        from tiaft_plugin.engine.predictions import TilePredictions
        def blocks():
            yield tiles(5000)
            os.kill(os.getpid(), signal.SIGKILL)
        write_geojson(TilePredictions(Path("s.svs"), (9, 9), ("A", "B"), "m", "0", 9, blocks),
                      Path({str(path)!r}))
    """
    done = processes.run(textwrap.dedent(code))
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_the_sink_is_registered_and_writes(tmp_path):
    sink = collect("register_sinks")["geojson"]
    assert sink.plugin == "qupath" and sink.options == {"suffix": ".geojson", "target": ""}
    sink.thing(predictions_from(tiles(2)), tmp_path / "a.geojson")
    assert len(strict_json((tmp_path / "a.geojson").read_text())["features"]) == 2

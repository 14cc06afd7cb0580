import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from shapely.geometry import mapping

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.marks import Mark
from tiaft_plugin.qupath.regions import (
    Region,
    Skipped,
    UnusableError,
    iter_regions,
    read_regions,
    regions_to_mask,
    valid_area,
)

SQUARE = shapely.box(100, 100, 300, 200)
BOW_TIE = [[[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]]]


def feature(geometry, name=None, class_name=None, **properties) -> dict:
    geometry = geometry if isinstance(geometry, dict | None) else mapping(geometry)
    properties = {"objectType": "annotation"} | properties
    if name:
        properties["name"] = name
    if class_name:
        properties["classification"] = {"name": class_name, "color": [200, 0, 0]}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def polygon(rings) -> dict:
    return {"type": "Polygon", "coordinates": rings}


def collection(*features) -> dict:
    return {"type": "FeatureCollection", "features": list(features)}


@pytest.fixture
def save(tmp_path):
    def save(content) -> Path:
        path = tmp_path / "regions.geojson"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return save


def test_a_qupath_export_is_read(save):
    export = feature(SQUARE, "border", "Tumor", isLocked=True, measurements={"Area": 3.0})
    (region,) = read_regions(save(collection(export))).found
    assert region == Region(SQUARE, "Tumor", "annotation", "border", locked=True)


@pytest.mark.parametrize(
    "content",
    [
        collection(feature(SQUARE)),
        [feature(SQUARE)],
        feature(SQUARE),
        mapping(SQUARE),
        [collection(feature(SQUARE))],
        feature(shapely.GeometryCollection([SQUARE, shapely.Point(1, 1)])),
        "\ufeff" + json.dumps(feature(SQUARE)),
    ],
)
def test_every_shape_of_geojson_that_qupath_reads_is_read(save, content):
    (region,) = read_regions(save(content)).found
    assert region.geometry.equals(SQUARE) and region.repaired == ""


@pytest.mark.parametrize(
    ("classification", "name"),
    [
        ({"name": "Tumor", "color": [1, 2, 3]}, "Tumor"),
        ({"name": "Tumor", "colorRGB": -3670016}, "Tumor"),
        ({"names": ["Tumor", "Positive"], "color": [1, 2, 3]}, "Tumor: Positive"),
        ("Tumor:Positive", "Tumor: Positive"),
        (None, None),
        ({}, None),
    ],
)
def test_classes_are_named_as_qupath_shows_them(save, classification, name):
    export = feature(SQUARE)
    export["properties"]["classification"] = classification
    assert read_regions(save(export)).found[0].class_name == name


def test_regions_are_chosen_by_class(save):
    path = save(
        collection(
            feature(SQUARE, class_name="Tumor: Positive"),
            feature(SQUARE, class_name="Stroma"),
            feature(shapely.Point(1, 1), class_name="Stroma"),
            feature(SQUARE),
        )
    )
    chosen = read_regions(path, classes=["Tumor:Positive"])
    assert [region.class_name for region in chosen.found] == ["Tumor: Positive"]
    assert chosen.skipped == []
    with pytest.raises(
        TiaftError, match="has no object of class Glass; it has None, Stroma, Tumor: Positive"
    ):
        read_regions(path, classes=["Stroma", "Glass"])


def test_children_of_an_exported_hierarchy_are_read(save):
    child = feature(shapely.box(0, 0, 10, 10), "child")
    parents = collection(feature(SQUARE, "parent", childObjects=[child]), feature(SQUARE, "next"))
    names = [region.name for region in read_regions(save(parents)).found]
    assert names == ["parent", "child", "next"]


def test_one_bad_object_rejects_no_other(save):
    path = save(
        collection(
            feature(shapely.Point(5, 5)),
            feature(SQUARE, "good"),
            feature(shapely.LineString([[0, 0], [9, 9]])),
            feature(None),
            feature(polygon([])),
            feature(polygon([[[0, 0], [1, 1]]])),
            feature(polygon([[[0, 0], [9, 9], [0, 0]]])),
            feature(polygon([[[0, 0], [float("nan"), 5], [9, 9], [0, 0]]])),
            feature(polygon([[[0, 0], ["1", 5], [9, 9], [0, 0]]])),
            feature(polygon([[[0, 0], [10**400, 5], [9, 9], [0, 0]]])),
            feature({"type": "Circle", "coordinates": [1, 1]}),
            feature(SQUARE, objectType="tmaCore", isMissing=True),
            feature(shapely.box(5000, 0, 5100, 100)),
            "no object",
        )
    )
    regions = read_regions(path, slide_size=(1000, 1000))
    assert [region.name for region in regions.found] == ["good"]
    assert regions.skipped == [
        "object 1: it encloses no area (Point)",
        "object 3: it encloses no area (LineString)",
        "object 4: it has no geometry that GeoJSON knows (None)",
        "object 5: its coordinates are empty or no list",
        "object 6: a ring has fewer than three corners",
        "object 7: it encloses no area",
        "object 8: a coordinate is no pixel of a slide",
        "object 9: its coordinates are not all pairs of numbers",
        "object 10: its coordinates are not all pairs of numbers",
        "object 11: it has no geometry that GeoJSON knows (Circle)",
        "object 12: it is a TMA core marked as missing",
        "object 13: it lies outside the slide, 1000 × 1000 pixels",
        "object 14: it is no GeoJSON Feature",
    ]


def test_a_region_that_crosses_itself_is_repaired_and_says_so(save):
    (region,) = read_regions(save(feature(polygon(BOW_TIE)))).found
    assert region.geometry.is_valid and region.geometry.area == 5000
    assert region.repaired == "Self-intersection[50 50]"


def test_overlapping_parts_count_once(save):
    both = shapely.MultiPolygon([shapely.box(0, 0, 10, 10), shapely.box(5, 0, 15, 10)])
    (region,) = read_regions(save(feature(both))).found
    assert region.geometry.is_valid and region.repaired


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no JSON .*: export it from QuPath as GeoJSON, uncompressed"),
        ("[" * 100_000, "is no JSON"),
        ("9" * 5000, "is no JSON"),
        ('"text"', "is no GeoJSON: export the regions"),
        ("{}", "is no GeoJSON"),
        ('{"type": ["Feature"]}', "is no GeoJSON"),
        ('{"type": "FeatureCollection"}', "a FeatureCollection without features"),
        ("[]", "has no region: it is empty; draw areas"),
        ('{"type": "FeatureCollection", "features": []}', "has no region: it is empty"),
        ('{"type": "Point", "coordinates": [1, 2]}', "has no region: object 1: it encloses no"),
    ],
)
def test_files_without_regions_are_refused(save, content, message):
    path = save(content)
    with pytest.raises(TiaftError, match=message) as caught:
        read_regions(path)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(TiaftError, match=r"nowhere.geojson cannot be read: No such file"):
        read_regions(tmp_path / "nowhere.geojson")
    with pytest.raises(TiaftError, match="cannot be read: Is a directory"):
        read_regions(tmp_path)
    (tmp_path / "packed.geojson").write_bytes(b"\x1f\x8b\x08\x00\xff")
    with pytest.raises(TiaftError, match="is no JSON"):
        read_regions(tmp_path / "packed.geojson")


def test_what_only_its_maker_reads_is_there_too(save):
    mark = Mark("mini", "ab" * 32, "grid", "Tumor: Positive")
    numbers = {"Probability: Tumor": 0.5, "Area": 3, "odd": "NaN", "big": 10**40, "no": None}
    tile = feature(SQUARE, "t", "Stroma", objectType="tile", isLocked=True, measurements=numbers)
    tile["id"] = "035c4ea0-d73b-5bde-bd6f-c806b04f2ec3"
    tile["properties"]["metadata"] = mark.metadata() | {"seen by": "me"}
    (region,) = iter_regions(save(tile))
    assert region.mark == mark and region.locked and region.id == tile["id"]
    assert region.measurements == {"Probability: Tumor": 0.5, "Area": 3.0}
    (plain,) = iter_regions(save(feature(SQUARE, measurements=numbers)))
    assert (plain.mark, plain.id, plain.locked, plain.measurements) == (None, None, False, {})


def test_metadata_may_stand_twice_as_qupath_writes_it(save):
    mark = Mark("mini", "cd" * 32, "grid", "Tumor")
    text = json.dumps(feature(SQUARE))[:-2]  # without the braces of properties and Feature
    metadata = json.dumps(mark.metadata())
    twice = f'{text}, "metadata": {metadata}, "childObjects": [], "metadata": {metadata}}}}}'
    assert twice.count('"metadata"') == 2
    (region,) = read_regions(save(twice)).found
    assert region.mark == mark


@pytest.mark.parametrize(
    "metadata",
    [None, [], "text", {"_tiaft": None}, {"_tiaft": 5}, {"_tiaft": "no JSON"}, {"_tiaft": "[1]"},
     {"_tiaft": "{}"}, {"_tiaft": '{"sha256": 1, "grid": "", "class": ""}'}, {"tiaft model": "m"}],
)  # fmt: skip
def test_metadata_of_others_is_no_mark(save, metadata):
    (region,) = read_regions(save(feature(SQUARE, metadata=metadata))).found
    assert region.mark is None


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ({"objectType": "annotation"}, "annotation"),  # 0.4 and later
        ({"object_type": "detection"}, "detection"),  # 0.3
        ({"object_type": "tma_core"}, "tmaCore"),
        ({"id": "PathAnnotationObject"}, "annotation"),  # 0.2
        ({"id": "PathTileObject"}, "tile"),
        ({"id": "PathCellObject", "objectType": "detection"}, "detection"),
        ({"type": "cell"}, "cell"),  # what 0.6 takes for the same
        ({"objectType": "lasso"}, "annotation"),  # and anything else
        ({"objectType": None}, "annotation"),
        ({"objectType": ["tile"]}, "annotation"),
        ({}, "annotation"),
    ],
)
def test_kinds_of_objects_are_known_in_every_dialect(save, members, kind):
    export = feature(SQUARE, "border", "Tumor")
    del export["properties"]["objectType"]
    uuid = members.pop("id", None)
    export |= {"id": uuid} if uuid else {}
    export["properties"] |= members
    (region,) = read_regions(save(export)).found
    assert (region.object_type, region.id) == (kind, None)


def test_measurements_are_read_from_0_3_s_list(save):
    export = feature(SQUARE, metadata=Mark("m", "ab" * 32, "g").metadata())
    export["properties"]["measurements"] = [
        {"name": "Probability: A", "value": 0.25}, {"name": ["no"], "value": 1}, "none",
        {"value": "x"},
    ]  # fmt: skip
    (region,) = read_regions(save(export)).found
    assert region.measurements["Probability: A"] == 0.25


def test_children_are_read_by_both_their_names(save):
    child = feature(shapely.box(0, 0, 10, 10), "child")
    (_, region) = read_regions(save(feature(SQUARE, children=[child]))).found
    assert region.name == "child"


def test_what_is_passed_over_has_no_outline_read(save):
    path = save(collection(feature({"type": "Circle"}, "bad"), feature(SQUARE, "good", "Tumor")))
    asked = []

    def wanted(head) -> bool:
        asked.append((head.name, head.class_name, head.geometry.is_empty))
        return head.name == "good"

    (region,) = iter_regions(path, wanted)
    assert region.name == "good"
    assert asked == [("bad", None, True), ("good", "Tumor", True)]
    bad, _ = iter_regions(path)
    assert isinstance(bad, Skipped) and bad.number == 1 and bad.head.name == "bad"


def test_an_area_is_what_is_left_of_any_shape():
    line = shapely.LineString([[0, 0], [9, 9]])
    area, repaired = valid_area(shapely.GeometryCollection([SQUARE, line]))
    assert area.equals(SQUARE) and repaired == ""
    for shape in (line, shapely.Point(1, 1), shapely.Polygon(), shapely.MultiPolygon()):
        with pytest.raises(UnusableError, match="encloses no area"):
            valid_area(shape)


words = st.sampled_from(
    ["type", "features", "geometry", "geometries", "coordinates", "properties", "classification",
     "names", "name", "childObjects", "objectType", "Feature", "FeatureCollection", "Polygon",
     "MultiPolygon", "Point", "GeometryCollection", "id", "metadata", "measurements", "children",
     "isLocked", "object_type", "tile", "_tiaft", "tiaft model", "PathTileObject"]
)  # fmt: skip
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | words
wild_json = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=25,
)
wild_coordinates = st.recursive(
    st.integers(-9, 9) | st.floats() | st.none(), lambda inner: st.lists(inner, max_size=5)
)
wild_feature = st.fixed_dictionaries(
    {
        "type": st.just("Feature"),
        "geometry": st.fixed_dictionaries(
            {"type": words | st.just("Polygon"), "coordinates": wild_coordinates | wild_json}
        ),
        "properties": wild_json,
    }
)


@settings(max_examples=300, deadline=None)
@given(content=wild_json | wild_feature | st.lists(wild_feature, max_size=3))
def test_wild_json_never_raises_anything_else(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "wild.geojson"
    path.write_text(json.dumps(content))
    try:
        regions = read_regions(path, slide_size=(100, 100))
    except TiaftError:
        return
    assert regions.found
    assert all(region.geometry.is_valid and region.geometry.area for region in regions.found)
    assert regions_to_mask(regions, (100, 100), (10, 10)).any()


marked = st.fixed_dictionaries(
    {"_tiaft": st.just(json.dumps({"sha256": "s", "grid": "g", "class": "c"})) | scalars}
)
wild_properties = st.fixed_dictionaries(
    {},
    optional={
        "metadata": marked | wild_json,
        "measurements": wild_json | st.dictionaries(words, scalars, max_size=3),
        "classification": st.dictionaries(words, scalars | st.lists(scalars), max_size=3) | scalars,
        "objectType": scalars,
        "object_type": scalars,
        "type": scalars,
        "name": wild_json,
        "isLocked": scalars,
        "children": st.lists(wild_feature, max_size=2) | scalars,
    },
)


@settings(max_examples=300, deadline=None)
@given(properties=wild_properties, uuid=scalars | wild_json)
def test_wild_properties_lose_no_area(tmp_path_factory, properties, uuid):
    path = tmp_path_factory.getbasetemp() / "properties.geojson"
    export = {"type": "Feature", "id": uuid, "geometry": mapping(SQUARE), "properties": properties}
    path.write_text(json.dumps(export))
    region = next(iter_regions(path))
    assert isinstance(region, Region) and region.geometry.equals(SQUARE)
    assert region.id is None or isinstance(region.id, str)
    assert region.object_type in {"annotation", "detection", "tile", "cell", "tmaCore", "root"}
    assert all(isinstance(value, float) for value in region.measurements.values())
    assert region.mark is not None or not region.measurements


@settings(max_examples=150, deadline=None)
@given(
    corners=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=3, max_size=12),
    dialect=st.sampled_from(["objectType", "object_type", "type", "id"]),
    nested=st.booleans(),
)
def test_any_outline_in_any_dialect_is_read_or_named(tmp_path_factory, corners, dialect, nested):
    path = tmp_path_factory.getbasetemp() / "outlines.geojson"
    export = feature(polygon([[*corners, corners[0]]]), "a", "Tumor")
    kinds = {"objectType": "tile", "object_type": "tile", "type": "tile", "id": "PathTileObject"}
    del export["properties"]["objectType"]
    (export if dialect == "id" else export["properties"])[dialect] = kinds[dialect]
    parent = feature(SQUARE, "parent", childObjects=[export]) if nested else export
    path.write_text(json.dumps([parent, feature(SQUARE, "last")]))
    things = list(iter_regions(path))
    assert [things[0].name if nested else None, things[-1].name] == [
        "parent" if nested else None,
        "last",
    ]
    found = things[1 if nested else 0]
    if isinstance(found, Skipped):
        assert "encloses no area" in found.reason and found.head.name == "a"
        assert shapely.make_valid(shapely.Polygon(corners)).area == 0
    else:
        assert found.geometry.is_valid and found.geometry.area and found.object_type == "tile"
        assert bool(found.repaired) != shapely.Polygon(corners).is_valid


corner = st.tuples(st.integers(0, 400), st.integers(0, 300))


@settings(max_examples=150, deadline=None)
@given(
    outline=st.lists(corner, min_size=3, max_size=8),
    hole=st.none() | st.tuples(corner, st.integers(1, 80)),
    zoom=st.sampled_from([1, 0.5, 0.21]),
)
def test_the_mask_has_the_area_of_the_polygon(outline, hole, zoom):
    area = shapely.make_valid(shapely.Polygon(outline))
    if hole:
        area = area.difference(shapely.Point(hole[0]).buffer(hole[1]))
    parts = [part for part in shapely.get_parts(area) if part.geom_type == "Polygon"]
    assume(parts)
    area = shapely.MultiPolygon(parts)
    assume(area.is_valid and area.area)
    mask_size = round(400 * zoom), round(300 * zoom)
    mask = regions_to_mask([Region(area)], (400, 300), mask_size)
    assert mask.dtype == bool and mask.shape == mask_size[::-1]
    pixel = 400 / mask_size[0] * 300 / mask_size[1]
    expected, border = area.area / pixel, area.length / np.sqrt(pixel)
    assert expected - 0.1 * border - 2 <= mask.sum() <= expected + border + 4 * len(parts)


def test_holes_stay_open_and_overlaps_stay_filled():
    ring = Region(shapely.box(0, 0, 100, 100) - shapely.box(20, 20, 80, 80))
    alone = regions_to_mask([ring], (100, 100), (50, 50))
    assert not alone[12:38, 12:38].any() and alone[:9].all() and alone[:, 42:].all()
    over = Region(shapely.box(0, 0, 60, 100))
    both = regions_to_mask([ring, over], (100, 100), (50, 50))
    assert both[:, :29].all() and not both[12:38, 32:38].any()


@pytest.mark.parametrize("x", [0, 500, 999, 999.99])
def test_no_region_is_too_thin_for_the_mask(x):
    thin = Region(shapely.box(x, 10, x + 1, 900))
    mask = regions_to_mask([thin], (1000, 1000), (31, 31))
    assert mask[1:27].any(axis=1).all(), "the line has gaps"
    dot = Region(shapely.box(x, x, x + 0.001, x + 0.001))
    assert regions_to_mask([dot], (1000, 1000), (31, 31)).any()


def test_only_what_lies_on_the_slide_is_drawn():
    beyond = Region(shapely.box(-(2**30), -50, 50, 2**30))
    mask = regions_to_mask([beyond], (100, 100), (100, 100))
    assert mask[:, :50].all() and not mask[:, 52:].any()
    with pytest.raises(TiaftError, match=r"none of 1 regions lies on the slide \(100 × 100"):
        regions_to_mask([Region(shapely.box(200, 0, 300, 100))], (100, 100), (10, 10))


def test_tiatoolbox_takes_the_mask(data):
    from tiatoolbox.tools.patchextraction import SlidingWindowPatchExtractor

    slide = data / "slides" / "CMU-1-Small-Region.svs"
    region = Region(shapely.box(500, 1000, 1500, 2000))
    mask = regions_to_mask([region], (2220, 2967), (278, 371))
    extractor = SlidingWindowPatchExtractor(
        slide, patch_size=(100, 100), resolution=0, units="level", input_mask=mask,
        min_mask_ratio=0.9,
    )  # fmt: skip
    tiles = shapely.union_all(shapely.box(*np.asarray(extractor.coordinate_list).T))
    assert tiles.intersection(region.geometry).area / tiles.union(region.geometry).area > 0.9

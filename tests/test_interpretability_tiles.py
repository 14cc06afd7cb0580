"""Labelled tiles out of annotated slides: ASAP's XML above all, and tissue without annotation."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import shapely
from conftest import tiaft, write_slide
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import mapping

from tiaft_extensions.interpretability.annotated.asap import read_asap
from tiaft_extensions.interpretability.annotated.cut import areas_of, cut_annotated
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.pulling.asked import How
from tiaft_plugin.qupath.pulling.labels import Labels
from tiaft_plugin.tiles.tileset import read_tileset

BOX = [(0, 0), (128, 0), (128, 128), (0, 128)]
INNER = [(32, 32), (96, 32), (96, 96), (32, 96)]


def annotation(corners, group="Tumor", name="_0", kind="Polygon", comma=False) -> str:
    number = str if not comma else lambda value: str(float(value)).replace(".", ",")
    rows = "".join(
        f'<Coordinate Order="{order}" X="{number(x)}" Y="{number(y)}" />'
        for order, (x, y) in reversed(list(enumerate(corners)))
    )
    return (
        f'<Annotation Name="{name}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
        f"<Coordinates>{rows}</Coordinates></Annotation>"
    )


def save(path: Path, *annotations: str) -> Path:
    path.write_text(
        '<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>' + "".join(annotations)
        + '</Annotations><AnnotationGroups><Group Name="Tumor" PartOfGroup="None" '
        'Color="#64FE2E"><Attributes /></Group></AnnotationGroups></ASAP_Annotations>'
    )  # fmt: skip
    return path


def rows_of(out: Path) -> list[dict]:
    with (out / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def place(tmp_path, slide) -> Path:
    """A folder with a slide, 512×512 px at 1 µm/px; its right third is glass."""
    shutil.copy(slide, tmp_path / "tumor_001.tiff")
    return tmp_path


HOW = How(32, 1.0)


def cut(place: Path, xml: Path, how: How = HOW, **options):
    return cut_annotated(place / "tumor_001.tiff", xml, place / "tiles", how, **options)


def test_camelyons_groups_become_tumor_and_normal(place):
    xml = save(place / "tumor_001.xml", annotation(BOX, "_0"), annotation(INNER, "_2", "_1"))
    (result,) = cut(place, xml)
    assert result.counts == {"normal": 4, "tumor": 12}
    found = {(row["x"], row["y"]): row["label"] for row in rows_of(place / "tiles")}
    assert found["32.00", "32.00"] == found["64.00", "64.00"] == "normal"
    assert found["0.00", "0.00"] == found["96.00", "96.00"] == "tumor"
    tiles = read_tileset(place / "tiles")
    assert (tiles.tile_size, tiles.mpp, len(tiles)) == (32, 1.0, 16)
    assert set(tiles.groups) == {"tumor_001.tiff"}


def test_tiles_are_the_slides_own_pixels(place):
    from PIL import Image
    from skimage.data import immunohistochemistry

    cut(place, save(place / "tumor_001.xml", annotation(BOX)))
    row = next(
        row for row in rows_of(place / "tiles") if (row["x"], row["y"]) == ("64.00", "32.00")
    )
    pixels = np.asarray(Image.open(place / "tiles" / row["file"]))
    np.testing.assert_array_equal(pixels, immunohistochemistry()[32:64, 64:96])


def test_what_is_excluded_gives_no_tile_and_lies_over_the_rest(place):
    xml = save(place / "a.xml", annotation(BOX), annotation(INNER, "Exclusion", "_1"))
    (result,) = cut(place, xml)
    assert result.counts == {"tumor": 12}
    assert any("Exclusion*: not wanted as a label" in note for note in result.notes)


def test_tissue_without_annotation_gets_the_label_of_the_rest(place):
    xml = save(place / "tumor_001.xml", annotation(BOX, "metastases"))
    (result,) = cut(place, xml, rest="normal")
    rows = rows_of(place / "tiles")
    assert result.counts["tumor"] == 16 and result.counts["normal"] > 60
    normal = [(float(r["x"]), float(r["y"])) for r in rows if r["label"] == "normal"]
    assert max(x for x, _ in normal) < 340, "glass is no tissue"
    assert all(x >= 128 or y >= 128 for x, y in normal)


def test_slides_without_a_file_are_all_rest_or_named(place):
    shutil.copy(place / "tumor_001.tiff", place / "normal_001.tiff")
    (place / "xml").mkdir()
    save(place / "xml" / "tumor_001.xml", annotation(BOX))
    tumor, normal = cut_annotated(place, place / "xml", place / "tiles", HOW)
    assert tumor.counts == {"tumor": 16} and not normal.counts and not normal.reason
    assert normal.slide == "normal_001.tiff" and "--rest NAME" in normal.notes[0]
    results = cut_annotated(
        place, place / "xml", place / "tiles", HOW, rest="normal", overwrite=True
    )
    counts = {result.slide: result.counts for result in results}
    assert list(counts["normal_001.tiff"]) == ["normal"]
    assert counts["normal_001.tiff"]["normal"] > counts["tumor_001.tiff"]["normal"]


def test_a_slide_whose_annotations_cannot_be_read_is_not_all_rest(place):
    shutil.copy(place / "tumor_001.tiff", place / "tumor_002.tiff")
    (place / "xml").mkdir()
    save(place / "xml" / "tumor_001.xml", annotation(BOX))
    (place / "xml" / "tumor_002.xml").write_text("<ASAP_Annotations><Annot")
    results = cut_annotated(place, place / "xml", place / "tiles", HOW, rest="normal")
    assert {row["slide"] for row in rows_of(place / "tiles")} == {"tumor_001.tiff"}
    assert "tumor_002.xml is no XML" in results[-1].reason
    # A file whose slide is not known may be anybody's.
    (place / "xml" / "tumor_002.xml").rename(place / "xml" / "tumour_002.xml")
    results = cut_annotated(
        place, place / "xml", place / "tiles", HOW, rest="normal", overwrite=True
    )
    assert {row["slide"] for row in rows_of(place / "tiles")} == {"tumor_001.tiff"}
    assert "tumour_002.xml: no slide of that name" in results[-1].reason


def test_geojson_gives_the_same_tiles_as_xml(place):
    cut(place, save(place / "tumor_001.xml", annotation(BOX), annotation(INNER, "_2", "_1")))
    before = rows_of(place / "tiles")
    features = [
        {"type": "Feature", "geometry": mapping(shapely.Polygon(corners)),
         "properties": {"objectType": "annotation", "classification": {"name": name}}}
        for corners, name in ((BOX, "tumor"), (INNER, "normal"))
    ]  # fmt: skip
    geojson = place / "drawn.geojson"
    geojson.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    cut(place, geojson, overwrite=True)
    places = [
        [(r["file"], r["label"]) for r in rows] for rows in (before, rows_of(place / "tiles"))
    ]
    assert sorted(places[0]) == sorted(places[1])


def test_classes_are_renamed_and_chosen(place):
    xml = save(place / "a.xml", annotation(BOX, "ITC"), annotation(INNER, "_2", "_1"))
    (result,) = cut(place, xml, How(32, 1.0, labels=Labels({"ITC": "cells"}, {"cells"})))
    assert result.counts == {"cells": 12}


def test_corners_come_in_their_order_and_with_decimal_commas(tmp_path):
    star = [(0, 0), (10.5, 2), (20, 0), (18, 10.25), (20, 20), (0, 20)]
    plain, notes = read_asap(save(tmp_path / "a.xml", annotation(star)))
    comma, _ = read_asap(save(tmp_path / "b.xml", annotation(star, comma=True)))
    assert plain[0].geometry.equals(shapely.Polygon(star)) and not notes
    assert comma[0].geometry.equals(plain[0].geometry)


def test_what_is_no_area_is_left_out_with_its_reason(tmp_path):
    regions, notes = read_asap(
        save(
            tmp_path / "a.xml",
            annotation(BOX, name="good"),
            annotation(BOX[:1], kind="Dot", name="dot"),
            annotation(BOX, group="None"),
            annotation(BOX[:2], name="line"),
            annotation([(0, 0), (10, 10), (10, 0), (0, 10)], name="bow tie"),
            annotation([("nan", 0), (1, 1), (2, 0)], name="odd"),
            annotation([("", 0), (1, 1), (2, 0)], name="empty"),
        )
    )
    assert [region.id for region in regions] == ["good", "bow tie"]
    assert notes == [
        "line left out: it has fewer than three corners",
        "bow tie repaired: Self-intersection[5 5]",
        "odd left out: a coordinate is no pixel of a slide",
        "empty left out: its coordinates are not all pairs of numbers",
        "1 left out of type Dot, no area",
        "1 left out without a group, which would be its class",
    ]


@settings(deadline=None, max_examples=60)
@given(text=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_any_bytes_are_read_or_refused_in_one_line(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("wild") / "a.xml"
    path.write_bytes(text)
    with pytest.raises(TiaftError, match="a.xml is no"):
        read_asap(path)


def test_another_xml_is_refused(tmp_path):
    (tmp_path / "a.xml").write_text('<Annotations MicronsPerPixel="0.25"></Annotations>')
    with pytest.raises(TiaftError, match=r"no annotation file of ASAP \(it begins with <Annotat"):
        read_asap(tmp_path / "a.xml")


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**20 - 1), st.integers(1, 5))
def test_a_masks_area_is_that_of_its_pixels(bits, rows):
    mask = np.array([bits >> i & 1 for i in range(20)], bool)[: 4 * rows].reshape(rows, 4)
    area = areas_of(mask)
    assert area.area == mask.sum()
    for y, x in np.argwhere(mask):
        assert area.covers(shapely.Point(x + 0.5, y + 0.5))


def test_the_command(place):
    xml = save(place / "tumor_001.xml", annotation(BOX))
    command = (
        "interpret", "tiles", place / "tumor_001.tiff", xml, "--out", place / "tiles",
        "--tile-size", 32, "--mpp", 1,
    )  # fmt: skip
    done = tiaft(*command, "--rest", "normal")
    assert done.returncode == 0, done.stderr
    assert "tumor 16" in done.stdout and "normal" in done.stdout
    refused = tiaft(*command)
    assert refused.returncode == 2 and "exists already" in refused.stderr
    dry = tiaft(*command, "--dry-run")
    assert "16 tiles (tumor 16) would be cut" in dry.stdout
    assert "takes two classes or more" in dry.stdout
    missing = tiaft(*command[:-1], 1, "--classes", "stroma", "--overwrite")
    assert missing.returncode == 2 and "there are: tumor" in missing.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empty", "holds neither ASAP's XML (.xml) nor GeoJSON (.geojson)"),
        ("a.txt", "is neither ASAP's XML (.xml) nor GeoJSON"),
        ("other.xml", "nobody drew an annotation with a class"),
    ],
)
def test_wrong_annotations_are_refused(place, name, said):
    (place / "empty").mkdir()
    (place / "a.txt").touch()
    save(place / "other.xml")
    done = tiaft(
        "interpret", "tiles", place / "tumor_001.tiff", place / name, "--out", place / "tiles",
        "--mpp", 1,
    )  # fmt: skip
    assert done.returncode == 2 and said in done.stderr.replace("\n", " ")
    assert not (place / "tiles").exists()


def test_a_slide_without_resolution_says_what_to_do(tmp_path):
    write_slide(tmp_path / "a.ome.tiff", np.full((64, 64, 3), 150, np.uint8), mpp=None)
    xml = save(tmp_path / "a.xml", annotation(BOX))
    done = tiaft(
        "interpret", "tiles", tmp_path / "a.ome.tiff", xml, "--out", tmp_path / "t", "--mpp", 1,
        "--tile-size", 32, "--rest", "normal",
    )  # fmt: skip
    assert done.returncode == 2 and "pass it with --slide-mpp" in done.stderr

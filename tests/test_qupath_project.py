"""QuPath's project files, read and changed without Java."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.qupath.project import project_file
from tiaft_plugin.qupath.project.exact_json import edited_json
from tiaft_plugin.qupath.project.places import mapped, moved_along, path_text, read_moves
from tiaft_plugin.qupath.project.project_file import (
    add_entries,
    check_writable,
    extend_classes,
    packed,
    project_lock,
    read_project,
    refuse_changed,
    refuse_half_saved,
    running_qupath,
    set_image_metadata,
    take_snapshot,
)
from tiaft_plugin.qupath.project.server import read_server

MICRONS = {"unit": "µm", "value": 0.25}


def metadata(width: int = 400, height: int = 300, mpp: tuple[float, float] = (0.25, 0.5)) -> dict:
    return {
        "name": "slide.svs",
        "width": width,
        "height": height,
        "pixelCalibration": {
            "pixelWidth": {"value": mpp[0], "unit": "µm"},
            "pixelHeight": {"value": mpp[1], "unit": "µm"},
        },
        "magnification": 20.0,
    }


def opened(uri: str = "file:///slides/slide.svs", args: tuple = (), **facts) -> dict:
    """A builder of an image straight from a file, as QuPath writes it."""
    builder = {
        "builderType": "uri",
        "providerClassName": "qupath.lib.images.servers.openslide.OpenslideServerBuilder",
        "uri": uri,
        "args": list(args),
    }
    return {**builder, "metadata": metadata(**facts)}


def around(kind: str, builder: dict, **members) -> dict:
    return {"builderType": kind, "builder": builder, **members}


def image(entry_id: int = 1, builder: dict | None = None, **members) -> dict:
    return {
        "serverBuilder": builder or opened(),
        "entryID": entry_id,
        "randomizedName": "8d0ff56f",
        "imageName": f"image {entry_id}",
        "metadata": {},
        "tags": [],
        **members,
    }


def write_project(folder: Path, *images: dict, **members) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "version": "0.6.0",
        "createTimestamp": 1700000000000,
        "modifyTimestamp": 1700000000001,
        "uri": (folder / "project.qpproj").as_uri(),
        "lastID": len(images),
        "images": list(images),
        **members,
    }
    content = {name: value for name, value in content.items() if value is not ...}
    path = folder / "project.qpproj"
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
    return path


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def project(tmp_path) -> Path:
    return write_project(tmp_path / "p", image(1), image(2))


def write_classes(project: Path, *classes: dict) -> Path:
    path = project.parent / "classifiers" / "classes.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"pathClasses": classes}))
    return path


def test_a_project_is_read_from_its_folder_or_its_file(project):
    write_classes(project, {"name": "Tumor", "color": -3670016})
    for found in (read_project(project.parent), read_project(str(project))):
        assert found.path == project
        assert found.version == "0.6.0"
        assert found.classes == (("Tumor", -3670016),)  # what QuPath writes for 200, 0, 0
        entry = found.images[1]
        assert (entry.name, entry.size, entry.mpp) == ("image 2", (400, 300), (0.25, 0.5))
        assert (entry.rotation, entry.kind, entry.odd) == (0, "uri", "")
        assert entry.data == project.parent / "data/2/data.qpdata"
        assert entry.path == Path("/slides/slide.svs")
        assert entry.file_name == "slide.svs"


def test_another_name_of_a_project_file_is_found_and_several_are_named(project):
    project.rename(project.with_name("lung.qpproj"))
    project.with_name(".project-1234.qpproj").touch()  # what a killed run left
    assert read_project(project.parent).path.name == "lung.qpproj"
    shutil.copy(project.with_name("lung.qpproj"), project.with_name("liver.qpproj"))
    with pytest.raises(TiaftError, match=r"holds 2 projects \(liver.qpproj, lung.qpproj\): name"):
        read_project(project.parent)


def test_what_is_no_project_is_refused_with_the_reason(tmp_path, project):
    with pytest.raises(TiaftError, match=r"nowhere: no such folder$"):
        read_project(tmp_path / "nowhere" / "project.qpproj")
    with pytest.raises(TiaftError, match=r"nowhere: no such folder$"):
        read_project(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TiaftError, match=r"empty is no QuPath project: there is no project.qpproj"):
        read_project(tmp_path / "empty")
    (tmp_path / "slide.svs").touch()
    with pytest.raises(
        TiaftError, match=r"slide.svs is no QuPath project: name its folder, or the"
    ):
        read_project(tmp_path / "slide.svs")


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "it is empty"),
        (b'{\n  "version": "0.6.0",\n', r"it is no whole JSON \(Expecting"),
        (b"<project/>", r"it is no whole JSON \("),
        (b"[" * 100_000, r"it is no whole JSON \("),
        (b"\xff\xfe{}", "it is no text in UTF-8"),
        (b"[]", "it holds no JSON object"),
    ],
)
def test_a_damaged_file_is_named(project, content, reason):
    project.write_bytes(content)
    with pytest.raises(TiaftError, match=rf"project\.qpproj is no QuPath project: {reason}"):
        read_project(project)
    with pytest.raises(TiaftError, match=r"project\.qpproj is no QuPath project"):
        set_image_metadata(project, 1, {"a": "b"})
    assert project.read_bytes() == content


def test_a_project_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "project.qpproj").mkdir()
    with pytest.raises(TiaftError, match=r"project\.qpproj cannot be read: Is a directory"):
        read_project(tmp_path)


def test_what_qupath_left_when_it_was_killed_is_named(project):
    """It writes .tmp, moves the old file to .backup, then renames .tmp."""
    backup, new = (project.with_name(f"project.qpproj{end}") for end in (".backup", ".tmp"))
    project.rename(backup)
    renaming = r"project.qpproj is missing, and project.qpproj{} is there: QuPath was stopped .*; "
    with pytest.raises(TiaftError, match=renaming.format(".backup") + "rename project.qpproj.back"):
        read_project(project.parent)
    shutil.copy(backup, new)
    with pytest.raises(TiaftError, match=renaming.format(".tmp") + "rename project.qpproj.tmp to"):
        read_project(project)
    new.write_text('{"version": ')  # half of it: what is older is whole
    with pytest.raises(TiaftError, match=renaming.format(".backup")):
        read_project(project)
    other = project.parent.with_name("other")
    other.mkdir()
    shutil.copy(backup, other / "lung.qpproj.backup")
    with pytest.raises(
        TiaftError, match=r"lung.qpproj is missing, and lung.qpproj.backup is there"
    ):
        read_project(other)
    project.write_text("")
    with pytest.raises(TiaftError, match=r"it is empty; project.qpproj.backup beside it is whole"):
        read_project(project)


@pytest.mark.parametrize(
    "members, text",
    [
        ({"version": "v0.2.0-m2"}, r"is of QuPath v0.2.0-m2, which later ones do not read: make"),
        ({"version": ..., "lastID": ...}, r"is of QuPath 0.1, which later ones do not read"),
        ({"images": {}}, r"\(version 0.6.0\): its images are no list, as in no version that this"),
        ({"version": "2.0", "images": "a.json"}, r"\(version 2.0\): its images are no list"),
        ({"images": [{}]}, r"is damaged: image 1 of its list has no id$"),
        ({"images": [image(1), None]}, r"is damaged: image 2 of its list has no id$"),
        ({"images": [image(-1)]}, r"is damaged: image 1 of its list has no id$"),
        ({"images": [image(True)]}, r"is damaged: image 1 of its list has no id$"),
        (
            {"images": [image(3), image(3, imageName="b")]},
            r"'image 3' and 'b' have the same id, 3: they would share one data file",
        ),
    ],
)
def test_a_project_that_cannot_be_right_is_refused(tmp_path, members, text):
    with pytest.raises(TiaftError, match=text):
        read_project(write_project(tmp_path, **members))


def test_a_version_from_the_future_is_read_as_long_as_its_members_are_known(tmp_path):
    path = write_project(tmp_path, image(1, newThing={"a": 1}), version="1.3.0", newer=[None])
    assert read_project(path).version == "1.3.0"
    set_image_metadata(path, 1, {"a": "b"})
    assert read(path)["newer"] == [None] and read(path)["images"][0]["newThing"] == {"a": 1}


def test_a_project_without_images_is_read(tmp_path):
    for members in ({}, {"images": ...}, {"images": None}):
        assert read_project(write_project(tmp_path, **members)).images == ()


def test_an_image_that_says_next_to_nothing_is_kept(tmp_path):
    entry = read_project(write_project(tmp_path, {"entryID": 4})).images[0]
    assert (entry.name, entry.uris, entry.size, entry.path) == ("Image 4", (), None, None)
    assert (entry.file_name, entry.odd, entry.metadata) == ("Image 4", "no image", {})


def test_a_size_that_the_project_lacks_stands_in_the_summary(tmp_path):
    builder = {name: value for name, value in opened().items() if name != "metadata"}
    path = write_project(tmp_path, image(1, builder))
    assert read_project(path).images[0].size is None
    summary = tmp_path / "data/1/summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text('{"server": {"width": 7, "height": 5, "sizeC": 3}}')
    assert read_project(path).images[0].size == (7, 5)
    summary.write_text("{")
    assert read_project(path).images[0].size is None


def test_metadata_are_read_as_qupath_reads_them(tmp_path):
    given_ = {"a": "ä: b\n", "n": 1.5, "yes": True, "none": None, "list": [1]}
    path = write_project(tmp_path, image(1, metadata=given_))
    assert read_project(path).images[0].metadata == {"a": "ä: b\n", "n": "1.5", "yes": "true"}


# What QuPath makes of an image ------------------------------------------------------------------


def test_a_turned_image_has_the_outer_size_and_the_file_s_name():
    inner = opened(args=("--series", "1"))
    server = read_server(
        around("rotated", inner, rotation="ROTATE_90", metadata=metadata(300, 400, (0.5, 0.25)))
    )
    assert (server.kind, server.rotation, server.size) == ("rotated", 90, (300, 400))
    assert (server.mpp, server.odd) == ((0.5, 0.25), "")
    assert (server.uris, server.args) == (("file:///slides/slide.svs",), ("--series", "1"))


def test_a_turned_image_without_metadata_of_its_own_turns_the_file_s():
    """As QuPath's import dialogue makes it: ``getRotatedBuilder`` gives none."""
    server = read_server(around("rotated", opened(), rotation="ROTATE_270"))
    assert (server.rotation, server.size, server.mpp) == (270, (300, 400), (0.5, 0.25))
    twice = read_server(around("rotated", around("rotated", opened(), rotation="ROTATE_270"),
                               rotation="ROTATE_180"))  # fmt: skip
    assert (twice.rotation, twice.size, twice.mpp) == (90, (300, 400), (0.5, 0.25))
    none = read_server(around("rotated", opened(), rotation="ROTATE_NONE"))
    assert (none.rotation, none.size, none.odd) == (0, (400, 300), "")


def region(x: int, y: int, width: int, height: int) -> dict:
    return {"x": x, "y": y, "width": width, "height": height, "z": 0, "t": 0}


def test_crops_add_up_before_and_after_a_turn():
    crop = around("cropped", opened(), region=region(50, 20, 200, 100))
    server = read_server(around("cropped", crop, region=region(5, 2, 20, 10)))
    assert (server.crop, server.size) == ((55, 22, 20, 10), (20, 10))
    assert (server.base_size, server.odd) == ((400, 300), "")
    turned = around("rotated", crop, rotation="ROTATE_90")  # 100 × 200 now
    server = read_server(around("cropped", turned, region=region(0, 0, 10, 20)))
    # Clockwise: what is above left was below left.
    assert (server.crop, server.size) == ((50, 110, 20, 10), (10, 20))


@pytest.mark.parametrize("kind", ["pyramidize", "color_deconvolved", "typeConvert", "swapRedBlue"])
def test_what_changes_colours_alone_changes_no_place(kind):
    server = read_server(around(kind, opened(), metadata=metadata()))
    assert (server.kind, server.size, server.odd) == (kind, (400, 300), "")


def test_what_moves_pixels_in_another_way_is_odd():
    matrix = {"m00": 1.0, "m10": 0.1, "m01": 0.0, "m11": 1.0, "m02": 0.0, "m12": 0.0}
    affine = around("affine", opened(), transform=matrix, metadata=metadata(500, 600))
    assert (read_server(affine).odd, read_server(affine).size) == ("affine", (500, 600))
    assert read_server(around("pyramidize", affine)).odd == "affine"
    part = {"serverBuilder": opened("file:/a.svs"), "downsample": 1.0}
    sparse = {
        "builderType": "sparse",
        "regions": [
            {"region": region(0, 0, 5, 5), "resolutions": [part]},
            {
                "region": region(5, 0, 5, 5),
                "resolutions": [{**part, "serverBuilder": opened("file:/b.svs")}],
            },
        ],
    }
    server = read_server(sparse)
    assert (server.odd, server.uris) == ("sparse", ("file:/a.svs", "file:/b.svs"))
    assert read_server(around("fromTheFuture", opened())).odd == "fromTheFuture"
    assert read_server(around("rotated", opened(), rotation="ROTATE_45")).odd == "rotated"
    assert read_server(around("cropped", opened(), region={"x": 0})).odd == "cropped"
    assert read_server(opened(args=("--rotate", "ROTATE_90"))).odd == "uri with --rotate"
    assert read_server(None).odd == "no image"


def test_channels_of_several_files_lie_where_the_first_lies():
    channels = [opened("file:/dapi.tif"), opened("file:/cd8.tif")]
    server = read_server(around("channels", channels[0], channels=channels, metadata=metadata()))
    assert (server.uris, server.odd) == (("file:/dapi.tif", "file:/cd8.tif"), "")
    stacked = {"builderType": "z_concatenated", "builders": channels}
    server = read_server(stacked)
    assert (server.uris, server.size) == (("file:/dapi.tif", "file:/cd8.tif"), (400, 300))
    assert server.odd == ""


def test_micrometres_are_read_and_other_units_are_not():
    builder = opened()
    builder["metadata"]["pixelCalibration"] = {
        "pixelWidth": {"value": 1.0, "unit": "px"},
        "pixelHeight": {"value": 1.0, "unit": "px"},
    }
    assert read_server(builder).mpp is None
    builder["metadata"]["pixelCalibration"]["pixelWidth"] = {"value": float("nan"), "unit": "µm"}
    assert read_server(builder).mpp is None


# Where files lie --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri, path",
    [
        ("file:/a/b%20c.svs", "/a/b c.svs"),
        ("file:///a/%C3%A4%231.svs", "/a/ä#1.svs"),
        ("file:///a/b.svs#series=1", "/a/b.svs"),
        ("file:///a/b.svs?name=x", "/a/b.svs"),
        ("file://localhost/a/b.svs", "/a/b.svs"),
        ("file:/C:/My%20Slides/b.svs", "C:/My Slides/b.svs"),
        ("file:///d:/b.svs", "d:/b.svs"),
        ("file://server/share/b.svs", "//server/share/b.svs"),
        ("file:////server/share/b.svs", "//server/share/b.svs"),
        ("https://omero.org/webclient/img_detail/1/", None),
        ("relative.svs", None),
        ("file:", None),
        ("http://[broken", None),
        ("", None),
    ],
)
def test_uris_of_every_machine_become_paths(uri, path):
    assert path_text(uri) == path


def test_an_image_that_moved_with_its_project_is_found(tmp_path):
    """QuPath keeps the old place: ``../slides`` is where it was, seen from there."""
    new = tmp_path / "new"
    slide = new / "slides" / "ä b.svs"
    slide.parent.mkdir(parents=True)
    slide.touch()
    write_project(
        new / "project",
        image(1, opened("file:/D:/study/slides/%C3%A4%20b.svs")),
        image(2, opened("file:/E:/study/slides/%C3%A4%20b.svs")),
        image(3, opened("file:/D:/study/slides/gone.svs")),
        image(4, opened("file:/study/slides/%C3%A4%20b.svs")),
        uri="file:/D:/study/project/project.qpproj",
    )
    first, other_drive, gone, other_system = read_project(new / "project").images
    assert first.path == slide
    assert other_drive.path == Path("E:/study/slides/ä b.svs")
    assert gone.path == Path("D:/study/slides/gone.svs")
    assert other_system.path == Path("/study/slides/ä b.svs")


def test_an_image_that_is_where_it_was_is_not_looked_for_elsewhere(tmp_path):
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.svs").touch()
    old = tmp_path / "old"
    path = write_project(
        tmp_path / "new",
        image(1, opened((old / "a.svs").as_uri())),
        uri=(old / "project.qpproj").as_uri(),
    )
    assert read_project(path).images[0].path == old / "a.svs"
    (old / "a.svs").unlink()
    assert read_project(path).images[0].path == tmp_path / "new" / "a.svs"


def test_moved_along():
    assert moved_along("/a/slides/x.svs", "/a/p", "/b/p") == "/b/slides/x.svs"
    assert moved_along("c:\\A\\x.svs", "C:/a/p", "/b/p") == "/b/x.svs"
    assert moved_along("D:/x.svs", "C:/p", "/b") is None
    assert moved_along("/x.svs", "C:/p", "/b") is None
    assert moved_along("C:/x.svs", "/p", "/b") is None


@pytest.mark.parametrize(
    "path, old, new, result",
    [
        ("/data/a/x.svs", "/data/a", "/mnt", "/mnt/x.svs"),
        ("/data/ab/x.svs", "/data/a", "/mnt", None),
        ("/data/a/x.svs", "/data/a/", "/mnt/", "/mnt/x.svs"),
        ("/data/A/x.svs", "/data/a", "/mnt", None),
        ("/data/a/x.svs", "/", "/mnt", "/mnt/data/a/x.svs"),
        ("/data/a/x.svs", "/data/a/x.svs", "/mnt/y.svs", "/mnt/y.svs"),
        ("/data/x.svs", "/data", "/", "/x.svs"),
        ("C:/Slides/Sub/X.svs", "c:\\slides", "/mnt", "/mnt/Sub/X.svs"),
        ("C:/Slides/X.svs", "C:", "/mnt", "/mnt/Slides/X.svs"),
        ("//server/share/a/X.svs", "\\\\server\\share", "/mnt", "/mnt/a/X.svs"),
        ("/data/a/X.svs", "/data", "D:\\slides", "D:\\slides\\a\\X.svs"),
        ("/c:/x.svs", "/mnt", "/data", None),
    ],
)
def test_a_map_replaces_whole_folders(path, old, new, result):
    assert mapped(path, [(old, new)]) == result


def test_the_first_map_that_fits_is_taken():
    moves = read_moves(["/a/b=/x", "/a=/y", "C:\\a=/z=1"])
    assert moves == [("/a/b", "/x"), ("/a", "/y"), ("C:\\a", "/z=1")]
    assert mapped("/a/b/c", moves) == "/x/c"
    assert mapped("/a/c", moves) == "/y/c"
    for wrong in ("/a", "=/a", "/a=", ""):
        with pytest.raises(TiaftError, match=r"--map '.*': give it as OLD=NEW, the folder in the"):
            read_moves([wrong])


# Changing a project ------------------------------------------------------------------------------

# What QuPath's Gson writes and reads: leniently, and with numbers of Java's.
ODD = r"""{
  "version": "0.6.0",
  "createTimestamp": 1700000000000,
  "modifyTimestamp": 1,
  "uri": "file:/a/project.qpproj",
  "lastID": 1,
  "exact": [1.0, 1E400, -0, -0.0, 1e-7, 0.10000000000000000000001, 123456789012345678901234],
  "special": [NaN, Infinity, -Infinity],
  "text": "ä\ud83d\ude00 \ud800 \u0000 \\ \" <>&'= 1E400",
  "images": [
    {
      "serverBuilder": {
        "builderType": "uri",
        "uri": "file:/a/b.svs",
        "args": [],
        "metadata": {
          "magnification": NaN,
          "pixelWidth": 0.25000
        }
      },
      "entryID": 1,
      "imageName": "b",
      "metadata": {
        "old": "1",
        "gone": "2"
      },
      "tags": []
    }
  ],
  "later": {
    "unknown": null
  }
}"""


def test_what_is_not_changed_stays_to_the_digit(tmp_path):
    path = tmp_path / "project.qpproj"
    path.write_text(ODD)
    before = time.time() * 1000
    set_image_metadata(path, 1, {"new": "ü: 1", "old": "3"}, remove=["gone", "never there"])
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    assert content["images"][0]["metadata"] == {"old": "3", "new": "ü: 1"}
    assert content["modifyTimestamp"] >= int(before)
    for kept in (
        "1.0,", "1E400,", "-0,", "-0.0,", "1e-7,", "0.10000000000000000000001,",
        "123456789012345678901234\n", "NaN,", "Infinity,", "-Infinity\n", "0.25000\n",
    ):  # fmt: skip
        assert f" {kept}" in text, kept
    was = json.loads(ODD)
    assert content["text"] == was["text"]
    for one in (was, content):
        one.pop("modifyTimestamp")
        one["images"][0].pop("metadata")
        one.pop("special")
        one["images"][0]["serverBuilder"]["metadata"].pop("magnification")
    assert content == was
    assert list(content) == list(was)


def test_a_file_of_qupath_s_is_written_as_it_was(tmp_path):
    """Two spaces, no escapes but JSON's own, no line break at the end: nothing to see in a diff."""
    path = write_project(tmp_path, image(1, metadata={"é": "µ"}), image(2))
    was = path.read_bytes()
    with edited_json(path, "QuPath project"):
        pass
    assert path.read_bytes() == was


NUMBERS = st.one_of(
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.sampled_from([-0.0, 1e308, 5e-324]),
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["builderType", "builder", "builders", "channels", "regions", "resolutions", "serverBuilder",
     "uri", "args", "metadata", "width", "height", "rotation", "region", "x", "y",
     "pixelCalibration", "pixelWidth", "pixelHeight", "value", "unit"]
)  # fmt: skip
VALUES = st.sampled_from(
    ["uri", "rotated", "cropped", "sparse", "channels", "z_concatenated", "ROTATE_90", "µm",
     "file:/C:/%zz%00", "file://[", "--rotate"]
)  # fmt: skip
BUILDERS = st.recursive(
    ANYTHING | VALUES | st.builds(opened),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(NAMES, inner | VALUES | NUMBERS, max_size=6)
        | st.builds(
            around,
            st.sampled_from(["rotated", "cropped", "affine", "channels", "pyramidize", "?"]),
            inner,
            rotation=st.sampled_from(["ROTATE_90", "ROTATE_180", "x"]) | ANYTHING,
            region=st.builds(region, *[NUMBERS] * 4) | ANYTHING,
            metadata=inner,
        )
    ),
    max_leaves=12,
)


@given(builder=BUILDERS)
def test_no_builder_of_any_shape_stops_the_reading(builder):
    server = read_server(builder)
    assert server.rotation in (0, 90, 180, 270)
    assert server.size is None or all(isinstance(v, int) and v > 0 for v in server.size)
    assert server.mpp is None or min(server.mpp) > 0
    assert all(isinstance(text, str) for text in (*server.uris, *server.args))


def same(one: object, other: object) -> bool:
    """Equal as JSON, where NaN is NaN and 1 is neither 1.0 nor true."""
    return json.dumps(one) == json.dumps(other)


@given(
    builders=st.lists(BUILDERS, min_size=1, max_size=3),
    names=st.lists(st.text(), min_size=3, max_size=3),
    more=st.dictionaries(st.text(), ANYTHING, max_size=3),
    kept=st.dictionaries(st.text(), ANYTHING, max_size=3),
    add=st.dictionaries(st.text(), st.text(), max_size=3),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_nothing_is_lost_on_a_rewrite(tmp_path, builders, names, more, kept, add):
    images = [
        {**more, **image(number, imageName=name), "serverBuilder": builder, "metadata": kept}
        for number, (builder, name) in enumerate(zip(builders, names, strict=False), 1)
    ]
    own = {"version", "createTimestamp", "modifyTimestamp", "uri", "lastID", "images"}
    rest = {name: value for name, value in more.items() if name not in own}
    path = tmp_path / "project.qpproj"
    content = {"version": "9.9", "images": images, "lastID": 3, "modifyTimestamp": 0, **rest}
    path.write_text(json.dumps(content))  # with surrogates as escapes
    entries = read_project(path).images
    assert [entry.id for entry in entries] == [i["entryID"] for i in images]
    [_ for entry in entries for _ in (entry.path, entry.file_name, entry.data)]
    set_image_metadata(path, 1, add)
    found = json.loads(path.read_bytes())
    assert found.pop("modifyTimestamp") > 0
    content.pop("modifyTimestamp")
    images[0]["metadata"] = {**kept, **add}
    assert same(found, content)


def test_an_image_without_metadata_gets_some(tmp_path):
    path = write_project(tmp_path, image(1, metadata=None), image(2, metadata=[1]))
    set_image_metadata(path, 1, {"a": "b"})
    assert read(path)["images"][0]["metadata"] == {"a": "b"}
    with pytest.raises(TiaftError, match=r"is damaged: image 2's metadata is no object$"):
        set_image_metadata(path, 2, {"a": "b"})
    with pytest.raises(TiaftError, match=r"has no image 3 any more: was it removed in QuPath\?$"):
        set_image_metadata(path, 3, {"a": "b"})


def test_a_rewrite_keeps_rights_and_links(project, tmp_path):
    project.chmod(0o664)
    link = tmp_path / "linked.qpproj"
    link.symlink_to(project)
    set_image_metadata(link, 1, {"a": "b"})
    assert link.is_symlink()
    assert project.stat().st_mode & 0o777 == 0o664
    assert read(project)["images"][0]["metadata"] == {"a": "b"}


def test_the_class_list_is_extended_and_never_shortened(project):
    classes = write_classes(project)
    assert extend_classes(project, [("Tumor", (200, 0, 0)), ("A:B", (1, 2, 3))]) == [
        "Tumor",
        "A: B",
    ]
    content = read(classes)
    assert content["pathClasses"][0] == {"name": "Tumor", "color": -3670016}
    content["pathClasses"] += [{"name": "plain"}, {"odd": 1}, None]
    content["later"] = 1.50
    classes.write_text(json.dumps(content))
    again = [("Tumor", (0, 0, 0)), ("A: B", (0, 0, 0)), ("plain", (9, 9, 9)), ("New", (0, 0, 255))]
    assert extend_classes(project, [*again, ("Unclassified", (0, 0, 0))]) == ["New"]
    found = read(classes)
    assert found["pathClasses"][:-1] == content["pathClasses"]
    assert found["pathClasses"][-1] == {"name": "New", "color": packed((0, 0, 255))}
    assert found["later"] == 1.5
    names = dict(read_project(project).classes)
    assert names == {"Tumor": -3670016, "A: B": packed((1, 2, 3)), "plain": None, "New": -16776961}
    before = classes.stat().st_mtime_ns
    assert extend_classes(project, again) == [] and classes.stat().st_mtime_ns == before


def test_a_project_without_a_list_keeps_what_qupath_shows_for_it(project):
    classes = project.parent / "classifiers" / "classes.json"
    assert extend_classes(project, []) == [] and not classes.exists()
    assert extend_classes(project, [("Tumor", (1, 1, 1)), ("New", (0, 0, 255))]) == ["New"]
    found = dict(read_project(project).classes)
    assert list(found)[:3] == ["Tumor", "Stroma", "Immune cells"] and list(found)[-1] == "New"
    assert found["Tumor"] == -3670016


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "it is empty"),
        ('{"pathClasses": {}}', "its pathClasses are no list"),
        ("[]", "it holds no JSON object"),
    ],
)
def test_a_damaged_class_list_is_left_alone(project, text, reason):
    classes = project.parent / "classifiers" / "classes.json"
    classes.parent.mkdir()
    classes.write_text(text)
    for act in (lambda: read_project(project), lambda: extend_classes(project, [("a", (0, 0, 0))])):
        with pytest.raises(
            TiaftError, match=rf"classes.json is no list of QuPath's classes: {reason}"
        ):
            act()
    assert classes.read_text() == text


def scratch(folder: Path, *names: str) -> tuple[list[dict], list[Path]]:
    """Images as a scratch project of QuPath's has them, with their data folders."""
    folders = []
    for number, name in enumerate(names, 1):
        data = folder / "data" / str(number)
        data.mkdir(parents=True)
        (data / "server.json").write_text(name)
        folders.append(data)
    return [image(n, imageName=name) for n, name in enumerate(names, 1)], folders


def test_images_are_added_with_ids_that_nobody_ever_had(project, tmp_path):
    content = read(project)
    content["lastID"] = 4  # two were removed
    project.write_text(json.dumps(content))
    (project.parent / "data" / "6").mkdir(parents=True)  # what is left of yet another
    assert add_entries(project, *scratch(tmp_path / "scratch", "x", "y")) == [7, 8]
    found = read_project(project)
    assert [entry.id for entry in found.images] == [1, 2, 7, 8]
    assert [entry.name for entry in found.images][2:] == ["x", "y"]
    assert (found.images[3].folder / "server.json").read_text() == "y"
    assert read(project)["lastID"] == 8
    assert add_entries(project, [image(1)], [tmp_path / "no data yet"]) == [9]
    with pytest.raises(ValueError, match=r"1 folders for 2 images"):
        add_entries(project, [image(1), image(2)], [tmp_path])


def test_images_into_an_empty_project_begin_with_1(tmp_path):
    path = write_project(tmp_path / "p", images=..., lastID=0)
    assert add_entries(path, *scratch(tmp_path / "scratch", "x")) == [1]


@contextmanager
def little_space(size: int):
    """The limit of a process on the size of files is as real as a disk's."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_leaves_the_old_files(project, tmp_path):
    write_classes(project, {"name": "Tumor", "color": -3670016})
    entries, folders = scratch(tmp_path / "scratch", "x")
    files = [p for p in project.parent.rglob("*") if p.is_file()]
    was = {path: path.read_bytes() for path in files}
    text = r"cannot be written: File too large: it is as it was$"
    with little_space(40):
        with pytest.raises(Stopped, match=r"project\.qpproj " + text):
            set_image_metadata(project, 1, {"a": "b"})
        with pytest.raises(Stopped, match=r"classes\.json " + text):
            extend_classes(project, [("New", (0, 0, 0))])
        with pytest.raises(Stopped, match=r"project\.qpproj " + text):
            add_entries(project, entries, folders)
    assert {path: path.read_bytes() for path in was} == was
    assert sorted(p for p in project.parent.rglob("*") if p.is_file()) == sorted(files)
    assert (folders[0] / "server.json").read_text() == "x"  # moved back
    assert add_entries(project, entries, folders) == [3]


def test_a_disk_that_is_really_full_leaves_the_old_file(tmp_path):
    """On a file system of one page, in a namespace of its own."""
    code = (
        "import sys; from pathlib import Path; from tiaft_plugin.errors import Stopped\n"
        "from tiaft_plugin.qupath.project.project_file import set_image_metadata\n"
        "path = Path(sys.argv[1]) / 'project.qpproj'; was = path.read_bytes()\n"
        "try: set_image_metadata(path, 1, {'a': 'b' * 50_000})\n"
        "except Stopped as error: print(error)\n"
        "assert path.read_bytes() == was and len(list(path.parent.iterdir())) == 1\n"
    )
    folder, source = tmp_path / "tiny", write_project(tmp_path / "p", image(1))
    folder.mkdir()
    script = (
        'mount -t tmpfs -o size=16k none "$1" && cp "$2" "$1" && exec "$3" -c "$4" "$1" || exit 77'
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", folder, source, sys.executable, code],
        capture_output=True,
        text=True,
    ) if shutil.which("unshare") else None  # fmt: skip
    if done is None or "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip("this system lets nobody mount a small file system")
    assert done.returncode == 0, done.stderr
    assert "cannot be written: No space left on device: it is as it was\n" in done.stdout


def rewrite_for_ever(project: Path, folder: Path) -> None:
    for number in range(10**6):
        set_image_metadata(project, 1, {"number": str(number), "long": "x" * 100_000})
        extend_classes(project, [(f"class {number}", (1, 2, 3))])
        add_entries(project, *scratch(folder / str(number), "added"))


@pytest.mark.parametrize("moment", range(10))
def test_killed_at_any_moment_a_project_is_whole(project, tmp_path, moment):
    """Old or new: each image has its data folder, and a class list that is there is whole."""
    run = multiprocessing.get_context("fork").Process(
        target=rewrite_for_ever, args=(project, tmp_path / "scratch")
    )
    run.start()
    time.sleep(random.Random(moment).uniform(0.02, 0.2))
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    assert run.exitcode == -signal.SIGKILL
    found = read_project(project.parent)
    assert [entry.id for entry in found.images][:2] == [1, 2]
    metadata = found.images[0].metadata
    assert not metadata or len(metadata["long"]) == 100_000
    for entry in found.images[2:]:
        assert (entry.folder / "server.json").read_text() == "added"
    added = [name for name, _ in found.classes if name.startswith("class ")]
    assert len(found.images) - 2 <= len(added) <= len(found.images) - 1
    added = add_entries(project, *scratch(tmp_path / "after", "after"))  # nothing is in its way
    assert read_project(project).images[-1].id == added[0]


def test_a_read_only_folder_is_told_at_once(project):
    (project.parent / "data" / "2").mkdir(parents=True)
    check_writable(read_project(project))
    (project.parent / "data" / "2").chmod(0o555)
    if os.access(project.parent / "data" / "2", os.W_OK):
        pytest.skip("root may write everywhere")
    try:
        with pytest.raises(TiaftError, match=r"cannot be changed: .*data/2 is read-only for you"):
            check_writable(read_project(project))
    finally:
        (project.parent / "data" / "2").chmod(0o755)


def test_a_folder_that_takes_no_file_is_told_to_anybody(project, monkeypatch):
    found = read_project(project)
    monkeypatch.setattr(project_file.os, "access", lambda path, mode: Path(path) != project.parent)
    with pytest.raises(
        TiaftError,
        match=r"project\.qpproj cannot be changed: .*p is read-only for you: copy the project, or",
    ):
        check_writable(found)


def test_a_write_that_is_forbidden_says_so(project, monkeypatch):
    def refuse(self, target):
        raise PermissionError(13, "Permission denied")

    was = project.read_bytes()
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(
        Stopped, match=r"project.qpproj cannot be written: Permission denied: it is"
    ):
        set_image_metadata(project, 1, {"a": "b"})
    assert project.read_bytes() == was
    assert list(project.parent.iterdir()) == [project]


def test_two_runs_do_not_write_into_one_project(project):
    found = read_project(project)
    with (
        project_lock(found),
        pytest.raises(TiaftError, match=r"project\.qpproj: another run is working on it"),
        project_lock(found),
    ):
        pass
    other = project.with_name(".project-later.qpproj")
    for left in (project.with_name(".project-0123abcd.qpproj"), other):
        left.touch()  # the first is what a killed run leaves
    with project_lock(found):
        assert sorted(project.parent.glob(".*.qpproj")) == [other]


def test_a_file_that_somebody_changed_is_seen(project):
    data = project.parent / "data" / "1" / "data.qpdata"
    before = take_snapshot(project, data)
    refuse_changed(before)
    data.parent.mkdir(parents=True)
    data.write_text("new")
    text = (
        r"data\.qpdata was changed in the meantime, by QuPath perhaps: save and close it there, and"
    )
    with pytest.raises(TiaftError, match=text):
        refuse_changed(before)
    before = take_snapshot(project, data)
    state = data.stat()
    data.write_text("old")  # as long, and back in time
    os.utime(data, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    with pytest.raises(TiaftError, match=text):
        refuse_changed(before)
    before = take_snapshot(project, data)
    data.unlink()
    with pytest.raises(TiaftError, match=text):
        refuse_changed(before)
    before = take_snapshot(project, data)
    set_image_metadata(project, 1, {})
    with pytest.raises(TiaftError, match=r"project\.qpproj was changed in the meantime"):
        refuse_changed(before)


def test_an_image_that_qupath_was_saving_when_it_was_stopped_is_refused(project):
    entry = read_project(project).images[0]
    refuse_half_saved(entry)
    entry.folder.mkdir(parents=True)
    (entry.folder / "data.qpdata.bkp").touch()
    text = (
        r"image 1: .*data\.qpdata\.bkp shows that QuPath was stopped while it saved: open the image"
    )
    with pytest.raises(TiaftError, match=text):
        refuse_half_saved(entry)


def test_a_running_qupath_is_seen():
    code = "import sys; print(flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", code, "qupath.QuPath"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        seen = running_qupath()
        process.stdin.close()
    assert any(f"(process {process.pid})" in text for text in seen)
    assert not any(f"(process {process.pid})" in text for text in running_qupath())

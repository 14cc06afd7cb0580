"""Which image of a project a slide is, and how their pixels go together."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from tiaft_plugin.engine.slides import fingerprint
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.project.frame import Frame, fits, frame_of
from tiaft_plugin.qupath.project.matching import (
    NotInProjectError,
    locate,
    match_image,
    match_predictions,
)
from tiaft_plugin.qupath.project.project_file import ImageEntry, Project
from tiaft_plugin.qupath.project.server import read_server

SIZE = (400, 300)
TURNS = (0, 90, 180, 270)


def entry(entry_id: int = 1, uri: str = "", folder: Path | None = None, **members) -> ImageEntry:
    facts = {
        "name": f"image {entry_id}",
        "uris": (uri or f"file:/slides/slide{entry_id}.svs",),
        "args": (),
        "size": SIZE,
        "mpp": (0.5, 0.5),
        "rotation": 0,
        "kind": "uri",
        "metadata": {},
        "folder": (folder or Path("/p")) / "data" / str(entry_id),
    }
    return ImageEntry(entry_id, **{**facts, **members})


def project(*images: ImageEntry) -> Project:
    return Project(Path("/p/project.qpproj"), images, (), "0.6.0")


def match(found: Project, name: str = "slide1.svs", **settings) -> ImageEntry:
    return match_image(
        found, **{"slide": None, "name": name, "fingerprint": "", "size": SIZE, **settings}
    )


def slide_file(path: Path, content: bytes = b"pixels") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# Matching ----------------------------------------------------------------------------------------


def test_the_path_goes_before_the_name(tmp_path):
    mine, other = (slide_file(tmp_path / folder / "a.svs") for folder in ("mine", "other"))
    found = project(entry(1, other.as_uri()), entry(2, mine.as_uri()))
    link = tmp_path / "link.svs"
    link.symlink_to(mine)
    for slide in (mine, link, tmp_path / "other" / ".." / "mine" / "a.svs"):
        assert match(found, "a.svs", slide=slide, fingerprint=fingerprint(mine)).id == 2


def test_a_slide_that_is_a_folder_is_found_by_a_file_in_it(tmp_path):
    file = slide_file(tmp_path / "case 7" / "level0.dcm")
    found = project(entry(1), entry(2, file.as_uri()))
    assert match(found, "case 7", slide=file.parent).id == 2
    link = tmp_path / "link"
    link.symlink_to(file.parent)
    assert match(found, "link", slide=link).id == 2
    assert match(found, "case 7", fingerprint=fingerprint(file.parent)).id == 2
    with pytest.raises(NotInProjectError, match=r"another slide of this name is \(image 2"):
        match(found, "case 7", fingerprint="another")


def test_the_name_of_the_file_goes_before_the_name_of_the_image():
    found = project(entry(1, name="slide2.svs"), entry(2, name="patient 7"), entry(3, name="x.svs"))
    assert match(found, "slide2.svs").id == 2
    assert match(found, "x.svs").id == 3


def test_a_name_is_the_same_on_every_system():
    found = project(entry(1, "file:/D:/My%20Slides/u%CC%88ber.SVS"), entry(2))
    assert match(found, "\u00fcber.svs").id == 1


def test_a_namesake_with_another_content_is_not_taken(tmp_path):
    """Scanners number their files: 1.svs of this case is not 1.svs of that one."""
    other = slide_file(tmp_path / "a" / "1.svs", b"of another patient")
    renamed = slide_file(tmp_path / "b" / "2.svs", b"the very one")
    wanted = fingerprint(renamed)
    found = project(entry(1, other.as_uri()), entry(2, renamed.as_uri()))
    assert match(found, "1.svs", fingerprint=wanted).id == 2
    with pytest.raises(
        NotInProjectError,
        match=r"^1\.svs is not in /p/project\.qpproj: another slide of this name is \(image 1 "
        r"'image 1' \(400 × 300 px\)\); add the one that was predicted$",
    ):
        match(project(found.images[0]), "1.svs", fingerprint=wanted)


def test_a_file_that_changed_since_it_was_predicted_is_refused(tmp_path):
    slide = slide_file(tmp_path / "a.svs")
    found = project(entry(1, slide.as_uri()))
    with pytest.raises(
        TiaftError,
        match=r"^a\.svs is not what was predicted: .*a\.svs has another content now; predict",
    ):
        match(found, "a.svs", slide=slide, fingerprint="f" * 64)


def test_a_renamed_file_is_found_by_its_content(tmp_path):
    files = [slide_file(tmp_path / f"{n}.svs", bytes([n]) * 999) for n in range(3)]
    gone = entry(9, (tmp_path / "gone.svs").as_uri())
    small = entry(8, files[1].as_uri(), size=(7, 7))  # has the content, and another size
    found = project(gone, small, *(entry(n, file.as_uri()) for n, file in enumerate(files)))
    assert match(found, "other.svs", fingerprint=fingerprint(files[1])).id == 1


def test_a_map_leads_to_where_the_slides_are_now(tmp_path):
    slide = slide_file(tmp_path / "now" / "Sub" / "a.svs")
    found = project(entry(1, "file:/C:/Old/Sub/a.svs"), entry(2, "file:/C:/Other/a.svs"))
    moved = [("c:\\old", str(tmp_path / "now"))]
    assert locate(found.images[0], moved) == slide
    assert match(found, "a.svs", slide=slide, moved=moved).id == 1
    with pytest.raises(TiaftError, match=r"a.svs may be any of 2 images in .*: say which with"):
        match(found, "a.svs", slide=slide)
    assert locate(entry(1, "https://omero/1"), moved) is None


def test_of_several_series_the_one_whose_size_fits_is_taken():
    uri = "file:/s/scan.vsi"
    found = project(
        entry(1, uri, args=("--series", "0"), size=(100, 80), name="scan.vsi - label"),
        entry(2, uri, args=("--series", "1"), name="scan.vsi - 20x"),
        entry(3, uri, args=("--series", "2"), size=None),
    )
    assert match(found, "scan.vsi").id == 2
    again = project(*found.images, entry(4, uri, args=("--series", "3"), name="scan.vsi - 20x"))
    with pytest.raises(
        TiaftError,
        match=r"^scan\.vsi may be any of 2 images in /p/project\.qpproj: image 2 'scan\.vsi - 20x' "
        r"\(400 × 300 px, --series 1\), image 4 'scan\.vsi - 20x' \(400 × 300 px, --series 3\): "
        r"say which with `tiaft qupath push --image`$",
    ):
        match(again, "scan.vsi")
    assert match(again, "scan.vsi", images=["4"]).id == 4
    with pytest.raises(
        TiaftError,
        match=r"^scan\.vsi: predictions were made on 9 × 9 px, which none of its 3 images in "
        r"/p/project\.qpproj has: image 1 'scan\.vsi - label' \(100 × 80 px, --series 0\), ",
    ):
        match(found, "scan.vsi", size=(9, 9))


def test_a_cropped_and_a_turned_image_of_a_slide_both_fit():
    turned = entry(2, "file:/slides/slide1.svs", rotation=90, size=(300, 400))
    with pytest.raises(TiaftError, match=r"may be any of 2 images"):
        match(project(entry(1), turned))
    assert match(project(replace(turned, id=1))).id == 1


def test_an_image_that_is_named_needs_no_likeness():
    found = project(entry(1), entry(2, name="patient 7"), entry(3, name="patient 7"))
    assert match(found, "elsewhere.svs", images=["2"]).id == 2
    assert match(found, "slide3.svs", images=["patient 7"]).id == 3
    with pytest.raises(
        TiaftError,
        match=r"^/p/project\.qpproj has no image 'patient 8': the nearest of its 3 images: image 2 "
        r"'patient 7' \(400 × 300 px\), image 3",
    ):
        match(found, images=["2", "patient 8"])
    with pytest.raises(NotInProjectError):
        match(found, "slide1.svs", images=["2", "3"])


def test_a_slide_that_is_not_there_is_named_with_the_nearest():
    names = ("TCGA-02-0001.svs", "TCGA-02-0002.svs", "other.tiff", "liver.svs")
    found = project(*(entry(n, f"file:/s/{name}") for n, name in enumerate(names)))
    with pytest.raises(
        NotInProjectError,
        match=r"^TCGA-02-0003\.svs is not in /p/project\.qpproj: the nearest of its 4 images: "
        r"image [01] 'image [01]' \(400 × 300 px\), image [01] .*, image 3 .*; add it there, or "
        r"name the image with `tiaft qupath push --image`$",
    ):
        match(found, "TCGA-02-0003.svs")


def test_a_long_list_of_candidates_is_cut():
    found = project(*(entry(n, "file:/s/a.svs") for n in range(9)))
    with pytest.raises(
        TiaftError, match=r"image 5 'image 5' \(400 × 300 px\) and 3 more: say which"
    ):
        match(found, "a.svs")


def test_a_project_without_images_has_none():
    with pytest.raises(
        NotInProjectError,
        match=r"^slide1\.svs is not in /p/project\.qpproj, which has no images: add",
    ):
        match(project())


def test_predictions_bring_what_is_needed():
    made = SimpleNamespace(
        slide=Path("slide2.svs"), fingerprint="", slide_size=(500, 500), bounds=(5, 6, *SIZE)
    )
    assert match_predictions(project(entry(1), entry(2)), made).id == 2
    assert match_predictions(project(entry(1), entry(2)), made, images=["1"]).id == 1


def test_real_slides_are_told_apart(data, tmp_path):
    slides = sorted((data / "slides").glob("*.svs"))
    for number, slide in enumerate(slides):
        (tmp_path / f"{number}.svs").symlink_to(slide)
    found = project(*(entry(n, (tmp_path / f"{n}.svs").as_uri()) for n in range(len(slides))))
    for number, slide in enumerate(slides):
        made = fingerprint(slide)
        assert match(found, slide.name, fingerprint=made).id == number
        assert match(found, slide.name, fingerprint=made, slide=slide).id == number
        wrong = slides[number - 1].name
        assert match(found, wrong, fingerprint=made).id == number


# Frames ------------------------------------------------------------------------------------------


def shown_by_qupath(slide: np.ndarray, frame: Frame) -> np.ndarray:
    """What QuPath shows of a slide's pixels, as its CroppedImageServer and rotate90 do it.

    rotate90: pixel x, y goes to row x, column height - 1 - y, and so on.
    """
    width, height = frame.image_size if frame.rotation % 180 == 0 else frame.image_size[::-1]
    x, y = frame.offset
    part = slide[y : y + height, x : x + width]
    image = np.zeros(frame.image_size[::-1], dtype=slide.dtype)
    for row in range(height):
        for column in range(width):
            there = {
                0: (row, column),
                90: (column, height - 1 - row),
                180: (height - 1 - row, width - 1 - column),
                270: (width - 1 - column, row),
            }[frame.rotation]
            image[there] = part[row, column]
    return image


@pytest.mark.parametrize("rotation", TURNS)
def test_a_box_shows_the_same_pixels_on_both_sides(rotation):
    slide = np.arange(20 * 30).reshape(20, 30)
    size = (12, 9) if rotation % 180 == 0 else (9, 12)
    frame = Frame((7, 3), rotation, (30, 20), size)
    image = shown_by_qupath(slide, frame)
    for box in ([7, 3, 19, 12], [8, 5, 12, 7], [18, 11, 19, 12]):
        x0, y0, x1, y1 = frame.to_image(np.array([box]))[0].astype(int)
        there = image[y0:y1, x0:x1]
        here = slide[box[1] : box[3], box[0] : box[2]]
        assert (np.rot90(here, -rotation // 90) == there).all(), box


@given(data=st.data())
def test_crops_and_turns_in_any_order_show_what_qupath_shows(data):
    slide = np.arange(20 * 30).reshape(20, 30)
    builder = {"builderType": "uri", "metadata": {"width": 30, "height": 20}}
    image = slide
    for turn in data.draw(st.lists(st.sampled_from([None, *TURNS]), max_size=5)):
        height, width = image.shape
        if turn is None:
            x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
            w, h = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
            image = image[y : y + h, x : x + w]
            region = {"x": x, "y": y, "width": w, "height": h, "z": 0, "t": 0}
            builder = {"builderType": "cropped", "builder": builder, "region": region}
        else:
            image = np.rot90(image, -turn // 90)
            rotation = f"ROTATE_{turn or 'NONE'}"
            builder = {"builderType": "rotated", "builder": builder, "rotation": rotation}
    server = read_server(builder)
    assert server.size == image.shape[::-1]
    made = entry(1, size=server.size, rotation=server.rotation, crop=server.crop,
                 base_size=server.base_size, odd=server.odd)  # fmt: skip
    frame = frame_of(made, (30, 20))
    assert (shown_by_qupath(slide, frame) == image).all()


def frames() -> st.SearchStrategy[Frame]:
    side, start = st.integers(1, 200_000), st.integers(0, 100_000)
    return st.builds(
        Frame,
        st.tuples(start, start),
        st.sampled_from(TURNS),
        st.tuples(side, side),
        st.tuples(side, side),
    )


@given(
    frame=frames(),
    boxes=st.lists(st.lists(st.integers(-(10**6), 10**6), min_size=4, max_size=4), max_size=4),
    # In eighths: what floats hold exactly must come back exactly.
    scale=st.sampled_from([1.0, 0.5, 0.125]),
)
def test_there_and_back_is_where_it_began(frame, boxes, scale):
    corners = np.array(boxes, dtype=np.float64).reshape(-1, 2, 2) * scale
    bounds = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    there = frame.to_image(bounds)
    assert there.shape == bounds.shape and there.dtype == np.float64
    back = [frame.geometry_to_slide(shapely.box(*box)).bounds for box in there]
    assert (np.reshape(back, (-1, 4)) == bounds).all()
    sides = bounds[:, 2:] - bounds[:, :2]
    turned = sides[:, ::-1] if frame.rotation % 180 else sides
    assert (there[:, 2:] - there[:, :2] == turned).all()


@given(frame=frames(), x=st.floats(-1e6, 1e6), y=st.floats(-1e6, 1e6), side=st.floats(1, 1e4))
def test_shapes_go_where_boxes_go(frame, x, y, side):
    ring = shapely.box(x, y, x + side, y + 2 * side)
    hole = shapely.box(x + side / 4, y + side / 4, x + side / 2, y + side / 2)
    shape = shapely.MultiPolygon([ring - hole])
    there = frame.geometry_to_slide(shape)
    assert np.allclose(frame.to_image(np.array([there.bounds]))[0], shape.bounds, atol=1e-6)
    assert there.area == pytest.approx(shape.area, rel=1e-6)
    assert len(there.geoms[0].interiors) == 1


def test_the_whole_slide_is_the_whole_image():
    frame = frame_of(entry(1), SIZE)
    assert frame == Frame((0, 0), 0, SIZE, SIZE)
    boxes = np.array([[0, 0, 10, 20]])
    assert (frame.to_image(boxes) == boxes).all()


@pytest.mark.parametrize("rotation", TURNS)
def test_the_corners_of_a_turned_image_are_the_slide_s(rotation):
    size = SIZE if rotation % 180 == 0 else SIZE[::-1]
    frame = frame_of(entry(1, rotation=rotation, size=size), SIZE)
    assert (frame.to_image(np.array([[0, 0, *SIZE]])) == [[0, 0, *size]]).all()
    # The slide's corner above left, clockwise from above left.
    corner = frame.to_image(np.array([[0, 0, 1, 1]]))[0, :2]
    assert tuple(corner) == {
        0: (0, 0), 90: (size[0] - 1, 0), 180: (size[0] - 1, size[1] - 1), 270: (0, size[1] - 1)
    }[rotation]  # fmt: skip


def test_the_scanned_part_is_what_qupath_shows_with_openslide():
    bounds = (1000, 2000, 400, 300)
    whole = (5000, 6000)
    frame = frame_of(entry(1), whole, bounds)
    assert frame == Frame((1000, 2000), 0, whole, SIZE)
    assert (frame.to_image(np.array([[1000, 2000, 1224, 2224]])) == [[0, 0, 224, 224]]).all()
    # Bio-Formats shows the whole, and so does OpenSlide when told to.
    assert frame_of(entry(1, size=whole), whole, bounds).offset == (0, 0)
    assert frame_of(entry(1, size=whole, args=("--no-crop",)), whole, bounds).offset == (0, 0)
    assert not fits(entry(1, args=("--no-crop",)), whole, bounds)
    turned = frame_of(entry(1, rotation=90, size=SIZE[::-1]), whole, bounds)
    assert turned.to_image(np.array([[1000, 2000, 1001, 2001]])).tolist() == [[299, 0, 300, 1]]


def test_a_crop_adds_to_the_scanned_part():
    cropped = entry(1, crop=(50, 20, 200, 100), size=(200, 100), base_size=SIZE, kind="cropped")
    assert frame_of(cropped, SIZE) == Frame((50, 20), 0, SIZE, (200, 100))
    assert frame_of(cropped, (5000, 6000), (1000, 2000, *SIZE)).offset == (1050, 2020)
    turned = replace(cropped, rotation=270, size=(100, 200))
    assert frame_of(turned, SIZE) == Frame((50, 20), 270, SIZE, (100, 200))


@pytest.mark.parametrize(
    "members, text",
    [
        (
            {"size": (401, 300)},
            r"^image 1 is 401 × 300 px in QuPath, the slide is 400 × 300: another "
            r"slide, or another series of it$",
        ),
        ({"size": SIZE, "rotation": 90}, r"^image 1 is 400 × 300 px in QuPath, the slide is"),
        (
            {"size": None},
            r"^image 1: the project does not say how large the image is: open it once in QuPath",
        ),
        (
            {"size": (9, 9), "crop": (0, 0, 9, 9)},
            r"^image 1: the project does not say how large the image is",
        ),
        (
            {"size": (9, 9), "crop": (0, 0, 9, 9), "base_size": (99, 99)},
            r"^image 1 is 9 × 9 px in QuPath, the slide is 400 × 300",
        ),
        (
            {"size": (8, 8), "crop": (0, 0, 9, 9), "base_size": SIZE},
            r"^image 1 is 8 × 8 px in QuPath",
        ),
        (
            {"odd": "affine"},
            r"^image 1 is transformed in QuPath \(affine\): only cropped images and those turned "
            r"by 90, 180 or 270 degrees can be matched with the slide; add the slide itself$",
        ),
    ],
)
def test_what_has_no_frame_is_refused(members, text):
    with pytest.raises(TiaftError, match=text):
        frame_of(entry(1, **members), SIZE)
    assert not fits(entry(1, **members), SIZE)

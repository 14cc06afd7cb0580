"""QuPath's own reading and writing, through paquo, in whatever QuPath paquo finds."""

import json
import uuid
from pathlib import Path

import numpy as np
import pytest
import shapely
from conftest import run_python
from PIL import Image
from shapely import MultiPolygon, Polygon, box

from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.qupath.marks import HIDDEN, SHOWN, Mark
from tiaft_plugin.qupath.objects import Classes, NewAreas, NewTiles, Origin
from tiaft_plugin.qupath.project.project_file import (
    add_entries,
    extend_classes,
    packed,
    read_project,
)

ORIGIN = Origin("xception", "ab" * 32, "224@0.5")
CLASSES = Classes(("Lumen", "Stroma: Dense"), ((250, 10, 20), (30, 240, 50)))
START = "from tiaft_plugin.qupath.java.start import start_java\nstart_java()\n"


def new_tiles(count: int = 40, side: float = 16.0, origin: Origin = ORIGIN) -> NewTiles:
    rng = np.random.default_rng(count)
    corner = np.stack([np.arange(count) % 8, np.arange(count) // 8], 1) * side
    return NewTiles(
        origin,
        CLASSES,
        [uuid.uuid5(uuid.NAMESPACE_URL, f"{origin} {i}") for i in range(count)],
        np.concatenate([corner, corner + side], 1),
        np.arange(count) % 3 - 1,
        {name: rng.random(count, dtype=np.float32) for name in ("Probability: Lumen", "µ")},
    )


def new_areas(areas: list) -> NewAreas:
    labels = np.arange(len(areas)) % 3 - 1
    ids = [uuid.uuid4() for _ in areas]
    return NewAreas(ORIGIN, CLASSES, ids, areas, labels, {"Tiles": np.arange(len(areas))})


# What needs no QuPath: the reasons why there is none.


def failure(code: str, **env: str) -> str:
    done = run_python(
        f"from tiaft_plugin.errors import TiaftError\ntry:\n    import sys\n"
        f"    from tiaft_plugin.qupath.java.start import start_java\n    {code}\n"
        "except TiaftError as error:\n    print(error)",
        **env,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_without_paquo():
    told = failure("sys.modules['paquo'] = None; start_java()")
    assert told.startswith("QuPath projects need paquo (")
    assert told.endswith('): pip install "tiaft_plugin[qupath]"')


def test_modules_that_need_no_java_import_without_it():
    code = "sys.modules['jpype'] = None\n    "
    code += "from tiaft_plugin.qupath.java import add_images, image_data\n    "
    told = failure(code + "image_data.open_image(None)")
    assert told.startswith("QuPath projects need paquo (")


@pytest.fixture
def paquo():
    pytest.importorskip("paquo._config", reason="paquo is not installed")


def test_a_folder_that_is_not_there(paquo, tmp_path):
    told = failure("start_java()", PAQUO_QUPATH_DIR=str(tmp_path / "none"))
    assert told == (
        f"PAQUO_QUPATH_DIR={tmp_path / 'none'}: no such folder: set PAQUO_QUPATH_DIR to the "
        "folder of QuPath (on Linux the one with lib/app in it)"
    )


def test_an_empty_folder(paquo, tmp_path):
    told = failure("start_java()", PAQUO_QUPATH_DIR=str(tmp_path))
    assert f"PAQUO_QUPATH_DIR={tmp_path}: there is no QuPath, with its own Java, in it" in told


def test_no_qupath_anywhere(paquo, tmp_path):
    told = failure(
        "start_java()",
        PAQUO_QUPATH_DIR="",
        PAQUO_QUPATH_SEARCH_DIRS=f"['{tmp_path}']",
        PAQUO_QUPATH_SEARCH_CONDA="false",
    )
    assert told.startswith("no QuPath was found: install it (https://qupath.github.io), and set")


def test_a_java_that_is_none(paquo, tmp_path):
    (tmp_path / "lib/app").mkdir(parents=True)
    library = tmp_path / "lib/runtime/lib/server/libjvm.so"
    library.parent.mkdir(parents=True)
    library.write_text("no library")
    told = failure("start_java()", PAQUO_QUPATH_DIR=str(tmp_path))
    assert told.startswith(f"Java cannot start from the QuPath in PAQUO_QUPATH_DIR={tmp_path}: ")


@pytest.mark.parametrize("memory", ["lots", "4", "0g", "100k", "-1g", "4 g"])
def test_memory_that_is_none(paquo, memory):
    told = failure(f"start_java(memory={memory!r})", PAQUO_QUPATH_DIR="/none")
    assert told.startswith(f"{memory!r} is no memory for Java: give a size such as 4g")


# What needs one.


@pytest.fixture(scope="module")
def qupath(qupath) -> str:
    """QuPath's version; its Java runs from here on. One that is found and does not start fails."""
    from tiaft_plugin.qupath.java.start import start_java

    return start_java()


@pytest.fixture
def project(qupath, tmp_path) -> Path:
    """A project with one image, 400 × 300 px."""
    from tiaft_plugin.qupath.java.add_images import create_project, make_entries

    rng = np.random.default_rng(0)
    image = tmp_path / "a slide%.png"
    Image.fromarray(rng.integers(0, 255, (300, 400, 3), dtype=np.uint8)).save(image)
    path = create_project(tmp_path / "the project")
    add_entries(path, *make_entries([image], tmp_path / "scratch"))
    return path


def entry_of(project: Path):
    return read_project(project).images[0]


def open_image(project: Path):
    from tiaft_plugin.qupath.java import image_data

    return image_data.open_image(entry_of(project))


def save(image) -> None:
    image.entry.folder.mkdir(exist_ok=True)
    image.save_to(image.entry.data)


@pytest.mark.qupath
def test_nothing_is_printed_and_memory_is_as_asked(qupath):
    code = "import jpype\nfrom tiaft_plugin.qupath.java.add_images import create_project\n"
    code += "print(jpype.java.lang.Runtime.getRuntime().maxMemory() // 2**20)"
    done = run_python(START + code, TIAFT_JAVA_MEMORY="256m")
    assert (done.stdout.strip(), done.stderr) == ("256", "")


@pytest.mark.qupath
def test_ctrl_c_is_left_to_python(qupath):
    code = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n"
    done = run_python(START + code + "except KeyboardInterrupt:\n    print('stopped')")
    assert done.stdout.strip() == "stopped", done.stderr


@pytest.mark.qupath
def test_a_java_that_runs_already(qupath):
    find = "from paquo._config import settings, to_kwargs\nimport jpype\n"
    find += "from paquo.jpype_backend import find_qupath\nq = find_qupath(**to_kwargs(settings))\n"
    start = "jpype.startJVM(str(q.jvm_path), classpath=[{}])\n"
    tell = "from tiaft_plugin.qupath.java.start import start_java\nprint(start_java())"
    with_it = run_python(find + start.format("str(q.app_dir / '*')") + tell)
    assert with_it.stdout.strip() == qupath
    without = run_python(find + start.format("") + tell)
    assert "TiaftError: Java runs in this process already, and without QuPath" in without.stderr


READ_BY_PAQUO = """
import json, sys
from paquo.projects import QuPathProject
found = []
for each in QuPathProject({path!r}, mode="r").images[0].hierarchy.detections:
    java = each.java_object
    colour = None if each.path_class is None else each.path_class.color.to_rgb()
    found.append([str(java.getID()), type(java).__name__, each.roi.bounds,
        None if each.path_class is None else each.path_class.id, colour, dict(each.measurements),
        {{str(k): str(v) for k, v in java.getMetadata().items()}}, each.locked])
print("\\n" + json.dumps(found))
"""


@pytest.mark.qupath
def test_another_process_finds_what_was_saved(project):
    new = new_tiles()
    image = open_image(project)
    image.add_tiles(new)
    save(image)
    extend_classes(project, list(zip(CLASSES.names, CLASSES.colours, strict=True)))
    done = run_python(READ_BY_PAQUO.format(path=str(project)))
    found = {row[0]: row[1:] for row in json.loads(done.stdout.splitlines()[-1])}
    assert len(found) == 40
    for row in range(40):
        kind, bounds, name, colour, measured, metadata, _ = found[str(new.ids[row])]
        assert kind == "qupath.lib.objects.PathTileObject"
        assert bounds == new.bounds[row].tolist()
        label = new.labels[row]
        assert name == (None if label < 0 else CLASSES.names[label])
        assert colour == (None if label < 0 else list(CLASSES.colours[label]))
        assert measured == {name: float(each[row]) for name, each in new.measurements.items()}
        mark = Mark("xception", "ab" * 32, "224@0.5", name or "")
        assert metadata == mark.metadata()


@pytest.mark.qupath
def test_found_is_what_was_added(project):
    new = new_tiles()
    image = open_image(project)
    assert (len(image.found()), image.found().unmarked) == (0, 0)
    image.add_tiles(new)
    save(image)
    found = open_image(project).found()
    assert list(found.ids) == list(new.ids)
    assert np.array_equal(found.bounds, new.bounds)
    names = [None if label < 0 else CLASSES.names[label] for label in new.labels]
    assert found.classes == names
    assert found.marks == [Mark("xception", "ab" * 32, "224@0.5", name or "") for name in names]
    assert len({id(mark) for mark in found.marks}) == 3
    assert set(found.shapes) == {""}


@pytest.mark.qupath
def test_measurements_of_a_few(project):
    new = new_tiles()
    image = open_image(project)
    image.add_tiles(new)
    image.found()
    wanted = [{name: float(each[row]) for name, each in new.measurements.items()} for row in (7, 2)]
    assert image.measurements(np.array([7, 2])) == wanted


@pytest.mark.qupath
def test_some_rows_are_added_and_some_removed(project):
    new = new_tiles()
    image = open_image(project)
    image.add_tiles(new, np.array([3, 5, 7, 11]))
    found = image.found()
    assert list(found.ids) == [new.ids[row] for row in (3, 5, 7, 11)]
    image.remove(np.array([0, 2]))
    assert list(image.found().ids) == [new.ids[5], new.ids[11]]
    image.remove([])
    image.add_tiles(new, np.array([], dtype=np.int64))
    assert len(image.found()) == 2


@pytest.mark.qupath
def test_tiles_without_measurements_and_with_numbers_that_are_none(project):
    new = new_tiles(3)
    bare = NewTiles(new.origin, new.classes, new.ids, new.bounds, new.labels)
    odd = {"a": np.array([np.nan, np.inf, 1e300])}
    other = [uuid.uuid4() for _ in range(3)]
    image = open_image(project)
    image.add_tiles(bare)
    image.add_tiles(NewTiles(ORIGIN, CLASSES, other, new.bounds, new.labels, odd))
    save(image)
    tiles = list(open_image(project)._hierarchy.getTileObjects())
    values = [each.getMeasurementList() for each in tiles]
    assert [int(each.size()) for each in values] == [0, 0, 0, 1, 1, 1]
    read = [float(each.get("a")) for each in values[3:]]
    assert np.array_equal(read, [np.nan, np.inf, np.inf], equal_nan=True)


@pytest.mark.qupath
def test_areas_come_back_with_their_holes_and_shapes(project):
    rng = np.random.default_rng(1)
    star = [Polygon(rng.random((3, 2)) * 300) for _ in range(30)]
    hole = box(0, 0, 90.5, 100).difference(box(10, 10, 20, 20))
    parts = MultiPolygon([box(0, 0, 10, 10), box(20, 20, 40.25, 50)])
    new = new_areas([hole, parts, box(5, 5, 25, 35), *star])
    image = open_image(project)
    image.add_areas(new)
    before = image.found()
    save(image)
    image = open_image(project)
    found = image.found()
    assert found.shapes == before.shapes == [mark.shape for mark in found.marks]
    assert found.shapes[0] == "0 0 90 100 8950"
    for drawn, area in zip(image.annotations(), new.areas, strict=True):
        assert shapely.symmetric_difference(drawn.geometry, area).area < 5  # hundredths
        assert drawn.mark is not None
    assert [each.class_name for each in image.annotations()[:3]] == [None, *CLASSES.names]
    measured = [each.getMeasurementList().get("Tiles") for each in _annotations(image)]
    assert measured == list(range(33))


def _annotations(image) -> list:
    return list(image._hierarchy.getAnnotationObjects())


@pytest.mark.qupath
def test_a_person_changes_the_class_and_moves_an_area(project):
    image = open_image(project)
    image.add_tiles(new_tiles(4))
    image.add_areas(new_areas([box(0, 0, 50, 50)]))
    from paquo.java import PathClass, ROIs

    tile = next(iter(image._hierarchy.getTileObjects()))
    tile.setPathClass(PathClass.fromString("Necrosis"))
    drawn = _annotations(image)[0]
    plane = drawn.getROI().getImagePlane()
    drawn.setROI(ROIs.createRectangleROI(0.0, 0.0, 60.0, 50.0, plane))
    save(image)
    found = open_image(project).found()
    assert found.classes[0] == "Necrosis"
    assert found.marks[0].given == ""
    assert (found.marks[4].shape, found.shapes[4]) == ("0 0 50 50 2500", "0 0 60 50 3000")


@pytest.mark.qupath
def test_marks_of_others_are_not_ours(project):
    image = open_image(project)
    image.add_areas(new_areas([box(0, 0, 5, 5), box(0, 0, 6, 6), box(0, 0, 7, 7)]))
    first, second, _ = _annotations(image)
    first.getMetadata().put(HIDDEN, '{"sha256": 7}')
    second.getMetadata().remove(HIDDEN)
    found = image.found()
    assert (len(found), found.unmarked) == (1, 2)
    second.getMetadata().put(SHOWN, "something")
    assert [each.mark is None for each in image.annotations()] == [True, True, False]


MADE_BY_A_PERSON = """
from paquo.java import *
from jpype import JClass
from paquo.projects import QuPathProject
entry = QuPathProject({path!r}, mode="r+").images[0].java_object
data = entry.readImageData()
data.setImageType(ImageType.BRIGHTFIELD_H_DAB)
Stains = JClass("qupath.lib.color.ColorDeconvolutionStains")
data.setColorDeconvolutionStains(Stains.parseColorDeconvolutionStainsArg('{{"Name": "Mine", '
    '"Stain 1": "Hematoxylin", "Values 1": "0.6 0.7 0.3", "Stain 2": "DAB", '
    '"Values 2": "0.3 0.6 0.8", "Background": "250 251 252"}}'))
Step = JClass("qupath.lib.plugins.workflow.DefaultScriptableWorkflowStep")
for name in ("one", "two"):
    data.getHistoryWorkflow().addStep(Step(name, "script " + name))
data.setProperty("a property", String("of somebody's"))
data.setProperty("a number", Integer(7))
plane = JClass("qupath.lib.regions.ImagePlane").getPlane(1, 2)
flat = JClass("qupath.lib.regions.ImagePlane").getDefaultPlane()
rectangle = ROIs.createRectangleROI
big = PathObjects.createAnnotationObject(rectangle(0., 0., 300., 200., flat),
    PathClass.fromString("Region", Integer(-123456)))
big.setName("big: one"); big.setLocked(True); big.setDescription("line\\nline µ")
inner = PathObjects.createAnnotationObject(ROIs.createEllipseROI(10., 10., 80., 80., flat), None)
inner.setColor(Integer(-7)); inner.getMetadata().put("_hidden", "x")
inner.getMeasurementList().put("a", 1/3)
cell = PathObjects.createCellObject(ROIs.createEllipseROI(20., 20., 10., 10., flat),
    ROIs.createEllipseROI(22., 22., 4., 4., flat), PathClass.fromString("Tumor: Positive"), None)
tile = PathObjects.createTileObject(rectangle(30., 30., 9., 9., flat))
points = PathObjects.createAnnotationObject(ROIs.createPointsROI(1.5, 2.5, plane))
line = PathObjects.createAnnotationObject(ROIs.createLineROI(0., 0., 9., 9., flat))
hierarchy = data.getHierarchy()
big.addChildObject(inner); inner.addChildObject(cell); inner.addChildObject(tile)
for each in (big, points, line):
    hierarchy.addObject(each)
entry.saveImageData(data)
"""


def content(image) -> dict:
    """All that a data file holds, as text; tiaft's own objects left out."""
    gson = _lib("io.GsonTools").getInstance()
    data, objects = image._data, {}
    for each in image._hierarchy.getFlattenedObjectList(None):
        if not each.isRootObject() and SHOWN not in each.getMetadata().keySet():
            text = str(gson.toJson(each)).replace('"metadata":{},', "")
            parent = each.getParent()
            objects[str(each.getID())] = (
                text, "root" if parent.isRootObject() else str(parent.getID()),
                str(each.getName()), bool(each.isLocked()), str(each.getColor()),
                str(each.getROI()), str(each.getROI().getImagePlane()), str(each.getMetadata()),
                str(each.getPathClass()), _colour(each),
            )  # fmt: skip
    return {
        "type": str(data.getImageType()),
        "stains": str(data.getColorDeconvolutionStains()),
        "properties": sorted((str(k), repr(v)) for k, v in data.getProperties().items()),
        "steps": [str(each) for each in data.getHistoryWorkflow().getSteps()],
        "objects": objects,
    }


def _colour(each) -> str:
    return "" if each.getPathClass() is None else str(each.getPathClass().getColor())


def _lib(name: str):
    from jpype import JClass

    return JClass(f"qupath.lib.{name}")


@pytest.mark.qupath
def test_what_is_not_ours_stays(project):
    done = run_python(START + MADE_BY_A_PERSON.format(path=str(project)))
    assert done.returncode == 0, done.stderr
    image = open_image(project)
    before = content(image)
    assert len(before["objects"]) == 6
    assert before["type"] == "Brightfield (H-DAB)"
    assert "DAB: 0.287 0.575 0.766" in before["stains"]
    for turn in range(3):
        image.add_tiles(new_tiles(20 + turn))
        image.add_areas(new_areas([box(0, 0, 9, 9)]))
        save(image)
        image = open_image(project)
        found = image.found()
        assert (len(found), found.unmarked) == (21 + turn, 6)
        image.remove(np.arange(len(found)))
    save(image)
    after = content(open_image(project))
    steps = before.pop("steps")
    kept = after.pop("steps")
    assert after == before
    assert kept[: len(steps)] == steps
    # QuPath itself adds the stains it read to the end, unless they stand there.
    assert len(kept) <= len(steps) + 1
    assert [step for step in kept if step.startswith(("one", "two"))] == [
        "one\tscript one", "two\tscript two"
    ]  # fmt: skip


@pytest.mark.qupath
def test_what_a_person_put_inside_an_area_stays_when_it_goes(project):
    from paquo.java import PathObjects, ROIs

    image = open_image(project)
    image.add_areas(new_areas([box(0, 0, 100, 100), box(0, 0, 50, 50)]))
    outer, inner = _annotations(image)
    plane = outer.getROI().getImagePlane()
    mine = PathObjects.createDetectionObject(ROIs.createRectangleROI(1.0, 1.0, 5.0, 5.0, plane))
    inner.addChildObject(mine)
    outer.addChildObject(inner)
    image.remove(np.arange(len(image.found())))
    save(image)
    image = open_image(project)
    assert image.found().unmarked == 1
    (kept,) = image._hierarchy.getDetectionObjects()
    assert kept.getID() == mine.getID()
    assert kept.getParent().isRootObject()


@pytest.mark.qupath
def test_the_project_s_colours_hold(project):
    extend_classes(project, [("Lumen", (1, 2, 3))])
    image = open_image(project)
    image.add_tiles(new_tiles(3))
    colours = {
        str(each.getPathClass()): int(each.getPathClass().getColor())
        for each in image._hierarchy.getTileObjects()
        if each.getPathClass()
    }
    assert colours == {"Lumen": packed((1, 2, 3)), "Stroma: Dense": packed((30, 240, 50))}


@pytest.mark.qupath
def test_summary(project):
    image = open_image(project)
    image.add_tiles(new_tiles(9))
    image.add_areas(new_areas([box(0, 0, 9, 9)]))
    save(image)
    summary = image.summary()
    assert summary["imageType"] == "UNSET"
    assert (summary["server"]["width"], summary["server"]["height"]) == (400, 300)
    assert summary["timestamp"] == int(image.entry.data.stat().st_mtime * 1000)
    assert summary["hierarchy"]["objectTypeCounts"]["Tiles"] == 9
    assert summary["hierarchy"]["detectionClassificationCounts"]["Lumen"] == 3


@pytest.mark.qupath
def test_data_that_would_be_read_in_part_are_refused(project):
    image = open_image(project)
    image.add_tiles(new_tiles(9))
    save(image)
    data, whole = image.entry.data, image.entry.data.read_bytes()
    data.write_bytes(whole[:-20])
    with pytest.raises(TiaftError, match="data.qpdata is cut short: QuPath was stopped while"):
        open_image(project)
    data.write_bytes(b"")
    with pytest.raises(TiaftError, match="data.qpdata cannot be read"):
        open_image(project)
    ours, theirs = b"qupath.lib.objects.PathTileObject", b"qupath.ext.objects.PathTileObject"
    assert ours in whole
    data.write_bytes(whole.replace(ours, theirs))
    with pytest.raises(TiaftError, match="holds a qupath.ext.objects.PathTileObject, which"):
        open_image(project)
    data.write_bytes(b"something else" + whole[-7:])
    with pytest.raises(TiaftError, match="data.qpdata: QuPath stopped with StreamCorrupted"):
        open_image(project)


@pytest.mark.qupath
def test_a_full_disk(project):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    image = open_image(project)
    image.add_tiles(new_tiles())
    with pytest.raises(Stopped, match="/dev/full: QuPath could not write: No space left on device"):
        image.save_to(full)


@pytest.mark.qupath
def test_java_without_memory(qupath):
    from jpype import JClass

    from tiaft_plugin.qupath.java.start import java_errors

    error = JClass("java.lang.OutOfMemoryError")("Java heap space")
    text = "a file: Java ran out of memory: set TIAFT_JAVA_MEMORY"
    with pytest.raises(Stopped, match=text), java_errors("a file"):
        raise JClass("java.lang.RuntimeException")(error)


@pytest.mark.qupath
def test_a_slide_that_is_gone(project, tmp_path, qupath):
    image = open_image(project)
    image.add_tiles(new_tiles(9))
    save(image)
    (tmp_path / "a slide%.png").unlink()
    if qupath.startswith("0.5"):
        with pytest.raises(TiaftError, match="a slide%.png: QuPath 0.5 reads an image's objects"):
            open_image(project)
        return
    image = open_image(project)
    assert len(image.found()) == 9
    image.remove(np.arange(9))
    save(image)
    assert len(open_image(project).found()) == 0


@pytest.mark.qupath
def test_a_project_that_moved_with_its_slides(project, tmp_path):
    image = open_image(project)
    image.add_tiles(new_tiles(9))
    save(image)
    moved = tmp_path.rename(tmp_path.with_name(tmp_path.name + " moved"))
    assert len(open_image(moved / "the project" / "project.qpproj").found()) == 9


@pytest.mark.qupath
def test_slides_that_cannot_be_added(qupath, tmp_path):
    from tiaft_plugin.qupath.java.add_images import make_entries

    with pytest.raises(TiaftError, match="none.svs: no such slide"):
        make_entries([tmp_path / "none.svs"], tmp_path / "scratch")
    (tmp_path / "notes.svs").write_text("no slide")
    with pytest.raises(TiaftError, match="notes.svs cannot be added to a project: no reader"):
        make_entries([tmp_path / "notes.svs"], tmp_path / "scratch")


@pytest.mark.qupath
def test_a_slide_that_openslide_reads(data, qupath, tmp_path):
    from tiaft_plugin.qupath.java.add_images import create_project, make_entries

    project = create_project(tmp_path / "project")
    slide = data / "slides/CMU-1-Small-Region.svs"
    entries, folders = make_entries([slide, slide], tmp_path / "scratch")
    assert add_entries(project, entries, folders) == [1, 2]
    entry = entry_of(project)
    assert (entry.path, entry.size, entry.mpp) == (slide, (2220, 2967), (0.499, 0.499))
    assert (entry.folder / "thumbnail.jpg").exists()
    image = open_image(project)
    image.add_tiles(new_tiles(9))
    save(image)
    assert len(open_image(project).found()) == 9


@pytest.mark.qupath
def test_new_projects(qupath, tmp_path):
    from tiaft_plugin.qupath.java.add_images import create_project

    path = create_project(tmp_path / "a" / "b c")
    assert path == tmp_path / "a" / "b c" / "project.qpproj"
    assert json.loads(path.read_text())["uri"] == path.as_uri()
    assert [each.name for each in path.parent.parent.iterdir()] == ["b c"]
    assert read_project(path).images == ()
    with pytest.raises(TiaftError, match="b c exists already: choose another name"):
        create_project(path)
    (tmp_path / "empty").mkdir()
    assert create_project(tmp_path / "empty/project.qpproj").exists()
    with pytest.raises(TiaftError, match="QuPath calls a new project project.qpproj"):
        create_project(tmp_path / "other.qpproj")

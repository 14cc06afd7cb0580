import json
import re
import shutil
import tracemalloc
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from conftest import run_python
from shapely import Polygon, box

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.marks import Mark, mark_of
from tiaft_plugin.qupath.objects import (
    UNCLASSIFIED,
    Classes,
    Found,
    NewAreas,
    NewTiles,
    Origin,
)
from tiaft_plugin.qupath.project.project_file import read_project
from tiaft_plugin.qupath.pushing.plan import plan_push
from tiaft_plugin.qupath.pushing.script import write_export, write_script

SHA, OTHER = "ab" * 32, "cd" * 32
CLASSES = Classes(("Tumor", "Immune cells: Positive"), ((200, 0, 0), (1, 2, 3)))
SIZE = 400, 300


def new_tiles(*tiles: tuple[int, tuple, int], sha256=SHA, grid="g2", model="kather") -> NewTiles:
    """Tiles of (number of the id, bounds, label)."""
    return NewTiles(
        Origin(model, sha256, grid),
        CLASSES,
        [UUID(int=number) for number, _, _ in tiles],
        np.array([bounds for _, bounds, _ in tiles], dtype=float).reshape(-1, 4),
        np.array([label for _, _, label in tiles], dtype=int),
        {"Probability: Tumor": np.linspace(0, 1, len(tiles), dtype=np.float32)},
    )


def new_areas(*areas: tuple[int, Polygon, int], sha256=SHA) -> NewAreas:
    return NewAreas(
        Origin("kather", sha256, "g2"),
        CLASSES,
        [UUID(int=number) for number, _, _ in areas],
        [area for _, area, _ in areas],
        np.array([label for _, _, label in areas]),
        {"Tiles": np.arange(len(areas), dtype=np.float32)},
    )


def square(column: int, row: int = 0) -> tuple:
    return column * 20.0, row * 20.0, column * 20.0 + 20, row * 20.0 + 20


def project_of(folder: Path, *images: tuple[int, str, tuple | None]) -> Path:
    """Write the file of a project whose images are (id, name, size)."""
    members = [
        {
            "serverBuilder": {
                "builderType": "uri",
                "uri": f"file:/slides/{name}",
                "metadata": {"width": size[0], "height": size[1]} if size else {},
            },
            "entryID": number,
            "imageName": name,
            "metadata": {},
        }
        for number, name, size in images
    ]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"version": "0.6.0", "lastID": 9, "images": members})
    (folder / "project.qpproj").write_text(text)
    return folder


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="ascii").splitlines()


def test_a_file_for_each_image_and_a_script_for_each_model(tmp_path):
    folder = project_of(tmp_path, (3, "a.svs", SIZE), (7, "b.svs", SIZE))
    project = read_project(folder)
    first, second = project.images
    tiles = new_tiles((1, square(0), 0), (2, square(1), 1), (3, square(2), UNCLASSIFIED))
    others = new_tiles((4, square(0), 0), sha256=OTHER, model="a/b $'{\\u\n")
    written = write_script(project, [(first, tiles), (second, tiles), (second, others)])
    assert [str(path.relative_to(folder)) for path in written] == [
        "tiaft/3-abababab.geojson",
        "tiaft/7-abababab.geojson",
        "tiaft/7-cdcdcdcd.geojson",
        "scripts/tiaft import kather abababab.groovy",
        "scripts/tiaft import a_b_____u_ cdcdcdcd.groovy",
        "scripts/tiaft export annotations.groovy",
    ]
    for script in written[3:]:
        assert not re.search("@[A-Z]+@", script.read_text(encoding="utf-8"))


def test_each_line_is_an_object_with_its_mark(tmp_path):
    project = read_project(project_of(tmp_path, (3, "a.svs", SIZE)))
    tiles = new_tiles((1, square(0), 0), (2, square(1), 1), (3, square(2), UNCLASSIFIED))
    path = write_script(project, [(project.images[0], tiles)])[0]
    content = json.loads(path.read_text())
    assert content["tiaft"]["image"] == {"id": 3, "width": 400, "height": 300}
    assert (content["tiaft"]["count"], content["tiaft"]["kind"]) == (3, "tile")
    told = content["tiaft"]["metadata"]["tiaft kather (abababab)"]
    assert re.fullmatch(f"SHA-256 {SHA}, 20..-..-..T.*", told)
    assert [json.loads(line.rstrip(",")) for line in lines_of(path)[3:-1]] == content["features"]
    classes = [None, None, None]
    for row, feature in enumerate(content["features"]):
        properties = feature["properties"]
        classes[row] = properties.get("classification")
        mark = mark_of(properties["metadata"]["tiaft model"], properties["metadata"]["_tiaft"])
        given = (*CLASSES.names, "")[row]
        assert mark == Mark("kather", SHA, "g2", given)
        assert properties["measurements"] == {"Probability: Tumor": row / 2}
    assert classes == [
        {"name": "Tumor", "color": [200, 0, 0]},
        {"names": ["Immune cells", "Positive"], "color": [1, 2, 3]},
        None,
    ]


def test_areas_keep_their_holes_and_the_shape_that_was_given(tmp_path):
    project = read_project(project_of(tmp_path, (3, "a.svs", SIZE)))
    ring = Polygon(box(0, 0, 60, 60).exterior, [box(20, 20, 40, 40).exterior])
    path = write_script(project, [(project.images[0], new_areas((1, ring, 1)))])[0]
    (feature,) = json.loads(path.read_text())["features"]
    assert feature["properties"]["objectType"] == "annotation"
    assert [len(line) for line in feature["geometry"]["coordinates"]] == [5, 5]
    assert json.loads(feature["properties"]["metadata"]["_tiaft"])["shape"] == "0 0 60 60 3200"


def test_memory_does_not_grow_with_the_text(tmp_path):
    project = read_project(project_of(tmp_path, (3, "a.svs", SIZE)))
    many = new_tiles(*[(n, square(n % 20, n // 20), n % 2) for n in range(30_000)])
    tracemalloc.start()
    path = write_script(project, [(project.images[0], many)])[0]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(lines_of(path)) == 30_000 + 4
    assert peak < path.stat().st_size, "the whole text was in memory"


@pytest.mark.parametrize("tiles", [new_tiles(), new_areas()])
def test_no_objects_are_still_a_file(tmp_path, tiles):
    project = read_project(project_of(tmp_path, (3, "a.svs", SIZE)))
    path = write_script(project, [(project.images[0], tiles)])[0]
    assert json.loads(path.read_text())["features"] == []
    assert lines_of(path)[-1] == "]}"


def test_later_objects_of_a_model_replace_earlier_ones(tmp_path):
    project = read_project(project_of(tmp_path, (3, "a.svs", SIZE)))
    twice = [new_tiles((number, square(0), 0)) for number in (1, 2)]
    path, script, _ = write_script(project, [(project.images[0], tiles) for tiles in twice])
    (feature,) = json.loads(path.read_text())["features"]
    assert UUID(feature["id"]) == UUID(int=2)
    assert script.suffix == ".groovy"


def test_an_image_without_a_size_and_a_model_without_a_hash_are_refused(tmp_path):
    project = read_project(project_of(tmp_path, (3, "a.svs", None)))
    with pytest.raises(TiaftError, match="a.svs: the project does not say its size: open it in"):
        write_script(project, [(project.images[0], new_tiles((1, square(0), 0)))])
    tiles = new_tiles((1, square(0), 0), sha256="'; evil()//")
    with pytest.raises(TiaftError, match="is no SHA-256: predict with a model file"):
        write_script(project, [(project.images[0], tiles)])
    assert not (tmp_path / "scripts").exists()


def test_the_templates_are_shipped_in_a_wheel():
    from setuptools.config.setupcfg import read_configuration

    shipped = read_configuration(Path(__file__).parents[1] / "setup.cfg")["options"]["package_data"]
    assert shipped["tiaft_plugin.qupath.pushing"] == ["*.groovy"]


# What follows runs the scripts in QuPath's own classes, each test in a process and JVM of its own.

HERE = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"


def groovy_jars() -> list[str] | None:
    """Groovy's own jars, none where QuPath's folder has them; None where there is no Groovy."""
    from paquo._config import settings, to_kwargs
    from paquo.jpype_backend import find_qupath

    app, *_ = find_qupath(**to_kwargs(settings))
    if any(app.glob("groovy-[0-9]*.jar")):
        return []
    command = shutil.which("groovy")
    folder = Path(command).resolve().parents[1] / "lib" if command else None
    return [str(jar) for jar in sorted(folder.glob("*.jar"))] if folder else None


@pytest.fixture
def in_qupath(qupath):
    """Run code of this file in a process in which QuPath's classes and Groovy are."""
    if groovy_jars() is None:
        pytest.skip("no Groovy: neither in QuPath's lib/app nor a groovy command")

    def run(code: str) -> str:
        done = run_python(HERE + "from test_qupath_script import *\nstart()\n" + code)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def start() -> None:
    """Start the JVM with QuPath, and Groovy beside it."""
    import jpype

    for jar in groovy_jars() or ():
        jpype.addClassPath(jar)
    import paquo.java  # noqa: F401

    locale = jpype.JClass("java.util.Locale")
    locale.setDefault(locale.GERMANY)  # where half is 0,5


def make_project(folder: Path, *sizes: tuple[int, int]) -> Path:
    """Make a project of pictures 1.png, 2.png, …, and let QuPath's own class write it."""
    from paquo.projects import QuPathProject
    from PIL import Image

    folder.mkdir(parents=True)
    with QuPathProject(folder / "project", mode="x") as project:
        for number, size in enumerate(sizes, start=1):
            Image.new("RGB", size, (200, 150, 200)).save(folder / f"{number}.png")
            project.add_image(folder / f"{number}.png")
    return folder / "project"


def run_for_project(folder: Path, *scripts: Path | str, imports: bool = True) -> str:
    """Do what QuPath's "Run for project" does with scripts; return what they print.

    With `imports` as its script editor has it unless somebody changed its settings: with the
    imports of QuPath's main classes put in front.
    """
    import jpype
    from paquo.projects import QuPathProject

    java = jpype.JClass
    qp = java("qupath.lib.scripting.QP")
    front = "".join(f"import {each.getCanonicalName()}\n" for each in qp.getCoreClasses())
    front += "import static qupath.lib.scripting.QP.*\n"
    printed = java("java.io.StringWriter")()
    engine = java("javax.script.ScriptEngineManager")().getEngineByName("groovy")
    project = QuPathProject(folder, mode="r+").java_object
    for script in scripts:
        text = script.read_text(encoding="utf-8") if isinstance(script, Path) else script
        for entry in list(project.getImageList()):
            image = entry.readImageData()
            qp.setBatchProjectAndImage(project, image)
            context = java("javax.script.SimpleScriptContext")()
            context.setWriter(java("java.io.PrintWriter")(printed, True))
            engine.eval(front + text if imports else text, context)
            qp.resetBatchProjectAndImage()
            entry.saveImageData(image)
    return str(printed)


# Makes an object with any metadata, and prints all objects of an image as JSON.
PLACE = """
import com.google.gson.*
import qupath.lib.io.GsonTools
import qupath.lib.objects.PathObject
import qupath.lib.scripting.QP
def all = new Gson().fromJson(new File('FILE').text, Map.class)
def objects = all[QP.getProjectEntry().getID()].collect {
    def metadata = it.properties.remove('metadata') ?: [:]
    def object = GsonTools.getInstance().fromJson(new Gson().toJson(it), PathObject.class)
    def method = PathObject.getDeclaredMethod('storeMetadataValue', String, String)
    method.setAccessible(true)
    metadata.each { key, value -> method.invoke(object, key, value) }
    object
}
QP.getCurrentHierarchy().addObjects(objects)
"""
DUMP = """
import com.google.gson.GsonBuilder
import qupath.lib.scripting.QP
def rows = QP.getCurrentHierarchy().getAllObjects(false).collect {
    def roi = it.getROI()
    [image: QP.getProjectEntry().getID(), id: it.getID().toString(),
     type: it.getClass().getSimpleName(),
     name: it.getPathClass()?.toString(), color: it.getPathClass()?.getColor(),
     metadata: new TreeMap(it.getMetadata()), area: roi.getArea(),
     bounds: [roi.getBoundsX(), roi.getBoundsY(), roi.getBoundsWidth(), roi.getBoundsHeight()],
     measured: it.getMeasurementList().getMeasurementNames().collectEntries { name ->
        [name, it.getMeasurementList().get(name)] }]
}
rows.each { println new GsonBuilder().serializeNulls().create().toJson(it) }
"""


def place(folder: Path, objects: dict[int, list[dict]]) -> None:
    path = folder.parent / "objects.json"
    path.write_text(json.dumps(objects))
    empty = {entry.id: [] for entry in read_project(folder).images}
    path.write_text(json.dumps(empty | objects))
    run_for_project(folder, PLACE.replace("FILE", path.as_posix()))


def dump(folder: Path) -> list[dict]:
    """All objects of a project, by image and id, read anew from its files."""
    rows = [json.loads(line) for line in run_for_project(folder, DUMP).splitlines()]
    return sorted(rows, key=lambda row: (row["image"], row["id"]))


def person(number: int, bounds: tuple, name: str | None = None, kind="annotation") -> dict:
    """An object as a person has it: GeoJSON."""
    corners = [list(corner) for corner in box(*bounds).exterior.coords]
    given = {"classification": name} if name else {}
    return {
        "type": "Feature",
        "id": str(UUID(int=number)),
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "properties": {"objectType": kind, **given},
    }


def ours(number, bounds, given="", now=None, *, sha256=SHA, kind="tile", shape="", grid="g1"):
    """An object with a mark, that was given one class and has another now."""
    made = person(number, bounds, now, kind)
    mark = Mark("kather", sha256, grid, given, shape).metadata()
    made["properties"]["metadata"] = mark
    return made


AREA = "0 0 20 20 400"
# Each: what an image has, and what is pushed. The first tile of what is new is (1, square(0)).
CASES = {
    "nothing is there": [],
    "the same tile": [ours(1, square(0), "Tumor", "Tumor")],
    "an older grid": [ours(50, square(0), "Tumor", "Tumor"), ours(51, square(5), "Tumor", "Tumor")],
    "a changed class": [ours(1, square(0), "Tumor", "Stroma")],
    "a class taken away": [ours(1, square(0), "Tumor", None)],
    "a class given": [ours(2, square(1), "", "Tumor")],
    "unclassified as it was": [ours(2, square(1), "", None)],
    "corrected on an older grid": [ours(50, square(0), "Tumor", "Stroma")],
    "corrected beside": [ours(50, (0.4, 0, 20, 20), "Tumor", "Stroma")],
    "corrected too far beside": [ours(50, (0, 0, 20.6, 20), "Tumor", "Stroma")],
    "corrected across a pixel": [ours(50, (19.7, 0, 40.3, 19.8), "Tumor", "Stroma")],
    "another model's": [ours(1, square(0), "Tumor", "Tumor", sha256=OTHER)],
    "another model's, corrected": [ours(50, square(0), "Tumor", "Stroma", sha256=OTHER)],
    "people's": [person(60, square(0), "Tumor"), person(61, square(1), "Tumor", "tile")],
    "an area": [ours(50, square(0), "Tumor", "Tumor", kind="annotation", shape=AREA)],
    "a moved area": [ours(50, square(1), "Tumor", "Tumor", kind="annotation", shape=AREA)],
    "an area of another class": [ours(1, square(0), "Tumor", "A", kind="annotation", shape=AREA)],
    "derived classes": [ours(1, square(0), "Immune cells: Positive", "Immune cells: Positive")],
}
PUSHED = {
    "tiles": new_tiles((1, square(0), 0), (2, square(1), 1), (3, square(2), UNCLASSIFIED)),
    "areas": new_areas((1, box(*square(0)), 0), (4, box(0, 100, 60, 160), 1)),
}


def found_in(objects: list[dict]) -> Found:
    """The marked ones of an image's objects, as a push finds them."""
    rows = [each for each in objects if "metadata" in each["properties"]]
    shapes = [Polygon(each["geometry"]["coordinates"][0]) for each in rows]
    properties = [each["properties"] for each in rows]
    outlines = [
        " ".join(f"{value:.0f}" for value in (*shape.bounds, shape.area))
        if each["objectType"] == "annotation"
        else ""
        for each, shape in zip(properties, shapes, strict=True)
    ]
    return Found(
        [UUID(each["id"]) for each in rows],
        np.array([shape.bounds for shape in shapes]).reshape(-1, 4),
        [mark_of("kather", each["metadata"]["_tiaft"]) for each in properties],
        [each.get("classification") for each in properties],
        outlines,
        len(objects) - len(rows),
    )


def expected_after(objects: list[dict], new: NewTiles | NewAreas) -> tuple[list[str], str]:
    """The ids that plan_push leaves in an image, and what the script says of it."""
    found = found_in(objects)
    plan = plan_push(found, new)
    gone = {str(found.ids[row]) for row in plan.remove}
    stay = [each["id"] for each in objects if each["id"] not in gone]
    text = f"{len(plan.add)} objects of kather added, {len(plan.remove)} removed"
    if len(plan.corrected):
        text += f", {len(plan.corrected)} kept that a person changed"
    return sorted(stay + [str(new.ids[row]) for row in plan.add]), text


def push_cases(folder: Path, kind: str) -> None:
    """Push into one image for each case, and compare with what plan_push says."""
    cases = list(enumerate(CASES.values(), start=1))
    project_folder = make_project(folder, *[SIZE] * len(cases))
    place(project_folder, dict(cases))
    project = read_project(project_folder)
    new = PUSHED[kind]
    script = write_script(project, [(entry, new) for entry in project.images])[-2]
    said = run_for_project(project_folder, script).splitlines()
    rows = dump(project_folder)
    for (number, objects), name, line in zip(cases, CASES, said, strict=True):
        ids, text = expected_after(objects, new)
        assert sorted(r["id"] for r in rows if r["image"] == str(number)) == ids, name
        assert line == f"tiaft: {number}.png: {text}", name


@pytest.mark.qupath
@pytest.mark.parametrize("kind", ["tiles", "areas"])
def test_the_script_does_what_the_plan_says(in_qupath, tmp_path, kind):
    in_qupath(f"push_cases(Path({str(tmp_path / 'p')!r}), {kind!r})")


def push_twice(folder: Path) -> None:
    project_folder = make_project(folder, SIZE, SIZE, (200, 100))
    place(project_folder, {1: [person(70, square(9), "My own")]})
    project = read_project(project_folder)
    tiles = new_tiles(*[(n, square(n), (0, 1, UNCLASSIFIED)[n % 3]) for n in range(9)])
    prepared = [(project.images[0], tiles), (project.images[2], tiles)]
    path, _, script, _ = write_script(project, prepared)
    path.with_name("3-abababab.geojson").write_text(
        path.read_text().replace('"id": 1, ', '"id": 3, ')  # another image's predictions
    )
    said = run_for_project(project_folder, script).splitlines()
    assert said == [
        "tiaft: 1.png: 9 objects of kather added, 0 removed",
        "tiaft: 2.png: no predictions of kather for it, left as it is",
        "tiaft: 3.png: NOTHING WAS CHANGED: it is 200 x 100 px, the predictions are for 400 x 300: "
        "another image",
    ]
    rows = dump(project_folder)
    assert len(rows) == 10 and {row["image"] for row in rows} == {"1"}
    for row, n in zip(rows, range(9), strict=False):
        given = ("Tumor", "Immune cells: Positive", None)[n % 3]
        assert (row["type"], row["name"]) == ("PathTileObject", given)
        assert row["bounds"] == [n * 20, 0, 20, 20]
        assert row["measured"] == {"Probability: Tumor": float(np.float32(n / 8))}
        assert mark_of(row["metadata"]["tiaft model"], row["metadata"]["_tiaft"]) == Mark(
            "kather", SHA, "g2", given or ""
        )
    read = read_project(project_folder)
    classes = dict(read.classes)
    assert {"Tumor", "Immune cells: Positive"} <= set(classes)
    assert classes["Immune cells: Positive"] & 0xFFFFFF == 0x010203
    (told,) = read.images[0].metadata.items()
    assert told[0] == "tiaft kather (abababab)" and told[1].startswith(f"SHA-256 {SHA}, ")
    assert not read.images[1].metadata and not read.images[2].metadata
    count = len(read.classes)

    said = run_for_project(project_folder, script, imports=False).splitlines()
    assert said[0] == "tiaft: 1.png: 9 objects of kather added, 9 removed"
    assert dump(project_folder) == rows
    read = read_project(project_folder)
    assert len(read.images[0].metadata) == 1 and len(read.classes) == count

    path.write_text(path.read_text()[:-200])
    (said, *_) = run_for_project(project_folder, script).splitlines()
    assert said.startswith("tiaft: 1.png: NOTHING WAS CHANGED: ")
    assert said.endswith("1-abababab.geojson is not whole: copy it again")
    assert dump(project_folder) == rows

    ring = Polygon(box(1 / 3, 0, 399.9, 299.7).exterior, [box(20.1, 20, 40, 40).exterior])
    areas = new_areas((5, ring, 0), (6, box(0.1, 0.2, 9.7, 9.3), 1))
    script = write_script(project, [(project.images[0], areas)])[1]
    said = run_for_project(project_folder, script, script).splitlines()
    assert said[0] == "tiaft: 1.png: 2 objects of kather added, 9 removed"
    assert said[3] == "tiaft: 1.png: 2 objects of kather added, 2 removed", "they seemed corrected"
    first, second, person_s = dump(project_folder)
    assert (first["type"], first["name"]) == ("PathAnnotationObject", "Tumor")
    assert first["area"] == pytest.approx(ring.area, rel=1e-3)
    assert second["measured"] == {"Tiles": 1.0} and person_s["name"] == "My own"


@pytest.mark.qupath
def test_the_script_can_run_again_and_refuses_other_images(in_qupath, tmp_path):
    in_qupath(f"push_twice(Path({str(tmp_path / 'p')!r}))")


def export(folder: Path) -> None:
    project_folder = make_project(folder, SIZE, SIZE, SIZE)
    mine = [
        person(60, square(0), "Tumor"),
        ours(1, square(3), "Tumor", "Tumor"),
        ours(2, square(4), "Tumor", "Stroma"),
        ours(3, square(5), "Tumor", None),
        person(61, square(6), "Tumor", "tile"),
    ]
    place(project_folder, {1: mine, 2: [ours(1, square(3), "Tumor", "Tumor")], 3: mine[:1]})
    script = write_export(read_project(project_folder))
    said = run_for_project(project_folder, script).splitlines()
    exported = project_folder / "tiaft" / "export"
    assert said[0] == (
        f"tiaft: 1.png: 1 annotations and 2 corrected tiles written to {exported / '1.png.geojson'}"
    )
    assert said[1] == "tiaft: 2.png: nothing to export"
    names = sorted(path.name for path in exported.iterdir())
    assert names == ["1.png.geojson", "3.png.geojson"]
    features = json.loads((exported / "1.png.geojson").read_text())["features"]
    kept = {UUID(each["id"]).int: each["properties"] for each in features}
    assert set(kept) == {60, 2, 3}
    mark = mark_of(kept[2]["metadata"]["tiaft model"], kept[2]["metadata"]["_tiaft"])
    assert (mark.given, kept[2]["classification"]["name"]) == ("Tumor", "Stroma")

    run_for_project(project_folder, "qupath.lib.scripting.QP.clearAllObjects()", script)
    assert not list(exported.iterdir()), "what was exported before is no longer so"


@pytest.mark.qupath
def test_the_export_script_writes_annotations_and_corrections(in_qupath, tmp_path):
    in_qupath(f"export(Path({str(tmp_path / 'p')!r}))")

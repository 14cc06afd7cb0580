"""The round trip with a real QuPath: what tiaft writes, plain paquo reads in another process."""

import csv
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import run_python
from PIL import Image

from tiaft_plugin.engine.store import read_store

pytestmark = [pytest.mark.qupath, pytest.mark.usefixtures("qupath")]

READ = """
import csv
import json
from paquo.projects import QuPathProject

def told(each):
    of = each.path_class
    return {
        "id": str(each.java_object.getID()),
        "type": str(each.java_object.getClass().getSimpleName()),
        "class": of and str(of.java_object.toString()),
        "colour": of and of.color.to_rgb(),
        "bounds": list(each.roi.bounds),
        "measurements": dict(each.measurements),
        "metadata": {str(k): str(v) for k, v in each.java_object.getMetadata().items()},
    }

with QuPathProject(PROJECT, mode="r") as project:
    images = [
        {
            "name": image.image_name,
            "metadata": dict(image.metadata),
            "tiles": [told(each) for each in image.hierarchy.detections],
            "annotations": [told(each) for each in image.hierarchy.annotations],
        }
        for image in project.images
    ]
    classes = [each.name for each in project.path_classes]
    print("READ" + json.dumps({"images": images, "classes": classes}))
"""
# As a pathologist would: the class of some tiles, an annotation, and QuPath's own save.
CORRECT = """
from paquo.projects import QuPathProject
from paquo.classes import QuPathPathClass
from shapely.geometry import Polygon, box
from shapely import Point

with QuPathProject(PROJECT, mode="a") as project:
    [image] = project.images
    tiles = sorted(image.hierarchy.detections, key=lambda each: str(each.java_object.getID()))
    for each in tiles[:COUNT]:
        each.java_object.setPathClass(QuPathPathClass("Corrected").java_object)
    ring = Point(200, 200).buffer(90).difference(box(180, 180, 220, 220))
    image.hierarchy.add_annotation(ring, path_class=QuPathPathClass("Drawn"))
"""


def read(project: Path) -> dict:
    done = run_python(READ.replace("PROJECT", repr(str(project))))
    lines = [line for line in done.stdout.splitlines() if line.startswith("READ")]
    assert lines, done.stderr
    return json.loads(lines[0].removeprefix("READ"))


def correct(project: Path, count: int) -> None:
    done = run_python(CORRECT.replace("PROJECT", repr(str(project))).replace("COUNT", str(count)))
    assert done.returncode == 0, done.stderr


def tiaft(*arguments: object, code: int = 0) -> str:
    """Run the command line in a process of its own, as it is run."""
    line = [sys.executable, "-c", "from tiaft_plugin.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def stores(tiny_model, slide, tmp_path_factory) -> list[Path]:
    """Predictions of one slide: by two models, and by the first on a denser grid."""
    from tiaft_plugin.network import create_network, save_model

    folder = tmp_path_factory.mktemp("predictions")
    net = create_network("test_resnet", "abc", init="random", tile_size=48, mpp=1.0, seed=7)
    other = save_model(net, folder / "other.safetensors")
    for name, model in (("first", tiny_model), ("second", other)):
        tiaft("predict", slide, "--model", model, "--out", folder / name, "--no-mask")
    grid = ["--model", tiny_model, "--stride", 16, "--out", folder / "dense"]
    tiaft("predict", slide, *grid, "--no-mask")
    return [folder / name / "colon.ome.zarr" for name in ("first", "second", "dense")]


@pytest.fixture
def project(stores, slide, tmp_path) -> Path:
    path = tmp_path / "project"
    tiaft("qupath", "push", path, stores[0], "--create", "--slides", slide.parent)
    return path


def test_everything_of_a_push_is_read_by_others(project, stores):
    store = read_store(stores[0])
    [image] = read(project)["images"]
    assert len(image["tiles"]) == len(store)
    by_id = {each["id"]: each for each in image["tiles"]}
    for bounds, probabilities in store.blocks():
        for uuid, box, row in zip(store.tile_ids(bounds), bounds, probabilities, strict=True):
            tile = by_id[str(uuid)]
            assert tile["type"] == "PathTileObject"
            assert tile["class"] == store.classes[row.argmax()]
            np.testing.assert_allclose(tile["bounds"], box, atol=1e-3)
            names = [f"Probability: {name}" for name in store.classes]
            values = np.float32([tile["measurements"][name] for name in names])
            np.testing.assert_array_equal(values, row)
    assert {tuple(each["colour"]) for each in image["tiles"]} <= {
        (230, 159, 0), (86, 180, 233), (0, 158, 115)
    }  # fmt: skip
    [value] = image["metadata"].values()
    assert store.facts["model"]["sha256"] in value
    assert next(iter(image["metadata"])).startswith("tiaft tiny.safetensors (")
    assert read(project)["classes"][-3:] == list(store.classes)


def test_what_people_and_other_models_made_survives(project, stores):
    tiaft("qupath", "push", project, stores[1])
    correct(project, 5)
    [before] = read(project)["images"]
    changed = [each for each in before["tiles"] if each["class"] == "Corrected"]
    own = [each for each in changed if each["metadata"]["tiaft model"] == "tiny.safetensors"]
    said = tiaft("qupath", "push", project, stores[0])
    assert own and f"{len(own)} stay that a person changed" in said
    [after] = read(project)["images"]

    def key(each: dict) -> str:
        return each["id"]

    assert sorted(after["tiles"], key=key) == sorted(before["tiles"], key=key)
    assert after["annotations"] == before["annotations"] and len(after["annotations"]) == 1
    tiaft("qupath", "remove", project, "--model", "tiny.safetensors")
    tiaft("qupath", "remove", project, "--model", "other.safetensors")
    [left] = read(project)["images"]
    assert {each["class"] for each in left["tiles"]} == {"Corrected"} and len(left["tiles"]) == 5
    assert left["annotations"] == before["annotations"] and not left["metadata"]


def test_merged_areas_are_annotations_that_can_be_replaced(project, stores):
    for _ in range(2):
        tiaft("qupath", "push", project, stores[1], "--as", "annotations")
    [image] = read(project)["images"]
    ids = [each["id"] for each in image["annotations"]]
    assert ids and len(set(ids)) == len(ids)
    said = tiaft("qupath", "push", project, stores[1])
    assert f"{len(ids)} removed" in said
    assert not read(project)["images"][0]["annotations"]


def test_a_run_may_write_into_a_project_and_within_its_annotations(
    tiny_model, slide, project, tmp_path
):
    correct(project, 0)
    options = ["--model", tiny_model, "--out", tmp_path / "out"]
    said = tiaft("predict", "--project", project, "--within", "Drawn", *options, "--to", "geojson")
    inside = len(read_store(tmp_path / "out/colon.ome.zarr"))
    assert f"{inside} tiles" in said and 0 < inside < 100
    target = f"qupath={tmp_path / 'made'}"
    for _ in range(2):
        tiaft("predict", slide, "--model", tiny_model, "--out", tmp_path / "all", "--to", target)
    [image] = read(tmp_path / "made")["images"]
    assert len(image["tiles"]) == len(read_store(tmp_path / "all/colon.ome.zarr"))
    said = tiaft("predict", "--project", project, "--within", "Nothing", *options, code=2)
    assert "has no annotation of class Nothing in any image" in said


@pytest.mark.slow
def test_killed_ten_times_there_are_the_old_objects_or_the_new(project, stores):
    """SIGKILL at random moments of a push that replaces one grid by another."""
    old, new = stores[0], stores[2]
    line = [sys.executable, "-c", "from tiaft_plugin.cli import main; main()", "qupath", "push"]
    begun = time.monotonic()
    tiaft("qupath", "push", project, old)
    whole = time.monotonic() - begun
    whole_of = {name: _ids(read_store(name)) for name in (old, new)}
    rng = random.Random(5)
    for _ in range(10):
        process = subprocess.Popen(
            [*line, str(project), str(new)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=whole * rng.uniform(0.3, 1.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        [image] = read(project)["images"]
        there = {each["id"] for each in image["tiles"]}
        assert there in (whole_of[old], whole_of[new])
        tiaft("qupath", "push", project, old)
    names = sorted(file.name for file in (project / "data/1").iterdir())
    assert not [name for name in names if name.startswith(".")]


def _ids(store) -> set[str]:
    return {str(each) for bounds, _ in store.blocks() for each in store.tile_ids(bounds)}


@pytest.mark.slow
def test_the_loop_of_push_correct_pull_fine_tune_and_push_again(
    project, stores, slide, tiny_model, tmp_path
):
    """As a lab does it: 20 tiles corrected, a new model of them, both models side by side."""
    change = CORRECT.replace("COUNT", "20").replace('"Corrected"', '"b" if number % 2 else "c"')
    change = change.replace("for each in tiles[:20]", "for number, each in enumerate(tiles[:20])")
    done = run_python(change.replace("PROJECT", repr(str(project))))
    assert done.returncode == 0, done.stderr
    tiles, run = tmp_path / "tiles", tmp_path / "run"
    corrections = ["--corrections-of", "tiny.safetensors", "--corrections-only"]
    said = tiaft("qupath", "pull", project, "--out", tiles, *corrections)
    rows = list(csv.DictReader((tiles / "manifest.csv").open()))
    # The network of random weights calls every tile alike, one of the new classes perhaps.
    by_id = {each["id"]: each for each in read(project)["images"][0]["tiles"]}
    changed = [
        each
        for each in by_id.values()
        if json.loads(each["metadata"]["_tiaft"])["class"] != each["class"]
    ]
    assert len(rows) == len(changed) >= 10 and f"{len(rows)} tiles" in said
    for row in rows:
        tile = by_id[row["annotation"]]
        assert row["label"] == tile["class"] and row["group"] == slide.name
        assert row["predicted"] == json.loads(tile["metadata"]["_tiaft"])["class"]
        with Image.open(tiles / row["file"]) as picture, Image.open(slide) as whole:
            assert picture.size == (32, 32)
            x, y = round(tile["bounds"][0]), round(tile["bounds"][1])
            cut = np.asarray(whole.convert("RGB"))[y : y + 32, x : x + 32]
            assert (np.asarray(picture) == cut).all()
    few = ["--epochs", "1,1", "--val-share", 0, "--batch-size", 4, "--device", "cpu"]
    tiaft("finetune", tiles, "--out", run, "--init", tiny_model, *few)
    options = ["--model", run / "model.safetensors", "--out", tmp_path / "new", "--no-mask"]
    tiaft("predict", slide, *options, "--to", f"qupath={project}")
    [image] = read(project)["images"]
    models = Counter(each["metadata"]["tiaft model"] for each in image["tiles"])
    count = len(read_store(stores[0]))
    assert models == {"tiny.safetensors": count, "model.safetensors": count}

"""Pushes and removals: what becomes of a project, in which order, and when something fails."""

import json
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from conftest import tiaft
from qupath_fakes import FakeImage, make_project

from tiaft_plugin import TiaftError
from tiaft_plugin.engine.predictions import TileBlock, TilePredictions
from tiaft_plugin.errors import Stopped
from tiaft_plugin.qupath.project import writing
from tiaft_plugin.qupath.pushing import push as pushing
from tiaft_plugin.qupath.pushing.push import How, Where, push, remove

SIZE = (512, 384)
CLASSES = ("TUM", "STR", "Immune: T cell")


@pytest.fixture(autouse=True)
def without_java(monkeypatch):
    monkeypatch.setattr(pushing, "open_image", FakeImage)


@pytest.fixture
def project(tmp_path) -> Path:
    slides = [tmp_path / "slides" / name for name in ("a.svs", "b.svs")]
    slides[0].parent.mkdir()
    for slide in slides:
        slide.write_bytes(slide.name.encode())
    return make_project(tmp_path / "project", slides, [SIZE, SIZE])


def predicted(
    name: str = "a.svs",
    *,
    model: str = "ftx",
    sha256: str = "a" * 64,
    side: int = 64,
    seed: int = 0,
) -> TilePredictions:
    """Tiles of the whole slide, side by side, in blocks of ten."""
    from uuid import NAMESPACE_URL, uuid5

    x, y = np.meshgrid(np.arange(0, SIZE[0], side), np.arange(0, SIZE[1], side))
    corner = np.stack([x.ravel(), y.ravel()], 1).astype(float)
    bounds = np.concatenate([corner, corner + side], axis=1)
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(3), len(bounds))

    def blocks():
        for start in range(0, len(bounds), 10):
            rows = slice(start, start + 10)
            ids = [uuid5(NAMESPACE_URL, f"{name}{sha256}{side}{b}") for b in bounds[rows].tolist()]
            yield TileBlock(bounds[rows], probabilities[rows].astype(np.float32), ids)

    return TilePredictions(
        Path(name), SIZE, CLASSES, model, sha256, len(bounds), blocks, grid=f"grid{side}"
    )


def objects(project: Path, image: int = 1) -> list[dict]:
    file = project.parent / "data" / str(image) / "data.qpdata"
    return json.loads(file.read_text()) if file.exists() else []


def rewrite(project: Path, changed: list[dict], image: int = 1) -> None:
    (project.parent / "data" / str(image) / "data.qpdata").write_text(json.dumps(changed))


def listing(project: Path) -> dict[str, bytes]:
    """Every file of a project, temporary ones too."""
    return {str(p): p.read_bytes() for p in sorted(project.parent.rglob("*")) if p.is_file()}


def metadata(project: Path, image: int = 1) -> dict[str, str]:
    return json.loads(project.read_text())["images"][image - 1]["metadata"]


def test_a_push_writes_tiles_metadata_classes_and_a_summary(project):
    [changed] = push(project, [predicted()])
    assert (changed.image, changed.added, changed.removed, changed.reason) == ("a.svs", 48, 0, "")
    tiles = objects(project)
    assert len(tiles) == 48 and {each["class"] for each in tiles} == set(CLASSES)
    assert set(tiles[0]["measurements"]) == {f"Probability: {name}" for name in CLASSES}
    [(key, value)] = metadata(project).items()
    assert key == "tiaft ftx (aaaaaaaa)" and value.startswith(f"SHA-256 {'a' * 64}, 20")
    classes = json.loads((project.parent / "classifiers/classes.json").read_text())["pathClasses"]
    assert [each["name"] for each in classes][-3:] == list(CLASSES)
    summary = json.loads((project.parent / "data/1/summary.json").read_text())
    assert summary["hierarchy"]["nObjects"] == 48
    assert not [name for name in listing(project) if "/." in name.removeprefix(str(project.parent))]


def test_again_with_the_same_model_the_count_is_the_same(project):
    list(push(project, [predicted()]))
    first = objects(project)
    [changed] = push(project, [predicted()])
    assert (changed.added, changed.removed, changed.corrected) == (48, 48, 0)
    assert objects(project) == first and len(metadata(project)) == 1


def test_another_grid_of_the_model_takes_the_place_of_the_first(project):
    list(push(project, [predicted()]))
    [changed] = push(project, [predicted(side=128)])
    assert (changed.added, changed.removed) == (12, 48)
    assert {each["mark"][2] for each in objects(project)} == {"grid128"}


def test_what_people_and_other_models_made_stays_by_content(project):
    list(push(project, [predicted(), predicted(model="other", sha256="b" * 64)]))
    drawn = {"id": str(uuid4()), "bounds": [1, 2, 3, 4], "class": "TUM", "mark": None, "shape": ""}
    others = [each for each in objects(project) if each["mark"][1] == "b" * 64]
    rewrite(project, [*objects(project), drawn])
    [changed] = push(project, [predicted(side=128)])
    assert changed.others == 49
    left = [each for each in objects(project) if not each["mark"] or each["mark"][1] == "b" * 64]
    assert left == [*others, drawn]
    results = list(remove(project, "ftx"))
    assert [(each.image, each.removed, each.others) for each in results] == [("a.svs", 12, 49)]
    assert objects(project) == [*others, drawn]
    assert list(metadata(project)) == ["tiaft other (bbbbbbbb)"]


def test_corrected_tiles_survive_pushes_and_removal(project):
    list(push(project, [predicted()]))
    tiles = objects(project)
    for each, name in zip(tiles[:3], ("STR", "TUM", None), strict=True):
        each["class"] = name if each["class"] != name else "Necrosis"
    rewrite(project, tiles)
    for side, added in ((64, 45), (128, 12)):
        [changed] = push(project, [predicted(side=side)])
        assert (changed.corrected, changed.added) == (3, added)
        assert [each for each in objects(project) if each in tiles[:3]] == tiles[:3]
    [changed] = remove(project, "aaaaaaaa")
    assert changed.corrected == 3 and objects(project) == tiles[:3]


def test_areas_classes_and_least_probability(project):
    [changed] = push(project, [predicted()], How(areas=True))
    areas = objects(project)
    assert changed.added == len(areas) < 48 and all(each["mark"][4] for each in areas)
    [changed] = push(project, [predicted()], How(classes=("TUM",), min_probability=0.5))
    assert changed.removed == len(areas)
    assert {each["class"] for each in objects(project)} == {"TUM"}
    list(push(project, [predicted()], How(min_probability=0.5)))
    assert None in {each["class"] for each in objects(project)}


def test_a_dry_run_writes_nothing(project):
    list(push(project, [predicted()]))
    before = listing(project)
    [changed] = push(project, [predicted(side=128)], dry_run=True)
    assert (changed.added, changed.removed) == (12, 48)
    assert [each.removed for each in remove(project, "ftx", dry_run=True)] == [48]
    assert listing(project) == before


def test_one_slide_that_is_wrong_does_not_stop_the_others(project, tmp_path):
    results = list(push(project, [tmp_path / "none.zarr", predicted("z.svs"), predicted("b.svs")]))
    assert [bool(each.reason) for each in results] == [True, True, False]
    assert "none.zarr is no store of tiaft's" in results[0].reason
    assert "z.svs is not in" in results[1].reason
    assert len(objects(project, 2)) == 48 and not objects(project, 1)


def test_an_image_may_be_named(project):
    [changed] = push(project, [predicted("z.svs")], where=Where(images=("2",)))
    assert changed.image == "b.svs" and len(objects(project, 2)) == 48


def test_if_the_project_cannot_be_written_the_objects_come_back(project, monkeypatch):
    list(push(project, [predicted()]))
    before = listing(project)

    def fail(*_, **__):
        raise Stopped("no space")

    monkeypatch.setattr(writing, "set_image_metadata", fail)
    with pytest.raises(Stopped, match="no space"):
        list(push(project, [predicted(side=128)]))
    assert listing(project) == before


def test_a_first_push_that_fails_leaves_no_objects(project, monkeypatch):
    def fail(*_, **__):
        raise TiaftError("it was removed")

    monkeypatch.setattr(writing, "set_image_metadata", fail)
    [changed] = push(project, [predicted()])
    assert changed.reason == "it was removed" and not objects(project)


@pytest.mark.parametrize("file", ["data/1/data.qpdata", "project.qpproj"])
def test_what_qupath_writes_in_the_meantime_is_not_written_over(project, monkeypatch, file):
    list(push(project, [predicted()]))

    class Slow(FakeImage):
        def save_to(self, path):
            changed = project.parent / file
            changed.write_bytes(changed.read_bytes() + b" ")
            super().save_to(path)

    monkeypatch.setattr(pushing, "open_image", Slow)
    before = objects(project)
    [changed] = push(project, [predicted(side=128)])
    assert f"{file} was changed in the meantime, by QuPath perhaps" in changed.reason
    assert objects(project) == before


@pytest.mark.parametrize("before", [True, False])
def test_what_qupath_saves_while_a_push_saves_stays(project, monkeypatch, before):
    """QuPath moves the old file aside, writes a new one, and removes the old."""
    if before:
        list(push(project, [predicted()]))
    data = project.parent / "data/1/data.qpdata"

    class Slow(FakeImage):
        def save_to(self, path):
            if before:
                data.rename(f"{data}.bkp").unlink()
            data.write_text('["drawn meanwhile"]')
            super().save_to(path)

    monkeypatch.setattr(pushing, "open_image", Slow)
    [changed] = push(project, [predicted(side=128)])
    assert "was changed in the meantime" in changed.reason
    assert data.read_text() == '["drawn meanwhile"]'
    assert [file.name for file in data.parent.iterdir() if file.name.startswith(".")] == []


def test_what_a_killed_push_left_is_tidied(project):
    list(push(project, [predicted()]))
    folder = project.parent / "data/1"
    (folder / ".data-12345678.qpdata").write_bytes(b"half")
    (folder / writing.BACKUP).write_bytes(b"old")
    list(push(project, [predicted()]))
    assert sorted(file.name for file in folder.iterdir()) == ["data.qpdata", "summary.json"]


def test_half_saved_by_qupath_is_refused(project):
    list(push(project, [predicted()]))
    (project.parent / "data/1/data.qpdata.bkp").write_bytes(b"whole")
    [changed] = push(project, [predicted()])
    assert "shows that QuPath was stopped while it saved" in changed.reason


def test_two_runs_at_once(project):
    from tiaft_plugin.qupath.project.project_file import project_lock, read_project

    with (
        project_lock(read_project(project)),
        pytest.raises(TiaftError, match="another run is working on it"),
    ):
        list(push(project, [predicted()]))


def test_removing_what_is_not_there(project):
    with pytest.raises(TiaftError, match="no objects of 'ftx': none here carry a model's mark"):
        list(remove(project, "ftx"))
    list(push(project, [predicted()]))
    with pytest.raises(TiaftError, match="here are those of ftx"):
        list(remove(project, "fty"))


def test_a_model_whose_metadata_were_not_written_can_be_removed(project):
    """As after a kill between the objects and the project."""
    list(push(project, [predicted()]))
    content = json.loads(project.read_text())
    content["images"][0]["metadata"] = {}
    project.write_text(json.dumps(content))
    [changed] = remove(project, "ftx")
    assert changed.removed == 48 and not objects(project)


def test_two_predictions_of_an_image_by_one_model_are_not_both_pushed(project):
    """The second would take the place of the first without a word."""
    first, second = push(project, [predicted(), predicted(side=128)])
    assert not first.reason and len(objects(project)) == 48
    assert "objects of a.svs already" in second.reason


def test_a_damaged_store_takes_nothing_away(project, tiny_model, slide, tmp_path):
    """A folder that was copied in part has fewer files, which zarr reads as zeros."""
    import shutil

    tiaft("predict", slide, "--model", tiny_model, "--out", tmp_path / "out", "--no-mask")
    store = tmp_path / "out/colon.ome.zarr"
    assert pushing.read_predictions(store).count
    shutil.rmtree(store / "probabilities/c")
    with pytest.raises(TiaftError, match="is damaged: chunk 0 is not what was written"):
        pushing.read_predictions(store)
    (store / "probabilities/zarr.json").write_text("{")
    with pytest.raises(TiaftError, match=r"is damaged \(probabilities missing\)"):
        pushing.read_predictions(store)


def test_slides_are_added_where_a_project_lacks_them(project, tmp_path, monkeypatch):
    """QuPath's part, to describe a slide, is a stand-in."""
    from tiaft_plugin.engine.slides import fingerprint
    from tiaft_plugin.qupath.pushing import adding

    slide = tmp_path / "slides/new.svs"
    slide.write_bytes(b"new")
    wanted = replace(predicted("new.svs"), fingerprint=fingerprint(slide))

    def made(slides, scratch):
        folders = [scratch / str(number) for number, _ in enumerate(slides)]
        for folder in folders:
            folder.mkdir()
        entry = json.loads(project.read_text())["images"][0]
        builder = {**entry["serverBuilder"], "uri": slide.as_uri()}
        members = {"serverBuilder": builder, "imageName": slide.name}
        return [{**entry, **members} for _ in slides], folders

    monkeypatch.setattr(adding, "make_entries", made)
    before = listing(project)
    options = {"slides": [slide.parent], "create": False}
    found = adding.add_slides(project, [wanted], dry_run=True, **options)
    assert found == [(wanted, slide)] and listing(project) == before
    assert adding.add_slides(project, [wanted], **options) == [(wanted, slide)]
    images = json.loads(project.read_text())["images"]
    assert [each["imageName"] for each in images] == ["a.svs", "b.svs", "new.svs"]
    assert adding.add_slides(project, [wanted], slides=[slide], create=True) == []
    with pytest.raises(TiaftError, match="would have no image: name the slides with --slides"):
        adding.add_slides(tmp_path / "empty", [wanted], create=True)
    assert not (tmp_path / "empty").exists()

"""Annotations of a project as a mask, without QuPath."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from qupath_fakes import make_project
from shapely import LineString, Polygon, box

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.java import image_data
from tiaft_plugin.qupath.java.image_data import Annotation
from tiaft_plugin.qupath.masks import ProjectMask

BOW_TIE = Polygon([(0, 0), (100, 100), (100, 0), (0, 100)])


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Gives a function that takes (class, shape) drawn in a project, and returns it and its slide.

    QuPath shows of the slide what begins at 200, 100.
    """
    slide = tmp_path / "a.svs"
    slide.write_bytes(b"slide")
    project = make_project(tmp_path / "project", [slide], [(800, 500)])
    (tmp_path / "project/data/1").mkdir(parents=True)
    (tmp_path / "project/data/1/data.qpdata").touch()
    bounds = {"x": 200, "y": 100, "width": 800, "height": 500}
    reader = SimpleNamespace(
        info=SimpleNamespace(file_path=slide, slide_dimensions=(1200, 800), mpp=(4.0, 4.0)),
        openslide_wsi=SimpleNamespace(
            properties={f"openslide.bounds-{side}": str(value) for side, value in bounds.items()}
        ),
    )

    def drawn(*shapes):
        found = [
            Annotation(str(number), None, name, shape, False, None)
            for number, (name, shape) in enumerate(shapes)
        ]
        image = SimpleNamespace(annotations=lambda: found)
        monkeypatch.setattr(image_data, "open_image", lambda _: image)
        return project, reader

    return drawn


def test_annotations_lie_where_they_are_on_the_slide(draw):
    project, reader = draw(("Tumor: Positive", box(10, 20, 110, 70)), ("Stroma", box(0, 0, 9, 9)))
    mask = ProjectMask(project, ("Tumor:Positive",))(reader)
    expected = np.zeros((800, 1200), dtype=np.uint8)
    expected[120:170, 210:310] = 1
    assert np.array_equal(mask, expected)


def test_what_crosses_itself_is_repaired_and_lines_are_named(draw, caplog):
    project, reader = draw(("Tumor", BOW_TIE), ("Tumor", LineString([(0, 0), (9, 9)])))
    with caplog.at_level(logging.WARNING):
        mask = ProjectMask(project, ("Tumor",))(reader)
    assert int(mask.sum()) == pytest.approx(5000, rel=0.1)  # both triangles, with their borders
    assert "region repaired: Self-intersection" in caplog.text
    assert "annotation 1: it encloses no area (LineString): left out" in caplog.text


def test_nothing_of_the_class(draw):
    project, reader = draw(("Stroma", box(0, 0, 9, 9)))
    with pytest.raises(TiaftError, match=r"a\.svs has no annotation of class Tumor in "):
        ProjectMask(project, ("Tumor",))(reader)

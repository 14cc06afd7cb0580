import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path
from uuid import UUID

import numpy as np
import processes
import pytest
from PIL import Image

from tiaft_plugin.engine.annotation_store import write_annotation_store
from tiaft_plugin.engine.picture import (
    MARGIN,
    MOST_CLASSES,
    _bands,
    read_thumbnail,
    write_picture,
)
from tiaft_plugin.engine.predictions import TileBlock, TilePredictions
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.plugins import collect

TOP = MARGIN + 74  # of the slide in the picture


def grid(
    slide=Path("slide.png"), size=(400, 300), tile=50, stride=None, classes=("TUM", "STR"),
    block_size=7, label=0, probability=0.9,
):  # fmt: skip
    """Tiles over a whole slide, all of one class."""
    step = stride or tile
    xs, ys = np.meshgrid(
        np.arange(0, size[0] - tile + 1, step), np.arange(0, size[1] - tile + 1, step)
    )
    x, y = xs.ravel().astype(float), ys.ravel().astype(float)
    bounds = np.stack([x, y, x + tile, y + tile], axis=1)
    rest = (1 - probability) / max(1, len(classes) - 1)
    probabilities = np.full((len(x), len(classes)), rest, dtype=np.float32)
    probabilities[:, label] = probability

    def blocks():
        for start in range(0, len(x), block_size):
            part = slice(start, start + block_size)
            ids = [UUID(int=number) for number in range(len(x))[part]]
            yield TileBlock(bounds[part], probabilities[part], ids)

    return TilePredictions(Path(slide), size, tuple(classes), "ftx", "0" * 64, len(x), blocks)


@pytest.fixture
def slide(tmp_path):
    """A slide of 400 × 300 pixels: grey, without resolution."""
    path = tmp_path / "slide.png"
    Image.new("RGB", (400, 300), (200, 200, 200)).save(path)
    return path


@pytest.fixture
def store_class(monkeypatch):
    """TIAToolbox's store, readable on Pythons without loadable SQLite extensions, too."""
    from tiatoolbox.annotation.storage import SQLiteStore

    if not hasattr(sqlite3.Connection, "enable_load_extension"):
        options = ["ENABLE_RTREE", "ENABLE_MATH_FUNCTIONS"]
        monkeypatch.setattr(SQLiteStore, "compile_options", staticmethod(lambda: options))
    return SQLiteStore


def test_the_store_has_what_tiatoolbox_itself_writes(tmp_path, store_class):
    path = tmp_path / "slide.db"
    write_annotation_store(grid(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["slide.db"], "a journal was left"
    store = store_class.open(path)
    assert len(store) == 48
    annotation = store[str(UUID(int=9))]
    assert annotation.geometry.bounds == (50, 50, 100, 100)
    assert annotation.properties["type"] == "TUM"
    assert annotation.properties["prob_TUM"] == pytest.approx(0.9)
    assert annotation.properties["prob_STR"] == pytest.approx(0.1)
    assert len(store.query((0, 0, 99, 99))) == 4
    assert len(store.query(where="props['prob_TUM'] > 0.5")) == 48
    assert store.metadata["tiaft"]["model_sha256"] == "0" * 64
    store.close()


def test_tiatoolbox_draws_the_store(tmp_path, store_class, slide):
    from tiatoolbox.wsicore.wsireader import AnnotationStoreReader, WSIReader

    path = tmp_path / "slide.db"
    half = grid(slide, size=(200, 300))
    write_annotation_store(half, path)
    store = store_class.open(path)
    reader = AnnotationStoreReader(store, info=WSIReader.open(slide).info, base_wsi=slide)
    drawn = reader.read_bounds((0, 0, 400, 300), resolution=1.0, units="baseline")
    assert np.ptp(drawn[150, 100, :3].astype(int)) > 20, "no colour where tiles are"
    assert np.ptp(drawn[150, 300, :3].astype(int)) == 0
    store.close()


def test_odd_measurements_leave_the_store_queryable(tmp_path, store_class):
    block = next(grid().blocks())
    odd = np.array([np.nan, np.inf, 1, 2, 3, 4, 5])
    block.measurements["cells"] = odd
    predictions = TilePredictions(
        Path("s.svs"), (400, 300), ('say "hi"', "δ: '1'"), "m", "0", 7, lambda: iter([block])
    )
    write_annotation_store(predictions, tmp_path / "s.db")
    store = store_class.open(tmp_path / "s.db")
    assert len(store.query(where="props['cells'] > 1.5")) == 4
    assert store[str(UUID(int=0))].properties["cells"] is None
    assert store[str(UUID(int=0))].properties["type"] == 'say "hi"'
    store.close()


def test_a_measurement_does_not_overwrite_a_property(tmp_path):
    block = next(grid().blocks())
    block.measurements["prob_TUM"] = np.zeros(7)
    predictions = TilePredictions(
        Path("s.svs"), (400, 300), ("TUM", "STR"), "m", "0", 7, lambda: iter([block])
    )
    with pytest.raises(TiaftError, match="a plug-in measures 'prob_TUM'"):
        write_annotation_store(predictions, tmp_path / "s.db")


def test_no_tiles_give_an_empty_store(tmp_path, store_class):
    write_annotation_store(grid(tile=500), tmp_path / "s.db")
    store = store_class.open(tmp_path / "s.db")
    assert len(store) == 0
    store.close()


@pytest.mark.parametrize("write", [write_annotation_store, write_picture])
def test_two_tiles_of_one_id_are_refused_and_leave_no_file(tmp_path, slide, write):
    block = next(grid().blocks())
    block.ids[3] = block.ids[2]
    predictions = TilePredictions(
        slide, (400, 300), ("TUM", "STR"), "m", "0", 7, lambda: iter([block])
    )
    with pytest.raises(TiaftError, match="6 different ids for 7 tiles"):
        write(predictions, tmp_path / "out" / "file")
    assert not list(tmp_path.glob("out/*"))


def test_ids_that_come_twice_in_different_blocks_are_refused(tmp_path):
    block = next(grid().blocks())
    predictions = TilePredictions(
        Path("s.svs"), (400, 300), ("TUM", "STR"), "m", "0", 14, lambda: iter([block, block])
    )
    with pytest.raises(TiaftError, match=r"s.svs: two tiles have one id; predict it again"):
        write_annotation_store(predictions, tmp_path / "s.db")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL on Windows")
def test_a_killed_writer_leaves_the_old_store(tmp_path):
    path = tmp_path / "slide.db"
    path.write_text("old")
    code = f"""
        import os, signal, sys
        from dataclasses import replace
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_engine_sinks import grid, write_annotation_store
        whole = grid()
        def blocks():
            yield from whole.blocks()
            os.kill(os.getpid(), signal.SIGKILL)
        write_annotation_store(replace(whole, blocks=blocks), Path({str(path)!r}))
    """
    done = processes.run(textwrap.dedent(code))
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert not list(tmp_path.glob("*-journal")) + list(tmp_path.glob("*-wal"))


def peak_memory(write, predictions, path) -> int:
    tracemalloc.start()
    write(predictions, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_the_store_is_written_in_bounded_memory(tmp_path):
    def predictions(size):
        whole = grid(size=size, tile=10, block_size=100)
        return whole

    peak_memory(write_annotation_store, predictions((100, 100)), tmp_path / "first.db")
    small = peak_memory(write_annotation_store, predictions((200, 100)), tmp_path / "small.db")
    large = peak_memory(write_annotation_store, predictions((400, 500)), tmp_path / "large.db")
    assert large < 1.3 * small


def colour_at(path: Path, x: int, y: int) -> np.ndarray:
    """The colour of a picture over pixel x, y of the thumbnail."""
    return np.asarray(Image.open(path).convert("RGB"))[TOP + y, MARGIN + x].astype(int)


def test_tiles_are_coloured_where_they_lie(tmp_path, slide):
    path = tmp_path / "picture.png"
    left = grid(slide, size=(200, 300))
    write_picture(TilePredictions(slide, (400, 300), *_rest(left)), path)
    orange, grey = colour_at(path, 75, 75), colour_at(path, 300, 75)
    assert orange[0] > orange[2] + 60, "the class's colour is missing"
    assert (grey == 200).all(), "colour where no tile is"
    edge = colour_at(path, 50, 75)
    assert not (edge == orange).all(), "large tiles have no outline"


def _rest(predictions):
    return (
        predictions.classes, predictions.model, predictions.model_sha256, predictions.count,
        predictions.blocks,
    )  # fmt: skip


def test_less_probable_is_paler_and_overlaps_are_averaged(tmp_path, slide):
    sure, unsure, overlapping = (tmp_path / f"{i}.png" for i in range(3))
    write_picture(grid(slide, probability=1.0), sure)
    write_picture(grid(slide, probability=0.6), unsure)
    write_picture(grid(slide, probability=1.0, stride=25), overlapping)
    colours = [colour_at(path, 175, 175) for path in (sure, unsure, overlapping)]
    assert np.ptp(colours[0]) > 1.5 * np.ptp(colours[1]) > 0
    assert (colours[0] == colours[2]).all(), "overlapping tiles add up"


def test_tiles_smaller_than_a_pixel_are_seen(tmp_path, slide):
    path = tmp_path / "picture.png"
    predictions = grid(slide, size=(40_000, 30_000), tile=40, stride=100)
    write_picture(predictions, path)
    assert np.ptp(colour_at(path, 200, 150)) > 50


@pytest.mark.parametrize(
    "classes",
    [
        ("a",),
        tuple(f"class {number}" for number in range(MOST_CLASSES + 9)),
        ("a very long name of a class " * 20, "two\nlines", "\ud800", "µ ∂ 日本"),
    ],
)
def test_legend_and_title_stand_beside_the_slide(tmp_path, slide, classes):
    path = tmp_path / "picture.png"
    write_picture(grid(slide, classes=classes), path)
    picture = np.asarray(Image.open(path))
    assert (picture[:, : MARGIN - 1] == 255).all(), "something runs over the left margin"
    assert (picture[:, -MARGIN + 4 :] == 255).all(), "something runs over the right margin"
    assert (picture[-MARGIN + 4 :] == 255).all(), "something runs over the lower margin"
    between = picture[TOP:, MARGIN + 402 : 2 * MARGIN + 398]
    assert (between == 255).all(), "slide and legend overlap"
    assert picture.shape[1] < 400 + 3 * MARGIN + 600


def test_no_tiles_give_the_bare_slide(tmp_path, slide):
    path = tmp_path / "picture.png"
    write_picture(grid(slide, tile=500), path)
    assert (colour_at(path, 200, 150) == 200).all()


@pytest.mark.parametrize("content", [b"", b"no slide"])
def test_a_slide_that_cannot_be_read_is_named(tmp_path, content):
    broken = tmp_path / "broken.svs"
    broken.write_bytes(content)
    with pytest.raises(TiaftError, match=r"broken.svs cannot be read for a picture: ") as caught:
        write_picture(grid(broken), tmp_path / "picture.png")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "picture.png").exists()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("CMU-1-Small-Region.svs", (400, 299)),
        ("TCGA-CR-7395-01A-01-TS1.svs", (321, 400)),  # no resolution in the file
    ],
)
def test_thumbnails_of_real_slides_are_whole(data, name, shape):
    thumbnail = read_thumbnail(data / "slides" / name, 400)
    assert thumbnail.shape == (*shape, 3) and thumbnail.dtype == np.uint8
    assert thumbnail.std() > 20


def test_a_slide_read_in_bands_looks_the_same(data, monkeypatch):
    slide = data / "slides" / "CMU-1-Small-Region.svs"
    whole = read_thumbnail(slide, 300)
    monkeypatch.setattr("tiaft_plugin.engine.picture.MOST_PIXELS_READ", 10**6)
    banded = read_thumbnail(slide, 300)
    assert whole.shape == banded.shape
    difference = np.abs(whole.astype(int) - banded)
    assert difference.mean() < 2, "bands are shifted against each other"


def test_a_huge_slide_without_a_pyramid_is_read_in_bands():
    class Info:
        slide_dimensions, level_downsamples = (100_000, 80_000), [1.0]

    bands = _bands(Info, 0.016, 1280)
    assert len(bands) > 100 and bands[0][0] == 0 and bands[-1][1] == 1280
    Info.level_downsamples = [1.0, 4.0, 16.0, 64.0]
    assert _bands(Info, 0.016, 1280) == [(0, 1280)] or len(_bands(Info, 0.016, 1280)) < 4


def test_the_sinks_are_registered_and_load_nothing_heavy(tmp_path, slide):
    sinks = collect("register_sinks")
    assert sinks["annotationstore"].options == {"suffix": ".db", "target": ""}
    assert sinks["picture"].options == {"suffix": ".png", "target": ""}
    for name in ("annotationstore", "picture"):
        sinks[name].thing(grid(slide), tmp_path / name)
        assert (tmp_path / name).stat().st_size > 0
    code = (
        "import sys, json, tiaft_plugin.engine.builtin, tiaft_plugin.qupath.builtin; "
        "print(json.dumps([m for m in ('torch', 'cv2', 'matplotlib', 'shapely', 'PIL') "
        "if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []

"""Tiles read ahead: TIAToolbox's to the byte, in order, whatever happens to the slide."""

import shutil
import threading
import time

import numpy as np
import pytest
import tifffile
from conftest import write_slide
from hypothesis import given
from hypothesis import strategies as st
from tiatoolbox.models.dataset.dataset_abc import WSIPatchDataset
from tiatoolbox.wsicore.wsireader import WSIReader

from tiaft_plugin.engine import reading as module
from tiaft_plugin.engine.pieces import Mosaic, PieceCache
from tiaft_plugin.engine.places import places_of
from tiaft_plugin.engine.reading import TileReading, read_tiles
from tiaft_plugin.engine.sources import blocks_of, open_source
from tiaft_plugin.errors import Stopped, TiaftError


def tiles_of(path, mpp=0.5, size=64, stride=64, own=None):
    reader = WSIReader.open(path, **({"mpp": (own, own)} if own else {}))
    return WSIPatchDataset(
        reader,
        patch_input_shape=[size, size],
        stride_shape=[stride, stride],
        resolution=mpp,
        units="mpp",
        auto_get_mask=False,
    )


def write_pyramid(path, pixels):
    """Write JPEG tiles of 128 px at 0.5, 1 and 2 µm/px: as Aperio does, or as OME-TIFF."""
    options = {"tile": (128, 128), "photometric": "rgb", "compression": "jpeg"}
    levels = [pixels, pixels[::2, ::2], pixels[::4, ::4]]
    with tifffile.TiffWriter(path) as file:
        if path.suffix == ".svs":
            height, width = pixels.shape[:2]
            about = f"Aperio Image Library\r\n{width}x{height} (128x128) JPEG/RGB|MPP = 0.5"
            for level in levels:
                file.write(level, description=about, metadata=None, **options)
        else:
            size = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
            units = {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
            file.write(levels[0], subifds=2, metadata={"axes": "YXS", **size, **units}, **options)
            for level in levels[1:]:
                file.write(level, subfiletype=1, **options)
    return path


def write_dicom(data, path):
    """Write the real DICOM slide with what it lacks to be opened, at 0.25 µm/px."""
    import pydicom

    def item(**values):
        made = pydicom.Dataset()
        for name, value in values.items():
            setattr(made, name, value)
        return made

    slide = pydicom.dcmread(data / "slides/TCGA-XK-AAJU-01A-01-TS1.dcm")
    names = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    for name in names:  # those of the file are too long
        setattr(slide, name, pydicom.uid.generate_uid())
    slide.file_meta.MediaStorageSOPInstanceUID = slide.SOPInstanceUID
    slide.PatientName = slide.PatientID = slide.StudyID = slide.ContainerIdentifier = "a"
    slide.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    slide.DimensionOrganizationType, slide.Manufacturer = "TILED_FULL", "none"
    slide.OpticalPathSequence = [item(OpticalPathIdentifier="0")]
    measures = item(PixelSpacing=[0.00025, 0.00025], SliceThickness=0.001)  # mm
    slide.SharedFunctionalGroupsSequence = [item(PixelMeasuresSequence=[measures])]
    slide.save_as(path)
    return path


@pytest.fixture(scope="module", params=["tissue.svs", "tissue.ome.tiff"])
def pyramid(request, tmp_path_factory):
    from skimage.data import immunohistochemistry

    pixels = np.tile(immunohistochemistry(), (2, 2, 1))[:620, :550]  # of no whole tiles
    return write_pyramid(tmp_path_factory.mktemp("pyramid") / request.param, pixels)


@pytest.fixture
def tissue(tmp_path):
    from skimage.data import immunohistochemistry

    return write_pyramid(tmp_path / "tissue.ome.tiff", immunohistochemistry())


def all_tiles(dataset, rows=None, **options):
    """Read tiles, having made sure that rows come in order."""
    rows = list(range(len(dataset))) if rows is None else rows
    found = list(read_tiles(dataset, rows, **{"workers": 3, "ahead": 2, "block": 7, **options}))
    assert [row for block, _ in found for row in block] == rows
    return np.concatenate([tiles for _, tiles in found])


def assert_same(dataset, rows=None, *, fast=True, **options):
    assert ("one by one" in TileReading(dataset).how) != fast
    found = all_tiles(dataset, rows, **options)
    rows = range(len(dataset)) if rows is None else rows
    np.testing.assert_array_equal(found, np.stack([dataset[row]["image"] for row in rows]))
    assert found.dtype == np.uint8


# The same as TIAToolbox


@pytest.mark.parametrize("mpp", [0.5, 0.4, 0.7, 1.0, 1.3, 2.0])
@pytest.mark.parametrize(("size", "stride"), [(64, 64), (100, 77)])
def test_tiles_are_those_of_tiatoolbox(pyramid, mpp, size, stride):
    """Of the slide's own resolution, finer, between levels, and of coarser levels; to the edge."""
    dataset = tiles_of(pyramid, mpp, size, stride)
    assert_same(dataset)


def test_svs_files_without_and_with_openslide(pyramid):
    """With it: what it paints of other vendors' files, in blocks."""
    dataset = tiles_of(pyramid)
    if pyramid.suffix == ".svs":
        fast = open_source(dataset)
        slow = open_source(dataset, refused=[fast.how])
        assert (fast.how, slow.how) == ("JPEG tiles, each once", "OpenSlide, in blocks")
        np.testing.assert_array_equal(fast.tiles(range(80)), slow.tiles(range(80)))


def test_tiles_in_any_order_and_with_gaps(pyramid):
    dataset = tiles_of(pyramid)
    rows = [3, 2, 60, 17, 18, 20, 0, len(dataset) - 1]
    assert_same(dataset, rows)


def test_a_mask_leaves_gaps(pyramid):
    dataset = tiles_of(pyramid, 1.0)
    dataset.inputs = dataset.inputs[np.random.default_rng(0).random(len(dataset)) < 0.5]
    assert_same(dataset)


@pytest.mark.parametrize("mpp", [0.499, 0.5, 1.1])
def test_a_real_slide(data, mpp):
    dataset = tiles_of(data / "slides/CMU-1-Small-Region.svs", mpp, 224, 224)
    assert_same(dataset, list(range(0, len(dataset), 3)))


@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_a_real_slide_of_jpeg_2000(data, mpp):
    dataset = tiles_of(data / "slides/TCGA-CR-7395-01A-01-TS1.svs", mpp, 224, 224, own=0.25)
    assert_same(dataset, list(range(0, len(dataset), 20)))


@pytest.mark.parametrize(("mpp", "fast"), [(0.5, True), (0.6, True), (1.0, False)])
def test_jpeg_2000_files(tmp_path, mpp, fast):
    import glymur
    from skimage.data import immunohistochemistry

    path = tmp_path / "tissue.jp2"
    glymur.Jp2k(str(path), data=immunohistochemistry(), cratios=[8])
    assert_same(tiles_of(path, mpp, own=0.5), fast=fast)


@pytest.mark.filterwarnings("ignore:The ")  # its names are too long
@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_a_real_slide_of_dicom(data, tmp_path, mpp):
    dataset = tiles_of(write_dicom(data, tmp_path / "tissue.dcm"), mpp, 224, 224)
    assert_same(dataset, list(range(0, len(dataset), 9)))


def test_a_png_is_read_one_by_one(tmp_path):
    import cv2
    from skimage.data import immunohistochemistry

    path = tmp_path / "tissue.png"
    cv2.imwrite(str(path), immunohistochemistry())
    dataset = tiles_of(path, own=0.5)
    assert TileReading(dataset).how == "one by one (no fast way to read with VirtualWSIReader)"
    assert_same(dataset, fast=False)


def test_other_pixels_than_tiatoolbox_are_noticed(tissue, monkeypatch):
    monkeypatch.setattr("tiaft_plugin.engine.sources._decode", lambda page, *_: page.asarray())
    dataset = tiles_of(tissue)
    reading = TileReading(dataset)
    assert "tifffile, each compressed tile once: other pixels than TIAToolbox's" in reading.how
    assert_same(dataset, fast=False)


def test_tiles_of_several_sizes_have_no_fast_way(tissue):
    dataset = tiles_of(tissue)
    dataset.inputs[3, 2] += 1
    with pytest.raises(TiaftError, match="tiles differ in size"):
        places_of(WSIReader.open(tissue), dataset)


# Faster


def test_each_compressed_tile_is_decoded_once(tissue):
    dataset = tiles_of(tissue, size=50, stride=50)
    reading = TileReading(dataset, workers=4)
    list(reading.read([[row] for row in range(len(dataset))]))
    assert reading.decoded() == 16 and reading.times.tiles == len(dataset)  # 512 px of 128 px


def test_too_little_memory_is_slower_and_no_other(tissue):
    dataset = tiles_of(tissue, size=50, stride=50)
    reading = TileReading(dataset, workers=2, cache=60_000)
    found = [tiles for _, tiles in reading.read([[row] for row in range(len(dataset))])]
    assert reading.decoded() > 16
    np.testing.assert_array_equal(np.concatenate(found), all_tiles(dataset))


def test_what_is_done_to_tiles_is_done_in_the_threads(tissue):
    reading = TileReading(tiles_of(tissue), workers=2)

    def then(tiles):
        return threading.current_thread().name, len(tiles)

    for rows, (thread, count) in reading.read([[0, 1], [2]], then):
        assert thread.startswith("tiles") and count == len(rows)


def test_it_reads_ahead_no_further_than_asked(tissue):
    reading = TileReading(tiles_of(tissue), workers=2, ahead=3)
    asked = []

    def batches():
        for row in range(40):
            asked.append(row)
            yield [row]

    read = reading.read(batches())
    next(read)
    assert len(asked) == 5
    read.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tiles")]


@pytest.mark.parametrize("workers", [0, 2])
def test_times_are_noted(tissue, workers):
    reading = TileReading(tiles_of(tissue), workers=workers)
    list(reading.read([[0, 1], [2]], lambda tiles: time.sleep(0.05)))
    times = reading.times
    assert times.tiles == 3 and times.preparing >= 0.1 and times.reading > 0 and times.waiting > 0


# Whatever happens


class Failing:
    """A source that fails `times` times, and then gives what another does."""

    def __init__(self, source, times, error):
        self.source, self.times, self.error, self.how = source, times, error, "failing"
        self.lock = threading.Lock()

    def tiles(self, rows):
        with self.lock:
            self.times -= 1
            if self.times >= 0:
                raise self.error
        return self.source.tiles(rows)

    def fetching(self):
        return self.source.fetching()


def broken(*_, **__):
    raise RuntimeError("broken")


def failing(reading, times, error, monkeypatch):
    source = Failing(open_source(reading.dataset), times, error)
    monkeypatch.setattr(module, "open_source", lambda *_: source)
    reading._source = None


def test_a_slide_that_fails_for_a_while_is_read_all_the_same(tissue, monkeypatch):
    dataset = tiles_of(tissue)
    reading = TileReading(dataset, workers=2, pauses=(0, 0.01, 0.01, 0.01))
    failing(reading, 3, OSError(5, "Input/output error"), monkeypatch)
    found = [tiles for _, tiles in reading.read([[0, 1], [2, 3]])]
    np.testing.assert_array_equal(np.concatenate(found), all_tiles(dataset, [0, 1, 2, 3]))
    assert reading.times.tries_again == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_names_slide_and_place(tissue, monkeypatch, workers):
    reading = TileReading(tiles_of(tissue), workers=workers, pauses=(0, 0))
    failing(reading, 99, OSError(5, "Input/output error"), monkeypatch)
    monkeypatch.setattr(WSIReader, "open", broken)
    with pytest.raises(Stopped, match=r"tissue.ome.tiff: the tile at \(128, 0\) cannot be read "):
        list(reading.read([[2], [3]]))


def test_a_damaged_slide_is_not_waited_for(tissue, monkeypatch):
    reading = TileReading(tiles_of(tissue), pauses=(0, 600))
    failing(reading, 99, ValueError("bad JPEG"), monkeypatch)
    monkeypatch.setattr(WSIReader, "open", broken)
    with pytest.raises(Stopped, match=r"\(RuntimeError: broken\): is the file whole\?"):
        list(reading.read([[0]]))


def test_what_only_the_fast_way_cannot_read_is_read_all_the_same(tissue, monkeypatch):
    dataset = tiles_of(tissue)
    reading = TileReading(dataset, workers=2, pauses=(0,))
    failing(reading, 99, ValueError("bad JPEG"), monkeypatch)
    (found,) = (tiles for _, tiles in reading.read([[3, 4]]))
    np.testing.assert_array_equal(found, np.stack([dataset[row]["image"] for row in (3, 4)]))


def test_running_out_of_memory_is_not_the_slides_fault(tissue, monkeypatch):
    reading = TileReading(tiles_of(tissue), workers=2)
    failing(reading, 99, MemoryError(), monkeypatch)
    with pytest.raises(MemoryError):
        list(reading.read([[0]]))


def test_a_damaged_slide_names_the_tile(tissue):
    dataset = tiles_of(tissue)
    reading = TileReading(dataset, workers=2, pauses=(0,))
    with tifffile.TiffFile(tissue) as file:
        page = file.pages[0]
        start, count = page.dataoffsets[5], page.databytecounts[5]
    damaged = bytearray(tissue.read_bytes())
    damaged[start : start + count] = bytes(count)
    tissue.write_bytes(damaged)
    reading._source = None
    # The damage begins at 128 px, but TIAToolbox reads two pixels more than a tile.
    with pytest.raises(Stopped, match=r"the tile at \(64, 64\) cannot be read"):
        list(reading.read([list(range(len(dataset)))]))


def test_a_share_that_vanishes_and_returns(tissue, tmp_path, monkeypatch):
    dataset = tiles_of(tissue)
    away = tmp_path / "away"
    expected = all_tiles(dataset)
    reading = TileReading(dataset, workers=2, pauses=(0.05,) * 100)
    shutil.move(tissue, away)
    reading._source = None
    threading.Timer(0.3, lambda: shutil.move(away, tissue)).start()
    found = [tiles for _, tiles in reading.read([[row] for row in range(len(dataset))])]
    np.testing.assert_array_equal(np.concatenate(found), expected)
    assert reading.times.tries_again >= 2


def test_a_share_that_stays_away(tissue, tmp_path):
    reading = TileReading(tiles_of(tissue), workers=2, pauses=(0, 0))
    shutil.move(tissue, tmp_path / "away")
    reading._source = None
    with pytest.raises(Stopped, match=r"tissue.ome.tiff is not to be reached any more: run the "):
        list(reading.read([[0]]))


def test_stopping_does_not_wait_for_pauses(tissue, tmp_path):
    reading = TileReading(tiles_of(tissue), workers=2, ahead=1, pauses=(0, 600))
    read = reading.read([[row] for row in range(9)])
    next(read)
    shutil.move(tissue, tmp_path / "away")
    reading._source = None
    threading.Timer(0.2, reading._stop.set).start()  # as closing does, or Ctrl-C
    started = time.perf_counter()
    with pytest.raises(Stopped, match="not to be reached"):
        list(read)
    assert time.perf_counter() - started < 10


# The parts


@given(st.data(), st.integers(1, 40), st.integers(1, 40), st.integers(1, 16), st.integers(1, 16))
def test_a_mosaic_is_sliced_as_an_array(data, height, width, piece_height, piece_width):
    array = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)

    def decode(row, column):
        y, x = row * piece_height, column * piece_width
        return array[y : y + piece_height, x : x + piece_width]

    level = Mosaic(array.shape, (piece_height, piece_width), decode, PieceCache(300))
    for _ in range(3):
        y0, y1 = sorted(data.draw(st.tuples(*[st.integers(0, height)] * 2)))
        x0, x1 = sorted(data.draw(st.tuples(*[st.integers(0, width)] * 2)))
        np.testing.assert_array_equal(level[y0:y1, x0:x1], array[y0:y1, x0:x1])
    assert level.cache.held <= 300


def test_a_piece_that_fails_is_tried_again():
    cache, errors = PieceCache(100), [OSError("gone")]

    def decode():
        if errors:
            raise errors.pop()
        return np.zeros(4)

    with pytest.raises(OSError, match="gone"):
        cache.get(0, decode)
    assert len(cache.get(0, decode)) == 4 and cache.decoded == 1


@given(st.lists(st.integers(0, 99), max_size=40))
def test_blocks_hold_all_rows_in_order(rows):
    y, x = np.divmod(np.arange(100), 10)
    bounds = np.stack([x * 8, y * 8, x * 8 + 8, y * 8 + 8], axis=1)
    blocks = blocks_of(bounds, rows)
    assert [row for block in blocks for row in block] == rows
    for block in blocks:
        assert len(set(bounds[block, 1])) == 1 and (np.diff(block) <= 1).all()


def test_a_tiny_slide(tmp_path):
    path = write_slide(tmp_path / "tiny.ome.tiff", np.full((40, 30, 3), 200, np.uint8), 0.5)
    assert_same(tiles_of(path))

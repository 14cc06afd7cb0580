"""Precision, the slide's own stains and the line about speed, as runs on slides have them."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import zarr
from conftest import tiaft
from hypothesis import given
from hypothesis import strategies as st

from tiaft_plugin import FeatureExtractor, TiaftError
from tiaft_plugin.engine import precision, store
from tiaft_plugin.engine.jobs import SlideJob
from tiaft_plugin.engine.run import make_engine, run_slides
from tiaft_plugin.engine.store import read_store
from tiaft_plugin.engine.timing import Timing, added, fault_of
from tiaft_plugin.tiles.stain import make_stain


def extract(model, slide, out, **options):
    engine = make_engine("features", str(model), device="cpu", auto_mask=False, **options)
    engine.verbose = False
    [result] = run_slides(engine, [SlideJob(slide)], out)
    assert result.status != "failed", result.reason
    return result, read_store(result.store, verify=True)


def interrupted(monkeypatch, after: int = 0):
    """Have a run stop once it has written so many chunks."""
    written, write = [], store.write_chunk

    def stopping(group, number, *values):
        if len(written) >= after:
            raise KeyboardInterrupt
        write(group, number, *values)
        written.append(number)

    monkeypatch.setattr(store, "write_chunk", stopping)


def test_auto_keeps_what_the_slide_allows(tiny_model, slide, tmp_path, monkeypatch):
    _, exact = extract(tiny_model, slide, tmp_path / "exact")
    assert exact.facts["precision"] == "float32" and "precision_trial" not in exact.facts
    for least, expected in ((2.0, "float32"), (-1.0, "bfloat16")):
        monkeypatch.setattr(precision, "LEAST_COSINE", least)
        monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
        _, found = extract(tiny_model, slide, tmp_path / expected, precision="auto")
        assert found.facts["precision"] == expected
        trial = found.facts["precision_trial"]
        assert trial["precision"] == expected and trial["tiles"] == 64
        error = np.abs(np.asarray(found.values) - exact.values[:]).max()
        assert (error > 0) == (expected == "bfloat16")


def test_what_was_begun_is_ended_in_the_same_precision(tiny_model, slide, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(precision, "LEAST_COSINE", -1.0)
    _, whole = extract(tiny_model, slide, tmp_path / "whole", precision="auto")
    with monkeypatch.context() as patch:
        interrupted(patch)
        with pytest.raises(KeyboardInterrupt):
            extract(tiny_model, slide, tmp_path / "out", precision="auto")
    monkeypatch.setattr(precision, "LEAST_COSINE", 2.0)  # it would not be earned any more
    _, found = extract(tiny_model, slide, tmp_path / "out", precision="auto")
    assert found.facts["precision"] == "bfloat16"
    np.testing.assert_array_equal(found.values[:], whole.values[:])


def test_a_run_that_was_begun_compiled_goes_on_compiled(tiny_model, slide, tmp_path, monkeypatch):
    made = []

    class Compiled(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self._orig_mod = model

        def forward(self, tiles):
            return self._orig_mod(tiles) * 1.006  # within bfloat16's tolerance

    def compile_(model, **options):
        made.append(model)
        return Compiled(model)

    monkeypatch.setattr(torch, "compile", compile_)
    how = {"precision": "bfloat16", "compiled": True}
    _, plain = extract(tiny_model, slide, tmp_path / "plain", precision="bfloat16")
    _, whole = extract(tiny_model, slide, tmp_path / "whole", **how)
    assert whole.facts["compute"]["compiled"] and not plain.facts["compute"]["compiled"]
    assert np.abs(whole.values[:] - plain.values[:]).max() > 0
    with monkeypatch.context() as patch:
        interrupted(patch)
        with pytest.raises(KeyboardInterrupt):
            extract(tiny_model, slide, tmp_path / "out", **how)
    _, found = extract(tiny_model, slide, tmp_path / "out", precision="bfloat16")
    np.testing.assert_array_equal(found.values[:], whole.values[:])
    engine = make_engine("features", str(tiny_model), device="cpu", auto_mask=False, **how)
    engine.verbose, before = False, len(made)
    others = [shutil.copy(slide, tmp_path / f"{name}.ome.tiff") for name in "ab"]
    results = run_slides(engine, [SlideJob(path) for path in others], tmp_path / "both")
    assert [result.status for result in results] == ["done", "done"]
    assert len(made) == before + 1  # for both


def test_another_precision_is_another_store(tiny_model, slide, tmp_path):
    options = ("--model", tiny_model, "--out", tmp_path, "--no-mask")
    assert tiaft("extract", slide, *options, "--precision", "float32").returncode == 0
    done = tiaft("extract", slide, *options, "--precision", "bfloat16")
    assert done.returncode == 1
    assert "made with other settings (precision: float32 → bfloat16): choose" in done.stderr
    with pytest.raises(TiaftError, match="there is no precision int8: there is auto, float32"):
        FeatureExtractor(tiny_model, precision="int8")


def test_a_slides_own_stains_are_kept_for_a_run_that_goes_on(
    tiny_model, slide, tmp_path, monkeypatch
):
    stain = {"stain": make_stain("macenko", scope="slide")}
    result, whole = extract(tiny_model, slide, tmp_path / "whole", **stain)
    assert whole.facts["stain_normalisation"]["scope"] == "slide" and whole.facts["seed"] == 0
    assert 0 < np.asarray(whole.normalised).sum() < len(whole)
    assert "tiles not stain-normalised" in result.note
    with monkeypatch.context() as patch:
        interrupted(patch)
        with pytest.raises(KeyboardInterrupt):
            extract(tiny_model, slide, tmp_path / "out", **stain)

    def fit(self, tiles):
        raise AssertionError("stains were found already")

    monkeypatch.setattr(type(stain["stain"]), "fit", fit)
    _, found = extract(tiny_model, slide, tmp_path / "out", **stain)
    np.testing.assert_array_equal(found.values[:], whole.values[:])
    done = tiaft("verify", found.path, "--slide", slide, "--model", tiny_model, "--device", "cpu")
    assert done.returncode == 0 and "FAIL" not in done.stdout, done.stdout


def test_tiles_alone_have_no_slide_to_find_stains_of(tiny_model):
    engine = FeatureExtractor(tiny_model, stain=make_stain("macenko", scope="slide"))
    with pytest.raises(TiaftError, match="tiles alone have no slide to find stains of"):
        engine.run(np.zeros((2, 32, 32, 3), np.uint8), patch_mode=True)
    done = tiaft("extract", "s.svs", "--model", "m", "--out", "o", "--stain-scope", "slide")
    assert done.returncode == 2 and "--stain-scope needs --stain" in done.stderr


def test_a_run_says_how_fast_it_was(tiny_model, slide, tmp_path):
    done = tiaft("extract", slide, "--model", tiny_model, "--out", tmp_path, "--no-mask")
    assert done.returncode == 0 and " tiles/s (waiting for tiles " in done.stdout
    line = r"computing \d+%, writing \d+%; 1 reader: reading \d+%, decoding \d+%, preparing \d+%"
    assert re.search(line, done.stdout), done.stdout
    again = tiaft("extract", slide, "--model", tiny_model, "--out", tmp_path, "--no-mask")
    assert "(was there already)" in again.stdout and "tiles/s" not in again.stdout


def test_a_slow_slide_is_named_as_what_bounds_a_run(tiny_model, slide, tmp_path, monkeypatch):
    import time

    from tiaft_plugin.engine.reading import TileReading

    read = TileReading._tiles

    def slow(self, rows, **options):
        time.sleep(0.2)
        return read(self, rows, **options)

    monkeypatch.setattr(TileReading, "_tiles", slow)
    result, _ = extract(tiny_model, slide, tmp_path)
    assert "; reader-bound: " in result.speed and result.speed.endswith(" more --workers")
    assert read_store(result.store).timing["shares"]["waiting"] > 0.2


def test_a_store_says_where_the_time_went(tiny_model, slide, tmp_path, monkeypatch):
    result, whole = extract(tiny_model, slide, tmp_path / "whole", stride=16)
    timing = whole.timing
    assert fault_of(timing) == "" and timing["tiles"] == len(whole)
    assert set(timing["shares"]) == {"waiting", "computing", "writing"}
    assert set(timing["reader_shares"]) == {"reading", "decoding", "preparing", "idle"}
    assert timing["seconds"] <= result.seconds and timing["shares"]["computing"] > 0
    with monkeypatch.context() as patch:
        interrupted(patch, after=1)
        with pytest.raises(KeyboardInterrupt):
            extract(tiny_model, slide, tmp_path / "out", stride=16)
    begun = store.open_sound(tmp_path / "out/colon.ome.zarr")
    assert store.timing_of(begun) is None and store.count_missing(begun)
    _, found = extract(tiny_model, slide, tmp_path / "out", stride=16)
    assert found.facts == whole.facts and found.timing["tiles"] == len(found) - store.CHUNK_ROWS


def test_what_opens_a_slide_its_own_way_reads_and_decodes_in_one(
    tiny_model, slide, tmp_path, monkeypatch
):
    from tiaft_plugin.engine import reading

    def refuse(*arguments):
        raise TiaftError("no fast way")

    monkeypatch.setattr(reading, "open_source", refuse)
    result, found = extract(tiny_model, slide, tmp_path)
    assert set(found.timing["reader_shares"]) == {"reading and decoding", "preparing", "idle"}
    assert "1 reader: reading and decoding " in result.speed


SECONDS = st.floats(0, 1e6)


@given(
    tiles=st.integers(0, 10**6),
    seconds=SECONDS,
    waiting=SECONDS,
    writing=SECONDS,
    readers=st.integers(1, 64),
    reading=SECONDS,
    decoding=st.none() | SECONDS,
    preparing=SECONDS,
)
def test_shares_are_1_together(**times):
    timing = Timing(**times)
    for shares in (timing.shares, timing.reader_shares):
        assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) > -1e-9
    assert fault_of(timing.facts) == ""
    assert str(timing).count("\n") == 0 and "nan" not in str(timing)


def test_times_of_parts_add_up():
    one = Timing(10, 2.0, 0.5, 0.5, readers=1, reading=0.5, decoding=1.0, preparing=0.5)
    both = added(one, one)
    assert both.tiles == 20 and both.shares == one.shares
    assert both.reader_shares == one.reader_shares and both.rate == one.rate
    other = replace(one, reading=1.5, decoding=None)
    assert added(one, other).reader_shares == {
        "reading and decoding": 0.75, "preparing": 0.25, "idle": 0.0
    }  # fmt: skip
    assert added(None, one) is one and added(one, None) is one


def test_readers_share_is_of_all_of_them():
    timing = Timing(100, 10.0, 5.0, 1.0, readers=2, reading=4.0, decoding=8.0, preparing=2.0)
    assert str(timing) == (
        "10 tiles/s (waiting for tiles 50%, computing 40%, writing 10%; 2 readers: reading 20%, "
        "decoding 40%, preparing 10%, idle 30%); reader-bound: 10 of 25 tiles/s; 3 more --workers"
    )


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"seconds": "long"}, "has no seconds"),
        ({"tiles_per_second": float("nan")}, "has no tiles_per_second"),
        ({"shares": {"waiting": 0.5, "computing": 0.4}}, "has shares that are 0.9 together, not 1"),
        ({"reader_shares": [1]}, "has no reader_shares"),
    ],
)
def test_verify_looks_at_the_timing(tiny_model, slide, tmp_path, changes, fault):
    _, found = extract(tiny_model, slide, tmp_path)
    done = tiaft("verify", found.path)
    assert done.returncode == 0 and "PASS  timing: " in done.stdout
    store.note_timing(zarr.open_group(found.path, mode="r+"), {**found.timing, **changes})
    done = tiaft("verify", found.path)
    assert done.returncode == 1 and f"zarr: tiaft_timing {fault}" in done.stdout, done.stdout
    group = zarr.open_group(found.path, mode="r+")
    group.update_attributes({store.TIMING: "fast"})
    assert "tiaft_timing is no table" in tiaft("verify", found.path).stdout

from uuid import UUID

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tiaft_plugin.qupath.marks import shape_text
from tiaft_plugin.qupath.objects import UNCLASSIFIED, Classes, NewAreas, NewTiles, Origin
from tiaft_plugin.qupath.pushing.merge import merge_tiles

SIZE = 448.0
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115))


def tiles_of(bounds, labels, order=None, **measurements) -> NewTiles:
    """Tiles in the order given; each has the id of its place in `bounds`."""
    bounds, labels = np.array(bounds, dtype=np.float64).reshape(-1, 4), np.array(labels, dtype=int)
    order = np.arange(len(bounds)) if order is None else np.asarray(order, dtype=int)
    measured = {name: np.float32(values)[order] for name, values in measurements.items()}
    return NewTiles(
        Origin("ftx", "ab" * 32, "g1"), Classes(("TUM", "STR", "LYM"), COLOURS),
        [UUID(int=int(row)) for row in order], bounds[order], labels[order], measured,
    )  # fmt: skip


def picture(rows: str, size: float = SIZE, stride: float = 1.0) -> NewTiles:
    """Tiles drawn as letters: a, b and c are classes, ? is unclassified, . is no tile."""
    cells = [(x, y, c) for y, row in enumerate(rows.split()) for x, c in enumerate(row) if c != "."]
    bounds = [(x * stride, y * stride, x * stride + 1, y * stride + 1) for x, y, _ in cells]
    labels = ["abc?".index(c) if c != "?" else UNCLASSIFIED for *_, c in cells]
    return tiles_of(np.array(bounds).reshape(-1, 4) * size, labels)


def check_clean(areas: NewAreas) -> None:
    """What QuPath and its JTS ask of outlines, and what people ask of areas."""
    assert len(areas) == len(set(areas.ids)) == len(areas.areas) == len(areas.labels)
    for area in areas.areas:
        assert isinstance(area, shapely.Polygon)
        assert area.is_valid, shapely.is_valid_reason(area)
        assert area.area > 0
        for ring in (area.exterior, *area.interiors):
            steps = np.diff(shapely.get_coordinates(ring), axis=0)
            assert ((steps != 0).sum(axis=1) == 1).all(), "a side that is slanted, or no side"
            turns = (steps != 0)[:, 0]
            assert (turns != np.roll(turns, 1)).all(), "a corner in the middle of a side"


def check_same_as_union(tiles: NewTiles, areas: NewAreas) -> None:
    """The areas of a class are its tiles' union, part by part."""
    for label in range(3):
        mine = [area for area, of in zip(areas.areas, areas.labels, strict=True) if of == label]
        union = shapely.union_all(shapely.box(*tiles.bounds[tiles.labels == label].T))
        parts = shapely.get_parts(union)
        parts = parts[~shapely.is_empty(parts)]
        assert len(mine) == len(parts)
        assert shapely.equals(shapely.union_all(mine), union)
        for part in parts:
            assert sum(shapely.equals(part, area) for area in mine) == 1


def holes(areas: NewAreas) -> list[int]:
    return [len(area.interiors) for area in areas.areas]


def test_neighbours_of_one_class_become_one_area_and_others_stay_apart():
    areas = merge_tiles(picture("aab aab bbb"))
    check_clean(areas)
    assert areas.labels.tolist() == [0, 1]
    assert areas.areas[0].equals(shapely.box(0, 0, 2 * SIZE, 2 * SIZE))
    assert len(shapely.get_coordinates(areas.areas[0])) == 5, "four corners and back"
    assert areas.areas[1].area == 5 * SIZE**2
    assert areas.classes.names[1] == "STR"
    assert areas.measurements["Tiles"].tolist() == [4, 5]


@pytest.mark.parametrize(
    ("rows", "inside"),
    [
        ("aaa a.a aaa", [1]),
        ("aaa aba aaa", [1, 0]),
        ("a. .a", [0, 0]),  # corners touch
        ("ab ba", [0, 0, 0, 0]),
        ("aa. a.a aaa", [1]),  # the hole touches the outside at a corner
        (".aa a.a aaa", [1]),
        ("aaa a.a .aa", [1]),
        ("aaaa a.aa aa.a aaaa", [2]),  # two holes touch at a corner
        ("aaaaa a.a.a aa.aa a.a.a aaaaa", [5]),
        ("aaaaa a...a a.a.a a...a aaaaa", [1, 0]),  # an area in another's hole
        ("aaaa a..a a.a. aaaa", [1]),
        ("aaaaa a..aa a.a.a aa..a aaaaa", [1, 0]),  # it touches the hole's border at two corners
        ("?a ??", [0]),
    ],
)
def test_holes_and_corners_give_valid_polygons(rows, inside):
    tiles = picture(rows)
    areas = merge_tiles(tiles)
    check_clean(areas)
    assert sorted(holes(areas)) == sorted(inside)
    check_same_as_union(tiles, areas)


def test_unclassified_tiles_belong_to_no_area():
    areas = merge_tiles(picture("a?a ???"))
    assert len(areas) == 2 and areas.measurements["Tiles"].tolist() == [1, 1]
    assert len(merge_tiles(picture("?? ??"))) == 0


def test_no_tiles_give_no_areas():
    areas = merge_tiles(tiles_of([], [], probability=[]))
    assert len(areas) == 0 and not areas.areas and len(areas.labels) == 0
    assert set(areas.measurements) == {"Tiles", "probability (mean)"}


def test_noise_in_bounds_leaves_no_hairlines():
    size = 447.9998
    corners = np.array([(x, y) for y in range(40) for x in range(40)], dtype=np.float64) * size
    noise = np.random.default_rng(0).uniform(-0.02, 0.02, (1600, 4))
    for bounds in (
        np.hstack([corners, corners + size]),
        np.hstack([corners, corners + size + 0.3]),
    ):
        (area,) = merge_tiles(tiles_of(bounds + noise, np.zeros(1600))).areas
        assert area.equals(shapely.box(*np.round(area.bounds)))
        assert np.allclose(area.bounds, (0, 0, 40 * size, 40 * size), atol=0.6)


def test_a_gap_that_can_be_seen_is_kept():
    bounds = [(0, 0, 100, 100), (102, 0, 202, 100)]
    assert len(merge_tiles(tiles_of(bounds, [0, 0]))) == 2


def test_overlapping_tiles_are_one_area():
    tiles = picture("aaaa a..a aaaa", stride=0.5)
    (area,) = merge_tiles(tiles).areas
    assert area.equals(shapely.box(0, 0, 2.5 * SIZE, 2 * SIZE)), "the hole is covered"
    apart = picture("aa..aa", stride=0.5)
    assert len(merge_tiles(apart)) == 2
    check_same_as_union(apart, merge_tiles(apart))


def test_tiny_tiles_keep_their_area():
    bounds = np.array([(0, 0, 1, 1), (1, 0, 2, 1), (3, 0, 4, 1)]) * 0.3
    areas = merge_tiles(tiles_of(bounds, [0, 0, 0]))
    check_clean(areas)
    assert sorted(round(area.area / 0.09, 1) for area in areas.areas) == pytest.approx(
        [1, 2], abs=0.4
    )


def test_an_area_measures_the_mean_of_its_tiles():
    bounds = [(0, 0, 10, 10), (10, 0, 20, 10), (90, 0, 100, 10)]
    tiles = tiles_of(
        bounds, [0, 0, 1], **{"Probability: TUM": [0.5, 1, 0.25], "cells": [3, np.nan, 7]}
    )
    measured = merge_tiles(tiles).measurements
    assert measured["Probability: TUM (mean)"].tolist() == [0.75, 0.25]
    assert np.isnan(measured["cells (mean)"][0]) and measured["cells (mean)"][1] == 7
    assert measured["Tiles"].tolist() == [2, 1]
    assert {values.dtype for values in measured.values()} == {np.dtype(np.float32)}


def test_ids_tell_outline_class_and_tile_apart():
    one, again = merge_tiles(picture("aa")), merge_tiles(picture("aa"))
    assert one.ids == again.ids and one.ids[0].version == 5
    assert merge_tiles(picture("bb")).ids != one.ids
    assert merge_tiles(picture("aa a.")).ids != one.ids
    other_slide = tiles_of(picture("aa").bounds, [0, 0])
    other_slide.ids[:] = [UUID(int=8), UUID(int=9)]
    assert merge_tiles(other_slide).ids != one.ids


def test_an_outline_reads_the_same_after_qupath_made_floats_of_it():
    size = 448.3718
    corners = np.array([(x, y) for y in range(30) for x in range(0, 30, 1 + y % 3)]) * size
    areas = merge_tiles(
        tiles_of(np.hstack([corners, corners + size]) + 90_000.5, [0] * len(corners))
    )
    for area in areas.areas:
        as_float32 = shapely.transform(area, lambda points: np.float32(points).astype(float))
        back = as_float32.reverse()
        assert shape_text(back.bounds, back.area) == shape_text(area.bounds, area.area)
        moved = shapely.transform(area, lambda points: points + np.array([1, 0]))
        assert shape_text(moved.bounds, moved.area) != shape_text(area.bounds, area.area)


cell_grids = (
    st.integers(1, 9)
    .flatmap(
        lambda width: st.lists(
            st.lists(st.sampled_from("aab.?"), min_size=width, max_size=width).map("".join),
            min_size=1,
            max_size=9,
        )
    )
    .map(" ".join)
)


@settings(max_examples=60, deadline=None)
@given(rows=cell_grids, stride=st.sampled_from([1.0, 0.5, 0.25]), data=st.data())
@example(rows="aaaa a.aa aa.a aaaa", stride=1.0, data=None)
def test_any_tiles_on_a_grid_give_their_union(rows, stride, data):
    tiles = picture(rows, size=32.0, stride=stride)
    areas = merge_tiles(tiles)
    check_clean(areas)
    check_same_as_union(tiles, areas)
    assert areas.measurements["Tiles"].sum() == (tiles.labels != UNCLASSIFIED).sum()
    if data is not None:
        order = data.draw(st.permutations(range(len(tiles))))
        shuffled = merge_tiles(tiles_of(tiles.bounds, tiles.labels, order))
        assert set(shuffled.ids) == set(areas.ids)


box = st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(8, 30)] * 2)


@settings(max_examples=50, deadline=None)
@given(boxes=st.lists(box, max_size=12), labels=st.lists(st.integers(-1, 2), min_size=12))
def test_tiles_on_no_grid_give_their_union(boxes, labels):
    # Even numbers: edges are the same or two pixels apart.
    bounds = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes]).reshape(-1, 4) * 2
    tiles = tiles_of(bounds, labels[: len(boxes)])
    areas = merge_tiles(tiles)
    check_clean(areas)
    check_same_as_union(tiles, areas)
    assert areas.measurements["Tiles"].sum() == (tiles.labels != UNCLASSIFIED).sum()


@settings(max_examples=50, deadline=None)
@given(
    boxes=st.lists(
        st.tuples(*[st.floats(-500, 500)] * 2, *[st.floats(0.01, 300)] * 2), min_size=1, max_size=8
    )
)
def test_wild_bounds_give_valid_areas_near_the_tiles(boxes):
    bounds = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes])
    areas = merge_tiles(tiles_of(bounds, np.zeros(len(boxes))))
    check_clean(areas)
    assert areas.measurements["Tiles"].sum() == len(boxes)
    union = shapely.union_all(areas.areas)
    tiles = shapely.union_all(shapely.box(*bounds.T))
    assert shapely.hausdorff_distance(union.envelope, tiles.envelope) < 2.2


def test_a_hundred_thousand_tiles_give_valid_areas():
    side = 316
    y, x = np.divmod(np.arange(side * side), side)
    bounds = np.stack([x, y, x + 1, y + 1], axis=1) * SIZE
    labels = np.sin(x / 9) * np.cos(y / 7) > np.random.default_rng(0).uniform(-0.3, 0.3, len(x))
    areas = merge_tiles(tiles_of(bounds, labels))
    assert areas.measurements["Tiles"].sum() == side * side
    assert shapely.is_valid(areas.areas).all()
    assert sum(area.area for area in areas.areas) == side * side * SIZE**2

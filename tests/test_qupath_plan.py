from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID, uuid4, uuid5

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiaft_plugin.engine.predictions import TileBlock, TilePredictions
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.marks import Mark, shape_text
from tiaft_plugin.qupath.objects import UNCLASSIFIED, Classes, Found, NewAreas, NewTiles, Origin
from tiaft_plugin.qupath.project.frame import Frame
from tiaft_plugin.qupath.pushing.merge import merge_tiles
from tiaft_plugin.qupath.pushing.plan import find_model, models_in, plan_push, plan_remove
from tiaft_plugin.qupath.pushing.prepare import new_tiles

SHA, OTHER = "ab" * 32, "cd" * 32
NAMES = ("TUM", "STR")
CLASSES = Classes(NAMES, ((230, 159, 0), (86, 180, 233)))


@dataclass(frozen=True)
class Thing:
    """An object as an image holds it."""

    id: UUID
    bounds: tuple[float, ...]
    mark: Mark | None
    class_name: str | None
    shape: str = ""


class Image:
    """The objects of an image, on which plans are carried out as Java does it."""

    def __init__(self, *things: Thing):
        self.things = list(things)

    @property
    def found(self) -> Found:
        marked = [thing for thing in self.things if thing.mark]
        return Found(
            [thing.id for thing in marked],
            np.array([thing.bounds for thing in marked], dtype=np.float64).reshape(-1, 4),
            [thing.mark for thing in marked],
            [thing.class_name for thing in marked],
            [thing.shape for thing in marked],
            len(self.things) - len(marked),
        )

    def push(self, new: NewTiles | NewAreas) -> list[Thing]:
        """Carry out a push; return what was kept as corrected."""
        plan = plan_push(self.found, new)
        kept = self._remove(plan)
        for row in plan.add.tolist():
            area = new.areas[row] if isinstance(new, NewAreas) else None
            bounds = tuple(area.bounds if area else new.bounds[row])
            given = new.classes.names[new.labels[row]] if new.labels[row] >= 0 else ""
            shape = shape_text(area.bounds, area.area) if area else ""
            mark = Mark(new.origin.model, new.origin.sha256, new.origin.grid, given, shape)
            self.things.append(Thing(new.ids[row], bounds, mark, given or None, shape))
        return kept

    def remove(self, sha256: str) -> list[Thing]:
        plan = plan_remove(self.found, sha256)
        assert not len(plan.add)
        return self._remove(plan)

    def _remove(self, plan) -> list[Thing]:
        marked = [thing for thing in self.things if thing.mark]
        leaving = [marked[row] for row in plan.remove]
        self.things = [thing for thing in self.things if thing not in leaving]
        return [marked[row] for row in plan.corrected]

    def change(self, index: int, class_name: str | None) -> Thing:
        self.things[index] = replace(self.things[index], class_name=class_name)
        return self.things[index]


def grid(count=4, size=10.0, sha256=SHA, labels=None, shift=0.0, model="ftx") -> NewTiles:
    """A row of tiles of one model; their ids follow from model, grid and place as in a store."""
    x = np.arange(count) * size + shift
    bounds = np.stack([x, x * 0, x + size, x * 0 + size], axis=1)
    labels = np.arange(count) % 2 if labels is None else np.array(labels)
    ids = [uuid5(UUID(int=0), f"{sha256}:{size}:{each}") for each in x]
    return NewTiles(Origin(model, sha256, f"grid {size:g}"), CLASSES, ids, bounds, labels)


def ids(image: Image) -> list[UUID]:
    return sorted(thing.id for thing in image.things)


def test_a_first_push_adds_everything():
    plan = plan_push(Image().found, grid(4))
    assert plan.add.tolist() == [0, 1, 2, 3]
    assert len(plan.remove) == len(plan.corrected) == 0
    assert plan.add.dtype == plan.remove.dtype == plan.corrected.dtype == np.int64


def test_pushing_again_replaces_every_tile():
    image = Image()
    image.push(grid(4))
    plan = plan_push(image.found, grid(4))
    assert plan.remove.tolist() == plan.add.tolist() == [0, 1, 2, 3]


def test_an_older_grid_of_the_model_goes():
    image = Image()
    image.push(grid(4, size=10))
    image.push(grid(7, size=5))
    assert [thing.mark.grid for thing in image.things] == ["grid 5"] * 7


def test_tiles_give_way_to_areas_and_areas_to_tiles():
    image, tiles = Image(), grid(4, labels=[0, 0, 1, 1])
    image.push(tiles)
    image.push(merge_tiles(tiles))
    assert len(image.things) == 2 and all(thing.shape for thing in image.things)
    image.push(tiles)
    assert ids(image) == sorted(tiles.ids)


@pytest.mark.parametrize("now", ["STR", None, "Something else", "tum"])
def test_a_corrected_tile_is_kept_and_not_doubled(now):
    image = Image()
    image.push(grid(4))
    changed = image.change(0, now)
    assert image.push(grid(4)) == [changed]
    assert ids(image) == sorted(grid(4).ids) and changed in image.things


def test_a_class_given_to_an_unclassified_tile_is_a_correction():
    image = Image()
    image.push(grid(2, labels=[UNCLASSIFIED, UNCLASSIFIED]))
    assert plan_remove(image.found, SHA).corrected.tolist() == []
    changed = image.change(1, "TUM")
    assert image.remove(SHA) == [changed] and image.things == [changed]


def test_another_grids_tile_in_a_corrected_ones_place_is_not_added():
    image = Image()
    image.push(grid(4, size=10))
    changed = image.change(2, "other")
    same_place = replace(grid(4, size=10, shift=0.2), ids=[uuid4() for _ in range(4)])
    plan = plan_push(image.found, same_place)
    assert plan.add.tolist() == [0, 1, 3]
    half = grid(8, size=5)
    assert len(plan_push(image.found, half).add) == 8, "they only overlap"
    image.push(half)
    assert changed in image.things and len(image.things) == 9


def test_an_outline_that_a_person_changed_is_kept():
    image, areas = Image(), merge_tiles(grid(4, labels=[0, 0, 1, 1]))
    image.push(areas)
    moved = replace(image.things[0], shape="1 0 21 10 200", bounds=(1, 0, 21, 10))
    image.things[0] = moved
    assert image.push(areas) == [moved]
    assert ids(image) == sorted(areas.ids)


def test_a_corrected_area_of_one_tile_leaves_room_for_the_tile():
    image, tiles = Image(), grid(1)
    image.push(merge_tiles(tiles))
    changed = image.change(0, "STR")
    assert image.push(tiles) == [changed]
    assert len(image.things) == 2, "an annotation, and the tile under it as of any area"


def test_other_models_objects_stay_even_under_the_same_name():
    image, other = Image(), grid(4, sha256=OTHER, model="ftx")
    image.push(other)
    before = list(image.things)
    image.push(grid(4))
    image.change(2, "corrected in the other model")
    image.push(grid(4))
    assert image.things[:2] == before[:2] and len(image.things) == 8
    image.remove(SHA)
    assert len(image.things) == 4


def test_an_id_that_stands_already_is_not_used_again():
    """Somebody copied marks about, or another model's tiles have the ids."""
    new = grid(2)
    image = Image(Thing(new.ids[1], (0, 0, 1, 1), Mark("x", OTHER, "g", "TUM"), "TUM"))
    assert plan_push(image.found, new).add.tolist() == [0]


def test_a_copy_of_a_tile_goes_with_it():
    image = Image()
    image.push(grid(1))
    image.things.append(image.things[0])
    assert plan_remove(image.found, SHA).remove.tolist() == [0, 1]


classes = st.sampled_from([*NAMES, "Other", None])
some_grid = st.builds(
    grid,
    count=st.integers(0, 6),
    size=st.sampled_from([5.0, 10.0]),
    sha256=st.sampled_from([SHA, OTHER]),
).flatmap(lambda tiles: st.sampled_from([tiles, merge_tiles(tiles)]))
drawn = st.builds(
    Thing,
    st.uuids(version=4),
    st.just((0, 0, 10, 10)),
    st.just(None),
    classes,
)
step = st.one_of(
    st.tuples(st.just("push"), some_grid),
    st.tuples(st.just("change"), st.tuples(st.integers(0, 99), classes)),
    st.tuples(st.just("remove"), st.sampled_from([SHA, OTHER])),
    st.tuples(st.just("draw"), drawn),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(step, max_size=12))
def test_whatever_is_done_nothing_of_peoples_is_lost(steps):
    image, people = Image(), set()
    for kind, thing in steps:
        before = set(image.things)
        if kind == "push":
            kept = image.push(thing)
            own = thing.origin.sha256
            assert len(ids(image)) == len(set(ids(image))), "an id stands twice"
            assert set(kept) == {t for t in people if t.mark and t.mark.sha256 == own}
            once = list(image.things)
            image.push(thing)
            assert set(image.things) == set(once) and len(image.things) == len(once)
            places = {t.bounds for t in kept if not t.shape}
            if isinstance(thing, NewTiles):
                fresh = [t for t in image.things if t not in before and t.mark.sha256 == own]
                assert not places & {t.bounds for t in fresh}, "a corrected tile is doubled"
            untouched = {t for t in before if t.mark is None or t.mark.sha256 != own}
            assert untouched <= set(image.things)
        elif kind == "remove":
            image.remove(thing)
            untouched = {t for t in before if t.mark is None or t.mark.sha256 != thing}
            assert untouched <= set(image.things)
            assert not {t for t in image.things if t.mark and t.mark.sha256 == thing} - people
        elif kind == "draw":
            image.things.append(thing)
            people.add(thing)
        elif image.things:
            index, class_name = thing[0] % len(image.things), thing[1]
            people.discard(image.things[index])
            changed = image.change(index, class_name)
            if changed.mark is None or (changed.class_name or "") != changed.mark.given:
                people.add(changed)
        assert people <= set(image.things)
    for sha256 in (SHA, OTHER):
        image.remove(sha256)
    assert set(image.things) == people, "what is left is people's"


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 19)), st.booleans())
def test_push_correct_push_another_grid_remove(corrected, as_areas):
    image = Image(drawing := Thing(uuid4(), (0, 0, 50, 50), None, "Tumor"))
    image.push(grid(20, sha256=OTHER))
    image.remove(OTHER)
    image.push(grid(20))
    changed = {image.change(1 + row, "corrected") for row in corrected}
    finer = grid(40, size=5)
    image.push(merge_tiles(finer) if as_areas else finer)
    assert changed <= set(image.things)
    image.remove(SHA)
    assert set(image.things) == changed | {drawing}


def test_many_tiles_are_planned():
    count = 200_000
    new = NewTiles(
        Origin("m", SHA, "g"), CLASSES, [UUID(int=i) for i in range(count)],
        np.arange(count * 4, dtype=np.float64).reshape(-1, 4), np.zeros(count, dtype=int),
    )  # fmt: skip
    marks = [Mark("m", SHA, "g", "TUM")] * count
    now = ["TUM"] * (count - 100) + ["STR"] * 100
    found = Found(new.ids, new.bounds, marks, now, [""] * count)
    plan = plan_push(found, new)
    assert len(plan.add) == len(plan.remove) == count - 100 and len(plan.corrected) == 100


def test_models_are_counted_by_name_and_file():
    image = Image()
    image.push(grid(4))
    image.push(grid(3, sha256=OTHER, model="new"))
    assert models_in(image.found) == {("ftx", SHA): 4, ("new", OTHER): 3}
    assert find_model(image.found, "new") == OTHER
    assert find_model(models_in(image.found), "abABabab") == SHA


def test_a_model_is_found_by_name_or_beginning_of_its_hash():
    models = [("ftx", SHA), ("new", OTHER), ("ftx", SHA), ("renamed", SHA)]
    assert find_model(models, "ftx") == find_model(models, "renamed") == SHA
    assert find_model(models, OTHER) == find_model(models, OTHER[:8].upper()) == OTHER
    with pytest.raises(
        TiaftError,
        match=r"no objects of 'cdcdcdc': here are those of ftx \(abababababab\), "
        r"new \(cdcdcdcdcdcd\), renamed \(abababababab\) \(a name, or at least 8 characters",
    ):
        find_model(models, OTHER[:7])


def test_a_name_of_two_models_is_refused_with_both():
    models = [("ftx", SHA), ("ftx", OTHER)]
    with pytest.raises(
        TiaftError,
        match=r"'ftx' may be any of ftx \(abababababab\), ftx \(cdcdcdcdcdcd\): name it by the "
        "beginning of its SHA-256",
    ):
        find_model(models, "ftx")
    assert find_model(models, SHA[:8]) == SHA


def test_no_models_at_all_is_said():
    with pytest.raises(TiaftError, match="no objects of 'ftx': none here carry a model's mark"):
        find_model([], "ftx")


# Predictions made ready for a push


FRAME = Frame((0, 0), 0, (1000, 800), (1000, 800))


def predictions_of(*blocks: TileBlock, names=NAMES, **facts) -> TilePredictions:
    return TilePredictions(
        Path("/patients/Jane Doe/slide 1.svs"), (1000, 800), tuple(names), "ftx", SHA,
        sum(len(block.ids) for block in blocks), lambda: iter(blocks), grid="grid 10", **facts,
    )  # fmt: skip


def block(probabilities, corners=None, size=10.0, first=0, **more) -> TileBlock:
    probabilities = np.array(probabilities, dtype=np.float32)
    count = len(probabilities)
    if corners is None:
        corners = [(10.0 * (first + row), 0) for row in range(count)]
    corners = np.array(corners, dtype=np.float64).reshape(-1, 2)
    uuids = [UUID(int=first + row) for row in range(count)]
    return TileBlock(np.hstack([corners, corners + size]), probabilities, uuids, **more)


def test_tiles_come_as_columns_with_probabilities_bit_for_bit():
    probabilities = np.random.default_rng(0).dirichlet([1, 1], 5).astype(np.float32)
    predictions = predictions_of(block(probabilities[:3]), block(probabilities[3:], first=3))
    tiles, notes = new_tiles(predictions, FRAME)
    assert notes == []
    assert tiles.origin == Origin("ftx", SHA, "grid 10")
    assert tiles.classes == CLASSES
    assert list(tiles.ids) == [UUID(int=row) for row in range(5)] and len(tiles) == 5
    assert tiles.bounds[4].tolist() == [40, 0, 50, 10]
    assert tiles.labels.tolist() == probabilities.argmax(axis=1).tolist()
    for name, column in zip(NAMES, probabilities.T, strict=True):
        measured = tiles.measurements[f"Probability: {name}"]
        assert measured.dtype == np.float32 and measured.tobytes() == column.tobytes()


def test_no_tiles_are_no_error():
    tiles, notes = new_tiles(predictions_of(), FRAME)
    assert len(tiles) == 0 and tiles.bounds.shape == (0, 4) and notes == []


def test_below_the_least_probability_tiles_are_unclassified():
    least = 0.8  # which float32 does not have
    predictions = predictions_of(block([[0.8, 0.2], [0.3, 0.7], [0.1, 0.9]]))
    tiles, notes = new_tiles(predictions, FRAME, min_probability=least)
    assert tiles.labels.tolist() == [0, UNCLASSIFIED, 1]
    assert notes == ["1 of 3 tiles below the least probability: unclassified"]
    assert tiles.measurements["Probability: STR"][1] == np.float32(0.7)


@pytest.mark.parametrize("least", [-0.1, 1.5, np.nan])
def test_a_least_probability_that_is_none_is_refused(least):
    with pytest.raises(TiaftError, match="a least probability of .*: choose one from 0 to 1"):
        new_tiles(predictions_of(), FRAME, min_probability=least)


def test_tiles_of_several_labels_may_have_none():
    predictions = predictions_of(
        block([[0.6, 0.7], [0.4, 0.3], [0.9, 0.9]], multilabel=True), multilabel=True
    )
    tiles, notes = new_tiles(predictions, FRAME)
    assert tiles.labels.tolist() == [1, UNCLASSIFIED, 0] and notes == []
    assert tiles.classes == CLASSES
    tiles, notes = new_tiles(predictions, FRAME, min_probability=0.8)
    assert tiles.labels.tolist() == [UNCLASSIFIED, UNCLASSIFIED, 0]
    assert notes == ["1 of 3 tiles below the least probability: unclassified"]
    tiles, _ = new_tiles(predictions, FRAME, min_probability=0.1)
    assert tiles.labels.tolist() == [1, UNCLASSIFIED, 0], "it makes no tile of more classes"


@pytest.mark.parametrize("name", ["Tumor: Positive", "Tumor:Positive"])
def test_only_the_classes_asked_for_are_kept(name):
    names = ("Tumor:Positive", "STR")
    predictions = predictions_of(block([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), names=names)
    tiles, notes = new_tiles(predictions, FRAME, classes=[name], min_probability=0.7)
    assert list(tiles.ids) == [UUID(int=0)] and tiles.labels.tolist() == [0]
    assert tiles.bounds.shape == (1, 4)
    assert tiles.classes.names == ("Tumor: Positive", "STR")
    assert tiles.measurements["Probability: Tumor:Positive"].tolist() == [np.float32(0.9)]
    assert notes == [
        "1 of 3 tiles below the least probability: unclassified",
        "2 of 3 tiles of other classes: left out",
    ]


def test_a_class_that_the_model_lacks_is_refused():
    with pytest.raises(TiaftError, match="the model has no class 'Tumor', only TUM, STR"):
        new_tiles(predictions_of(), FRAME, classes=["Tumor"])


@pytest.mark.parametrize("name", ["two\nlines", "Tumor:"])
def test_class_names_that_qupath_refuses_are_refused(name):
    with pytest.raises(TiaftError, match=r"QuPath takes no class called .*: rename it"):
        new_tiles(predictions_of(names=("TUM", name)), FRAME)


def test_nan_probabilities_are_refused():
    with pytest.raises(TiaftError, match=r"slide 1.svs: a probability that is no number among"):
        new_tiles(predictions_of(block([[np.nan, 1.0]])), FRAME)


def test_ids_that_stand_twice_are_refused():
    with pytest.raises(TiaftError, match=r"slide 1.svs: tiles of ftx share ids: predict it again"):
        new_tiles(predictions_of(block([[1, 0]]), block([[1, 0]])), FRAME)


def test_what_plugins_measure_comes_along():
    blocks = (
        block([[1, 0]], measurements={"cells": np.array([3])}),
        block([[0, 1]], first=1, measurements={"tissue": np.array([1e300])}),
    )
    measured = new_tiles(predictions_of(*blocks), FRAME)[0].measurements
    assert list(measured) == ["Probability: TUM", "Probability: STR", "cells", "tissue"]
    assert measured["cells"][0] == 3 and np.isnan(measured["cells"][1])
    assert np.isnan(measured["tissue"][0]) and np.isinf(measured["tissue"][1])
    assert {values.dtype for values in measured.values()} == {np.dtype(np.float32)}


def test_a_measurement_does_not_overwrite_a_probability():
    doubled = block([[1, 0]], measurements={"Probability: TUM": np.zeros(1)})
    with pytest.raises(TiaftError, match="a plug-in measures 'Probability: TUM'"):
        new_tiles(predictions_of(doubled), FRAME)


def test_tiles_over_the_edge_stay_whole_and_are_told():
    corners = [(0, 0), (995, 0), (-5, 790), (990, 790)]
    tiles, notes = new_tiles(predictions_of(block([[1, 0]] * 4, corners)), FRAME)
    assert len(tiles) == 4 and tiles.bounds[1].tolist() == [995, 0, 1005, 10]
    assert notes == ["2 of 4 tiles over the edge of the image: left whole"]


@pytest.mark.parametrize("corner", [(1000, 0), (-10, 0), (0, 800), (5000, 5000)])
def test_tiles_outside_the_slide_are_refused(corner):
    with pytest.raises(
        TiaftError, match="slide 1.svs: 1 of 2 tiles lie outside the slide, 1000 × 800 pixels"
    ):
        new_tiles(predictions_of(block([[1, 0]] * 2, [(0, 0), corner])), FRAME)


def test_tiles_where_qupath_shows_no_slide_are_left_out_and_told():
    """QuPath crops to OpenSlide's bounds what TIAToolbox shows whole."""
    cropped = Frame((100, 200), 0, (1000, 800), (300, 300))
    corners = [(0, 0), (100, 200), (390, 490), (395, 200), (400, 200)]
    tiles, notes = new_tiles(predictions_of(block([[1, 0]] * 5, corners)), cropped)
    assert list(tiles.ids) == [UUID(int=1), UUID(int=2), UUID(int=3)]
    assert tiles.bounds[:2].tolist() == [[0, 0, 10, 10], [290, 290, 300, 300]]
    assert notes == [
        "2 of 5 tiles outside what QuPath shows of the slide: left out",
        "1 of 5 tiles over the edge of the image: left whole",
    ]
    with pytest.raises(TiaftError, match="all 1 tiles lie outside the part of the slide that QuP"):
        new_tiles(predictions_of(block([[1, 0]], [(0, 0)])), cropped)


def test_tiles_follow_a_rotated_image():
    turned = Frame((0, 0), 90, (1000, 800), (800, 1000))
    tiles, notes = new_tiles(predictions_of(block([[1, 0]], [(0, 0)])), turned)
    assert tiles.bounds.tolist() == [[790, 0, 800, 10]] and notes == []


def test_areas_of_a_rotated_image_leave_no_gaps():
    turned = Frame((0, 0), 90, (1000, 800), (800, 1000))
    corners = [(33.33 * x, 33.33 * y) for y in range(9) for x in range(9)]
    predictions = predictions_of(block([[1, 0]] * 81, corners, size=33.33))
    tiles, _ = new_tiles(predictions, turned)
    assert len(merge_tiles(tiles)) == 1

"""Concepts: textures, nuclei and tables; R² in-sample and held out; TCAV and Br."""

import csv
import json
from contextlib import closing

import numpy as np
import pytest
import shapely
import torch
from conftest import tiaft
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from skimage.color import rgb2gray
from torch import nn

from tiaft_extensions.interpretability.concepts import directions as d
from tiaft_extensions.interpretability.concepts import measured as c
from tiaft_extensions.interpretability.concepts import regression as r
from tiaft_extensions.interpretability.concepts.haralick import PROPERTIES, Texture
from tiaft_extensions.interpretability.concepts.nuclei import eccentricity, nuclei_concepts
from tiaft_extensions.interpretability.concepts.study import Asked, choose_tiles, run_study
from tiaft_extensions.interpretability.subject import Subject
from tiaft_plugin import TiaftError, hookimpl, plugins
from tiaft_plugin.tiles.tileset import read_tileset

RNG = np.random.default_rng(0)


def write_tiles(root, count=8, size=32, classes="abc", **columns):
    """Write tiles whose grain grows with their number, of slides s0 … s3; return the root."""
    rng = np.random.default_rng(5)
    rows = []
    for label in classes:
        (root / label).mkdir(parents=True)
        for number in range(count):
            grain = rng.integers(-1 - 6 * number, 2 + 6 * number, (size, size, 3))
            base = 110 + 10 * "abc".index(label)
            name = f"{label}/{label}{number}.png"
            Image.fromarray((base + grain).astype(np.uint8)).save(root / name)
            rows.append([name, label, f"s{number % 4}", *[f(name) for f in columns.values()]])
    with (root / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "label", "group", *columns], *rows])
    return root


@pytest.fixture
def folder(tmp_path):
    return write_tiles(tmp_path / "tiles")


@pytest.fixture
def tileset(folder):
    return read_tileset(folder)


class Bright(nn.Module):
    """Class a likes bright tiles, class b dark ones, c does not care; `gradients` may be off."""

    def __init__(self, gradients=True):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.gradients = gradients
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(4)[:, :3, None, None])
            self.conv.weight[0] = 1 / 3
            self.conv.bias.zero_()

    def forward(self, tiles):
        with torch.set_grad_enabled(self.gradients and torch.is_grad_enabled()):
            maps = self.conv(tiles.permute(0, 3, 1, 2).float() / 255)
            mean = maps.mean(dim=(2, 3))[:, 0]
            return torch.stack([mean.exp(), -mean.exp(), 0 * mean], dim=1)


def subject(network=None, classes=("a", "b", "c")):
    return Subject("bright", (network or Bright()).eval(), classes, False, 32, None)


# Concepts


def by_hand(tile):
    """Haralick's measures from their definitions, pixel pair by pixel pair."""
    grey = np.rint(rgb2gray(tile) * 255)
    pairs = np.stack([grey[:, :-1].ravel(), grey[:, 1:].ravel()])
    pairs = np.hstack([pairs, pairs[::-1]])
    _, counts = np.unique(pairs, axis=1, return_counts=True)
    asm = ((counts / counts.sum()) ** 2).sum()
    gap = np.abs(pairs[0] - pairs[1])
    one_grey = np.ptp(pairs) == 0
    return {
        "asm": asm,
        "energy": asm**0.5,
        "contrast": (gap**2).mean(),
        "dissimilarity": gap.mean(),
        "correlation": np.nan if one_grey else np.corrcoef(pairs)[0, 1],
    }


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(2, 6), st.just(3))))
def test_textures_are_haralicks(tile):
    wanted = by_hand(tile)
    assert set(wanted) == set(PROPERTIES)
    for name, value in wanted.items():
        assert Texture(name)(tile) == pytest.approx(value, abs=1e-9, nan_ok=True), name


def test_concepts_come_from_the_hook_register_concepts(tileset):
    measured = c.measure_concepts(tileset, ["contrast", "asm", "contrast"])
    assert measured.names == ("contrast", "asm")
    assert measured.values.shape == (24, 2)
    assert np.isfinite(measured.values).all()
    with pytest.raises(TiaftError, match="no concept is called 'contrst': did you mean contrast?"):
        c.find_concepts(["contrst"])
    with pytest.raises(TiaftError, match="there are: asm, contrast, correlation, energy, dissim"):
        c.find_concepts(["pleomorphism"])


def add_concept(monkeypatch, measure):
    manager = plugins.plugin_manager()
    plugin = type("P", (), {"register_concepts": staticmethod(hookimpl(
        lambda register: register("own", measure)))})()  # fmt: skip
    manager.register(plugin, name="mine")
    manager.sources["mine"] = "mine 1.0"
    return lambda: (manager.unregister(name="mine"), manager.sources.pop("mine"))


def test_a_plugins_concept(monkeypatch, tileset):
    undo = add_concept(monkeypatch, lambda tile: tile.mean() if tile.max() < 150 else np.inf)
    try:
        values = c.measure_concepts(tileset, ["own"]).values
    finally:
        undo()
    assert np.isnan(values).any() and (values[np.isfinite(values)] < 150).all()


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        (lambda tile: "much", "concept own of plug-in mine gives 'much' for .*a0.png: one number"),
        (lambda tile: 1 / 0, "concept own of plug-in mine failed: ZeroDivisionError"),
    ],
)
def test_a_failing_concept_is_named(monkeypatch, tileset, measure, said):
    undo = add_concept(monkeypatch, measure)
    try:
        with pytest.raises(TiaftError, match=said):
            c.measure_concepts(tileset, ["own"])
    finally:
        undo()


def test_a_table_of_concepts(tileset, tmp_path):
    path = tmp_path / "more.csv"
    path.write_text("label,size,file,age\na,1.5,a/a1.png,7\nb,,b\\b0.png,8\n")
    found = c.read_concepts(path, tileset)
    assert found.names == ("size", "age")
    row = {tileset.shown(file): values for file, values in zip(tileset.files, found.values)}  # noqa: B905
    assert row["a/a1.png"].tolist() == [1.5, 7]
    assert np.isnan(row["b/b0.png"][0]) and row["b/b0.png"][1] == 8
    assert np.isnan(row["c/c0.png"]).all()
    with pytest.raises(TiaftError, match="two concepts are called age: rename one"):
        found.beside(c.Concepts(("age",), np.zeros((24, 1))))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tile,x\na,1\n", "no column file; the columns are tile, x"),
        ("file,label\na/a0.png,a\n", "has no column but file, label: add one a concept"),
        ("file,x\na/a0.png,1\na/a0.png,2\n", "a file has two rows"),
        ("file,x\nelse.png,1\n", "has no row for any tile of .*: its files are called else.png, "),
        ("file,x\na/a0.png,low\n", "1 cell that should be a number is none, in x"),
    ],
)
def test_a_table_that_cannot_be_used(tileset, tmp_path, text, said):
    path = tmp_path / "more.csv"
    path.write_text(text)
    with pytest.raises(TiaftError, match=said):
        c.read_concepts(path, tileset)


# Nuclei


def ellipse(x, y, a, b, turn=0.0):
    round_ = shapely.Point(0, 0).buffer(1, quad_segs=200)
    turned = shapely.affinity.rotate(shapely.affinity.scale(round_, a, b), turn)
    return shapely.affinity.translate(turned, x, y)


@given(st.floats(0.5, 20), st.floats(0.5, 20), st.floats(0, 180))
def test_the_eccentricity_of_an_ellipse(a, b, turn):
    small, large = sorted((a, b))
    wanted = (1 - (small / large) ** 2) ** 0.5
    assert eccentricity(ellipse(900, -70, a, b, turn)) == pytest.approx(wanted, abs=2e-3)


def test_eccentricity_of_other_shapes():
    assert eccentricity(shapely.box(0, 0, 4, 1)) == pytest.approx((1 - 1 / 16) ** 0.5)
    two = shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(9, 0, 10, 1)])
    variances = 1 / 12 + 4.5**2, 1 / 12
    assert eccentricity(two) == pytest.approx((1 - variances[1] / variances[0]) ** 0.5)
    ring = shapely.box(-2, -2, 2, 2) - shapely.box(-1, -0.5, 1, 0.5)
    x, y = (4 * 64 / 12 - 8 / 12) / 14, (4 * 64 / 12 - 2 / 12) / 14
    assert eccentricity(ring) == pytest.approx((1 - x / y) ** 0.5)
    assert np.isnan(eccentricity(shapely.Point(1, 1)))


def geojson(path, shapes):
    features = [{"type": "Feature", "geometry": json.loads(shapely.to_geojson(shape)),
                 "properties": {"objectType": "detection"}} for shape in shapes]  # fmt: skip
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_nuclei_of_a_slide_are_found_in_its_tiles(tmp_path):
    """Tiles of 32 px at 0.5 µm/px are 64 baseline pixels wide: 0.25 µm each."""
    corner = lambda name: 64 * int(name[3])  # noqa: E731
    root = write_tiles(
        tmp_path / "tiles", 3, classes="ab", mpp=lambda _: 0.5, slide=lambda _: "one.svs",
        x=corner, y=lambda name: 0 if name[0] == "a" else 64,
        width=lambda _: 64, height=lambda _: 64,
    )  # fmt: skip
    shapes = [ellipse(10, 10, 4, 4), ellipse(62, 30, 8, 4), ellipse(100, 100, 2, 2)]
    bowtie = shapely.from_wkt("POLYGON ((70 10, 80 20, 80 10, 70 20, 70 10))")
    tiles = read_tileset(root)
    assert {tiles.shown(f) for f in tiles.files} >= {"a/a0.png", "b/b1.png"}
    for nuclei in (geojson(tmp_path / "one.geojson", [*shapes, bowtie]), tmp_path):
        found = nuclei_concepts(nuclei, tiles)
        row = dict(zip([f.stem for f in tiles.files], found.values, strict=True))
        assert row["a0"][0] == 2
        assert row["a0"][1] == pytest.approx(np.pi * (16 + 32) / 2 * 0.25**2, rel=1e-3)
        assert row["a0"][2] == pytest.approx(0.75**0.5 / 2, abs=0.02)
        assert row["a1"][0] == 1 and row["b1"][0] == 1
        assert row["b0"][0] == 0 and np.isnan(row["b0"][1:]).all()


def test_nuclei_of_tiles_that_stand_alone(folder, tmp_path):
    """Each in pixels of its tile; a detector's points are counted."""
    from tiatoolbox.annotation import Annotation

    from tiaft_plugin.engine.annotation_store import Store

    nuclei = tmp_path / "nuclei"
    nuclei.mkdir()
    tiles = read_tileset(folder)
    for file in tiles.files[1:]:
        geojson(nuclei / f"{file.stem}.geojson", [ellipse(9, 9, 3, 3)])
    with pytest.raises(TiaftError, match="has no nuclei of a0: a file a0.geojson or a0.db"):
        nuclei_concepts(nuclei, tiles)
    with closing(Store(nuclei / "a0.db")) as store:
        shapes = [shapely.Point(3, 4), ellipse(9, 9, 3, 3)]
        store.append_many([Annotation(shape, {}) for shape in shapes])
    before = (nuclei / "a0.db").read_bytes()
    found = nuclei_concepts(nuclei, tiles)
    assert found.values[:, 0].tolist() == [2] + [1] * 23
    assert found.values[:, 1] == pytest.approx(np.full(24, 9 * np.pi), rel=1e-3)
    assert (nuclei / "a0.db").read_bytes() == before
    (nuclei / "a0.db").write_text("no store")
    with pytest.raises(TiaftError, match=r"a0.db is no annotation store of TIAToolbox"):
        nuclei_concepts(nuclei, tiles)
    with pytest.raises(TiaftError, match="is one file, the tiles are of 24 slides or have a file"):
        nuclei_concepts(nuclei / "a1.geojson", tiles)
    with pytest.raises(TiaftError, match="no such file or folder of nuclei"):
        nuclei_concepts(tmp_path / "none", tiles)


# Regression


def test_r2_is_that_of_an_independent_least_squares():
    x = RNG.normal(size=(60, 7)) * np.logspace(-2, 2, 7) + 5
    y = x @ RNG.normal(size=(7, 2)) + RNG.normal(size=(60, 2)) * 20
    splits = r.make_splits([f"s{row % 9}" for row in range(60)], 4, seed=3)
    found = r.regress(x, y, splits)
    for split, folds in enumerate(splits):
        inside, told = [], np.empty_like(y)
        for fold in np.unique(folds):
            train, test = folds != fold, folds == fold
            ones = np.column_stack([x, np.ones(60)])
            normal = np.linalg.lstsq(ones[train], y[train], rcond=None)[0]
            left = ((y[train] - ones[train] @ normal) ** 2).sum(0)
            inside.append(1 - left / ((y[train] - y[train].mean(0)) ** 2).sum(0))
            told[test] = ones[test] @ normal
        out = 1 - ((y - told) ** 2).sum(0) / ((y - y.mean(0)) ** 2).sum(0)
        np.testing.assert_allclose(found.in_sample[split], np.mean(inside, 0), atol=1e-8)
        np.testing.assert_allclose(found.held_out[split], out, atol=1e-8)


def test_meaningless_concepts_have_the_r2_of_their_null():
    """The paper's trap: in-sample R² of noise is p/(n − 1); held out it is not above 0."""
    x, y = RNG.normal(size=(150, 40)), RNG.normal(size=(150, 30))
    x[:, 30:] = 0  # dead channels do not count
    found = r.regress(x, y, r.make_splits([None] * 150, 2))
    assert found.null == pytest.approx(30 / 99)
    assert found.in_sample.mean() == pytest.approx(30 / 99, abs=0.03)
    assert found.permuted.mean() == pytest.approx(30 / 99, abs=0.03)
    assert found.held_out.mean() < -0.2
    assert abs(found.ridge.mean()) < 0.1


def test_more_channels_than_tiles_tell_everything_in_sample_and_nothing_else():
    x, y = RNG.normal(size=(40, 90)), RNG.normal(size=(40, 3))
    found = r.regress(x, y, r.make_splits([None] * 40, 2))
    assert found.null == pytest.approx(1)
    assert found.in_sample == pytest.approx(1)
    assert (found.ridge < 0.3).all()


def test_slides_are_held_out_whole():
    groups = [f"s{row % 5}" for row in range(40)]
    splits = r.make_splits(groups, 10)
    assert splits.shape == (10, 40)
    for folds in splits:
        assert len({(group, fold) for group, fold in zip(groups, folds, strict=True)}) == 5
        assert set(folds) == {0, 1, 2}
    assert len(np.unique(r.make_splits(["a", "b"] * 3, 3), axis=1).T) == 2
    # Tiles without a group stand for themselves.
    assert len(set(r.make_splits([None] * 6, 1)[0])) == 3
    with pytest.raises(TiaftError, match=r"all tiles are of one slide or patient \(s\): none can"):
        r.make_splits(["s"] * 9)
    with pytest.raises(TiaftError, match="3 tiles: a regression needs four or more"):
        r.make_splits([None] * 3)


def test_a_concept_that_only_marks_slides_is_not_told_held_out():
    """In-sample it looks perfect: what R² without held-out slides hides."""
    slide = np.repeat(np.arange(6), 20)
    x = np.eye(6)[slide] + RNG.normal(size=(120, 6)) * 0.01
    y = RNG.permutation(6)[slide][:, None].astype(float)
    found = r.regress(x, y, r.make_splits([f"s{s}" for s in slide], 5))
    assert (found.in_sample > 0.99).all()
    assert (found.held_out < 0.2).all()


# Directions


@pytest.mark.parametrize("how", ["ols", "ridge"])
def test_a_planted_direction_is_recovered(how):
    planted = np.linalg.qr(RNG.normal(size=(12, 2)))[0]
    x = RNG.normal(size=(500, 12)) * np.linspace(0.5, 4, 12) + 3
    y = x @ planted * 7 + RNG.normal(size=(500, 2)) * 0.1 + 40
    found = d.directions(x, y, how)
    np.testing.assert_allclose((found * planted).sum(0), 1, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), 1)
    assert d.agreement([found, -found], found) == pytest.approx([0, 0])


def test_tcav_and_br_by_hand():
    s = np.array([[1.0, -1, 2, 0.5], [3, -1, 2, -0.5], [-1, -4, 2, 0]])
    assert d.tcav(s).tolist() == [2 / 3, 0, 1, 1 / 3]
    r2 = np.array([0.5, -3, 0.9, 0.8])
    first = 0.5 * 1 / np.std([1, 3, -1])
    # R² below 0 counts as 0; where all tiles react alike there is no Br.
    np.testing.assert_allclose(d.relevance(s, r2), [first, 0, np.nan, 0])


def test_gradients_are_of_the_spatial_mean():
    """Logit a = exp(mean of channel 0): moving the channel by ε everywhere adds ε·logit."""
    tiles = RNG.integers(0, 255, (5, 32, 32, 3)).astype(np.uint8)
    model = subject()
    logits = model.network(torch.from_numpy(tiles)).detach().numpy()
    for number, sign in ((0, 1), (1, -1), (2, 0)):
        found = d.pooled_gradients(model, tiles, "conv", number)
        np.testing.assert_allclose(found[:, 0], sign * logits[:, 0], rtol=1e-5, atol=1e-7)
        assert not found[:, 1:].any()


# The study


def brightness(tileset):
    from tiaft_plugin.tiles.images import read_image

    values = np.array([[read_image(file).mean()] for file in tileset.files])
    noise = np.random.default_rng(1).normal(size=values.shape)
    return c.Concepts(("bright", "noise"), np.hstack([values, noise]))


def test_a_concept_speaks_for_the_class_that_likes_it(tileset):
    asked = Asked(at_least=0.0, splits=3, repetitions=4, permutations=19, how="ols", seed=1)
    study = run_study(subject(), tileset, brightness(tileset), asked)
    assert study.layers == ("conv",)
    told = {(row["network"], row["concept"]): row for row in study.r2}
    assert set(told) == {(n, k) for n in ("random", "fine-tuned") for k in ("bright", "noise")}
    assert told["fine-tuned", "bright"]["r2_held_out"] > 0.99
    assert told["fine-tuned", "noise"]["r2_held_out"] < 0.3
    of = {(row["class"], row["concept"]): row for row in study.relevance}
    assert (of["a", "bright"]["tcav"], of["b", "bright"]["tcav"]) == (1, 0)
    assert of["a", "bright"]["br"] > 1 > -1 > of["b", "bright"]["br"]
    assert of["c", "bright"]["tcav"] == 0 and np.isnan(of["c", "bright"]["br"])
    assert of["a", "bright"]["r2"] == told["fine-tuned", "bright"]["r2_held_out"]
    # All gradients point one way, so that any direction has TCAV 0 or 1, as the null shows.
    assert of["a", "bright"]["tcav_p"] == 1 and of["a", "bright"]["tcav_t_p"] == 0
    assert of["a", "bright"]["agreement"] > 0.99


def test_tiles_and_concepts_are_chosen(tileset):
    values = np.arange(24.0)[:, None]
    values[3] = np.nan
    given = [c.Concepts(("own",), values)]
    chosen, concepts, notes = choose_tiles(tileset, ["asm"], given, count=100)
    assert concepts.names == ("asm", "own") and len(chosen) == len(concepts.values) == 23
    assert notes == ["Tiles left out, which lack a value for a concept: 1."]
    own = dict(zip(tileset.files, values[:, 0], strict=True))
    assert [own[file] for file in chosen.files] == concepts.values[:, 1].tolist()
    few, again = (choose_tiles(tileset, ["asm"], count=9, seed=2)[0] for _ in range(2))
    assert len(few) == 9 and few.files == again.files
    with pytest.raises(TiaftError, match="no concept: name some"):
        choose_tiles(tileset, [])
    with pytest.raises(TiaftError, match="concept own is 5 in all 24 tiles: there is nothing to"):
        choose_tiles(tileset, [], [c.Concepts(("own",), np.full((24, 1), 5.0))])
    with pytest.raises(TiaftError, match="0 tiles of .* have a value for each of asm, own"):
        choose_tiles(tileset, ["asm"], [c.Concepts(("own",), np.full((24, 1), np.nan))])


@pytest.mark.parametrize(
    ("model", "asked", "said"),
    [
        ({}, {"layers": ("cnv",)}, "bright has no layer 'cnv' that gives a map: it has conv"),
        ({}, {"classes": ("d",)}, "bright has no class 'd': it has a, b, c"),
        ({"network": Bright(gradients=False)}, {}, "no gradients flow through bright"),
        ({"classes": ()}, {"classes": ("a",)}, "bright gives features, not classes"),
        ({}, {"at_least": 0.999}, r"gives no tile of a in .* p > 0.999: the highest is 0\."),
        ({"classes": ("x", "y", "z")}, {}, "has no tile of a class of bright .*--no-relevance"),
    ],
)
def test_what_cannot_be_studied(tileset, model, asked, said):
    options = {"at_least": 0.1, "splits": 2, "repetitions": 2, "permutations": 2, **asked}
    with pytest.raises(TiaftError, match=said):
        run_study(subject(**model), tileset, brightness(tileset), Asked(**options))


def test_r2_needs_neither_gradients_nor_classes(tileset):
    options = {"splits": 2, "permutations": 0, "repetitions": 0}
    model = subject(Bright(gradients=False))
    study = run_study(model, tileset, brightness(tileset), Asked(relevance=False, **options))
    assert study.r2 and not study.relevance
    study = run_study(subject(classes=()), tileset, brightness(tileset), Asked(**options))
    assert study.notes == ["bright has no classes: no TCAV and no Br."]


# The command

QUICK = (
    "--concepts",
    "asm,contrast",
    "--splits",
    2,
    "--repetitions",
    2,
    "--permutations",
    9,
    "--at-least",
    0.1,
    "--layers",
)


def interpret(folder, model, out, *more):
    return tiaft("interpret", "concepts", folder, "--model", model, "--out", out,
                 "--pretrained", "none", *QUICK, "layer1,layer4", *more)  # fmt: skip


def test_the_command_leaves_tables_pictures_and_a_report(folder, tiny_model, tmp_path):
    out = tmp_path / "out"
    done = interpret(folder, tiny_model, out)
    assert done.returncode == 0, done.stderr
    assert "held out, ridge" in done.stdout and "report.html" in done.stdout
    report = (out / "report.html").read_text()
    assert "Concepts: what the layers can tell" in report and "What concepts do" in report
    names = {path.name for path in (out / "concepts").iterdir()}
    assert names == {
        *("concepts.csv", "r2.csv", "relevance.csv", "figure3.png", "relevance.png"),
        *("section.html", "about.json"),
    }
    with (out / "concepts/r2.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2  # layers, concepts, networks
    again = interpret(folder, tiny_model, out)
    assert again.returncode == 2 and "exists already" in again.stderr
    before = {name: (out / "concepts" / name).read_bytes() for name in names}
    assert interpret(folder, tiny_model, out, "--overwrite").returncode == 0
    assert {name: (out / "concepts" / name).read_bytes() for name in names} == before
    # What it measured can be given back to it.
    table = ("--table", out / "concepts/concepts.csv", "--concepts", "", "--fit", "ols")
    other = interpret(folder, tiny_model, tmp_path / "other", *table, "--no-relevance")
    assert other.returncode == 0, other.stderr
    first = [line for line in done.stdout.splitlines() if line.startswith("asm")]
    assert first and first == [x for x in other.stdout.splitlines() if x.startswith("asm")]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--layers", "blocks"), "has no layer 'blocks' that gives a map: it has "),
        (("--class", "TUM"), "has no class 'TUM': it has a, b, c"),
        (("--concepts", "size"), "no concept is called 'size': there are: asm"),
        (("--model", "nobody"), "no model 'nobody'"),
        (("--table", "none.csv"), "none.csv: no such file"),
        (("--pretrained", "none.pth"), "--pretrained none.pth"),
    ],
)
def test_what_the_command_refuses(folder, tiny_model, tmp_path, more, said):
    done = interpret(folder, tiny_model, tmp_path / "out", *more)
    assert done.returncode == 2
    assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not list((tmp_path / "out").glob("*"))


def test_one_class_only_and_no_tiles(tmp_path, tiny_model):
    one = write_tiles(tmp_path / "one", classes="a")
    done = interpret(one, tiny_model, tmp_path / "out")
    assert done.returncode == 2 and "one class" in done.stderr, done.stderr
    (tmp_path / "empty").mkdir()
    done = interpret(tmp_path / "empty", tiny_model, tmp_path / "out")
    assert done.returncode == 2 and "holds no class folders" in done.stderr

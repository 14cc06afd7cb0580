"""CKA: exact, unbiased and by minibatches; any two models over any layers; what it writes."""

import csv
import errno
import itertools
import json
import os

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from tiaft_extensions.histotransfer.cka import figures, report, study
from tiaft_extensions.histotransfer.cka.hsic import ExactCKA, MinibatchCKA, linear_cka
from tiaft_extensions.histotransfer.cka.spread import groups_of, intervals
from tiaft_extensions.histotransfer.cli import histotransfer
from tiaft_extensions.interpretability.subject import (
    Subject,
    activations,
    layers_of,
    load_subject,
)
from tiaft_plugin import TiaftError
from tiaft_plugin.network import create_network, load_model, save_model
from tiaft_plugin.tiles.tileset import read_tileset


def related(n, p, q, seed=0, noise=1.0, offset=0.0):
    """Two representations that share something."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p)) * rng.gamma(1, size=p)
    y = x @ rng.normal(size=(p, q)) + noise * rng.normal(size=(n, q))
    return x + offset, y - offset


# The estimate


def kornblith(x, y):
    """The definition by Gram matrices: tr(KHLH), with H = I - 1/n."""
    h = np.eye(len(x)) - 1 / len(x)

    def hsic(k, m):
        return np.trace(k @ h @ m @ h)

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def song(k, m):
    """HSIC₁ as what it is, a U-statistic: a mean over all fours of different tiles."""
    rows = itertools.permutations(range(len(k)), 4)
    return np.mean([k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in rows])


def unbiased_by_definition(batches):
    grams = [[z @ z.T for z in pair] for pair in batches]
    xy, xx, yy = (
        np.mean([song(pair[a], pair[b]) for pair in grams]) for a, b in ((0, 1), (0, 0), (1, 1))
    )
    return xy / np.sqrt(xx * yy)


def by_minibatches(x, y, count):
    sums = MinibatchCKA(1, 1)
    for part in np.array_split(np.arange(len(x)), count):
        sums.add([x[part]], [y[part]])
    return sums.cka()[0, 0]


SHAPES = st.tuples(st.integers(4, 7), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))


@given(SHAPES)
def test_plain_is_kornbliths(shape):
    x, y = related(*shape, offset=3)
    assert linear_cka(x, y) == pytest.approx(kornblith(x, y), abs=1e-8)


@given(SHAPES)
def test_unbiased_is_the_u_statistic(shape):
    x, y = related(*shape)
    wanted = unbiased_by_definition([(x, y)])
    assert linear_cka(x, y, unbiased=True) == pytest.approx(wanted, abs=1e-8)
    assert by_minibatches(x, y, 1) == pytest.approx(wanted, abs=1e-8)


def test_minibatches_average_hsic_not_cka():
    x, y = related(12, 3, 5)
    wanted = unbiased_by_definition([(x[:6], y[:6]), (x[6:], y[6:])])
    assert by_minibatches(x, y, 2) == pytest.approx(wanted, abs=1e-8)


def test_adding_tiles_bit_by_bit_changes_nothing():
    x, y = related(301, 20, 30, offset=100)
    bits = ExactCKA(2, 1)
    for part in np.array_split(np.arange(301), 7):
        bits.add([x[part], y[part]], [y[part].astype(np.float64)])
    for kind in (True, False):
        found = bits.unbiased() if kind else bits.plain()
        assert found[0, 0] == pytest.approx(linear_cka(x, y, unbiased=kind), abs=1e-10)
        assert found[1, 0] == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("unbiased", [False, True])
def test_a_rotation_a_shift_and_a_multiple_are_the_same(unbiased):
    x, _ = related(50, 12, 1)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    same = 7 * (x @ turn) + np.arange(12)
    assert linear_cka(x, same, unbiased=unbiased) == pytest.approx(1, abs=1e-8)
    assert by_minibatches(x, same, 5) == pytest.approx(1, abs=1e-8)
    stretched = x * np.r_[50, np.ones(11)]  # no rotation: one feature now matters most
    assert linear_cka(x, stretched, unbiased=unbiased) < 0.9


def test_unrelated_layers_seem_alike_but_to_the_unbiased():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 60, 500))
    assert linear_cka(x, y) > 0.8
    assert abs(linear_cka(x, y, unbiased=True)) < 0.05


def test_minibatches_come_within_a_hundredth_of_the_whole():
    x, y = related(1000, 32, 64, noise=20)
    whole = linear_cka(x, y, unbiased=True)
    assert 0.1 < whole < 0.9
    assert by_minibatches(x, y, 4) == pytest.approx(whole, abs=0.01)


def test_minibatches_of_real_tiles_come_within_a_hundredth_of_the_whole(data):
    """Pixels of small copies against histograms of colour, of 960 tiles."""
    small, colours = [], []
    for file in sorted((data / "kather2016").rglob("*.webp")):
        with Image.open(file) as image:
            pixels = np.array(image.resize((12, 12), Image.Resampling.BOX))
        small.append(pixels.ravel() / 255)
        colours.append(np.histogramdd(pixels.reshape(-1, 3), bins=4, range=[(0, 256)] * 3)[0])
    order = np.random.default_rng(0).permutation(len(small))
    x, y = np.array(small)[order], np.array(colours).reshape(len(small), -1)[order]
    whole = linear_cka(x, y, unbiased=True)
    assert 0.1 < whole < 0.95
    assert by_minibatches(x, y, 3) == pytest.approx(whole, abs=0.01)


def test_what_is_the_same_for_all_tiles_has_no_cka():
    x, y = related(20, 3, 3)
    same = np.full((20, 3), 0.1)
    both = MinibatchCKA(1, 2)
    both.add([x], [same, y])
    assert np.isnan(both.cka()[0, 0])
    assert np.isfinite(both.cka()[0, 1])
    for unbiased in (False, True):
        assert np.isnan(linear_cka(x, same, unbiased=unbiased))
        assert np.isnan(linear_cka(same.astype(np.float32), y, unbiased=unbiased))


@pytest.mark.parametrize("shapes", [((3, 2), (3, 2)), ((5, 2), (6, 2)), ((5,), (5,))])
def test_shapes_that_cannot_be_are_refused(shapes):
    with pytest.raises(ValueError, match="are not of the same 4 tiles or more"):
        linear_cka(*(np.zeros(shape) for shape in shapes))


def test_sums_do_not_grow_with_tiles():
    sums = ExactCKA(1, 1)
    sizes = set()
    for seed in range(4):
        x, y = related(40, 5, 6, seed)
        sums.add([x], [y])
        arrays = [v for v in vars(sums.across[0][0]).values() if isinstance(v, np.ndarray)]
        sizes.add(sum(array.nbytes for array in arrays))
    assert len(sizes) == 1


# Intervals


def test_an_interval_is_that_of_leaving_groups_out():
    """Against the CKA of what is left, group by group, and Busing's formulas written out."""
    sizes = np.r_[[3] * 6, [5] * 5]
    groups = np.repeat(np.arange(11), sizes)
    x, y = related(len(groups), 6, 4, noise=2)
    low, high = intervals([x, y], [y], groups)
    whole = linear_cka(x, y, unbiased=True)
    left = [linear_cka(x[groups != g], y[groups != g], unbiased=True) for g in range(11)]
    times = len(groups) / sizes
    pseudo = times * whole - (times - 1) * np.array(left)
    mean = 11 * whole - ((1 - sizes / len(groups)) * left).sum()
    error = np.sqrt(((pseudo - mean) ** 2 / (times - 1)).mean())
    assert low[0, 0] == pytest.approx(whole - 2.228139 * error, abs=1e-6)
    assert high[0, 0] == pytest.approx(min(whole + 2.228139 * error, 1), abs=1e-6)
    assert (low[1, 0], high[1, 0]) == pytest.approx((1, 1), abs=1e-8)


def test_an_interval_holds_the_cka_of_many_tiles():
    """Of 40 draws of 60 tiles from one distribution, 34 or more intervals hold its CKA."""
    x, y = related(20_000, 3, 4, noise=3)
    wanted = linear_cka(x, y)
    held = 0
    for rows in np.random.default_rng(1).permutation(20_000)[:2400].reshape(40, 60):
        low, high = intervals([x[rows]], [y[rows]], np.arange(60) % 30)
        held += low[0, 0] <= wanted <= high[0, 0]
    assert 34 <= held <= 40


def test_slides_are_left_out_where_there_are_ten():
    slides = [f"s{n % 10}" for n in range(40)]
    codes, told = groups_of(slides)
    assert told == "10 slides or patients" and len(set(zip(codes, slides, strict=True))) == 10
    codes, told = groups_of([None, *slides[1:]])
    assert told == "20 blocks of random tiles" and set(np.bincount(codes)) == {2}
    assert groups_of(["a"] * 100)[1] == "30 blocks of random tiles"
    assert groups_of(["a"] * 19) is None


# Two models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiles whose grain grows with their number, and whose classes differ in colour."""
    root = tmp_path_factory.mktemp("tiles")
    rng = np.random.default_rng(5)
    for place, label in enumerate("abc"):
        (root / label).mkdir()
        for number in range(8):
            grain = rng.integers(-1 - 6 * number, 2 + 6 * number, (32, 32, 3))
            base = 110 + 40 * np.eye(3)[place]
            pixels = (base + grain).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def tileset(folder):
    return read_tileset(folder)


@pytest.fixture(scope="module")
def tuned(tiny_model, tmp_path_factory):
    """The tiny model with other weights in its last stage only."""
    net = load_model(tiny_model)
    last = [
        p for name, p in net.part_a.named_parameters() if "layer4" in name or "stages.3" in name
    ]
    assert last
    with torch.no_grad():
        for p in last:
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * p.std())
    return save_model(net, tmp_path_factory.mktemp("tuned") / "tuned.safetensors")


class Plain(nn.Module):
    """Layers with names of their own; `dead` ones give nothing, `bad` ones NaN."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(3, 6, 3)
        self.dead = nn.Conv2d(6, 2, 1)
        self.bad = nn.Conv2d(6, 2, 1)
        nn.init.zeros_(self.dead.weight)
        nn.init.constant_(self.bad.weight, np.nan)

    def forward(self, tiles):
        maps = self.wide(tiles.permute(0, 3, 1, 2).float() / 255)
        return torch.cat([self.dead(maps), self.bad(maps)], dim=1).mean(dim=(2, 3))


def plain(size=20):
    torch.manual_seed(0)
    return Subject("plain", Plain().eval(), (), False, size, 0.5)


def test_a_model_is_itself_and_differs_where_it_was_changed(tiny_model, tuned, tileset):
    frozen, after = (study.side(load_subject(str(path))) for path in (tiny_model, tuned))
    assert frozen.layers == after.layers
    found = study.compare(frozen, after, tileset)
    same = study.compare(frozen, frozen, tileset)
    assert found.best.shape == (len(frozen.layers), len(after.layers))
    assert np.diag(same.best) == pytest.approx(np.ones(len(frozen.layers)), abs=1e-8)
    assert found.best[0, 0] == pytest.approx(1, abs=1e-6)
    assert found.best[-1, -1] < 0.99
    assert [name for name, _, _ in found.common] == list(frozen.layers)
    assert (same.a.name, same.b.name) == ("tiny (A)", "tiny (B)")


def test_cka_is_of_the_means_of_each_channel(tiny_model, tileset):
    """Against what the layers give, computed here at once and in another order."""
    subject = load_subject(str(tiny_model))
    one = study.side(subject)
    found = study.compare(one, one, tileset)
    tiles = torch.from_numpy(np.stack([np.array(Image.open(file)) for file in tileset.files]))
    kept = {}
    modules = dict(subject.network.part_a.named_modules())
    for name in one.layers[:2]:
        modules[name].register_forward_hook(
            lambda module, given, output, name=name: kept.update({name: output.clone()})
        )
    subject.network(tiles)
    x, y = (kept[name].mean(dim=(2, 3)).double().numpy() for name in one.layers[:2])
    assert found.cka["plain"][0, 1] == pytest.approx(kornblith(x, y), abs=1e-6)
    assert found.cka["unbiased"][0, 1] == pytest.approx(linear_cka(x, y, unbiased=True), abs=1e-6)


def test_models_of_other_layers_and_tile_sizes_are_compared(tiny_model, tileset):
    tiny, other = study.side(load_subject(str(tiny_model))), study.side(plain(), ["wide", "dead"])
    found = study.compare(tiny, other, tileset, batch=8)
    assert found.batches == (8, 8, 8)
    assert not found.common
    assert np.isfinite(found.best[:, 0]).all()
    assert np.isnan(found.best[:, 1]).all()
    assert "plain gives the same for every tile at dead: there is no CKA." in found.notes
    head, rows = report.nearest_table(found)
    assert head == ["layer of tiny", "most like it in plain", "CKA", "95 % interval"]
    assert {row[1] for row in rows} == {"wide"}


def test_the_order_of_tiles_on_disk_and_their_number(tiny_model, tileset):
    one = study.side(load_subject(str(tiny_model)))
    few = [study.compare(one, one, tileset, count=10, seed=seed).tiles.files for seed in (0, 0, 1)]
    assert len(few[0]) == 10
    assert few[0] == few[1] != few[2]


def test_what_readers_should_know_is_noted(tiny_model, tileset):
    other = study.side(plain(), ["wide"])
    tiny = study.side(load_subject(str(tiny_model)))
    at_half = read_tileset(tileset.root, mpp=0.5)
    found = study.compare(tiny, other, at_half, count=4)
    assert "The tiles have 0.5 µm/px; tiny is made for 1 µm/px." in found.notes
    assert any("off the unbiased one: 4 tiles are few" in note for note in found.notes)
    assert found.interval is None
    whole = study.compare(tiny, other, at_half)
    assert any("The tiles are of unknown slides: intervals are" in note for note in whole.notes)
    only_dead = study.compare(tiny, study.side(plain(), ["dead"]), tileset)
    assert only_dead.notes == [
        "There is no CKA at all: each layer of one model gives the same for every tile."
    ]


def test_tokens_of_a_transformer_are_averaged(tileset, tmp_path):
    net = create_network(
        "vit_tiny_patch16_224", init="random", tile_size=32, mpp=1.0, backbone_args={"depth": 2}
    )
    subject = load_subject(str(save_model(net, tmp_path / "vit.safetensors")))
    assert list(layers_of(subject)) == ["patch_embed.proj"]  # blocks say nothing of where
    one = study.side(subject)
    assert one.layers[-3:] == ("blocks.0", "blocks.1", "norm")
    tiles = torch.from_numpy(np.stack([np.array(Image.open(file)) for file in tileset.files[:5]]))
    kept = []
    net.part_a.blocks[1].register_forward_hook(lambda module, given, output: kept.append(output))
    with torch.no_grad():
        net.features(tiles)
    found = activations(one.subject, tiles.numpy(), ["blocks.1"])["blocks.1"]
    assert kept[0].shape == (5, 5, 192)  # four places and the class token
    assert np.allclose(found, kept[0].mean(dim=1).numpy(), atol=1e-5)
    assert np.isfinite(study.compare(one, one, tileset).best).all()


def test_errors(tiny_model, tileset, monkeypatch):
    tiny = study.side(load_subject(str(tiny_model)))
    with pytest.raises(TiaftError, match="plain has no layer 'wid' that gives a map: it has wide"):
        study.side(plain(), ["wid"])
    with pytest.raises(TiaftError, match="plain gives NaN or infinity at bad"):
        study.compare(tiny, study.side(plain(), ["bad"]), tileset)
    with pytest.raises(TiaftError, match="gives 3 tiles: CKA needs 4 or more"):
        study.compare(tiny, tiny, tileset.subset(range(3)))
    with pytest.raises(TiaftError, match="plain is a plug-in's: --pretrained needs a file of its"):
        study.before(plain(), "imagenet")
    with pytest.raises(TiaftError, match="--pretrained none: compare with what.*or a file$"):
        study.before(tiny.subject, "none")
    with pytest.raises(TiaftError, match="--pretrained x.pth: neither imagenet nor a file$"):
        study.before(tiny.subject, "x.pth")
    monkeypatch.setattr(study, "MEMORY", 1000)
    with pytest.raises(TiaftError, match=r"name fewer \(--layers\), or pass --no-exact"):
        study.compare(tiny, tiny, tileset)
    assert list(study.compare(tiny, tiny, tileset, exact=False).cka) == ["minibatch"]


def test_figures_without_numbers_in_them_stand(tiny_model, tileset):
    found = study.compare(
        study.side(load_subject(str(tiny_model))),
        study.side(plain(), ["wide", "dead"]),
        tileset,
        exact=False,
    )
    drawn, png = figures.draw_pairs(found)
    assert drawn.count(">–<") == len(found.a.layers)
    assert png[:4] == b"\x89PNG"


# The command


def cka(*arguments):
    return CliRunner().invoke(histotransfer, ["cka", *map(str, arguments)])


def test_the_command_writes_tables_pictures_and_a_page(tiny_model, tuned, folder, tmp_path):
    out = tmp_path / "out"
    asked = [folder, "--model", tiny_model, "--model", tuned, "--out", out, "--count", 20]
    result = cka(*asked)
    assert result.exit_code == 0, result.output
    layers = study.side(load_subject(str(tiny_model))).layers
    with (out / "cka.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(layers) ** 2
    assert float(rows[0]["cka_unbiased"]) == pytest.approx(1, abs=1e-6)
    last = [float(rows[-1][f"cka_unbiased{end}"]) for end in ("_low", "", "_high")]
    assert last == sorted(last) and last[0] < last[2]
    about = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert about["a"]["model"] == "tiny"
    assert about["tiles"]["number"] == sum(about["batches"]) == 20
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "How alike tiny and tuned are" in page
    assert page.count("<svg") == 2
    assert "a jackknife that leaves out one of 10 blocks of random tiles at a time" in page
    for name in ("cka.png", "by_layer.png"):
        with Image.open(out / name) as image:
            image.verify()
    assert "layer" in result.output and f"report  {out / 'report.html'}" in result.output

    before = {file.name: file.read_bytes() for file in out.iterdir()}
    again = cka(*asked)
    assert isinstance(again.exception, TiaftError)
    assert "exists already: choose another name, or pass --overwrite" in str(again.exception)
    assert cka(*asked, "--overwrite").exit_code == 0
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_a_model_is_compared_with_its_own_past(tiny_model, tuned, folder, tmp_path):
    out = tmp_path / "out"
    result = cka(folder, "--model", tuned, "--pretrained", tiny_model, "--out", out)
    assert result.exit_code == 0, (result.output, result.exception)
    with (out / "cka.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["cka_plain"]) == pytest.approx(1, abs=1e-6)
    assert float(rows[-1]["cka_plain"]) < 0.999
    assert json.loads((out / "summary.json").read_text())["a"]["model"] == "tuned, pretrained"


def test_layers_are_given_for_both_or_for_each(tiny_model, folder, tmp_path):
    first, last = (study.side(load_subject(str(tiny_model))).layers[place] for place in (0, -1))
    asked = [folder, "--model", tiny_model, "--model", tiny_model, "--layers", first]
    assert cka(*asked, "--out", tmp_path / "both").exit_code == 0
    assert cka(*asked, "--layers", f"part_a.{last}", "--out", tmp_path / "each").exit_code == 0
    for name, wanted in (("both", first), ("each", last)):
        with (tmp_path / name / "cka.csv").open(encoding="utf-8") as file:
            (row,) = csv.DictReader(file)
        assert (row["layer_a"], row["layer_b"]) == (first, wanted)
    assert not (tmp_path / "each" / "by_layer.png").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "two models, please: --model twice, or --model and --pretrained"),
        (["--model", "M", "--model", "M"], "two models, please"),
        (["--pretrained", "P", "--layers", "a", "--layers", "b", "--layers", "c"], "--layers once"),
    ],
)
def test_wrong_usage(more, said, tiny_model, folder, tmp_path):
    result = cka(folder, "--model", tiny_model, *more, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert said in result.output


def test_results_do_not_lie_among_the_tiles(tiny_model, folder):
    result = cka(folder, "--model", tiny_model, "--model", tiny_model, "--out", folder / "out")
    assert f"out lies among the tiles of {folder}: choose another" in str(result.exception)


def test_a_full_disk_names_the_folder_and_leaves_nothing(tiny_model, folder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tiaft_extensions.histotransfer.cka.report._page", full)
    result = cka(folder, "--model", tiny_model, "--model", tiny_model, "--out", tmp_path / "out")
    assert str(result.exception.filename) == str(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_others_is_left_alone(tiny_model, folder, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    asked = [folder, "--model", tiny_model, "--model", tiny_model, "--out", tmp_path]
    result = cka(*asked, "--overwrite")
    assert "is not of `tiaft histotransfer cka`: it is left alone" in str(result.exception)
    assert (tmp_path / "mine.txt").read_text() == "mine"

"""Pictures that channels respond to: their making, their files, and what is refused."""

import csv
from random import Random

import numpy as np
import pytest
import torch
from conftest import tiaft
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tiaft_extensions.interpretability.subject import Subject, default_layers, load_subject
from tiaft_extensions.interpretability.visualize.colours import to_rgb
from tiaft_extensions.interpretability.visualize.fourier import FourierImages, noise
from tiaft_extensions.interpretability.visualize.gallery import Shown, _words, write_gallery
from tiaft_extensions.interpretability.visualize.maximise import (
    STAGES,
    Pictures,
    Stage,
    responses_to,
    scaled,
    total_variation,
    visualize,
)
from tiaft_extensions.interpretability.visualize.response import Response
from tiaft_extensions.interpretability.visualize.transforms import (
    GREY,
    LIGHT,
    STANDARD,
    jitter,
    pad,
    turn,
)
from tiaft_plugin.errors import TiaftError

QUICK = (Stage(100, 0.3, LIGHT),)


class Plugged(nn.Module):
    """A plug-in's network: uint8 tiles (N, H, W, 3) in, the means of `maps` out."""

    def __init__(self, maps: nn.Module):
        super().__init__()
        self.maps = maps

    def forward(self, tiles):
        return self.maps(tiles.permute(0, 3, 1, 2).float() / 255).mean(dim=(2, 3))


def subject_of(maps: nn.Module, tile_size: int = 32) -> Subject:
    network = Plugged(maps).eval().requires_grad_(False)
    return Subject("planted", network, ("a", "b", "c"), False, tile_size, 1.0)


def colour_detectors(bias: float = 0.0) -> nn.Conv2d:
    """One channel for each of red, green and blue: what of it there is more than of the others."""
    conv = nn.Conv2d(3, 3, 1)
    conv.weight.data = (1.5 * torch.eye(3) - 0.5).reshape(3, 3, 1, 1)
    conv.bias.data.fill_(bias)
    return conv


class Concatenated(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(colour_detectors(-10), nn.ReLU(inplace=True))
        self.right = nn.Sequential(nn.ReLU(), colour_detectors(-10))

    def forward(self, x):
        return torch.cat([self.left(x), self.right(x)], dim=1)


def test_colours_are_lucids():
    pixels = np.random.default_rng(0).normal(size=(4, 5, 3))  # height, width, colour
    rows = np.array([[0.26, 0.09, 0.02], [0.27, 0, -0.05], [0.27, -0.09, 0.03]])
    expected = 1 / (1 + np.exp(-pixels @ (rows / np.linalg.norm(rows, axis=0).max()).T))
    found = to_rgb(torch.from_numpy(pixels.transpose(2, 0, 1))[None])[0]
    np.testing.assert_allclose(found.permute(1, 2, 0), expected, rtol=1e-12)


@settings(deadline=None, max_examples=20)
@given(size=st.integers(2, 33), seed=st.integers(0, 99))
def test_a_spectrum_gives_back_the_images_it_began_with(size, seed):
    start = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(FourierImages(start)(), to_rgb(start), rtol=0, atol=1e-5)


def test_frequencies_are_weighted_as_lucid_weights_them():
    pictures, random = FourierImages(torch.zeros(1, 3, 8, 8)), np.random.default_rng(0)
    spectrum = random.normal(scale=0.01, size=(2, 3, 8, 5))
    pictures.spectrum.data = torch.from_numpy(np.stack(spectrum, axis=-1)[None]).float()
    frequency = np.hypot(np.fft.fftfreq(8)[:, None], np.fft.rfftfreq(8)[None])
    scale = np.sqrt(8 * 8) / np.maximum(frequency, 1 / 8)
    expected = np.fft.irfft2((spectrum[0] + 1j * spectrum[1]) * scale) / 4
    expected = to_rgb(torch.from_numpy(expected)[None]).float()
    torch.testing.assert_close(pictures(), expected, rtol=0, atol=1e-6)


def test_noise_is_that_of_the_seed_with_mean_0_and_standard_deviation_1():
    found = noise(64, seed=3)
    assert found.shape == (3, 64, 64) and found.dtype == torch.float32
    torch.testing.assert_close(found.mean(dim=(1, 2)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.std(dim=(1, 2)), torch.ones(3), atol=1e-3, rtol=0)
    assert torch.equal(found, noise(64, seed=3)) and not torch.equal(found, noise(64, seed=4))
    steps = found.diff(dim=2).abs().mean()
    assert steps < 0.3, "neighbours in Perlin noise are alike; in white noise they differ by 1.1"


def test_transforms_change_what_they_should():
    images, random = torch.rand(2, 3, 20, 30), Random(0)
    padded = pad(12)(images, random)
    assert padded.shape == (2, 3, 44, 54) and (padded[:, :, :12] == GREY).all()
    torch.testing.assert_close(padded[:, :, 12:-12, 12:-12], images)
    shifts = {float(jitter(4)(images, random)[0, 0, 0, 0]) for _ in range(300)}
    assert shifts == {float(value) for value in images[0, 0, :5, :5].flatten()}
    assert turn([0])(images, random) is images
    square = images[:, :, :, :20]
    torch.testing.assert_close(turn([90])(square, random), square.rot90(1, (2, 3)))


def test_the_papers_transforms_keep_pictures_usable():
    sizes = set()
    for seed in range(40):
        images = torch.rand(1, 3, 128, 128, requires_grad=True)
        changed, random = images, Random(seed)
        for transform in STANDARD:
            changed = transform(changed, random)
        sizes.add(changed.shape[2])
        changed.sum().backward()
        assert changed.min() >= -1e-6 and changed.max() <= 1 + 1e-6
        assert (images.grad != 0).float().mean() > 0.6
    assert min(sizes) == int(0.9 * 144) - 4 and max(sizes) == int(1.1 * 144) - 4


def test_the_stages_are_the_papers():
    assert [stage.steps for stage in STAGES] == [512, 1024, 2048]
    assert [stage.learning_rate for stage in STAGES] == [0.1, 0.1, 0.01]
    assert [stage.total_variation for stage in STAGES] == [0, 0.025, 0.0025]
    assert [stage.steps for stage in scaled(STAGES, 0.0005)] == [1, 1, 1]
    assert sum(stage.steps for stage in scaled(STAGES, 0.5)) == 3584 / 2


def test_total_variation_counts_steps_between_neighbours():
    images = torch.zeros(2, 3, 4, 4)
    images[0, 0, 1, 1] = 1.0
    assert total_variation(images).tolist() == [4.0, 0.0]


@pytest.mark.parametrize("channel", range(3))
def test_a_planted_colour_is_found(channel):
    made = visualize(subject_of(colour_detectors()), "maps", [channel], size=32, stages=QUICK)
    mean = made.images[0].reshape(-1, 3).mean(axis=0)
    others = np.delete(mean, channel)
    assert mean[channel] > others.max() + 60, mean
    assert made.responses[0, -1] > made.responses[0, 0] + 0.2


def test_a_relu_that_gives_the_layers_output_is_left_out():
    relu = nn.Sequential(colour_detectors(-10), nn.ReLU6(inplace=True))  # never responds
    subject = subject_of(relu)
    made = visualize(subject, "maps", [0], size=32, stages=QUICK)
    assert made.responses[0, 0] < -9 and made.responses[0, -1] > made.responses[0, 0] + 0.2
    tiles = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    assert (subject.network(tiles) == 0).all(), "the network itself stays as it was"


def test_only_relus_at_the_end_are_left_out():
    module = Concatenated()
    response = Response(subject_of(module), "maps")
    assert response.relus == [module.left[1]]
    inner = Response(subject_of(nn.Sequential(nn.ReLU(), colour_detectors())), "maps")
    assert inner.relus == []


class OneSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = colour_detectors()

    def forward(self, x):
        assert x.shape[2:] == (32, 32)
        return self.conv(x)


def test_a_network_of_one_size_gets_that_size():
    made = visualize(subject_of(OneSize()), "maps.conv", [2], size=48, stages=QUICK)
    assert made.images.shape == (1, 48, 48, 3)
    assert made.images[0].reshape(-1, 3).mean(axis=0).argmax() == 2


def test_pictures_too_small_for_a_layer_are_refused():
    deep = nn.Sequential(colour_detectors(), nn.Conv2d(3, 4, 31))
    with pytest.raises(
        TiaftError, match=r"maps.1 takes no pictures of 32 px \(.*\): pass --size 64"
    ):
        visualize(subject_of(deep, tile_size=64), "maps.1", [0], size=32)


class NoGradient(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = colour_detectors()

    @torch.no_grad()
    def forward(self, x):
        return self.conv(x)


def test_a_network_without_gradients_is_refused():
    with pytest.raises(TiaftError, match="no gradients flow through planted from maps.conv to the"):
        visualize(subject_of(NoGradient()), "maps.conv", [0], stages=QUICK)


def test_layers_and_channels_that_are_not_there_are_refused(tiny_model):
    subject = load_subject(str(tiny_model))
    last = default_layers(subject)[-1]
    with pytest.raises(TiaftError, match=r"no layer 'nowhere' that gives a map: it has"):
        visualize(subject, "nowhere", [0])
    with pytest.raises(TiaftError, match=rf"{last} has no channel -1, 9999: it has \d+, 0 to \d+"):
        visualize(subject, last, [0, -1, 9999])
    with pytest.raises(TiaftError, match="no channel of"):
        visualize(subject, last, [])


def test_a_picture_is_that_of_its_channel_and_seed_alone(tiny_model):
    subject = load_subject(str(tiny_model))
    layer = default_layers(subject)[0]
    stages = scaled(STAGES, 0.003)
    both = visualize(subject, layer, [1, 3], size=32, stages=stages, seed=5)
    alone = visualize(subject, layer, [3], size=32, stages=stages, seed=5)
    again = visualize(subject, layer, [1, 3], size=32, stages=stages, seed=5)
    np.testing.assert_array_equal(both.images, again.images)
    assert np.abs(both.images[1].astype(int) - alone.images[0]).max() <= 2
    other = visualize(subject, layer, [3], size=32, stages=stages, seed=6)
    assert np.abs(other.images[0].astype(int) - alone.images[0]).mean() > 5
    found = responses_to(subject, layer, [1, 3], both.images)
    np.testing.assert_allclose(found, both.responses[:, -1], rtol=0.05, atol=0.02)


def test_the_command_writes_pictures_tables_and_the_report(tiny_model, tmp_path):
    layer = default_layers(load_subject(str(tiny_model)))[0]
    command = (
        "interpret", "visualize", "--model", tiny_model, "--out", tmp_path / "out", "--layer",
        layer, "--channels", "0,2", "--pretrained", tiny_model, "--steps-scale", "0.001,0.003",
        "--size", 32,
    )  # fmt: skip
    done = tiaft(*command)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "visualize"
    with (folder / "channels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["weights"], r["channel"], r["steps_scale"]) for r in rows] == [
        (weights, channel, scale)
        for weights in ("random", "pretrained", "fine-tuned")
        for scale in ("0.001", "0.003")
        for channel in ("0", "2")
    ]
    assert {row["steps"] for row in rows} == {"4", "11"}
    # Here both have the same weights, and so the same pictures and responses.
    assert rows[4]["response_pretrained"] == rows[8]["response_fine_tuned"]
    assert len(list(folder.glob(f"{layer}-*.png"))) == 12 and (folder / f"{layer}.png").is_file()
    report = (tmp_path / "out" / "report.html").read_text()
    assert "respond 100% as strongly" in report and 'src="data:image/png' in report
    assert 'src="http' not in report
    before = (folder / "section.html").read_bytes()
    refused = tiaft(*command)
    assert refused.returncode == 2 and "exists already" in refused.stderr
    assert tiaft(*command, "--overwrite").returncode == 0
    assert (folder / "section.html").read_bytes() == before


def test_channels_that_respond_to_nothing_do_not_hide_the_others():
    def shown(weights, by_fine_tuned):
        pictures = Pictures("l", (0, 1, 2), np.zeros((3, 2, 2, 3), np.uint8), *[np.zeros(1)] * 2)
        return Shown(weights, 1.0, pictures, {"fine-tuned": np.array(by_fine_tuned)})

    own, other = shown("fine-tuned", [2.0, 4.0, -1.0]), shown("pretrained", [1.0, 1.0, 5.0])
    assert "38% as strongly as to their own (median; left out, as they respond to" in _words(
        [other, own]
    )
    assert _words([other, shown("fine-tuned", [0.0, -1.0, -1.0])]) == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--layer", "nowhere"), "no layer 'nowhere'"),
        (("--channels", "0,x"), "is not channels such as 0,1,2"),
        (("--channels", "99999"), "has no channel 99999: it has"),
        (("--steps-scale", "0"), "above 0 and at most 10"),
        (("--pretrained", "missing.safetensors"), "missing.safetensors"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(options, said, tiny_model, tmp_path):
    done = tiaft("interpret", "visualize", "--model", tiny_model, "--out", tmp_path / "o", *options)
    assert done.returncode == 2 and said in done.stderr.replace("\n", " ")
    assert not list(tmp_path.glob("o/*"))


def test_by_default_layers_from_shallow_to_deep_are_shown(tiny_model, tmp_path):
    folder = write_gallery(
        str(tiny_model), tmp_path, pretrained="none", steps_scales=[0.0001], size=32
    )
    with (folder / "channels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    assert layers == default_layers(load_subject(str(tiny_model)), 4)
    assert {row["weights"] for row in rows} == {"random", "fine-tuned"}

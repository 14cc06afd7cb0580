"""Pictures of channels, network beside network: the files and the section of the report."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_extensions.interpretability.report import SECTION, image, png_bytes, section_folder
from tiaft_extensions.interpretability.subject import (
    FINE_TUNED,
    PRETRAINED,
    RANDOM,
    Subject,
    default_layers,
    load_subject,
    variants,
)
from tiaft_extensions.interpretability.visualize.maximise import (
    SIZE,
    STAGES,
    Pictures,
    check,
    responses_to,
    scaled,
    visualize,
    width_of,
)
from tiaft_plugin import page
from tiaft_plugin.files import write_csv
from tiaft_plugin.progress import progress

COMMAND = "visualize"
LAYERS, CHANNELS = 4, 4  # by default; the paper's figure 1 has four layers
SHOWN = {
    RANDOM: "random weights, never trained",
    PRETRAINED: "pretrained, before fine-tuning",
    FINE_TUNED: "fine-tuned",
}
SEEN = "Pictures of channels of layer {}, a row for each network"


@dataclass(frozen=True)
class Shown:
    """The pictures that a network with some weights gave, with `steps_scale` times the steps.

    `by_others` holds the response (K,) of each network's same channels to these pictures.
    """

    weights: str
    steps_scale: float
    pictures: Pictures
    by_others: Mapping[str, np.ndarray]


def write_gallery(
    model: str,
    out: Path,
    *,
    layers: Sequence[str] = (),
    channels: Sequence[int] = (),
    pretrained: str | None = None,
    steps_scales: Sequence[float] = (1.0,),
    size: int = SIZE,
    seed: int = 0,
    device: str = "cpu",
    overwrite: bool = False,
) -> Path:
    """Make pictures for channels of a model's layers, and write OUT/visualize; return that folder.

    By default four layers from shallow to deep, and four channels of each, evenly spread. Raises
    TiaftError for an unknown layer or channel, before anything is made.
    """
    subject = load_subject(model, device)
    chosen = {
        layer: list(channels) or _spread(width_of(subject, layer))
        for layer in layers or default_layers(subject, LAYERS)
    }
    for layer, some in chosen.items():
        check(subject, layer, some, size)
    networks = variants(subject, pretrained, seed)
    steps = [sum(stage.steps for stage in scaled(STAGES, factor)) for factor in steps_scales]
    pictures = sum(len(some) for some in chosen.values()) * len(networks)
    with section_folder(out, COMMAND, overwrite=overwrite) as folder:
        with progress(sum(steps) * pictures, "Making pictures", "step") as bar:
            found = [
                _shown(networks, weights, layer, some, factor, size, seed, bar.update)
                for layer, some in chosen.items()
                for weights in networks
                for factor in steps_scales
            ]
        _write(folder, subject, found, seed)
    return Path(out) / COMMAND


def _spread(width: int) -> list[int]:
    return np.unique(np.linspace(0, width - 1, CHANNELS).round().astype(int)).tolist()


def _shown(
    networks: Mapping[str, Subject],
    weights: str,
    layer: str,
    channels: Sequence[int],
    factor: float,
    size: int,
    seed: int,
    moved: Any,
) -> Shown:
    made = visualize(
        networks[weights], layer, channels, size=size, steps_scale=factor, seed=seed, moved=moved
    )
    others = {
        name: responses_to(other, layer, channels, made.images) for name, other in networks.items()
    }
    return Shown(weights, factor, made, others)


def _write(folder: Path, subject: Subject, found: Sequence[Shown], seed: int) -> None:
    for name, rows in (("channels.csv", _channel_rows(found)), ("steps.csv", _step_rows(found))):
        write_csv(folder / name, next(rows), rows)
    figures = []
    for layer in dict.fromkeys(each.pictures.layer for each in found):
        of_layer = [each for each in found if each.pictures.layer == layer]
        drawn = _figure(of_layer)
        (folder / f"{layer}.png").write_bytes(drawn)
        figures += [
            f"<h3>Layer {page.shown(layer)}</h3>",
            image(drawn, SEEN.format(layer)),
            _words(of_layer),
        ]
        for each in of_layer:
            for channel, pixels in zip(each.pictures.channels, each.pictures.images, strict=True):
                name = f"{layer}-{channel}-{each.weights}-{each.steps_scale:g}.png"
                (folder / name).write_bytes(png_bytes(pixels))
    text = "\n".join([*_introduction(subject, found, seed), *figures, *_curves(found)])
    (folder / SECTION).write_text(text + "\n", encoding="utf-8")


def _channel_rows(found: Sequence[Shown]) -> Iterator[list]:
    networks = list(found[0].by_others)
    yield [
        "layer", "channel", "weights", "steps_scale", "steps", "response_at_start",
        *(f"response_{name.replace('-', '_')}" for name in networks),
    ]  # fmt: skip
    for each in found:
        made = each.pictures
        for row, channel in enumerate(made.channels):
            numbers = [made.responses[row, 0], *(each.by_others[name][row] for name in networks)]
            yield [
                made.layer, channel, each.weights, f"{each.steps_scale:g}", made.steps[-1],
                *(f"{number:.6g}" for number in numbers),
            ]  # fmt: skip


def _step_rows(found: Sequence[Shown]) -> Iterator[list]:
    yield ["layer", "channel", "weights", "steps_scale", "step", "response"]
    for each in found:
        made = each.pictures
        for row, channel in enumerate(made.channels):
            for step, response in zip(made.steps, made.responses[row], strict=True):
                scale = f"{each.steps_scale:g}"
                yield [made.layer, channel, each.weights, scale, step, f"{response:.6g}"]


def _introduction(subject: Subject, found: Sequence[Shown], seed: int) -> list[str]:
    full = sum(stage.steps for stage in STAGES)
    steps = ", ".join(str(n) for n in sorted({int(each.pictures.steps[-1]) for each in found}))
    return [
        f"<h2>What single channels of {page.shown(subject.name)} respond to</h2>",
        "<p>A channel is one of a layer's many detectors. Each square below is a picture that the "
        "computer invented, beginning with noise, so that one channel responds to it as strongly "
        "as possible. It shows no tissue, and no tile: it shows what the detector is tuned to, "
        "such as edges, stripes, spots or a colour. All squares of a figure began with the same "
        "noise.</p>",
        "<p>Compare the rows. Where the fine-tuned row looks like the pretrained row, the layer is "
        "reused from natural images as it was. Where both look alike and the random row shows "
        "nothing but soft blots, the detector was learned, and before fine-tuning. A picture is "
        "one of many that a channel may respond to, and that a detector is there does not say that "
        "the diagnosis depends on it. A channel that never responds keeps its noise.</p>",
        f"<p><small>Activation maximisation in Fourier space with decorrelated colours; steps: "
        f"{steps} (the paper's recipe has {full:,}); seed {seed}. channels.csv and steps.csv have "
        "all numbers.</small></p>",
    ]


def _label(each: Shown, several: bool) -> str:
    text = SHOWN.get(each.weights, each.weights)
    return f"{text}\n{each.pictures.steps[-1]} steps" if several else text


def _several(found: Sequence[Shown]) -> bool:
    return len({each.steps_scale for each in found}) > 1


def _figure(found: Sequence[Shown]) -> bytes:
    """Return the pictures of a layer as PNG: a row for each network, a column for each channel."""
    import io

    from matplotlib.figure import Figure

    channels = found[0].pictures.channels
    with page.drawing():
        figure = Figure(
            figsize=(1.45 * len(channels) + 1.6, 1.45 * len(found) + 0.3), layout="constrained"
        )
        axes = figure.subplots(len(found), len(channels), squeeze=False)
        for row, each in enumerate(found):
            for column, pixels in enumerate(each.pictures.images):
                spot = axes[row, column]
                spot.imshow(pixels, interpolation="nearest")
                spot.set_xticks([])
                spot.set_yticks([])
                if row == 0:
                    spot.set_title(f"channel {channels[column]}", fontsize=9)
            label = _label(each, _several(found)).replace(", ", ",\n")
            axes[row, 0].set_ylabel(
                label, rotation=0, ha="right", va="center", fontsize=9, labelpad=8
            )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _words(found: Sequence[Shown]) -> str:
    """Say how much the fine-tuned channels still respond to the pretrained ones' pictures."""
    scale = max(each.steps_scale for each in found)
    by = {each.weights: each for each in found if each.steps_scale == scale}
    if not {PRETRAINED, FINE_TUNED} <= by.keys():
        return ""
    own = by[FINE_TUNED].by_others[FINE_TUNED]
    responds = own > 0
    if not responds.any():
        return ""
    share = np.median(by[PRETRAINED].by_others[FINE_TUNED][responds] / own[responds])
    silent = f"; left out, as they respond to nothing: {(~responds).sum()}"
    return (
        "<p>To the pictures of the pretrained channels, the fine-tuned ones respond "
        f"{share:.0%} as strongly as to their own (median{'' if responds.all() else silent}): 100% "
        "means that fine-tuning left them as they were.</p>"
    )


def _curves(found: Sequence[Shown]) -> list[str]:
    """Return how responses grew with the steps: what fewer steps would have cost."""
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(each.pictures.layer for each in found))
    names = list(found[0].by_others)
    with page.drawing():
        figure = Figure(figsize=(2.6 * len(layers) + 0.4, 2.6), layout="constrained")
        axes = figure.subplots(1, len(layers), squeeze=False)[0]
        for spot, layer in zip(axes, layers, strict=True):
            of_layer = [each for each in found if each.pictures.layer == layer]
            for each in of_layer:
                colour = page.COLOURS[names.index(each.weights)]
                line = "-" if each.steps_scale == max(e.steps_scale for e in of_layer) else ":"
                mean = each.pictures.responses.mean(axis=0)
                spot.plot(each.pictures.steps, mean, line, color=colour, label=each.weights)
            spot.set_title(layer, fontsize=9)
            spot.set_xlabel("step", fontsize=9)
            spot.tick_params(labelsize=8)
        axes[0].set_ylabel("response, mean of the channels", fontsize=9)
        axes[0].legend(fontsize=8)
        drawn = page.svg(figure, "Response of the channels by step, a panel for each layer")
    return [
        "<h3>Were there enough steps?</h3>",
        "<p>How strongly the channels responded while the pictures were made. A line that is flat "
        "at its end has gained what it can; one that still climbs would with more steps "
        "(--steps-scale). The second of the three stages smooths the pictures, so that the "
        "response may fall there.</p>",
        drawn,
    ]

"""The model under study: its layers by name, what they give, and the same with other weights."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tiaft_plugin.errors import TiaftError, reason
from tiaft_plugin.files import sha256_of
from tiaft_plugin.network import Network, load_model
from tiaft_plugin.network.device import pick_device
from tiaft_plugin.network.weights import init_part_a
from tiaft_plugin.zoo.load import identity, known, load_named

BATCH = 32  # tiles
RANDOM, PRETRAINED, FINE_TUNED = "random", "pretrained", "fine-tuned"
NO_PRETRAINED = "none"  # in place of a file: leave that variant out
PASSED_ON = (nn.Identity, nn.Dropout, nn.Flatten)


@dataclass(frozen=True)
class Subject:
    """A network in eval mode and what it says of tiles.

    `network` is called with uint8 tiles (N, H, W, 3), H = W = `tile_size` px, and returns logits
    (N, C) of `classes`, or features (N, D) where there are none. `mpp` is in µm/px; `sha256` is
    the model's, as stores have it. With `tokens`, what transformers' blocks give (N, tokens, C)
    counts as a map, too, one column wide: for what needs no places in the tile.
    """

    name: str
    network: nn.Module
    classes: tuple[str, ...]
    multilabel: bool
    tile_size: int
    mpp: float | None
    sha256: str = ""
    tokens: bool = False

    def maps(self, output: Any) -> torch.Tensor | None:
        """Return a layer's output as maps (N, channels, h, w), or None where it is none."""
        if self.tokens and isinstance(output, torch.Tensor) and output.ndim == 3:
            return output.transpose(1, 2).unsqueeze(3)
        return as_maps(output)


class FeaturesOf(Network):
    """A network whose output are its features, with the same names of layers and weights."""

    def forward(self, tiles: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Return features (N, D) of uint8 tiles (N, H, W, 3)."""
        return self.features(tiles)


def load_subject(model: str, device: str = "cpu") -> Subject:
    """Return the model of a registered name, or of a ``.safetensors`` file. Raises TiaftError."""
    where = pick_device(device)
    path = Path(model)
    if path.suffix == ".safetensors" or path.is_file():
        if not path.is_file():
            raise TiaftError(f"{path}: no such model file")
        net: Any = load_model(path)
        classes, multilabel = net.card.classes, net.card.multilabel
        facts = {"tile_size": net.card.tile_size, "mpp": net.card.mpp}
        name, sha256 = path.stem, sha256_of(path)
    else:
        named = known(model)
        net = load_named(named)
        classes = named.classes if named.view == "classes" else ()
        multilabel = named.multilabel and bool(classes)
        facts = {"tile_size": named.tile_size, "mpp": named.mpp}
        name, sha256 = named.name, identity(named, net)
    if not classes and isinstance(net, Network):
        net = _features_of(net)
    # Gradients are asked for at a layer, never at weights.
    net = net.to(where).eval().requires_grad_(False)
    return Subject(name, net, classes, multilabel, **facts, sha256=sha256)


def layers_of(subject: Subject) -> dict[str, int]:
    """Return the layers whose output is a map, in the order they run: name -> channels.

    Names are those inside Part A, or inside a plug-in's network. A layer that runs more than once
    has no output of its own and is left out.
    """
    return {name: shape[1] for name, shape in _shapes(subject).items()}


def layer(subject: Subject, name: str) -> nn.Module:
    """Return a layer by name. Raises TiaftError that lists others where it is none with a map."""
    return _layers(subject, [name])[name]


def _layers(subject: Subject, names: Sequence[str]) -> dict[str, nn.Module]:
    layers, modules = _shapes(subject), dict(trunk(subject).named_modules())
    found = {}
    for name in names:
        short = name.removeprefix("part_a.")
        if short not in layers:
            raise _no_layer(subject, name, layers)
        found[name] = modules[short]
    return found


def trunk(subject: Subject) -> nn.Module:
    """Return the module that layers' names begin at: Part A, or all of a plug-in's network."""
    net = subject.network
    return net.part_a if isinstance(net, Network) else net


def default_layers(subject: Subject, count: int = 6) -> list[str]:
    """Return up to `count` layers from shallow to deep: ends of stages or blocks where it has any.

    The last map before pooling is always among them.
    """
    layers = list(_shapes(subject))
    last = last_layer(subject)
    modules = dict(trunk(subject).named_modules())
    level = _children("", layers)
    while len(ends := _blocks(level, modules)) < count:
        deeper = [inner for name in level for inner in _inside(name, layers, modules)]
        if deeper == level:
            break
        level = deeper
    if len(ends) < 3:  # VGG has no blocks
        ends = [name for name in level if _convolves(modules[name])]
    if ends and (last.startswith(f"{ends[-1]}.") or f"{ends[-1]}.".startswith(f"{last}.")):
        ends.pop()  # the same output, or what leads to it
    ends.append(last)
    chosen = np.linspace(0, len(ends) - 1, min(count, len(ends))).round().astype(int)
    return [ends[index] for index in chosen]


def last_layer(subject: Subject) -> str:
    """Return the layer that gives the last map before pooling, where Grad-CAM looks."""
    layers = list(_shapes(subject))
    if not layers:
        raise _no_layer(subject, "", {})
    return layers[-1]


def activations(
    subject: Subject, tiles: np.ndarray, layers: Sequence[str], *, pooled: bool = True
) -> dict[str, np.ndarray]:
    """Return what layers give for uint8 tiles (N, H, W, 3), a layer's name -> float32.

    That is (N, channels), the mean over the map (GAP), or with `pooled` False the maps (N,
    channels, height, width). Raises TiaftError for an unknown layer.
    """
    modules = _layers(subject, layers)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in modules}

    def keep(name: str) -> Callable:
        def hook(module: nn.Module, given: Any, output: torch.Tensor) -> None:
            maps = subject.maps(output)
            assert maps is not None
            # At once: what follows may be computed in the same memory (in-place ReLU, x += y).
            kept = maps.mean(dim=(2, 3)) if pooled else maps.clone()
            parts[name].append(kept.float().cpu().numpy())

        return hook

    with _hooked({modules[name]: keep(name) for name in modules}), torch.no_grad():
        for start in range(0, len(tiles), BATCH):
            subject.network(on_device(subject, tiles[start : start + BATCH]))
    return {
        name: np.concatenate(found) if found else np.zeros((0, layers_of(subject)[name]), "f4")
        for name, found in parts.items()
    }


def gradients_at(
    subject: Subject, tiles: np.ndarray, name: str, score: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a layer's maps A and ∂score/∂A of a batch of tiles, each (N, channels, h, w).

    `score` makes one number a tile (N,) of the network's output (N, C). Raises TiaftError for a
    model through which no gradients flow.
    """
    kept: list[torch.Tensor] = []

    def begin_here(module: nn.Module, given: Any, output: torch.Tensor) -> torch.Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()  # which later layers may then change in place

    with _hooked({layer(subject, name): begin_here}), torch.enable_grad():
        try:
            scores = score(subject.network(on_device(subject, tiles)))
            (slope,) = torch.autograd.grad(scores.sum(), kept)
        except RuntimeError as error:
            raise TiaftError(
                f"no gradients flow through {subject.name} from its output to {name} "
                f"({reason(error)}): a model in plain torch, without no_grad or quantised layers, "
                "is needed"
            ) from error
    maps, slopes = as_maps(kept[-1].detach()), as_maps(slope)
    assert maps is not None and slopes is not None
    return maps, slopes


def as_maps(output: Any) -> torch.Tensor | None:
    """Return a layer's output as maps (N, channels, h, w), or None where it is no map.

    Maps of tiles are square, which tells channels-last ones (Swin) from the others.
    """
    if not isinstance(output, torch.Tensor) or output.ndim != 4:
        return None
    first, second, third = output.shape[1:]
    channels_last = first == second != third
    return output.permute(0, 3, 1, 2) if channels_last else output


def on_device(subject: Subject, tiles: np.ndarray) -> torch.Tensor:
    """Return uint8 tiles as a tensor where the network is."""
    return torch.from_numpy(np.array(tiles)).to(device_of(subject))


def device_of(subject: Subject) -> torch.device:
    """Return where a subject's network is."""
    tensors = [*subject.network.parameters(), *subject.network.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def variants(
    subject: Subject, pretrained: str | Path | None = None, seed: int = 0, *, needed: bool = False
) -> dict[str, Subject]:
    """Return the subject with other weights: ``random``, ``pretrained``; itself is ``fine-tuned``.

    Random weights are those of a new network (`seed`); pretrained are of the file `pretrained`,
    or timm's ImageNet weights, with a random Part B; "none" leaves them out. A plug-in's network
    has pretrained weights only where a file of them is given; where they are `needed`, no message
    offers "none". Raises TiaftError.
    """
    found = {RANDOM: replace(subject, network=_random(subject, seed))}
    wanted = str(pretrained) if pretrained else None
    if wanted != NO_PRETRAINED and (wanted or isinstance(subject.network, Network)):
        network = _random(subject, seed)
        if isinstance(network, Network):
            _fill(network, wanted, needed)
        else:
            _fill_plugin(network, str(wanted))
        found[PRETRAINED] = replace(subject, network=network)
    return {**found, FINE_TUNED: subject}


def _fill(network: Network, wanted: str | None, needed: bool) -> None:
    what = f"--pretrained {wanted}" if wanted else "pretrained weights"
    if wanted == RANDOM:
        raise TiaftError(f"{what}: a network with random weights is there anyway: name a file")
    try:
        init_part_a(network, wanted or "imagenet")
    except TiaftError as error:
        text = str(error).replace(", or --init random", "").replace(", random nor", " nor")
        text = text.replace("--init", "--pretrained").removeprefix(f"{what}: ")
        without = "" if needed else f" (--pretrained {NO_PRETRAINED} goes without)"
        raise TiaftError(f"{what}: {text}{without}") from error


def _fill_plugin(network: nn.Module, wanted: str) -> None:
    from tiaft_plugin.network.weights import read_tensors

    if not Path(wanted).is_file():
        raise TiaftError(f"--pretrained {wanted}: no such file")
    try:
        network.load_state_dict(read_tensors(Path(wanted)))
    except RuntimeError as error:
        raise TiaftError(f"--pretrained {wanted} does not fit: {reason(error)}") from error


def _random(subject: Subject, seed: int) -> nn.Module:
    """Return a new network of the same architecture, its weights as new ones are."""
    from copy import deepcopy

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = subject.network
        if isinstance(net, Network):
            new: nn.Module = type(net)(net.card)
        else:
            new = deepcopy(net).cpu()
            for module in new.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
    return new.to(device_of(subject)).eval().requires_grad_(False)


def _features_of(net: Network) -> FeaturesOf:
    """Return a network that gives features, with weights and names of layers as they were."""
    features = FeaturesOf(net.card)
    features.load_state_dict(net.state_dict())
    return features


def _shapes(subject: Subject) -> dict[str, tuple[int, ...]]:
    """Return the shape (1, channels, h, w) of each layer's map for one tile, as they run."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    has_weights: dict[str, bool] = {}

    def look(name: str) -> Callable:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            maps = subject.maps(output)
            if maps is not None:
                shapes.setdefault(name, []).append(tuple(maps.shape))
                has_weights[name] = any(True for _ in module.parameters())

        return hook

    hooks = {
        module: look(name)
        for name, module in trunk(subject).named_modules()
        if name and not isinstance(module, PASSED_ON)
    }
    tile = np.full((1, subject.tile_size, subject.tile_size, 3), 200, np.uint8)
    with _hooked(hooks), torch.no_grad():
        subject.network(on_device(subject, tile))
    once = {name: found[0] for name, found in shapes.items() if len(found) == 1}
    return {name: shape for name, shape in once.items() if _is_map(name, once, has_weights[name])}


def _is_map(name: str, shapes: dict[str, tuple[int, ...]], has_weights: bool) -> bool:
    """Tell maps from pooled vectors: those of squeeze-and-excitation, and of the last pooling."""
    if shapes[name][2:] != (1, 1):
        return True
    later = list(shapes)[list(shapes).index(name) + 1 :]
    return has_weights and all(shapes[other][2:] == (1, 1) for other in later)


@contextmanager
def _hooked(hooks: dict[nn.Module, Callable]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _children(parent: str, layers: Sequence[str]) -> list[str]:
    """Return the layers right below a module, in order; of one without a map, those below it."""
    prefix = f"{parent}." if parent else ""
    below = [name for name in layers if name.startswith(prefix)]
    return [name for name in below if not any(name.startswith(f"{other}.") for other in below)]


def _inside(name: str, layers: Sequence[str], modules: dict[str, nn.Module]) -> list[str]:
    """Return what a chain of layers consists of; anything else is one whole."""
    inner = _children(name, layers) if isinstance(modules[name], nn.Sequential) else []
    return inner or [name]


def _blocks(level: Sequence[str], modules: dict[str, nn.Module]) -> list[str]:
    """Return those of a level that are more than a single operation."""
    return [name for name in level if any(modules[name].children()) and _convolves(modules[name])]


def _convolves(module: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv2d | nn.Linear) for part in module.modules())


def _no_layer(subject: Subject, name: str, layers: dict[str, Any]) -> TiaftError:
    if not layers:
        return TiaftError(
            f"{subject.name} has no layer that gives maps: a convolutional network is needed"
        )
    close = get_close_matches(name, layers, n=4, cutoff=0.5)
    listed = list(dict.fromkeys([*close, *default_layers(subject, 8)]))
    return TiaftError(
        f"{subject.name} has no layer {name!r} that gives a map: it has {', '.join(listed)} "
        f"({len(layers)} in all)"
    )

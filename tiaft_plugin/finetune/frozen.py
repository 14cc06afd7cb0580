"""The bottom of a backbone that a recipe keeps frozen while the rest trains."""

from torch import nn

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.network.net import Network
from tiaft_plugin.tiles.words import some


def frozen_modules(net: Network, names: str) -> list[nn.Module]:
    """Return the modules of Part A that `names`, with commas between them, tell. Raises TiaftError.

    Each is frozen with all that is in it: neither its weights nor its BatchNorm statistics move.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = dict(net.part_a.named_modules())
    unknown = [name for name in wanted if name not in known]
    if unknown:
        children = [name for name, _ in net.part_a.named_children()]
        raise TiaftError(
            f"setting frozen: {net.card.backbone} has no module {some(unknown)}: it has "
            f"{some(children, 20)}, and modules in them such as NAME.0"
        )
    return [known[name] for name in wanted]


def parameter_groups(net: Network, lr: float, part_a_lr: float) -> list[dict]:
    """Return what trains of a network as two groups, Part B first: Part A learns at lr · part_a_lr.

    A part of which nothing trains is left out.
    """
    parts = ((net.part_b, lr), (net.part_a, lr * part_a_lr))
    groups = [
        {"params": [p for p in part.parameters() if p.requires_grad], "lr": rate}
        for part, rate in parts
    ]
    return [group for group in groups if group["params"]]

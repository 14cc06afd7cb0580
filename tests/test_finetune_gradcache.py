"""The gradient of a whole batch in chunks: by one process, by two, with what is drawn at random."""

import torch
from torch import nn

from tiaft_plugin.finetune.gradcache import backward_whole


def gradients(*modules):
    return [p.grad.clone() for module in modules for p in module.parameters()]


def test_dropout_draws_the_same_in_both_passes():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)).train()
    parts = list(torch.randn(4, 2, 3))
    backward_whole(layer, parts, lambda every: every.square().sum(), seed=5)
    wanted = torch.zeros_like(layer[0].bias)
    for number, part in enumerate(parts):  # the gradient of what the first pass drew
        torch.manual_seed(5 + number + 1)
        wanted += torch.autograd.grad(layer(part).square().sum(), layer[0].bias)[0]
    assert torch.allclose(layer[0].bias.grad, wanted)


def test_the_gradient_of_two_processes_is_that_of_one():
    """Each has its own rows and the embeddings of all; what they give is added up."""
    torch.manual_seed(0)
    below, above = nn.Linear(12, 8).double(), nn.Linear(8, 7).double()
    rows = torch.randn(7, 12).double()

    def loss_of(every):
        return nn.functional.cross_entropy(above(every), torch.arange(len(every)))

    loss_of(below(rows)).backward()
    wanted = gradients(below), gradients(above)
    sums = [torch.zeros_like(value) for value in wanted[0]]
    with torch.no_grad():
        all_of_them = below(rows)
    for first, end in ((0, 4), (4, 7)):
        below.zero_grad(), above.zero_grad()
        backward_whole(
            below,
            rows[first:end].split(2),
            loss_of,
            first=first,
            gather=lambda mine, own=slice(first, end): (all_of_them.clone(), own),
        )
        sums = [total + part for total, part in zip(sums, gradients(below), strict=True)]
        for one, other in zip(gradients(above), wanted[1], strict=True):
            assert torch.allclose(one, other, rtol=1e-6, atol=1e-12)
    for one, other in zip(sums, wanted[0], strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-12)

"""Mean-var initialisation: random weights as large as the pretrained ones, and no more of them.

The control of Raghu et al. ("Transfusion") and Peng et al. (paper 3): what of transfer learning's
gain comes from the scale of weights, not from the features that they hold.
"""

import torch
from torch import nn


def draw_like(pretrained: nn.Module, seed: int) -> None:
    """Replace each weight tensor, in place, by independent draws with its own mean and variance.

    The draws are normal, and of all weights, BatchNorm's too; its running statistics, which belong
    to the old weights, begin anew. The same seed gives the same weights. [assumed: the papers name
    mean and variance, not the tensors]
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in pretrained.parameters():
            old = parameter.double().cpu()
            drawn = torch.randn(old.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(old.mean() + old.std(correction=0) * drawn)
    for module in pretrained.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()

"""A learning rate that rises in the first twentieth of a stage and falls along a cosine to 0."""

import math

from tiaft_plugin import hookimpl


@hookimpl
def choose_optimizer(parameters, lr, steps):  # a plug-in leaves out arguments it does not use
    import torch  # heavy, and `tiaft --help` loads every plug-in

    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    warm_up = math.ceil(steps / 20)

    def factor(step):  # of lr
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

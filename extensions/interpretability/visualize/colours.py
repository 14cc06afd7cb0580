"""Colours on axes that vary independently in natural images, and the way back to RGB."""

import torch

# The root of the colour correlations of ImageNet's pixels: a row for each of R, G, B. Lucid's.
_ROOT = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))


def to_rgb(images: torch.Tensor) -> torch.Tensor:
    """Return images (N, 3, H, W) of independent colours, any values, as RGB in 0…1.

    The seed's "preconditioning" (paper 2, section 2): on these axes a step in any direction
    changes an image as much as images differ from each other in that direction.
    """
    root = torch.tensor(_ROOT, dtype=images.dtype, device=images.device)
    root = root / root.norm(dim=0).max()
    return torch.sigmoid(torch.einsum("rc,nchw->nrhw", root, images))

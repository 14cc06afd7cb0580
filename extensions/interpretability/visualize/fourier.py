"""Images as the Fourier coefficients that make them, and noise to begin with."""

import math

import numpy as np
import torch
from torch import nn

from tiaft_extensions.interpretability.visualize.colours import to_rgb

COARSEST = 4  # cells of Perlin noise along a side
_OCTAVES = 4


class FourierImages(nn.Module):
    """N images of `size`×`size` px, held as a spectrum that an optimiser can change.

    Called, it gives RGB in 0…1, (N, 3, size, size). A coefficient counts for as much as its
    frequency is low, as in natural images; without that the images are high-frequency patterns
    that resemble adversarial ones (paper 2, section 2).
    """

    weight: torch.Tensor

    def __init__(self, start: torch.Tensor):
        """Begin with images `start` (N, 3, size, size) of independent colours, any values."""
        super().__init__()
        self.size = start.shape[-1]
        self.register_buffer("weight", _weight(self.size).to(start))
        spectrum = torch.fft.rfft2(start) * 4 / self.weight
        self.spectrum = nn.Parameter(torch.view_as_real(spectrum).contiguous())

    def forward(self) -> torch.Tensor:
        """Return the images."""
        spectrum = torch.view_as_complex(self.spectrum) * self.weight
        return to_rgb(torch.fft.irfft2(spectrum, s=(self.size, self.size)) / 4)


def noise(size: int, seed: int) -> torch.Tensor:
    """Return Perlin noise (3, size, size), float32, of mean 0 and standard deviation 1.

    Sums of gradient noise, each of cells half as wide as those before and half as strong.
    """
    random = np.random.default_rng(seed)
    total = np.zeros((3, size, size))
    for octave in range(_OCTAVES):
        cells = COARSEST * 2**octave
        total += np.stack([_perlin(size, cells, random) for _ in range(3)]) / 2**octave
    total -= total.mean(axis=(1, 2), keepdims=True)
    return torch.from_numpy(total / total.std(axis=(1, 2), keepdims=True)).float()


def _weight(size: int) -> torch.Tensor:
    """Return what coefficients (size, size // 2 + 1) are multiplied with: 1/f, times the side."""
    down, right = torch.fft.fftfreq(size), torch.fft.rfftfreq(size)
    frequency = torch.sqrt(down[:, None] ** 2 + right[None] ** 2)
    return size / frequency.clamp(min=1 / size)


def _perlin(size: int, cells: int, random: np.random.Generator) -> np.ndarray:
    """Return gradient noise (size, size) that has `cells` cells along a side."""
    angle = random.uniform(0, 2 * math.pi, (cells + 1, cells + 1))
    slope = np.stack([np.cos(angle), np.sin(angle)])
    place = (np.arange(size) + 0.5) * cells / size
    cell, inside = place.astype(int), place % 1
    fade = inside**3 * (inside * (inside * 6 - 15) + 10)
    corners = []
    for down in (0, 1):
        for right in (0, 1):
            gradient = slope[:, (cell + down)[:, None], (cell + right)[None]]
            corners.append(
                gradient[0] * (inside[:, None] - down) + gradient[1] * (inside[None] - right)
            )
    top = corners[0] + fade[None] * (corners[1] - corners[0])
    bottom = corners[2] + fade[None] * (corners[3] - corners[2])
    return top + fade[:, None] * (bottom - top)

"""Features of tiles by a model's name, in a script for TIAToolbox: one import is added.

python in_tiatoolbox.py NAME TILE [TILE …]
"""

import sys

import numpy as np
from PIL import Image
from tiatoolbox.models import DeepFeatureExtractor

import tiaft_plugin  # noqa: F401  # TIAToolbox knows our names from here on

if __name__ == "__main__":
    name, *files = sys.argv[1:]
    tiles = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    extractor = DeepFeatureExtractor(name, batch_size=16, verbose=False)
    features = extractor.run(tiles, patch_mode=True)["features"]
    print("tiles × features:", *features.shape)

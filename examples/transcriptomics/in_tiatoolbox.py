"""Features of tiles by a model's name, in a script for TIAToolbox: one import is added.

python in_tiatoolbox.py NAME TILE [TILE …]
"""

import sys

from tiatoolbox.models import DeepFeatureExtractor

import tiaft_plugin  # noqa: F401  # TIAToolbox knows our names from here on

if __name__ == "__main__":
    name, *tiles = sys.argv[1:]
    extractor = DeepFeatureExtractor(name, batch_size=16, verbose=False)
    features = extractor.run(tiles, patch_mode=True)["features"]
    print("tiles × features:", *features.shape)

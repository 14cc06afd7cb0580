"""Features of a slide by a model's name, in a script for TIAToolbox: one import is added.

python in_tiatoolbox.py NAME SLIDE [SLIDE …]
"""

import sys

import zarr
from tiatoolbox.models import DeepFeatureExtractor

import tiaft_plugin  # noqa: F401  # TIAToolbox knows our names from here on

if __name__ == "__main__":
    name, slide = sys.argv[1:3]
    extractor = DeepFeatureExtractor(name, batch_size=16, verbose=False)
    stores = extractor.run(
        [slide], patch_mode=False, auto_get_mask=False, save_dir="toolbox", overwrite=True
    )
    for store in stores.values():
        print("tiles × features:", *zarr.open(store, mode="r")["features"].shape)

"""Whether attention lies on the tiles that decide, which only we know: prints an AUROC.

python check_attention.py RUN STORES TRUTH.csv
"""

import csv
import sys
from pathlib import Path

import numpy as np
import zarr
from plant_bags import LEAST, SIDE
from sklearn.metrics import roc_auc_score

from tiaft_extensions.histotransfer.kept import read_run

if __name__ == "__main__":
    run, stores, truth = map(Path, sys.argv[1:4])
    with truth.open(newline="", encoding="utf-8") as file:
        places = {(row["slide"], row["column"], row["row"]) for row in csv.DictReader(file)}
    kept, found = read_run(run), []
    for store in sorted(stores.glob("*.zarr")):
        corners = zarr.open(store, mode="r")["coordinates"][:, :2] // SIDE
        tumour = [(f"{store.stem}.tiff", *map(str, corner)) in places for corner in corners]
        if sum(tumour) >= LEAST:
            found.append(roc_auc_score(tumour, kept.tiles(store).held_out))
    print(
        f"AUROC of held-out attention for tumour tiles, mean of {len(found)} positive slides: "
        f"{np.mean(found):.3f}"
    )

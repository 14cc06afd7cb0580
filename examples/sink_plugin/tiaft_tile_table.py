"""A sink: one line a tile in a CSV file, with its place and all its probabilities."""

import csv

from tiaft_plugin import hookimpl
from tiaft_plugin.files import write_atomically


@hookimpl
def register_sinks(register):
    register("tile-table", write, suffix=".csv")


def write(predictions, path):
    with write_atomically(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["id", "x0", "y0", "x1", "y1", "class", *predictions.classes])
        for block in predictions.blocks():
            rows = zip(block.ids, block.bounds, block.labels, block.probabilities, strict=True)
            for uuid, bounds, label, row in rows:
                name = predictions.class_of(label)
                table.writerow([uuid, *bounds.tolist(), name, *row.tolist()])

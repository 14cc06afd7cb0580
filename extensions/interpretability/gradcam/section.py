"""What ``tiaft interpret gradcam`` found, as a section of the report."""

import cv2
import numpy as np

from tiaft_extensions.interpretability.gradcam.cams import enlarged, usual_layer
from tiaft_extensions.interpretability.gradcam.explain import Examples, Found, How, panels
from tiaft_extensions.interpretability.gradcam.heatmap import key, over
from tiaft_extensions.interpretability.gradcam.sanity import CLASSIFIER, UNCHANGED, Step
from tiaft_extensions.interpretability.report import picture
from tiaft_extensions.interpretability.subject import Subject
from tiaft_plugin.page import shown, table

WIDEST = 900  # px, of a slide's picture in the page
TILE = 210  # px

METHOD = """
<p>Each tile is shown as it is, then with a map over it: the brighter (yellow), the more that part
of the tile speaks for the class, in the eyes of the model; the black line is at half the maximum.
Where nothing lies over the tissue, it says nothing for the class. Each map is drawn up to its own
maximum: compare places within a tile, not brightness between tiles. <b>Grad-CAM++</b> is made to
show all of several small things, such as nuclei; <b>Grad-CAM</b>, the older method, often marks one
place only.</p>
<p>A map has no finer detail than its cells: here {cells} × {cells} a tile ({px:.0f} px each). It
shows where evidence lies, not whether the model is right, nor what in that place it is.</p>
"""
SANITY = """
<p>Would an untrained network give the same map? Weights are made random part by part, from the
output to the input, and each map is compared with the trained network's (rank correlation: 1 is the
same map, 0 nothing in common). A map that explains what was learnt has to change. Something stays
in common, as the borders of a tile are weaker in any network. A flat map, the same everywhere or
empty, is not compared, only counted.</p>
"""


def section(subject: Subject, found: Found, how: How) -> str:
    """Return the section as HTML."""
    layer = how.layer or usual_layer(subject)
    parts = [
        "<h2>Where the model looks: Grad-CAM++</h2>",
        f"<p>Model <b>{shown(subject.name)}</b>, layer <b>{shown(layer)}</b>"
        + (f", tiles with p &gt; {how.at_least:g}" if found.examples else "")
        + ".</p>",
        *(f'<p class="warning">{shown(note)}</p>' for note in found.notes),
    ]
    if found.examples:
        cells = found.examples[0].maps.plus.shape[1]
        parts.append(METHOD.format(cells=cells, px=subject.tile_size / cells))
        parts.append(picture(key(), "nothing … the tile's maximum"))
    parts += _slides(found)
    for examples in found.examples:
        parts.append(f"<h3>{shown(examples.cls)}</h3>")
        parts += _tiles(examples)
    if found.examples:
        parts += _sanity(found.examples)
    return "\n".join(parts) + "\n"


def _slides(found: Found) -> list[str]:
    parts = []
    for each in found.slides:
        height, width = each.picture.shape[:2]
        factor = min(1.0, WIDEST / max(height, width))
        size = max(1, round(width * factor)), max(1, round(height * factor))
        small = cv2.resize(each.picture, size, interpolation=cv2.INTER_AREA)
        parts.append(f"<h3>{shown(each.slide)}: {shown(each.cls)}</h3>")
        parts.append(
            picture(
                small,
                f"Grad-CAM++ for {each.cls}, {each.tiles:,} tiles on one scale, each map times the "
                f"tile's probability of {each.cls}; as a slide of its own: gradcam/{each.file}",
            )
        )
    return parts


def _tiles(examples: Examples) -> list[str]:
    parts = []
    for number, pixels in enumerate(panels(examples)):
        name = examples.names[number]
        captions = (f"p {examples.maps.probability[number]:.4f}: {name}", "Grad-CAM++", "Grad-CAM")
        figures = (
            picture(one, caption, width=TILE) for one, caption in zip(pixels, captions, strict=True)
        )
        parts.append("<div>" + "".join(figures) + "</div>")
    return parts


def _sanity(examples: list[Examples]) -> list[str]:
    names = [step.part for step in examples[0].steps]
    rows = []
    for number, name in enumerate(names):
        steps = [each.steps[number] for each in examples]
        plus, plus_flat = _mean([step.plus for step in steps])
        plain, plain_flat = _mean([step.plain for step in steps])
        label = "nothing (the trained network)" if name == "none" else f"from {name} on"
        rows.append([label, plus, plain, f"{plus_flat} and {plain_flat}"])
    rows[-1][0] += " (everything)"
    return [
        "<h3>Sanity check</h3>",
        SANITY,
        table(["random", "Grad-CAM++", "Grad-CAM", "flat maps (of both)"], rows),
        *(f'<p class="warning">{shown(text)}</p>' for text in _warnings(examples)),
        _strip(examples[0]),
    ]


def _mean(correlations: list[np.ndarray]) -> tuple[str, int]:
    """Return the mean of the correlations there are, and how many maps are flat."""
    values = np.concatenate(correlations)
    known = values[np.isfinite(values)]
    return (f"{known.mean():.2f}" if known.size else "–"), int(len(values) - known.size)


def _warnings(examples: list[Examples]) -> list[str]:
    never = [each.cls for each in examples if not each.steps[-1].changed]
    late = [
        each.cls
        for each in examples
        if each.steps[-1].changed
        and any(step.part == CLASSIFIER and not step.changed for step in each.steps)
    ]
    warnings = []
    if never:
        warnings.append(
            f"{', '.join(never)}: Grad-CAM++ gives the same maps with random weights throughout "
            f"(correlation above {UNCHANGED:g}): they do not show what the model has learnt"
        )
    if late:
        warnings.append(
            f"{', '.join(late)}: Grad-CAM++ hardly changes where only the classifier is random "
            f"(correlation above {UNCHANGED:g}): its maps show where the network finds anything at "
            "all, more than what speaks for this class. Look at Grad-CAM beside it"
        )
    return warnings


def _strip(examples: Examples) -> str:
    """Return the first tile's maps as more and more of the network is random."""
    tile = examples.tiles[0]

    def one(step: Step) -> str:
        heat = enlarged(step.maps.plus[:1], tile.shape[0])[0]
        value = "" if step.part == "none" else f", correlation {step.plus[0]:.2f}"
        name = "trained" if step.part == "none" else f"random from {step.part} on"
        return picture(over(tile, heat, outline=True), name + value, width=TILE)

    first = shown(f"Grad-CAM++ for {examples.cls}, {examples.names[0]}:")
    return f"<p>{first}</p><div>" + "".join(map(one, examples.steps)) + "</div>"

"""The example of fine-tuning.md: `data FOLDER` makes its images, `picture BUNDLE OUT` draws the outcome."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import nucfast
from nucfast.ops import contours
from nucfast.testing import synthetic_slide

MPP = 0.5
TRAINING = 6  # annotated images
COLORS = {entry.id: entry.color for entry in nucfast.load_bundle("he-fast").classes}


def dark_field(seed: int) -> tuple[np.ndarray, nucfast.testing.SyntheticSlide]:
    """A synthetic slide as a dark-field microscope might show it: bright nuclei, new to he-fast."""
    made = synthetic_slide(384, 384, mpp=MPP, nuclei_per_mm2=4000, seed=seed)
    return 255 - made.image, made


def write_data(folder: Path) -> None:
    """Six annotated images, as QuPath exports them, and one to try the outcome on."""
    (folder / "train").mkdir(parents=True, exist_ok=True)
    for seed in range(TRAINING + 1):
        image, made = dark_field(seed)
        place = folder / "train" / f"case-{seed}" if seed < TRAINING else folder / "new"
        Image.fromarray(image).save(place.with_suffix(".png"))
        rings = contours(made.labels)
        features = [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [rings.points[begin:end].tolist()]},
                "properties": {
                    "objectType": "annotation",
                    "classification": {"name": made.classes[made.class_ids[label - 1] - 1].name},
                },
            }
            for label, begin, end in zip(rings.labels, rings.offsets, rings.offsets[1:], strict=False)
        ]
        text = json.dumps({"type": "FeatureCollection", "features": features})
        place.with_suffix(".geojson").write_text(text)


def draw(bundle: str, out: Path) -> None:
    """The new image as he-fast and as the new bundle outline it, and the truth, with their scores."""
    image, made = dark_field(TRAINING)
    panels = []
    for model in ("he-fast", bundle):
        nuclei = nucfast.segment(image, mpp=MPP, model=model)
        scores = nucfast.metrics.evaluate(made.labels, nuclei.to_labels(made.labels.shape))
        print(
            f"{model}: {len(nuclei)} nuclei of {made.labels.max()}, PQ {scores.pq:.3f}, AJI {scores.aji:.3f}"
        )
        rings = zip(nuclei.polygons(), nuclei.class_id, strict=True)
        panels.append(_outlined(image, [(ring, COLORS[kind]) for ring, kind in rings]))
    rings = contours(made.labels)
    spans = zip(rings.labels, rings.offsets, rings.offsets[1:], strict=False)
    outlines = [(rings.points[a:b], COLORS[made.class_ids[label - 1]]) for label, a, b in spans]
    panels.append(_outlined(image, outlines))
    Image.fromarray(np.hstack(panels)).save(out, quality=88, optimize=True)


def _outlined(image: np.ndarray, outlines: list) -> np.ndarray:
    picture = Image.fromarray(image).resize((2 * image.shape[1], 2 * image.shape[0]))
    pen = ImageDraw.Draw(picture)
    for ring, color in outlines:
        pen.line([(2 * x, 2 * y) for x, y in ring], fill=tuple(color), width=2)
    return np.asarray(picture.crop((100, 100, 600, 600)))


if __name__ == "__main__":
    if sys.argv[1] == "data":
        write_data(Path(sys.argv[2]))
    else:
        draw(sys.argv[2], Path(sys.argv[3]))

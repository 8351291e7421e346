"""``infer.py``, which stands beside an exported file and needs NumPy, Pillow and ONNX Runtime alone."""

from segue.data.sample import EXIF_KEYS

_OPEN = '''
import io, json, os, sys
import numpy as np, onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(__file__.replace("infer.py", "{file}"), providers=["CPUExecutionProvider"])
said = session.get_modelmeta().custom_metadata_map
tones = {kind: (black, white) for kind, black, white in json.loads(said["tones"])}


def pixels(path):
    """The picture upright, uint8 (height, width, 3); where it is deeper than 8 bits, scaled as in training."""
    with open(path, "rb") as file:
        picture = Image.open(io.BytesIO(file.read()))  # TIFFs that Pillow opens by name may come out turned wrongly
    kind = "I;16" if picture.mode.startswith("I;16") else picture.mode
    is_deep = kind in ("I", "I;16", "F")
    if is_deep and kind not in tones or not is_deep and picture.tile and ";16" in str(picture.tile[0][3]):
        sys.exit(f"{path}: deeper than 8 bits, which the model did not learn from or this script does not read")
    nodata = getattr(picture, "tag_v2", {}).get(42113)  # text: the value of a TIFF that stands for nothing measured
    if picture.format == "TIFF" or any(key in picture.info for key in {exif_keys}):  # not behind a PNG's pixels
        picture = ImageOps.exif_transpose(picture)
    if is_deep:
        black, white = tones[kind]
        values = np.asarray(picture)
        try:
            nodata = float(nodata)
            values = np.where(np.isnan(values) if np.isnan(nodata) else values == nodata, black, values)
        except (TypeError, ValueError):  # it declares none
            pass
        if not np.isfinite(values).all():
            sys.exit(f"{path}: holds pixels that are no number (NaN or infinite)")
        scaled = (values.astype(np.float64) - black) / max(white - black, 1e-300)
        picture = Image.fromarray((255 * scaled.clip(0, 1)).round().astype(np.uint8))
    return np.asarray(picture.convert("RGB"))


def stem(path):
    """Begins the name of what is written of a picture: where this is run, not beside the picture in its data set."""
    names = [os.path.splitext(os.path.basename(path))[0] for path in sys.argv[1:]]
    name = os.path.splitext(os.path.basename(path))[0]
    return name if names.count(name) == 1 else os.path.normpath(path).lstrip("./").replace(os.sep, "_")

'''

CLASSES = (
    '"""Class maps of pictures: python infer.py picture.jpg ... writes picture.classes.png where it is run."""'
    + _OPEN
    + """
colors = json.loads(said["colors"])
for path in sys.argv[1:]:
    result = Image.fromarray(session.run(None, {"image": pixels(path)[None]})[0][0])
    result.putpalette([value for color in colors for value in color])
    target = stem(path) + ".classes.png"
    result.save(target)
    print(path + ": " + target)
"""
)

SEGMENTS = (
    '"""Segments: python infer.py picture.jpg ... writes picture.panoptic.png and .json where it is run."""'
    + _OPEN
    + """
names = json.loads(said["classes"])
for path in sys.argv[1:]:
    (ids,), labels, scores = session.run(None, {"image": pixels(path)[None]})
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)  # as COCO does
    Image.fromarray(colors).save(stem(path) + ".panoptic.png")
    found = [{"id": i + 1, "class": names[k], "score": float(p)} for i, (k, p) in enumerate(zip(labels, scores))]
    json.dump(found, open(stem(path) + ".panoptic.json", "w"))
    print(path + ": " + stem(path) + ".panoptic.png")
"""
)


def infer_script(source: str, file: str) -> str:
    """The script ``source`` for the exported ``file``."""
    return source.replace("{file}", file).replace("{exif_keys}", repr(EXIF_KEYS))

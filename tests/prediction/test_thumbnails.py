"""Small copies of pictures."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from utils.prediction.thumbnails import SIZE, thumbnail


@pytest.mark.parametrize(("size", "small"), [((1600, 1120), (320, 224)), ((400, 1120), (80, 224))])
def test_a_small_copy_keeps_the_shape_and_the_colours(tmp_path, size, small):
    pixels = np.zeros((size[1], size[0], 4), np.uint8)
    pixels[..., 3] = 255
    pixels[:, : size[0] // 2, 0] = 200  # the left half is red, the right one blue
    pixels[:, size[0] // 2 :, 2] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    kind, _, text = thumbnail(tmp_path / "a.png").partition(",")
    assert kind == "data:image/webp;base64"
    copy = Image.open(io.BytesIO(base64.b64decode(text)))
    assert copy.size == small and small[1] <= SIZE[1]
    left, right = (np.array(copy)[small[1] // 2, column] for column in (small[0] // 4, 3 * small[0] // 4))
    np.testing.assert_allclose([left, right], [[200, 0, 0], [0, 0, 200]], atol=12)


@pytest.mark.parametrize("content", [b"", b"no picture", None, "cut"])
def test_what_is_no_picture_is_named(tmp_path, content):
    path = tmp_path / "a.png"
    if content == "cut":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60), np.uint8)).save(path)
        content = path.read_bytes()[:1000]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}: expected a picture, found "):
        thumbnail(path)

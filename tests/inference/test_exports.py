from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from vss2.errors import InputError, InputFileError
from vss2.inference.exports import read_palette, rle_document, write_scores


def test_run_length_masks_are_coco_annotations():
    labels = np.zeros((6, 8), np.uint8)
    labels[1:3, 2:7] = 2
    labels[5] = 255
    document = json.loads(json.dumps(rle_document(labels, "a", 7, ["sky", "sea", "sand"])))
    assert (document["height"], document["width"], document["image_id"]) == (6, 8, 7)
    sky, sand = document["annotations"]
    assert (sky["category_id"], sky["category_name"], sky["area"]) == (0, "sky", 30)
    assert (sand["category_id"], sand["category_name"], sand["area"]) == (2, "sand", 10)
    assert sand["bbox"] == [2, 1, 5, 2]
    assert sand["image_id"] == 7
    assert np.array_equal(coco_mask.decode(sand["segmentation"]), labels == 2)


def test_scores_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    write_scores(tmp_path / "a.npz", np.arange(6, dtype=np.float16).reshape(1, 2, 3))
    with np.load(tmp_path / "a.npz") as file:
        assert file["scores"].tolist() == [[[0, 1, 2], [3, 4, 5]]]

    def full(file, **arrays):
        file.write(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(InputFileError, match=r"b\.npz: No space left"):
        write_scores(tmp_path / "b.npz", np.zeros((1, 2, 3), np.float16))
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_palette_file(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('[{"name": "sky", "color": [1, 2, 3]}, {"name": "sea", "color": [4, 5, 255]}]')
    assert read_palette(path) == (["sky", "sea"], [(1, 2, 3), (4, 5, 255)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{]", "is not JSON"),
        ("{}", "must be a list"),
        ("[]", "must be a list"),
        ('[{"name": "a", "color": [0, 0, 0]}, ["b", 1]]', "entry 1 must be"),
        ('[{"name": "a", "color": [0, 0, 256]}]', r"entry 0 must be .* got .*256"),
        ('[{"name": "a", "color": [0, 0.5, 2]}]', "entry 0 must be"),
        ('[{"color": [0, 0, 0]}]', "entry 0 must be"),
    ],
)
def test_palette_files_that_are_none(tmp_path, text, message):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(InputError, match=r"p\.json.*" + message):
        read_palette(tmp_path / "p.json")
    with pytest.raises(InputFileError, match=r"q\.json"):
        read_palette(tmp_path / "q.json")

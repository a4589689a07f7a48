"""Data sets: the layout on disk becomes video dicts, registered in detectron2's catalogs.

A video dict is `{"video_id": str, "frames": [{"file_name": str, "label_file": str | None,
"frame_index": int}, ...]}`, with `"height"` and `"width"` where they are known without decoding,
and `"label_mapping"` where the masks do not follow VSPW's convention (see `vss2.data.labels`).

In sets of video object segmentation a label file holds object ids. A frame of an evaluation set
also has `mask_file`, the mask that is given with it (None: none is), and `required`, whether its
answer is wanted; a video may have `frame_step`, how many frames of video lie from one of its frames
to the next.
"""

from __future__ import annotations

from vss2.data.datasets.roots import datasets_root

__all__ = ["datasets_root", "register_all"]


def register_all() -> None:
    """Register every built-in data set; may be called again."""
    from vss2.data.datasets import (
        bl30k,
        cityscapes,
        davis,
        static_images,
        toy,
        toy_vos,
        vspw,
        youtube_vos,
    )

    for module in (vspw, cityscapes, davis, youtube_vos, static_images, bl30k, toy, toy_vos):
        module.register()


register_all()

"""Data sets: the layout on disk becomes video dicts, registered in detectron2's catalogs.

A video dict is `{"video_id": str, "frames": [{"file_name": str, "label_file": str | None,
"frame_index": int}, ...]}`, with `"height"` and `"width"` where they are known without decoding,
and `"label_mapping"` where the masks do not follow VSPW's convention (see `vss2.data.labels`).
"""

from __future__ import annotations

from vss2.data.datasets.roots import datasets_root

__all__ = ["datasets_root", "register_all"]


def register_all() -> None:
    """Register every built-in data set; may be called again."""
    from vss2.data.datasets import cityscapes, toy, vspw

    vspw.register()
    cityscapes.register()
    toy.register()


register_all()

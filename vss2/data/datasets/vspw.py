"""VSPW, video scene parsing in the wild (Miao et al., CVPR 2021): layout on disk to video dicts.

VSPW_480p/{train,val,test}.txt          one video name per line
VSPW_480p/data/<video>/origin/*.jpg     frames, ordered by name
VSPW_480p/data/<video>/mask/*.png       the same stems; may be absent for a whole split
"""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.data.datasets.frame_files import read_video_list, sorted_files
from vss2.data.datasets.roots import datasets_root
from vss2.data.labels import IGNORE_LABEL
from vss2.data.problems import problem
from vss2.errors import InputError, InputFileError, did_you_mean

FOLDER = "VSPW_480p"
SPLITS = ("train", "val", "test")
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")

# Index = class id; the raw mask value is one more (raw 0, "others", is not a class).
CLASS_NAMES: tuple[str, ...] = (
    "wall",
    "ceiling",
    "door",
    "stair",
    "ladder",
    "escalator",
    "Playground_slide",
    "handrail_or_fence",
    "window",
    "rail",
    "goal",
    "pillar",
    "pole",
    "floor",
    "ground",
    "grass",
    "sand",
    "athletic_field",
    "road",
    "path",
    "crosswalk",
    "building",
    "house",
    "bridge",
    "tower",
    "windmill",
    "well_or_well_lid",
    "other_construction",
    "sky",
    "mountain",
    "stone",
    "wood",
    "ice",
    "snowfield",
    "grandstand",
    "sea",
    "river",
    "lake",
    "waterfall",
    "water",
    "billboard_or_Bulletin_Board",
    "sculpture",
    "pipeline",
    "flag",
    "parasol_or_umbrella",
    "cushion_or_carpet",
    "tent",
    "roadblock",
    "car",
    "bus",
    "truck",
    "bicycle",
    "motorcycle",
    "wheeled_machine",
    "ship_or_boat",
    "raft",
    "airplane",
    "tyre",
    "traffic_light",
    "lamp",
    "person",
    "cat",
    "dog",
    "horse",
    "cattle",
    "other_animal",
    "tree",
    "flower",
    "other_plant",
    "toy",
    "ball_net",
    "backboard",
    "skateboard",
    "bat",
    "ball",
    "cupboard_or_showcase_or_storage_rack",
    "box",
    "traveling_case_or_trolley_case",
    "basket",
    "bag_or_package",
    "trash_can",
    "cage",
    "plate",
    "tub_or_bowl_or_pot",
    "bottle_or_cup",
    "barrel",
    "fishbowl",
    "bed",
    "pillow",
    "table_or_desk",
    "chair_or_seat",
    "bench",
    "sofa",
    "shelf",
    "bathtub",
    "gun",
    "commode",
    "roaster",
    "other_machine",
    "refrigerator",
    "washing_machine",
    "Microwave_oven",
    "fan",
    "curtain",
    "textiles",
    "clothes",
    "painting_or_poster",
    "mirror",
    "flower_pot_or_vase",
    "clock",
    "book",
    "tool",
    "blackboard",
    "tissue",
    "screen_or_television",
    "computer",
    "printer",
    "Mobile_phone",
    "keyboard",
    "other_electronic_product",
    "fruit",
    "food",
    "instrument",
    "train",
)


def class_colors(num_classes: int) -> list[tuple[int, int, int]]:
    """Distinct (r, g, b) for each class: hues a golden section apart, three levels of light."""
    colors = []
    for index in range(num_classes):
        hue = (index * 0.61803398875) % 1.0
        value = (1.0, 0.8, 0.6)[index % 3]
        saturation = (0.85, 0.6)[(index // 3) % 2]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colors


def _layout_hint(root: Path) -> str:
    return (
        f"Expected {root}/{{train,val,test}}.txt, {root}/data/<video>/origin/*.jpg and "
        f"{root}/data/<video>/mask/*.png; set VSS2_DATASETS to the folder that holds {FOLDER}."
    )


def _video_names(root: Path, split: str) -> list[str]:
    """The names in a split's list file, which must exist, be non-empty and repeat none."""
    if not root.is_dir():
        raise InputFileError(f"The VSPW folder {root} does not exist. {_layout_hint(root)}")
    return read_video_list(root / f"{split}.txt", _layout_hint(root))


def _load_video(folder: Path, name: str, labelled: bool) -> dict[str, Any]:
    """The video dict of one folder; every frame needs its mask if `labelled`."""
    origin, mask = folder / "origin", folder / "mask"
    frame_names = sorted_files(origin, FRAME_SUFFIXES)
    if not frame_names:
        raise InputError(f"The video {name!r} is empty: {origin} holds no frames (*.jpg).")
    masks: dict[str, str] = {}
    if labelled:
        if not mask.is_dir():
            raise InputFileError(
                f"The video {name!r} has no masks: {mask} does not exist, "
                "while other videos of the split have theirs."
            )
        masks = {Path(file).stem: str(mask / file) for file in sorted_files(mask, (".png",))}
    frames = []
    for index, file in enumerate(frame_names):
        stem = Path(file).stem
        if labelled and stem not in masks:
            raise InputFileError(
                f"The frame {origin / file} has no mask: {mask / stem}.png is missing."
            )
        frames.append(
            {
                "file_name": str(origin / file),
                "label_file": masks.get(stem),
                "frame_index": index,
            }
        )
    return {"video_id": name, "frames": frames}


def load_vspw(root: Path | str, split: str) -> list[dict[str, Any]]:
    """Video dicts of one split, in the order of its list file; nothing is decoded.

    `label_file` is None for all frames where no video of the split has a `mask` folder.

    Args:
        root: the VSPW folder (for example `datasets/VSPW_480p`).
        split: name of the list file without `.txt`: "train", "val" or "test".

    Raises:
        InputFileError: the folder, the list file, a listed video or a frame's mask is missing.
        InputError: the split is unknown, its list names nothing or a video twice, or a video has
            no frames.
    """
    root = Path(root)
    if split not in SPLITS:
        raise InputError(
            f"Unknown split {split!r}, expected one of {', '.join(SPLITS)}."
            f"{did_you_mean(split, SPLITS)}"
        )
    names = _video_names(root, split)
    data = root / "data"
    present = []
    for name in names:
        if (data / name / "origin").is_dir():
            present.append(name)
        else:
            problem(
                InputFileError(
                    f"The video {name!r} listed in {root / split}.txt has no folder "
                    f"{data / name / 'origin'}. {_layout_hint(root)}"
                )
            )
    labelled = any((data / name / "mask").is_dir() for name in present)
    videos = []
    for name in present:
        try:
            videos.append(_load_video(data / name, name, labelled))
        except InputError as error:
            problem(error)
    return videos


def register() -> None:
    """Register vspw_train, vspw_val and vspw_test; may be called again."""
    for split in SPLITS:
        name = f"vspw_{split}"
        if name not in DatasetCatalog:
            DatasetCatalog.register(
                name, lambda split=split: load_vspw(datasets_root() / FOLDER, split)
            )
        MetadataCatalog.get(name).set(
            stuff_classes=list(CLASS_NAMES),
            stuff_colors=class_colors(len(CLASS_NAMES)),
            ignore_label=IGNORE_LABEL,
            evaluator_type="vss",
            folder=FOLDER,
        )

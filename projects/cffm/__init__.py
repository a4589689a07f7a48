"""CFFM and CFFM++: coarse-to-fine feature mining across the frames of a clip."""

from __future__ import annotations

from vss2.plugins import ProjectInfo

PROJECT = ProjectInfo(
    name="CFFM and CFFM++",
    paper="Sun et al., Coarse-to-Fine Feature Mining for Video Semantic Segmentation, CVPR 2022; "
    "Learning Local and Global Temporal Contexts for Video Semantic Segmentation, TPAMI 2024",
    commands={"prototypes": "vss2.projects.cffm.prototype_tool:main"},
)

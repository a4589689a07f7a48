"""Dataset doctor: finds what is wrong with a data set on disk before a training does.

`check_dataset("vspw_train")` and `check_folder(root)` return a `Report`.
"""

from __future__ import annotations

from vss2.data.doctor.examine import check_dataset, check_folder, check_listing
from vss2.data.doctor.findings import KINDS, Finding, Report
from vss2.data.doctor.listing import ListedFrame, ListedVideo, Listing

__all__ = [
    "KINDS",
    "Finding",
    "ListedFrame",
    "ListedVideo",
    "Listing",
    "Report",
    "check_dataset",
    "check_folder",
    "check_listing",
]

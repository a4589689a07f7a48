"""Where the embedded data, engine and evaluation differ from detectron2 on purpose, and why.

Each row of `DIFFERENCES` has a test named `test_difference_<row>` that shows both sides.
"""

from __future__ import annotations

DIFFERENCES = {
    "aspect_ratio_grouping": (
        "embedded loaders refuse aspect_ratio_grouping=True with NotImplementedError: video clips "
        "are cropped to one size, so grouping would serve nobody here"
    ),
    "best_checkpointer_infinite": (
        "an infinite metric never becomes the best, not only as the first: detectron2 saves a "
        "checkpoint for it each time, without keeping it as the best"
    ),
    "launch_without_url": (
        "several processes on one machine need no dist_url: None means 'auto', where detectron2 "
        "passes None on and fails for want of MASTER_ADDR"
    ),
    "setup_logger_name": (
        "default_setup sets up the logger 'vss2' instead of 'detectron2': that is the root of the "
        "embedded modules' loggers"
    ),
    "setup_unknown_precision": (
        "an unknown train.float32_precision is a ValueError that lists the known ones, where torch "
        "warns and goes on with another precision"
    ),
    "async_metrics_errors": (
        "what goes wrong while metrics are written in a thread ends training, so that a loss that "
        "is not finite is noticed with async_write_metrics too"
    ),
    "inference_context_error": (
        "the model's mode is restored after an exception too, so that a failed evaluation does not "
        "leave a model that cannot be trained"
    ),
}

# Parameters of detectron2 that the embedded function does without, as they concern boxes and masks.
MISSING_PARAMETERS = {
    "data.get_detection_dataset_dicts": {"min_keypoints", "proposal_files", "check_consistency"},
}

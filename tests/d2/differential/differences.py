"""Where the embedded subset differs from detectron2 on purpose, with the reason.

Each entry of `DIFFERENCES` is the name of a test in `test_differences.py`, which holds both sides
to what is said here. Parameters that differ are in `SIGNATURES`.
"""

from __future__ import annotations

REASON = "no detectron2 is installed to compare with"

DIFFERENCES = {
    "import_is_restored_after_a_failing_config": (
        "detectron2 leaves builtins.__import__ replaced for the rest of the process"
    ),
    "names_that_a_relative_import_lacks": (
        "a KeyError does not say that an import failed; and `import *` means what it says"
    ),
    "sweeps_in_configs_that_hold_objects": (
        "detectron2 stores the parser's own object for `x=range(1,3)`, which no one can use"
    ),
    "saving_a_config_where_there_is_no_folder": (
        "detectron2 logs the error and goes on without the file"
    ),
    "checkpointer_after_a_failed_load": (
        "in detectron2 every later load fails with an empty AssertionError"
    ),
    "pickled_checkpoints_run_nothing": (
        "loading must never execute what a checkpoint contains; arrays are all that is read"
    ),
    "caffe2_weights": (
        "matching of Caffe2's layer names is of no use here; a clear refusal is better than "
        "weights that silently match nothing"
    ),
    "catalog_addresses": "the Caffe2 model catalog is of no use without its name matching",
    "time_left_without_a_timer": (
        "detectron2 measures on its own when no hook puts `time`; the loop here always has one"
    ),
    "process_groups_belong_to_their_world": (
        "a process group that was destroyed must not be used in the next one"
    ),
}

# dotted name -> why its parameters are not those of detectron2
SIGNATURES = {
    "modeling.Backbone.forward": "abstract; detectron2 declares it without arguments",
}

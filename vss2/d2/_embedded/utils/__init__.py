"""Embedded `detectron2.utils`: import the submodules."""

"""A small implementation of the part of detectron2's API that vss2 uses.

It serves behind `vss2.d2` where no detectron2 can be imported. Names, signatures and behaviour are
those of detectron2; import them from `vss2.d2`, never from here.
"""

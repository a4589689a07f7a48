"""SegFormer B1 on the labelled frames of Cityscapes video, tested at half size (512x1024).

No recipe was published for the video methods on Cityscapes: the values are ours, VSPW's where the
data set does not ask for others.
"""

from vss2.config import get_config

from .segformer_mit_b1_vspw import lr_multiplier, model, optimizer, train

dataloader = get_config("common/data/cityscapes.py").dataloader
model.num_classes = 19
train.output_dir = "./output/segformer_mit_b1_cityscapes"

"""SimSiam (Chen and He, CVPR 2021), ResNet-50, on DAVIS 2017 val; published J&F 66.69.

The weights are those of its release.
"""

from .imagenet50_davis import dataloader, model, train

train.init_checkpoint = "checkpoint_0099.pth.tar"

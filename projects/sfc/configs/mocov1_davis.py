"""MoCo v1 (He et al., CVPR 2020), ResNet-50, on DAVIS 2017 val; published J&F 66.81.

The weights are those of its release.
"""

from .imagenet50_davis import dataloader, model, train

train.init_checkpoint = "moco_v1_200ep_pretrain.pth.tar"

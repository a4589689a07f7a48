"""PixPro (Xie et al., CVPR 2021), ResNet-50, on DAVIS 2017 val; published J&F 58.87.

The weights are those of its release.
"""

from .imagenet50_davis import dataloader, model, train

train.init_checkpoint = "pixpro_base_r50_400ep_md5_919c6612.pth"

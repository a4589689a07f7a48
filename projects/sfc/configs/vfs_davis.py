"""VFS (Xu and Wang, ICCV 2021), ResNet-50, on DAVIS 2017 val; SFC publishes no number.

The weights are those of its release.
"""

from .imagenet50_davis import dataloader, model, train

train.init_checkpoint = "r50_nc_sgd_cos_100e_r5_1xNx2_k400-d7ce3ad0.pth"

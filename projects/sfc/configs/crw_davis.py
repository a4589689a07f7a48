"""The encoder of CRW (Jabri et al., NeurIPS 2020) on DAVIS 2017 val; published J&F 67.78.

The weights are `pretrained.pth` of its release.
"""

from .fine_grained_davis import dataloader, model, train

model.fine.padding_mode = "reflect"

train.init_checkpoint = "pretrained.pth"

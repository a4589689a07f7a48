"""BL30K: the published recipe of STCN's stage 1; training only.

Tiny objects and large parts that vanish behind others are left out.
"""

from .davis import dataloader

dataloader.train.dataset = "bl30k_train"
dataloader.train.mapper.augmentations[1].scale = [0.25, 1.0]
dataloader.train.mapper.object_sampler.update(min_area=100, large_area=900, vanished_area=400)
dataloader.train.mapper.clip_sampler.curriculum.fractions = [0.1, 0.2, 0.3, 0.4, 0.8]
del dataloader.test
del dataloader.evaluator

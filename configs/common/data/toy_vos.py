"""The toy world of objects in DAVIS's layout at its own size, 112x160; it makes itself."""

from .davis import dataloader

dataloader.train.dataset = "toy_davis_train"
dataloader.train.num_workers = 2
dataloader.train.mapper.clip_sampler.curriculum.update(
    max_skips=[2, 4, 6, 2], fractions=[0.2, 0.5, 0.9]
)
dataloader.train.mapper.augmentations[1].update(size=[112, 112], scale=[0.5, 1.0])
dataloader.train.mapper.augmentations[4].update(degrees=10, shear=5)

dataloader.test.dataset = "toy_davis_val"
dataloader.test.num_workers = 2
dataloader.evaluator.dataset_name = "toy_davis_val"

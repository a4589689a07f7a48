"""Data: data sets on disk, clip sampling, augmentation, mappers and loaders."""

"""Optimizer steps of both stages, built from the configs, against the published training code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from themask_points import RecordedPoints

from vss2.config import load_config
from vss2.d2.config import instantiate
from vss2.d2.utils import EventStorage
from vss2.modeling.criterion import prediction_names
from vss2.modeling.mask_targets import mask_targets
from vss2.projects.themask.matching import Rounds
from vss2.testing.fixtures import filled_state_dict, image_clip, load_fixture
from vss2.testing.training_steps import check_training_steps, silence_dropout

CONFIGS = {
    "train_themask_1f_b0": "themask/themask_1f_mit_b0_vspw",
    "train_themask_b0": "themask/themask_mit_b0_vspw",
}
CLASSES = ([3, 17, 40, 41, 99], [0, 5, 123])
HEIGHT, WIDTH, CELL = 64, 96, 8


def recorded_labels(seed: int, frames: int) -> torch.Tensor:
    """int64 [2, T, H, W] by the rule of the fixtures."""
    videos = []
    for number, classes in enumerate(CLASSES):
        low = np.random.RandomState(seed + number).randint(
            0, len(classes), (HEIGHT // CELL, WIDTH // CELL)
        )
        cells = [np.array(classes)[np.roll(low, t, axis=1)] for t in range(frames)]
        videos.append(np.stack(cells).repeat(CELL, axis=1).repeat(CELL, axis=2))
    labels = torch.from_numpy(np.stack(videos)).long()
    labels[:, :, :CELL, :CELL] = 255
    labels[1, :, :, WIDTH - 10 :] = 255
    return labels


class Run:
    """The recorded run: model, optimizer, batch, and point draws that follow the steps."""

    def __init__(self, name: str):
        self.description, self.arrays = load_fixture(name)
        self.cfg = load_config(CONFIGS[name])
        self.seed, config = self.description["seed"], self.description["config"]
        self.model = instantiate(self.cfg.model)
        self.model.load_state_dict(filled_state_dict(self.description["layout"], self.seed))
        silence_dropout(self.model)
        self.cfg.optimizer.params.model = self.model
        self.optimizer = instantiate(self.cfg.optimizer)
        frames = config["num_frames"]
        labels = recorded_labels(self.seed, frames)
        self.targets = mask_targets(labels)
        seeds = [self.seed * 100 + number for number in range(2)]
        self.samples: list[dict[str, Any]] = [
            {
                "frames": torch.from_numpy(image_clip(frames, HEIGHT, WIDTH, s)).permute(
                    0, 3, 1, 2
                ),
                "sem_seg": label,
                "labelled": torch.ones(frames, dtype=torch.bool),
                "image_size": (HEIGHT, WIDTH),
            }
            for s, label in zip(seeds, labels, strict=True)
        ]
        self.iterations = config["iterations"]
        self.step = 0
        self.matches: list[Any] = []
        self._watch_matching()

    def _watch_matching(self) -> None:
        matcher = self.model.decode_head.criterion.matcher
        for name in ("match", "match_rounds"):
            method = getattr(matcher, name)

            def watched(*args: Any, method: Any = method) -> Any:
                self.matches.append(method(*args))
                return self.matches[-1]

            setattr(matcher, name, watched)

    def compute_loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        points = RecordedPoints(self.seed, f"step{self.step}.")
        self.model.decode_head.criterion.points.draw = points
        with EventStorage(self.iterations[self.step]):
            losses = self.model(self.samples)
        if self.step == 0:
            assert dict(points.used) == self.description["point_shapes_step0"]
        self.step += 1
        return sum(losses.values()), {name: value.item() for name, value in losses.items()}

    def check_matching(self) -> None:
        """Exact, for every step, prediction and clip."""
        steps = self.description["matching"]["per_step"]
        assert len(self.matches) == len(steps)
        for found, recorded in zip(self.matches, steps, strict=True):
            for layer, clips in zip(prediction_names(10), found, strict=True):
                for pairs, expected in zip(clips, recorded[layer], strict=True):
                    if isinstance(pairs, Rounds):
                        assert [[part.tolist() for part in match] for match in pairs] == expected
                    else:
                        assert [part.tolist() for part in pairs] == expected


@pytest.mark.parametrize("name", list(CONFIGS))
def test_optimizer_steps_of_the_published_recipe(name: str) -> None:
    run = Run(name)
    recipe, clip = run.description["recipe"], run.cfg.train.clip_grad
    assert (clip.enabled, clip.max_norm, clip.norm_type) == (True, recipe["gradient_clip_norm"], 2)
    assert run.cfg.train.max_iter == recipe["schedule"]["max_iters"]
    assert run.optimizer.defaults["betas"] == (0.9, 0.999)
    assert run.optimizer.defaults["eps"] == 1e-8
    check_training_steps(
        run.description,
        run.arrays,
        run.model,
        run.optimizer,
        instantiate(run.cfg.lr_multiplier),
        run.compute_loss,
        max_grad_norm=clip.max_norm,
        loss_tolerance=5e-5,
        term_tolerance=5e-3,
    )
    run.check_matching()
    after = run.description.get("loss_after_last_step")
    if after is not None:
        with torch.no_grad():
            loss, _ = run.compute_loss()
        assert np.isclose(loss.item(), after["loss"], rtol=1e-3)

"""Renderer of the toy world of objects: the scenes of `toy_render` with an id for each object.

A video has one to four objects that wander over the frame and turn. Some leave it and come back,
some pass behind something, and where it is wanted some appear later. Hues are far apart, categories
may repeat; bystanders without an id look like objects too. Nothing is damaged; labels are exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from vss2.data.datasets.toy_render import (
    OBJECTS,
    SAMPLES,
    Scene,
    Sprite,
    make_canvas,
    sprite_picture,
)

CATEGORIES = tuple(name for name in OBJECTS if name != "bush")
UNSEEN = ("cross", "gem")  # categories that no training video has
MAX_OBJECTS = 4
_SHARE_OF_COUNTS = (0.25, 0.35, 0.25, 0.15)  # of videos with 1, 2, 3, 4 objects
APPROACH = 5  # frames that an object that appears later takes to come into sight
_BACKGROUND = 0
_MIN_SHARE = 0.85  # of an object's own area that must show where it appears
_TRIES = 500


@dataclass
class TrackedSprite(Sprite):
    """A sprite that follows a track.

    Attributes:
        track: world positions of the centre, (T, 2). turns: angles in radians, (T,).
    """

    track: np.ndarray
    turns: np.ndarray

    def place(self, t: int) -> tuple[np.ndarray, float]:
        return self.track[t], float(self.turns[t])


class ObjectScene(Scene):
    """One video of objects; everything random in it comes from `rng`.

    Args:
        size: (height, width) of a frame.
        num_frames: length of the video.
        rng: the video's own generator.
        categories: what its objects may be.
        appear_at: frames at which objects may appear later; empty: all are there from the start.

    Attributes:
        names: categories of ids 1, 2, ...
        appears: first frame of each id.
    """

    def __init__(
        self,
        size: tuple[int, int],
        num_frames: int,
        rng: np.random.Generator,
        categories: tuple[str, ...] = CATEGORIES,
        appear_at: tuple[int, ...] = (),
    ):
        self.size, self.num_frames = size, num_frames
        self.canvas, canvas_label, self.origin = make_canvas(size, rng)
        self.canvas_label = np.zeros_like(canvas_label)
        self.drift = rng.uniform(-0.1, 0.1, 2) * np.array([size[1], 0.5 * size[0]])
        self.sway = rng.uniform(0.0, 0.03, 2) * np.array([size[1], size[0]])
        self.zoom = rng.uniform(0.97, 1.05), rng.uniform(-0.06, 0.06)
        self.roll = rng.uniform(-0.03, 0.03)
        self.phase = rng.uniform(0, 2 * np.pi, 3)
        self.light = rng.uniform(0.85, 1.05), rng.uniform(0.03, 0.12)
        self.tint = rng.uniform(-0.05, 0.05)
        self.damaged: list[int] = []
        self.seeds = rng.integers(0, 2**63, num_frames)
        count = 1 + int(rng.choice(MAX_OBJECTS, p=_SHARE_OF_COUNTS))
        for _ in range(_TRIES):
            self._cast(rng, count, categories, appear_at)
            if self._all_show():
                return
        raise RuntimeError(f"no scene of {size[0]}x{size[1]} shows its objects")

    def _cast(
        self,
        rng: np.random.Generator,
        count: int,
        categories: tuple[str, ...],
        appear_at: tuple[int, ...],
    ) -> None:
        """Draw so many objects, and bystanders."""
        self.names = [str(name) for name in rng.choice(categories, count)]
        late = rng.random(count) < 0.5 if appear_at else np.zeros(count, bool)
        late[0] = False
        self.appears = [int(rng.choice(appear_at)) if is_late else 0 for is_late in late]
        hues = (rng.uniform(0, 360) + 360 / (count + 1) * rng.permutation(count + 1)).tolist()
        self.sprites = [
            self._sprite(rng, name, hues[k], k + 1, first)
            for k, (name, first) in enumerate(zip(self.names, self.appears, strict=True))
        ]
        if rng.random() < 0.4:
            stranger = str(rng.choice(categories))
            self.sprites.append(self._sprite(rng, stranger, hues[-1], _BACKGROUND, 0))
        order = rng.permutation(len(self.sprites))
        self.sprites = [self.sprites[i] for i in order]
        if rng.random() < 0.5:
            self.sprites.append(self._bush(rng))

    def _sprite(
        self, rng: np.random.Generator, name: str, hue: float, raw_id: int, first: int
    ) -> Sprite:
        """One wanderer of this hue, in degrees, that shows up at frame `first`."""
        height, width = self.size
        radius = height * rng.uniform(0.16, 0.24)
        picture = _recoloured(sprite_picture(name, radius, rng), hue)
        t = np.arange(self.num_frames)
        start = np.array([rng.uniform(0.12, 0.88) * width, rng.uniform(0.2, 0.8) * height])
        reach = np.array([rng.uniform(0.2, 0.45) * width, rng.uniform(0.1, 0.3) * height])
        rate = rng.uniform(2.5, 6.0, 2) / self.num_frames
        phase = rng.uniform(0, 2 * np.pi, 2)
        wave = np.sin(rate * t[:, None] + phase)
        track = start + reach * (wave - wave[first])
        low, high = 0.1 * np.array([width, height]), 0.9 * np.array([width, height])
        track = low + np.abs(
            (track - low) % (2 * (high - low)) - (high - low)
        )  # turns at the sides
        track = high + low - track
        if first:
            track[:, 0] += self._outside(track, radius) * _ease((first - t) / APPROACH)
        elif rng.random() < 0.35:
            leaves = int(rng.uniform(0.25, 0.5) * self.num_frames)
            x = (t - leaves) / max(6, self.num_frames // 3)
            away = _ease(4 * x) * _ease(4 - 4 * x)
            track[:, 0] += self._outside(track, radius) * away
        turns = rng.uniform(-0.06, 0.06) * t + rng.uniform(0, 2 * np.pi)
        return TrackedSprite(raw_id, picture, radius, track, turns)

    def _outside(self, track: np.ndarray, radius: float) -> np.ndarray:
        """How far each position is from being out of sight at the nearer side, in x."""
        middle, far = self.size[1] / 2, self.size[1] * 0.25 + 2.5 * radius
        edge = -far if track[:, 0].mean() < middle else self.size[1] + far
        return edge - track[:, 0]

    def _bush(self, rng: np.random.Generator) -> Sprite:
        """Something that stands in front."""
        height, width = self.size
        radius = height * rng.uniform(0.16, 0.24)
        place = np.array([rng.uniform(0.1, 0.9) * width, rng.uniform(0.4, 0.9) * height])
        track = np.repeat(place[None], self.num_frames, axis=0)
        picture = sprite_picture("bush", radius, rng)
        return TrackedSprite(_BACKGROUND, picture, radius, track, np.zeros(self.num_frames))

    def _all_show(self) -> bool:
        """Whether every object shows well at its first frame and not before it approaches."""
        areas = {t: self._areas(t) for first in self.appears for t in (first, first - APPROACH)}
        own = {s.raw_id: s.picture[..., 3].sum() / SAMPLES**2 for s in self.sprites}
        return all(
            areas[first][k] >= _MIN_SHARE * own[k] and not areas[first - APPROACH][k]
            for k, first in enumerate(self.appears, start=1)
        )

    def _areas(self, t: int) -> np.ndarray:
        """Visible pixels of each id at frame `t`; none before the video."""
        if t < 0:
            return np.zeros(MAX_OBJECTS + 1, int)
        return np.bincount(self._draw(t)[1].ravel(), minlength=MAX_OBJECTS + 1)

    def _write_ids(self, ids: np.ndarray, cover: np.ndarray, raw_id: int) -> None:
        ids[cover > 0.5] = raw_id


def _ease(x: np.ndarray) -> np.ndarray:
    """0 up to 0, 1 from 1 on, smooth between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def comes_back(visible: np.ndarray) -> bool:
    """Whether something was seen, was gone for two frames or more, and was seen again.

    Args:
        visible: bool (T,).
    """
    gone = np.flatnonzero(~(visible[1:] | visible[:-1]))
    return any(visible[:t].any() and visible[t + 2 :].any() for t in gone)


def _recoloured(picture: np.ndarray, hue: float) -> np.ndarray:
    """The picture with its hues turned so that their mean is this one, in degrees."""
    hsv = cv2.cvtColor(np.clip(picture[..., :3] / 255, 0, 1), cv2.COLOR_RGB2HSV)
    solid = picture[..., 3] > 0
    angles = np.deg2rad(hsv[..., 0][solid])
    mean = np.rad2deg(np.arctan2(np.sin(angles).mean(), np.cos(angles).mean()))
    hsv[..., 0] = (hsv[..., 0] + np.float32(hue - mean)) % 360
    colours = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255
    return np.dstack([colours, picture[..., 3]]).astype(np.float32)

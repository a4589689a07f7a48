"""Renderer of the toy world: a scene in world coordinates, a moving camera, exact labels.

A video is one `Scene`: a large background canvas (sky or wall above a horizon, grass, ground and
water below it) and a handful of sprites that move over it. Each class has a hue and a texture of
its own, and neighbouring hues overlap under the jitter, so that colour alone does not decide. The
scene is drawn at twice the frame's size and averaged down; a pixel's label is the class that covers
most of it. About 15 % of the frames are damaged (see `toy_damage`); their labels stay exact.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from vss2.data.datasets.toy_damage import choose_damaged_frames, damage

BACKGROUNDS = ("sky", "wall", "grass", "ground", "water")
OBJECTS = ("bush", "ball", "box", "star", "ring", "cross", "gem")
CLASSES = BACKGROUNDS + OBJECTS  # train ids; the raw id in a mask is the train id + 1
RAW_OTHERS, RAW_VOID = 0, 255

# hue in degrees, saturation, value of the base tone; the texture mixes in a second tone
_TONES: dict[str, tuple[float, float, float]] = {
    "sky": (210, 0.42, 0.94),
    "wall": (18, 0.36, 0.72),
    "grass": (96, 0.58, 0.66),
    "ground": (33, 0.44, 0.74),
    "water": (196, 0.62, 0.72),
    "bush": (136, 0.62, 0.46),
    "ball": (2, 0.80, 0.90),
    "box": (28, 0.78, 0.86),
    "star": (50, 0.82, 0.97),
    "ring": (278, 0.56, 0.80),
    "cross": (330, 0.62, 0.92),
    "gem": (172, 0.66, 0.82),
}
_HUE_JITTER = 10.0
SAMPLES = 2  # canvas, sprite and drawing pixels per frame pixel, along each side

Pattern = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def _noise(shape: tuple[int, int], cell: tuple[float, float], rng: np.random.Generator):
    """Smooth noise in [0, 1] of `shape`, with features of about `cell` (height, width) pixels."""
    grid = tuple(max(2, round(s / c) + 2) for s, c in zip(shape, cell, strict=True))
    coarse = rng.random(grid, dtype=np.float32)
    field = cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return np.clip(field, 0.0, 1.0)


def _step(x: np.ndarray, soft: float) -> np.ndarray:
    """0 below -soft, 1 above +soft, straight between."""
    return np.clip(x / (2 * soft) + 0.5, 0.0, 1.0)


def _clouds(x, y, rng):
    field = 0.65 * _noise(x.shape, (22, 48), rng) + 0.35 * _noise(x.shape, (9, 18), rng)
    return _step(field - rng.uniform(0.5, 0.62), 0.16)


def _bricks(x, y, rng):
    height, width = rng.uniform(5.5, 7.5), rng.uniform(12, 16)
    row = np.floor(y / height)
    joint = np.minimum(y % height, (x + (row % 2) * width / 2) % width)
    return _step(1.0 - joint, 0.5)


def _blades(x, y, rng):
    return _step(_noise(x.shape, (6.0, 2.0), rng) - 0.5, 0.4)


def _pebbles(x, y, rng):
    return _step(_noise(x.shape, (4.5, 5.5), rng) - 0.66, 0.12)


def _waves(x, y, rng):
    period = rng.uniform(5.5, 7.5)
    bend = 1.6 * np.sin(x / rng.uniform(5, 7) + rng.uniform(0, 6)) + 3 * _noise(
        x.shape, (30, 40), rng
    )
    return 0.5 + 0.5 * np.sin((y + bend) * (2 * np.pi / period))


def _leaves(x, y, rng):
    return _step(_noise(x.shape, (5, 5), rng) + 0.5 * _noise(x.shape, (2.2, 2.2), rng) - 0.75, 0.25)


def _stripes(x, y, rng):
    return _step(np.sin(x * (2 * np.pi / rng.uniform(6.5, 9))), 0.4)


def _checks(x, y, rng):
    half = rng.uniform(3.6, 4.8)
    return _step(np.sin(x * np.pi / half) * np.sin(y * np.pi / half), 0.2)


def _dots(x, y, rng):
    period = rng.uniform(5.2, 6.6)
    u, v = (x % period) - period / 2, (y % period) - period / 2
    return _step(0.29 * period - np.hypot(u, v), 0.7)


def _sectors(x, y, rng):
    return _step(np.sin(np.arctan2(y, x) * rng.integers(5, 8)), 0.4)


def _diagonals(x, y, rng):
    return _step(np.sin((x + y) * (2 * np.pi / rng.uniform(6, 8))), 0.4)


def _facets(x, y, rng):
    angle = np.floor((np.arctan2(y, x) + 0.3) * (6 / np.pi))
    return ((angle * 7) % 5) / 4.0 * np.ones_like(x)


# class -> (texture, second tone relative to the base: hue shift, saturation and value factors)
_TEXTURES: dict[str, tuple[Pattern, tuple[float, float, float]]] = {
    "sky": (_clouds, (0, 0.18, 1.06)),
    "wall": (_bricks, (8, 0.55, 1.22)),
    "grass": (_blades, (-10, 1.05, 0.68)),
    "ground": (_pebbles, (-6, 0.8, 0.68)),
    "water": (_waves, (6, 0.6, 1.25)),
    "bush": (_leaves, (-18, 0.9, 1.55)),
    "ball": (_stripes, (8, 0.3, 1.08)),
    "box": (_checks, (-4, 0.95, 0.62)),
    "star": (_dots, (-18, 1.1, 0.82)),
    "ring": (_sectors, (0, 0.45, 1.2)),
    "cross": (_diagonals, (4, 0.45, 1.05)),
    "gem": (_facets, (6, 0.5, 1.2)),
}


def _paint(name: str, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colours of the points (x, y), in frame pixels: float32 RGB (..., 3) in 0..255."""
    pattern, (shift, fade, gain) = _TEXTURES[name]
    hue, saturation, value = _TONES[name]
    hue += rng.uniform(-_HUE_JITTER, _HUE_JITTER)
    saturation *= rng.uniform(0.75, 1.12)
    value *= rng.uniform(0.85, 1.06)
    base = colorsys.hsv_to_rgb(hue / 360 % 1, min(saturation, 1), min(value, 1))
    other = colorsys.hsv_to_rgb(
        (hue + shift) / 360 % 1, min(saturation * fade, 1), min(value * gain, 1)
    )
    first, second = (255 * np.asarray(c, np.float32) for c in (base, other))
    amount = pattern(x, y, rng).astype(np.float32)[..., None] * np.float32(rng.uniform(0.7, 1.0))
    return first + amount * (second - first)


def _shape(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where a sprite is solid, in coordinates that reach from -1 to 1 (v grows downwards)."""
    r = np.hypot(u, v)
    if name == "bush":
        tops = ((-0.48, 0.15, 0.5), (0.48, 0.15, 0.5), (0.0, -0.35, 0.62), (0.0, 0.4, 0.6))
        return np.any([np.hypot(u - a, v - b) < c for a, b, c in tops], axis=0) & (v < 0.82)
    if name == "ball":
        return r < 0.95
    if name == "box":
        return np.maximum(np.abs(u), np.abs(v)) < 0.8
    if name == "star":
        turn = np.abs((np.arctan2(u, -v) * 5 / (2 * np.pi) + 0.5) % 1 - 0.5) * 2  # 0 at a tip
        return r < 0.98 - 0.44 * turn**0.8
    if name == "ring":
        return (r < 0.97) & (r > 0.5)
    if name == "cross":
        return (np.minimum(np.abs(u), np.abs(v)) < 0.31) & (np.maximum(np.abs(u), np.abs(v)) < 0.95)
    return np.abs(u) / 0.8 + np.abs(v) < 0.98  # gem


@dataclass
class Sprite:
    """One object: its id in the mask and its picture, float32 (S, S, 4) RGB + opacity."""

    raw_id: int
    picture: np.ndarray
    radius: float

    def place(self, t: int) -> tuple[np.ndarray, float]:
        """World position of the centre and angle in radians at frame `t`."""
        raise NotImplementedError


@dataclass
class SwingingSprite(Sprite):
    """A sprite that drifts and swings."""

    centre: np.ndarray
    velocity: np.ndarray
    swing: np.ndarray
    rate: float
    phase: float
    spin: float

    def place(self, t: int) -> tuple[np.ndarray, float]:
        wave = np.sin(self.rate * t + self.phase)
        return self.centre + self.velocity * t + self.swing * wave, self.spin * t + 0.2 * wave


def sprite_picture(name: str, radius: float, rng: np.random.Generator) -> np.ndarray:
    """An object of this class and radius in frame pixels: float32 (S, S, 4), RGB and opacity."""
    half = int(np.ceil(radius * SAMPLES)) + 2
    line = np.arange(-half, half + 1, dtype=np.float32) / SAMPLES
    x, y = np.meshgrid(line, line)
    solid = _shape(name, x / radius, y / radius)
    colour = _paint(name, x, y, rng)
    light = 1.06 - 0.2 * (x + y) / (1.4 * radius)  # lit from the upper left
    inner = cv2.erode(solid.astype(np.uint8), np.ones((3, 3), np.uint8))
    colour *= (light * np.where(solid & (inner == 0), 0.62, 1.0))[..., None]
    return np.dstack([colour, solid]).astype(np.float32)


def _make_sprite(name: str, size: tuple[int, int], num_frames: int, rng) -> SwingingSprite:
    height, width = size
    still = name == "bush"
    radius = height * (rng.uniform(0.15, 0.22) if still else rng.uniform(0.1, 0.19))
    picture = sprite_picture(name, radius, rng)
    centre = np.array([rng.uniform(-0.05, 1.05) * width, rng.uniform(0.22, 0.85) * height])
    swing = np.array([rng.uniform(0.1, 0.55) * width, rng.uniform(0.04, 0.2) * height])
    velocity = rng.uniform(-0.6, 0.6, 2) * np.array([width, 0.25 * height]) / num_frames
    moves = 0.0 if still else 1.0
    return SwingingSprite(
        raw_id=CLASSES.index(name) + 1,
        picture=picture,
        radius=radius,
        centre=centre,
        velocity=velocity * moves,
        swing=swing * moves,
        rate=rng.uniform(0.18, 0.45),
        phase=rng.uniform(0, 2 * np.pi),
        spin=rng.uniform(-0.12, 0.12) * moves,
    )


def make_canvas(
    size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Background: uint8 RGB, raw ids, and the world position (x, y) of its first pixel."""
    height, width = size
    left, top = 0.4 * width, 0.35 * height
    rows, columns = round((height + 2 * top) * SAMPLES), round((width + 2 * left) * SAMPLES)
    x, y = np.meshgrid(
        np.arange(columns, dtype=np.float32) / SAMPLES - left,
        np.arange(rows, dtype=np.float32) / SAMPLES - top,
    )
    along = x[:1]

    def curve(level: float, bend: float) -> np.ndarray:
        wave = np.sin(along / (width * rng.uniform(0.12, 0.3)) + rng.uniform(0, 6))
        return level * height + bend * height * wave

    far = "wall" if rng.random() < 0.3 else "sky"
    near, nearer = rng.permutation(["grass", "ground", "water"])[:2]
    horizon = curve(rng.uniform(0.38, 0.56), 0.0 if far == "wall" else rng.uniform(0, 0.05))
    shore = curve(rng.uniform(0.62, 0.85), rng.uniform(0.03, 0.12)) + rng.uniform(-0.3, 0.3) * along
    zones = [(far, np.ones_like(x, bool))]
    if far == "sky" and rng.random() < 0.5:  # buildings before the sky
        start, breadth = rng.uniform(-0.2, 0.8) * width, rng.uniform(0.25, 0.5) * width
        roof = rng.uniform(0.12, 0.3) * height
        zones.append(("wall", (x > start) & (x < start + breadth) & (y > roof)))
    zones += [(near, y > horizon), (nearer, (y > shore) & (y > horizon))]
    colour = np.zeros((rows, columns, 3), np.float32)
    label = np.zeros((rows, columns), np.uint8)
    for name, zone in zones:
        colour[zone] = _paint(str(name), x, y, rng)[zone]
        label[zone] = CLASSES.index(str(name)) + 1
    depth = np.clip((y - top) / height, 0, 1)[..., None]
    colour *= 0.92 + 0.14 * depth
    _draw_cables(colour, label, rng)
    return np.clip(colour, 0, 255).astype(np.uint8), label, (-left, -top)


def _draw_cables(colour: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> None:
    """Thin dark cables that hang across half of the scenes; raw id 0, "others"."""
    if rng.random() < 0.5:
        return
    rows, columns = label.shape
    x = np.arange(columns)
    level = rng.uniform(0.3, 0.5) * rows
    for _ in range(2):
        sag = rng.uniform(0.02, 0.08) * rows
        y = level + sag * (2 * x / columns - 1) ** 2
        points = np.stack([x, y], axis=1).round().astype(np.int32)[:, None]
        cv2.polylines(colour, [points], False, (46, 44, 52), thickness=3)
        cv2.polylines(label, [points], False, RAW_OTHERS, thickness=3)
        level += 0.05 * rows


def _rotation(angle: float, scale: float) -> np.ndarray:
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])


class Scene:
    """One video of the toy world; everything random in it comes from `rng`.

    Args:
        size: (height, width) of a frame.
        num_frames: length of the video.
        rng: the video's own generator.

    Attributes:
        damaged: sorted indices of the damaged frames.
    """

    def __init__(self, size: tuple[int, int], num_frames: int, rng: np.random.Generator):
        self.size, self.num_frames = size, num_frames
        self.canvas, self.canvas_label, self.origin = make_canvas(size, rng)
        names = list(rng.permutation(OBJECTS)[: rng.integers(4, 7)])
        names.sort(key=lambda name: name != "bush")  # bushes stand behind
        self.sprites: list[Sprite] = [
            _make_sprite(str(name), size, num_frames, rng) for name in names
        ]
        self.drift = rng.uniform(-0.18, 0.18, 2) * np.array([size[1], 0.5 * size[0]])
        self.sway = rng.uniform(0.0, 0.05, 2) * np.array([size[1], size[0]])
        self.zoom = rng.uniform(0.95, 1.12), rng.uniform(-0.1, 0.1)
        self.roll = rng.uniform(-0.04, 0.04)
        self.phase = rng.uniform(0, 2 * np.pi, 3)
        self.light = rng.uniform(0.8, 1.08), rng.uniform(0.05, 0.2)
        self.tint = rng.uniform(-0.07, 0.07)
        self.damaged = choose_damaged_frames(num_frames, rng)
        self.seeds = rng.integers(0, 2**63, num_frames)

    def frame(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Frame `t`: uint8 RGB (H, W, 3) and raw labels uint8 (H, W)."""
        image, label = self._draw(t)
        image = self._expose(image, t)
        rng = np.random.default_rng(self.seeds[t])
        image = image + 3.0 * rng.standard_normal(image.shape, dtype=np.float32)
        if t in self.damaged:
            image = damage(image, rng)
        return np.clip(image + 0.5, 0, 255).astype(np.uint8), label

    def _camera(self, t: int) -> np.ndarray:
        """World coordinates -> pixels of the drawing, (2, 3)."""
        height, width = self.size
        progress = t / max(self.num_frames - 1, 1) - 0.5
        eye = np.array([width, height]) / 2 + self.drift * progress
        eye = eye + self.sway * np.sin(0.5 * t + self.phase[:2])
        zoom = self.zoom[0] + self.zoom[1] * progress
        turn = _rotation(self.roll * np.sin(0.3 * t + self.phase[2]), zoom * SAMPLES)
        middle = np.array([width, height]) * SAMPLES / 2 - 0.5
        return np.hstack([turn, (middle - turn @ eye)[:, None]])

    def _draw(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        height, width = self.size
        camera = self._camera(t)
        from_canvas = camera @ np.array(
            [[1 / SAMPLES, 0, self.origin[0]], [0, 1 / SAMPLES, self.origin[1]], [0, 0, 1]]
        )
        drawing = cv2.warpAffine(
            self.canvas,
            from_canvas,
            (width * SAMPLES, height * SAMPLES),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        ).astype(np.float32)
        to_frame = from_canvas / SAMPLES
        to_frame[:, 2] -= (SAMPLES - 1) / (2 * SAMPLES)  # centres of frame pixels
        label = cv2.warpAffine(
            self.canvas_label,
            to_frame,
            (width, height),
            flags=cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        for sprite in self.sprites:
            self._draw_sprite(sprite, t, camera, drawing, label)
        return cv2.resize(drawing, (width, height), interpolation=cv2.INTER_AREA), label

    def _draw_sprite(self, sprite: Sprite, t: int, camera, drawing, label) -> None:
        """Blend a sprite into its part of the drawing and of the labels, both in place."""
        position, angle = sprite.place(t)
        local = _rotation(angle, 1 / SAMPLES)
        anchor = np.full(2, (sprite.picture.shape[0] - 1) / 2)
        turn = camera[:, :2] @ local
        centre = camera[:, :2] @ position + camera[:, 2]
        reach = np.hypot(*camera[:, 0]) * sprite.radius * 1.45 + 2
        limit = np.array([drawing.shape[1], drawing.shape[0]])
        # whole frame pixels, so that the coverage of each is the mean of its samples
        first = (np.clip(centre - reach, 0, limit) // SAMPLES).astype(int)
        last = (-(-np.clip(centre + reach, 0, limit) // SAMPLES)).astype(int)
        if np.any(last <= first):
            return
        (x0, y0), (x1, y1) = first, last
        offset = centre - turn @ anchor - first * SAMPLES
        patch = cv2.warpAffine(
            sprite.picture,
            np.hstack([turn, offset[:, None]]),
            (int(x1 - x0) * SAMPLES, int(y1 - y0) * SAMPLES),
            flags=cv2.INTER_LINEAR,
        )
        opacity = patch[..., 3]
        area = drawing[y0 * SAMPLES : y1 * SAMPLES, x0 * SAMPLES : x1 * SAMPLES]
        area += opacity[..., None] * (patch[..., :3] - area)
        cover = cv2.resize(opacity, (int(x1 - x0), int(y1 - y0)), interpolation=cv2.INTER_AREA)
        self._write_ids(label[y0:y1, x0:x1], cover, sprite.raw_id)

    def _write_ids(self, ids: np.ndarray, cover: np.ndarray, raw_id: int) -> None:
        """Enter a sprite, given the share of each pixel that it covers, into `ids`."""
        ids[cover > 0.5] = raw_id
        ids[np.abs(cover - 0.5) < 0.06] = RAW_VOID  # a tie between two classes: nobody's pixel

    def _expose(self, image: np.ndarray, t: int) -> np.ndarray:
        """Slow change of brightness and colour temperature."""
        wave = np.sin(2 * np.pi * t / (1.6 * self.num_frames) + self.phase[0])
        gain = self.light[0] + self.light[1] * wave
        warm = self.tint * np.sin(2 * np.pi * t / (2.2 * self.num_frames) + self.phase[1])
        return image * np.array([gain * (1 + warm), gain, gain * (1 - warm)], np.float32)

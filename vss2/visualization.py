"""Pictures of label maps and scores, with NumPy and OpenCV alone.

Images are uint8 arrays (H, W, 3) in RGB order, label maps integer arrays (H, W), colours
(r, g, b) of 0..255.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from vss2.errors import InputError

Color = tuple[int, int, int]

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_TEXT = 0.5
_TITLE = 0.65
_INK: Color = (38, 42, 48)
_SOFT_INK: Color = (122, 128, 136)
_GRID: Color = (226, 229, 233)
_PAPER: Color = (255, 255, 255)
_BAR: Color = (58, 116, 186)
_LINE = 20  # height of a line of _TEXT with its spacing, pixels


def palette(num: int) -> list[Color]:
    """`num` colours (at most 256) that are as different as possible, always the same.

    Each next colour is the one farthest, in CIE Lab, from all before it, so the first k colours of
    any palette are `palette(k)`. Near-black, near-white, grey and glaring ones are left out.

    Raises:
        InputError: `num` is not in 0..256.
    """
    if not 0 <= num <= 256:
        raise InputError(f"A palette has 0..256 colours, {num} were asked for.")
    return list(_spread_colors()[:num])


@functools.lru_cache(maxsize=1)
def _spread_colors() -> tuple[Color, ...]:
    """256 colours by farthest-point selection on a grid of sRGB."""
    steps = np.arange(20, 246, 15)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _to_lab(grid)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    usable = (lab[:, 0] > 32) & (lab[:, 0] < 88) & (chroma > 22) & (chroma < 84)
    grid, lab = grid[usable], lab[usable]
    chosen = [int(np.square(lab - _to_lab(np.array([[46, 122, 198]]))).sum(axis=1).argmin())]
    distance = np.full(len(grid), np.inf)
    while len(chosen) < 256:
        distance = np.minimum(distance, np.square(lab - lab[chosen[-1]]).sum(axis=1))
        # Rounding makes the choice the same on machines whose last digits differ.
        chosen.append(int(distance.round(6).argmax()))
    return tuple((int(r), int(g), int(b)) for r, g, b in grid[chosen])


def _to_lab(rgb: np.ndarray) -> np.ndarray:
    """CIE Lab (D65) float64 (N, 3) of sRGB 0..255 (N, 3)."""
    value = rgb / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack(
        [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1
    )


def overlay(
    frame: np.ndarray,
    labels: np.ndarray,
    colors: Sequence[Sequence[int]],
    alpha: float = 0.5,
    ignore_label: int = 255,
    contour: bool = False,
) -> np.ndarray:
    """Blend class colours over a frame; where the label is `ignore_label` the frame shows as it is.

    Args:
        frame: uint8 (H, W, 3).
        labels: integer (H, W), ids of `colors`, or `ignore_label`.
        colors: (r, g, b) of label 0, 1, ...
        alpha: weight of the colour, 0..1.
        contour: also draw the borders between labels, in the full colour of the class.

    Returns:
        A new uint8 (H, W, 3).

    Raises:
        InputError: sizes differ, a label has no colour, or `alpha` is not in 0..1.
    """
    _check_image(frame, "frame")
    labels = np.asarray(labels)
    if labels.shape != frame.shape[:2]:
        raise InputError(
            f"The labels have shape {labels.shape}, the frame {frame.shape[:2]}; "
            f"they must be equal."
        )
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must be in 0..1, got {alpha}.")
    table = _color_table(colors)
    void = labels == ignore_label
    ids = np.where(void, 0, labels)
    wrong = (ids < 0) | (ids >= len(table))
    if wrong.any():
        raise InputError(
            f"The labels hold id {int(ids[wrong][0])}, but there are {len(table)} colours."
        )
    painted = table[ids]
    out = cv2.addWeighted(painted, alpha, np.ascontiguousarray(frame), 1 - alpha, 0)
    if contour:
        border = _borders(labels)
        out[border] = painted[border]
    out[void] = frame[void]
    return out


def _color_table(colors: Sequence[Sequence[int]]) -> np.ndarray:
    """uint8 (N, 3) of `colors`."""
    table = np.array([[int(v) for v in color] for color in colors], np.int64)
    if table.ndim != 2 or table.shape[1] != 3 or table.min() < 0 or table.max() > 255:
        raise InputError("Colours must be a list of (r, g, b) with values 0..255.")
    return table.astype(np.uint8)


def _borders(labels: np.ndarray) -> np.ndarray:
    """bool (H, W): a neighbour to the left, right, above or below has another label."""
    border = np.zeros(labels.shape, bool)
    across = labels[:, 1:] != labels[:, :-1]
    down = labels[1:] != labels[:-1]
    border[:, 1:] |= across
    border[:, :-1] |= across
    border[1:] |= down
    border[:-1] |= down
    return border


def legend(
    class_names: Sequence[str],
    colors: Sequence[Sequence[int]],
    present: Any = None,
    width: int = 640,
) -> np.ndarray:
    """A legend: a patch of colour and the name of each class, in as many columns as fit.

    Args:
        class_names, colors: one per class.
        present: ids of the classes to list (any iterable or integer array; others such as 255 are
            passed over); None lists all.
        width: of the image, pixels; names too long for it are cut with "...".

    Returns:
        uint8 (H, width, 3) on white.

    Raises:
        InputError: the number of names and colours differ.
    """
    if len(class_names) != len(colors):
        raise InputError(f"There are {len(class_names)} class names and {len(colors)} colours.")
    shown = range(len(class_names))
    listed = [k for k in shown if present is None or k in {int(i) for i in np.unique(present)}]
    pad, patch, gap = 10, 14, 8
    names = [_fit(str(class_names[k]), width - 2 * pad - patch - gap) for k in listed]
    cells = [patch + 4 * gap + _text_width(name) for name in names]
    rows, lefts = _flow(cells, width - 2 * pad + 3 * gap)
    image = _paper(2 * pad + max(rows, 1) * _LINE, width)
    for i, (k, name) in enumerate(zip(listed, names, strict=True)):
        x, y = pad + lefts[i // rows], pad + (i % rows) * _LINE
        top = y + (_LINE - patch) // 2
        color = tuple(int(v) for v in colors[k])
        cv2.rectangle(image, (x, top), (x + patch - 1, top + patch - 1), color, cv2.FILLED)
        _write(image, name, x + patch + gap, y + _LINE / 2)
    return image


def _flow(cells: Sequence[int], width: int) -> tuple[int, list[int]]:
    """Fewest rows in which columns of cells of these widths fit, and each column's left edge."""
    for rows in range(1, len(cells) + 1):
        widths = [max(cells[i : i + rows]) for i in range(0, len(cells), rows)]
        if sum(widths) <= width or rows == len(cells):
            return rows, [sum(widths[:k]) for k in range(len(widths))]
    return 1, []


def side_by_side(*images: np.ndarray, gap: int = 4) -> np.ndarray:
    """Images in a row with a white gap, each scaled to the height of the first."""
    if not images:
        raise InputError("side_by_side needs at least one image.")
    height = images[0].shape[0]
    parts: list[np.ndarray] = []
    for image in images:
        _check_image(image, "image")
        if parts:
            parts.append(_paper(height, gap))
        wide = max(1, round(image.shape[1] * height / image.shape[0]))
        parts.append(_resized(image, wide, height))
    return np.concatenate(parts, axis=1)


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str] | None = None,
    *,
    column_titles: Sequence[str] | None = None,
    footer: np.ndarray | None = None,
    cell_width: int | None = None,
    margin: int = 8,
) -> np.ndarray:
    """Rows of images on white, with margins and titles.

    Args:
        rows: images of any size; each is scaled to `cell_width`, and centred in its row.
        titles: one per row, written at its left; "\\n" breaks a line.
        column_titles: one per column, written above.
        footer: an image below the rows, such as a `legend`.
        cell_width: pixels; default the first image's width, 96..480.

    Returns:
        uint8 (H, W, 3).

    Raises:
        InputError: no images, something else than an image, or another number of titles.
    """
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise InputError("A contact sheet needs at least one image.")
    for kind, given, number in (("rows", titles, len(rows)), ("columns", column_titles, columns)):
        if given is not None and len(given) != number:
            raise InputError(f"The contact sheet has {number} {kind} and {len(given)} titles.")
    first = next(image for row in rows for image in row)
    wide = cell_width or min(max(first.shape[1], 96), 480)
    lines = [str(title).split("\n") for title in titles or [""] * len(rows)]
    title_width = max(_text_width(line) for texts in lines for line in texts)
    left = margin + (title_width + margin if title_width else 0)
    top = margin + (_LINE + margin // 2 if column_titles else 0)
    head = _paper(top, left + columns * (wide + margin))
    for j, title in enumerate(column_titles or []):
        text = _fit(str(title), wide)
        x = left + j * (wide + margin) + (wide - _text_width(text)) / 2
        _write(head, text, x, margin + _LINE / 2)
    strips = [head]
    for row, texts in zip(rows, lines, strict=True):
        strips.append(_sheet_row(row, texts, wide, left, head.shape[1], margin))
    if footer is not None:
        _check_image(footer, "footer")
        strips.append(footer)
    sheet = _paper(sum(s.shape[0] for s in strips), max(s.shape[1] for s in strips))
    y = 0
    for strip in strips:
        sheet[y : y + strip.shape[0], : strip.shape[1]] = strip
        y += strip.shape[0]
    return sheet


def _sheet_row(
    row: Sequence[np.ndarray], lines: Sequence[str], wide: int, left: int, width: int, margin: int
) -> np.ndarray:
    """One row of a contact sheet with its title lines at the left and a margin below."""
    cells = []
    for image in row:
        _check_image(image, "image")
        height = max(1, round(image.shape[0] * wide / image.shape[1]))
        cells.append(_resized(image, wide, height))
    text_height = len(lines) * _LINE if any(lines) else 0
    tallest = max([text_height, *(cell.shape[0] for cell in cells)])
    strip = _paper(tallest + margin, width)
    for k, line in enumerate(lines):
        middle = tallest / 2 + (k - (len(lines) - 1) / 2) * _LINE
        _write(strip, line, left - margin - _text_width(line), middle)
    for j, cell in enumerate(cells):
        x, y = left + j * (wide + margin), (tallest - cell.shape[0]) // 2
        strip[y : y + cell.shape[0], x : x + wide] = cell
    return strip


def bar_chart(
    names: Sequence[str],
    values: Sequence[float] | np.ndarray,
    title: str = "",
    *,
    maximum: float | None = None,
    columns: int | None = None,
) -> np.ndarray:
    """Horizontal bars from 0 in the order given, with value labels, grid lines and an axis.

    Args:
        names, values: one per bar; nan is written "n/a" and has no bar.
        title: states what is drawn and its unit.
        maximum: right end of the axis; default a round number above the largest value.
        columns: of bars; default as many as keep a column at 42 bars or less.

    Returns:
        uint8 (H, W, 3).

    Raises:
        InputError: no bars, lengths differ, or a value is negative or infinite.
    """
    numbers = [float(v) for v in values]
    if not numbers or len(names) != len(numbers):
        raise InputError(f"A bar chart needs a value per name: {len(names)}, {len(numbers)} given.")
    for name, value in zip(names, numbers, strict=True):
        if math.isinf(value) or value < 0:
            raise InputError(f"A bar must be finite and not negative: '{name}' is {value}.")
    step, end = _axis(max((v for v in numbers if not math.isnan(v)), default=0.0), maximum)
    columns = columns or math.ceil(len(numbers) / 42)
    rows = math.ceil(len(numbers) / columns)
    labels = [_fit(str(name), 250) for name in names]
    name_width = max(_text_width(label) for label in labels)
    bar_width, pad = (400 if columns == 1 else 240), 20
    column_width = name_width + 10 + bar_width + 56
    top = pad + (34 if title else 0)
    width = max(pad + columns * (column_width + pad), _text_width(title, _TITLE) + 2 * pad)
    image = _paper(top + rows * _LINE + _LINE + pad + 6, width)
    _write(image, title, pad, pad + 10, _TITLE)
    for column in range(columns):
        part = slice(column * rows, (column + 1) * rows)
        x = pad + column * (column_width + pad) + name_width + 10
        if labels[part]:
            _draw_axis(image, x, bar_width, top, top + len(labels[part]) * _LINE, step, end)
        for i, (label, value) in enumerate(zip(labels[part], numbers[part], strict=True)):
            _draw_bar(image, x, top + i * _LINE, bar_width, label, value, end)
    return image


def _axis(largest: float, maximum: float | None) -> tuple[float, float]:
    """Distance of the grid lines and end of the axis: 1, 2 or 5 times a power of ten."""
    reach = maximum if maximum and maximum > 0 else largest
    if not reach > 0:
        return 0.2, 1.0
    power = 10.0 ** math.floor(math.log10(reach / 5))
    step = next(m * power for m in (1, 2, 5, 10) if reach / (m * power) <= 5 + 1e-9)
    end = maximum if maximum and maximum > 0 else step * math.ceil(reach / step - 1e-9)
    return step, end


def _draw_axis(
    image: np.ndarray, x: int, width: int, top: int, bottom: int, step: float, end: float
) -> None:
    """Grid lines with their values below."""
    for k in range(math.floor(end / step + 1e-9) + 1):
        at = x + round(width * k * step / end)
        cv2.line(image, (at, top), (at, bottom + 3), _GRID, 1)
        text = f"{k * step:g}"
        _write(image, text, at - _text_width(text, 0.42) / 2, bottom + 13, 0.42, _SOFT_INK)


def _draw_bar(
    image: np.ndarray, x: int, y: int, width: int, label: str, value: float, end: float
) -> None:
    """One row: the name at the left of `x`, the bar and its value at the right."""
    middle = y + _LINE / 2
    _write(image, label, x - 10 - _text_width(label), middle)
    if math.isnan(value):
        _write(image, "n/a", x + 6, middle, color=_SOFT_INK)
        return
    long = min(round(width * value / end), width)
    if long:
        cv2.rectangle(image, (x, y + 4), (x + long - 1, y + _LINE - 5), _BAR, cv2.FILLED)
    text = f"{value:.1f}" if end > 5 else f"{value:.3f}"
    at = x + long + 6
    box = (at - 2, y + 2), (at + _text_width(text) + 2, y + _LINE - 3)
    cv2.rectangle(image, *box, _PAPER, cv2.FILLED)  # keeps grid lines out of the digits
    _write(image, text, at, middle)


def _check_image(image: np.ndarray, what: str) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise InputError(
            f"The {what} must be a uint8 image (H, W, 3), got {image.dtype} {image.shape}."
        )


def _paper(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), _PAPER, np.uint8)


def _resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    mode = cv2.INTER_AREA if width < image.shape[1] else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=mode)


def _text_width(text: str, scale: float = _TEXT) -> int:
    return cv2.getTextSize(text, _FONT, scale, 1)[0][0] if text else 0


def _fit(text: str, width: int) -> str:
    """`text`, cut with "..." where it is wider than `width` pixels."""
    if _text_width(text) <= width:
        return text
    while text and _text_width(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _write(
    image: np.ndarray,
    text: str,
    x: float,
    middle: float,
    scale: float = _TEXT,
    color: Color = _INK,
) -> None:
    """Text whose capitals are centred at height `middle`, in place."""
    if text:
        capital = cv2.getTextSize("H", _FONT, scale, 1)[0][1]
        at = (round(x), round(middle + capital / 2))
        cv2.putText(image, text, at, _FONT, scale, color, 1, cv2.LINE_AA)

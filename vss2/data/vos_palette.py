"""The colours of object ids in the palette PNGs of DAVIS and YouTube-VOS."""

from __future__ import annotations

_COLOURED = 22  # further ids are shown grey


def _colour(index: int) -> tuple[int, int, int]:
    """Bits 0, 1, 2 of the id switch 128 of red, green, blue on, bits 3, 4, 5 switch 64 on."""
    if index >= _COLOURED:
        return (index, index, index)
    red, green, blue = (
        128 * (index >> channel & 1) + 64 * (index >> channel + 3 & 1) for channel in range(3)
    )
    return (min(red, 191), min(green, 191), min(blue, 191))


DAVIS_PALETTE: tuple[tuple[int, int, int], ...] = tuple(_colour(i) for i in range(256))
"""(r, g, b) of ids 0 to 255, as in the annotations of DAVIS 2017; 7 and 128 are the same grey."""

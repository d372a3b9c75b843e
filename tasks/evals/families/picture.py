"""A small picture: text in a 5 x 7 font and plain shapes, as a PNG."""

from __future__ import annotations

from typing import Literal

import numpy as np

from modal_app.png import png

SIDE = 448
"""Width and height, pixels: a multiple of what vision encoders cut their input into."""
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (214, 34, 34), "blue": (30, 70, 214), "green": (24, 150, 60), "yellow": (240, 205, 20),
    "black": (0, 0, 0), "purple": (130, 40, 170),
}  # fmt: skip

_CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# of each character the five columns from the left, a byte each, the lowest bit on top
_FONT = bytes.fromhex(
    "3e5149453e 00427f4000 4261514946 2141454b31 1814127f10 2745454539 3c4a494930 0171090503 3649494936 "
    "064949291e 7e1111117e 7f49494936 3e41414122 7f4141413e 7f49494941 7f09090901 3e4149497a 7f0808087f "
    "00417f4100 2040413f01 7f08142241 7f40404040 7f020c027f 7f0408107f 3e4141413e 7f09090906 3e4151215e "
    "7f09192946 4649494931 01017f0101 3f4040403f 1f2040201f 3f4038403f 6314081463 0708700807 6151494543"
)

Shape = Literal["circle", "square", "triangle", "cross"]


class Picture:
    def __init__(self) -> None:
        self._pixels = np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)

    def text(self, said: str, x: int, y: int, scale: int) -> None:
        """Write capitals and digits with the upper left corner here; a character is 6 * scale wide."""
        for place, character in enumerate(said):
            at = 5 * _CHARACTERS.index(character)
            for column, bits in enumerate(_FONT[at : at + 5]):
                for row in range(7):
                    if bits >> row & 1:
                        left, top = x + (6 * place + column) * scale, y + row * scale
                        self._pixels[top : top + scale, left : left + scale] = 0

    def shape(self, kind: Shape, colour: str, x: int, y: int, size: int) -> None:
        """Fill a shape whose middle is here and that is 2 * size wide."""
        rows, columns = np.ogrid[:SIDE, :SIDE]
        down, right = rows - y, columns - x
        mask = {
            "circle": down**2 + right**2 <= size**2,
            "square": (abs(down) <= size) & (abs(right) <= size),
            "triangle": (abs(down) <= size) & (2 * abs(right) <= down + size),
            "cross": (np.maximum(abs(down), abs(right)) <= size) & (np.minimum(abs(down), abs(right)) <= size // 3),
        }[kind]
        self._pixels[mask] = COLOURS[colour]

    def png(self) -> str:
        """The picture as a PNG, base64."""
        return png(SIDE, self._pixels.tobytes())

"""Rows of a data set that studies draw; apart from the drawing, which needs fonts, Pillow and time to import."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class DrawnPart:
    """Rows of one part of a data set: unique ids (n,), images (n, *dims), labels int64 (n,)."""

    ids: npt.NDArray[Any]
    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]

    def sha256(self) -> str:
        """Of images and labels. Another version of Pillow or of the fonts may draw other pictures."""
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()

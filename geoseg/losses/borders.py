"""More weight for pixels between two objects that nearly touch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_HEIGHT = 10.0
_SIGMA = 5.0
_REACH = 20
"""Pixels beyond which an object's weight is below 0.004."""


def border_weights(classes: NDArray[np.integer]) -> NDArray[np.float32]:
    """What U-Net's loss adds to the weight of a class: ``10 exp(-(d1 + d2)^2 / (2 * 5^2))``, distances in pixels.

    Ronneberger et al. 2015, arXiv:1505.04597, equation 2, where ``d1`` and ``d2`` are the distances to the two nearest cells. Here objects
    are the connected parts of each class, pixels of other classes get the weight, and of several classes the largest counts.

    Args:
        classes: (N, H, W), -1 where no class is known.

    Returns:
        (N, H, W), 0 far from everything.
    """
    return np.stack([_of_image(image) for image in classes]) if len(classes) else np.zeros(classes.shape, np.float32)


def _of_image(classes: NDArray[np.integer]) -> NDArray[np.float32]:
    nearest = np.full(classes.shape, np.inf, np.float32)
    for number in np.unique(classes[classes >= 0]):
        objects, count = ndimage.label(classes == number)
        if count < 2:
            continue
        first, second = np.full((2, *classes.shape), np.inf, np.float32)
        for index, box in enumerate(ndimage.find_objects(objects), 1):
            place = tuple(slice(max(0, side.start - _REACH), side.stop + _REACH) for side in box)
            distance = ndimage.distance_transform_edt(objects[place] != index).astype(np.float32)
            second[place] = np.minimum(second[place], np.maximum(first[place], distance))
            first[place] = np.minimum(first[place], distance)
        nearest = np.where(objects > 0, nearest, np.minimum(nearest, first + second))
    weights: NDArray[np.float32] = np.float32(_HEIGHT) * np.exp(-(nearest**2) / np.float32(2 * _SIGMA**2))
    return weights

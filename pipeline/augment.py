"""Random distortions of images, drawn anew for every image and epoch; `augment` in params.yaml."""

from functools import cache

import numpy as np
import tensorflow as tf

from pipeline.params import Augment

GRID = 7  # points of the coarse grid of displacements, along each axis
BATCH = 512  # images per call of the compiled function
BORDER = 2  # zeros around each image, so that the neighbours of a clipped position can be read


def augment(images: np.ndarray, strengths: Augment, random: np.random.Generator) -> np.ndarray:
    """Distort each image by its own random affine map plus a smooth displacement field.

    Images are `(n, size, size)`, of any numeric type; the result is float32, in the same range. The
    distortions, at most of these strengths, are a pure function of the generator's state.
    """
    seeds = random.integers(2**31, size=(len(images) // BATCH + 1, 2)).astype("int32")
    distort = _compiled(strengths)
    out = np.empty(images.shape, "float32")
    for seed, start in zip(seeds, range(0, len(images), BATCH), strict=False):
        part = images[start : start + BATCH]
        # Another batch size would be compiled again.
        padded = np.pad(part, ((0, BATCH - len(part)), (0, 0), (0, 0)))
        out[start : start + len(part)] = distort(padded, seed)[: len(part)]
    return out


@cache
def _compiled(strengths):
    @tf.function(jit_compile=True)
    def distort(images, seed):
        batch, size, _ = images.shape
        seeds = tf.random.split(seed, 2, alg="philox")
        draw = tf.random.stateless_uniform((batch, 7), seeds[0], -1.0, 1.0, alg="philox")[:, :, None, None]
        y, x = _affine(draw, strengths, size)
        moves = _displacements(batch, seeds[1], strengths.displacement, size) + draw[:, 5:] * strengths.shift
        return _sample(images, y + moves[:, 0], x + moves[:, 1])

    return distort


def _affine(draw, strengths, size):
    """Positions at which a random linear map about the centre reads each image.

    The draw is `(batch, 5 or more, 1, 1)`, from -1 to 1. Returns y and x, `(batch, size, size)` each, in
    pixels from the centre.
    """
    angle = draw[:, 0] * (strengths.rotation * np.pi / 180)
    scale_y, scale_x = 1 + draw[:, 1] * strengths.scaling, 1 + draw[:, 2] * strengths.scaling
    shear_y, shear_x = draw[:, 3] * strengths.shear, draw[:, 4] * strengths.shear
    cos, sin = tf.cos(angle), tf.sin(angle)
    axis = tf.range(size, dtype=tf.float32) - (size - 1) / 2
    y, x = axis[None, :, None], axis[None, None, :]
    rotated_y, rotated_x = cos * y + sin * x, cos * x - sin * y
    return scale_y * (rotated_y + shear_y * rotated_x), scale_x * (rotated_x + shear_x * rotated_y)


def _displacements(batch, seed, largest, size):
    """Smooth random displacements `(batch, 2, size, size)`, in pixels.

    They are those of Simard et al. 2003 ("Best practices for convolutional neural networks"), drawn on a
    coarse grid and interpolated linearly.
    """
    coarse = tf.random.stateless_uniform((batch, 2, GRID, GRID), seed, -largest, largest, alg="philox")
    position = np.linspace(0, GRID - 1, size)
    fine = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(GRID))).astype("float32")
    return tf.einsum("yi,bdij,xj->bdyx", fine, coarse, fine)


def _sample(images, y, x):
    """Read images bilinearly at positions in pixels from their centre, zero outside of them."""
    batch, size, _ = images.shape
    padded = size + 2 * BORDER
    padding = ((0, 0), (BORDER, BORDER), (BORDER, BORDER))
    canvas = tf.reshape(tf.pad(tf.cast(images, tf.float32), padding), (-1,))
    y = tf.clip_by_value(y + (size - 1) / 2 + BORDER, 0.0, padded - 1.001)
    x = tf.clip_by_value(x + (size - 1) / 2 + BORDER, 0.0, padded - 1.001)
    top, left = tf.floor(y), tf.floor(x)
    down, right = y - top, x - left
    first = tf.range(batch)[:, None, None] * padded * padded
    corner = first + tf.cast(top, tf.int32) * padded + tf.cast(left, tf.int32)

    def at(offset):
        return tf.gather(canvas, corner + offset)

    upper = (1 - right) * at(0) + right * at(1)
    lower = (1 - right) * at(padded) + right * at(padded + 1)
    return (1 - down) * upper + down * lower

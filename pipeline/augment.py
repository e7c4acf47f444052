"""Random distortions of digit images, drawn anew for every image and epoch by `training.py`."""

import numpy as np
import tensorflow as tf

SIZE = 28

# Largest distortions; each is drawn uniformly up to it, in both directions.
ROTATION = 12 * np.pi / 180  # radians
SCALING = 0.10  # of the size, each axis on its own
SHEAR = 0.15  # pixels a pixel
SHIFT = 2.0  # pixels
DISPLACEMENT = 0.7  # pixels, of the points of a coarse grid; between them it is interpolated
GRID = 7


def _interpolation(coarse, fine):
    """Linear interpolation from `coarse` to `fine` points of one axis, `(fine, coarse)`."""
    position = np.linspace(0, coarse - 1, fine)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(coarse))).astype("float32")


@tf.function(jit_compile=True)
def augment(images, seed):
    """Distort each image by its own random affine map plus a smooth displacement field.

    The affine map acts about the centre of the image; the displacement field is that of Simard et
    al. 2003 ("Best practices for convolutional neural networks"), drawn on a coarse grid. Pixels
    are sampled bilinearly, zero outside of the image.

    Args:
        images: `(batch, 28, 28)`, any numeric type.
        seed: two int32; the distortions are a pure function of it and the batch's size.

    Returns:
        `(batch, 28, 28)` float32, in the same range as the input.
    """
    batch = images.shape[0]
    seeds = tf.random.split(seed, 2, alg="philox")
    draw = tf.random.stateless_uniform((batch, 7), seeds[0], -1.0, 1.0, alg="philox")
    angle = draw[:, 0] * ROTATION
    scale_y, scale_x = 1 + draw[:, 1] * SCALING, 1 + draw[:, 2] * SCALING
    shear_y, shear_x = draw[:, 3] * SHEAR, draw[:, 4] * SHEAR
    cos, sin = tf.cos(angle), tf.sin(angle)

    def per_image(values):
        return values[:, None, None]

    axis = tf.range(SIZE, dtype=tf.float32) - (SIZE - 1) / 2
    y, x = axis[None, :, None], axis[None, None, :]
    source_y = per_image(scale_y * (cos + sin * shear_y)) * y + per_image(scale_y * (sin + cos * shear_y)) * x
    source_x = per_image(scale_x * (cos * shear_x - sin)) * y + per_image(scale_x * (cos - sin * shear_x)) * x
    up = tf.constant(_interpolation(GRID, SIZE))
    coarse = tf.random.stateless_uniform((batch, 2, GRID, GRID), seeds[1],
                                         -DISPLACEMENT, DISPLACEMENT, alg="philox")
    field = tf.einsum("yi,bdij,xj->bdyx", up, coarse, up)
    source_y += field[:, 0] + per_image(draw[:, 5] * SHIFT)
    source_x += field[:, 1] + per_image(draw[:, 6] * SHIFT)

    # A border of zeros lets every neighbour of a clipped position be read without a test.
    border = 2
    padded = SIZE + 2 * border
    canvas = tf.reshape(tf.pad(tf.cast(images, tf.float32), ((0, 0), (border,) * 2, (border,) * 2)), (-1,))
    source_y = tf.clip_by_value(source_y + (SIZE - 1) / 2 + border, 0.0, padded - 1.001)
    source_x = tf.clip_by_value(source_x + (SIZE - 1) / 2 + border, 0.0, padded - 1.001)
    top, left = tf.floor(source_y), tf.floor(source_x)
    down, right = source_y - top, source_x - left
    corner = (tf.range(batch)[:, None, None] * padded * padded
              + tf.cast(top, tf.int32) * padded + tf.cast(left, tf.int32))

    def at(offset):
        return tf.gather(canvas, corner + offset)

    return ((1 - down) * ((1 - right) * at(0) + right * at(1))
            + down * ((1 - right) * at(padded) + right * at(padded + 1)))

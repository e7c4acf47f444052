"""How a prediction forms: the parts that are read end in the network's own prediction."""

import numpy as np
import pytest
from helpers import small_network

from pipeline.networks import average, build_ensemble, predict
from pipeline.reading import find_row_reader, read_in_part


@pytest.mark.slow
def test_all_rows_from_either_end_are_the_whole_image(mnist):
    network, images = small_network("rows"), mnist["test_images"][:3]
    top, bottom, together = read_in_part(network, images)
    whole = predict(network, images)
    assert top.shape == bottom.shape == together.shape == (3, 26, 10)
    np.testing.assert_allclose(top[:, -1], whole, atol=1e-5)
    np.testing.assert_allclose(bottom[:, 0], whole, atol=1e-5)
    for part in (top, bottom, together):
        np.testing.assert_allclose(part.sum(axis=2), 1, atol=1e-5)
    # What is below the rows read so far changes nothing; what is above changes all that follows.
    below = images.copy()
    below[:, 20:] = 255
    changed = read_in_part(network, below)
    np.testing.assert_array_equal(changed[0][:, :19], top[:, :19])
    assert (changed[2] != together).any(axis=2).all()


def test_the_row_reader_is_found_wherever_it_is():
    rows, grid = small_network("rows"), small_network("grid_rows")
    assert find_row_reader(rows) is rows and find_row_reader(grid) is None
    fold = average([small_network("grid_columns"), rows], ["grid_columns", "rows"], "fold_1")
    assert find_row_reader(build_ensemble([grid, fold])) is rows
    assert (
        find_row_reader(build_ensemble([small_network("grid_rows"), small_network("grid_columns")])) is None
    )

"""Predictions from partial images end in the network's own prediction."""

import numpy as np
import pytest
from helpers import small_network

from pipeline.architectures import ARCHITECTURES, Architecture, average, build_rows
from pipeline.prediction import predict
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
    # Rows below those read so far change nothing; rows above change all that follows.
    below = images.copy()
    below[:, 20:] = 255
    changed = read_in_part(network, below)
    np.testing.assert_array_equal(changed[0][:, :19], top[:, :19])
    assert (changed[2] != together).any(axis=2).all()


def test_the_row_reader_is_found_by_the_name_of_its_architecture(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "columns", Architecture(build_rows))
    rows, second = small_network("rows"), small_network("rows")
    second.name = "rows_2027"  # a fold with several seeds
    others = [average([small_network("columns"), small_network("grid_rows")], "fold_0")]
    assert find_row_reader(average(others, "ensemble")) is None
    for network in (rows, second):
        fold = average([network], "fold_1")
        assert find_row_reader(average([*others, fold], "ensemble")) is network

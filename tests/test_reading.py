"""Predictions from partial images end in the network's own prediction."""

import numpy as np
import pytest
from helpers import small_network

from pipeline.architectures import ARCHITECTURES, Architecture, average, build_rows
from pipeline.prediction import predict
from pipeline.reading import find_row_reader, read_in_part


@pytest.mark.slow
def test_all_rows_from_either_end_are_the_whole_image(mnist):
    network, images = small_network("rows"), mnist["test_images"][[0, 1, 0, 1]]
    images[2:, 20:] = 255
    top, bottom, together = parts = read_in_part(network, images)
    whole = predict(network, images)
    assert parts.shape == (3, 4, 26, 10)
    np.testing.assert_allclose(top[:, -1], whole, atol=1e-5)
    np.testing.assert_allclose(bottom[:, 0], whole, atol=1e-5)
    np.testing.assert_allclose(parts.sum(axis=3), 1, atol=1e-5)
    # Rows below those read so far change nothing; rows above change all that follows.
    np.testing.assert_array_equal(top[2:, :19], top[:2, :19])
    assert (together[2:] != together[:2]).any(axis=2).all()


def test_the_row_reader_is_found_by_the_name_of_its_architecture(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "columns", Architecture(build_rows))
    rows, second = small_network("rows"), small_network("rows")
    second.name = "rows_2027"  # a fold with several seeds
    others = [average([small_network("columns"), small_network("grid_rows")], "fold_0")]
    assert find_row_reader(average(others, "ensemble")) is None
    for network in (rows, second):
        fold = average([network], "fold_1")
        assert find_row_reader(average([*others, fold], "ensemble")) is network

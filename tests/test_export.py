"""The exported ensemble: loads without this project, and predicts the same."""

import numpy as np
import pytest
from helpers import run_python, small_network

from pipeline.architectures import ARCHITECTURES, average, to_stock
from pipeline.files import save_network
from pipeline.prediction import load_network, predict

PREDICT = """
import sys, keras, numpy
model = keras.models.load_model("exported.keras")
numpy.save("probabilities.npy", model.predict(numpy.load("images.npy"), verbose=0))
assert not {"pipeline", "fastlstm"} & set(sys.modules)
"""


@pytest.mark.slow
def test_the_exported_ensemble_needs_keras_alone(digits, tmp_path):
    folds = [
        average([small_network(name)], f"fold_{number}", shift=int(number == 0))
        for number, name in enumerate(ARCHITECTURES)
    ]
    for weight in (weight for fold in folds for weight in fold.weights if "moving" in weight.name):
        weight.assign(weight + 0.1)
    ensemble = average(folds, "ensemble")
    save_network(ensemble, tmp_path / "ensemble.keras")
    np.save(tmp_path / "images.npy", digits.images[:20].astype("float32"))
    save_network(to_stock(load_network(tmp_path / "ensemble.keras")), tmp_path / "exported.keras")
    done = run_python("-c", PREDICT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = predict(ensemble, digits.images[:20])
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy"), expected, atol=1e-5)

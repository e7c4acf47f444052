"""The exported ensemble: loads without this project, and predicts the same."""

import numpy as np
import pytest
from helpers import run_python, small_network

from pipeline.architectures import ARCHITECTURES, average, to_stock
from pipeline.files import save_network
from pipeline.prediction import predict


@pytest.mark.slow
def test_the_exported_ensemble_needs_keras_alone(digits, tmp_path):
    folds = [average([small_network(name)], f"fold_{number}") for number, name in enumerate(ARCHITECTURES)]
    for weight in (weight for fold in folds for weight in fold.weights if "moving" in weight.name):
        weight.assign(weight + 0.1)
    ensemble = average(folds, "ensemble")
    save_network(to_stock(ensemble), tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", digits.images[:20].astype("float32"))
    code = (
        "import sys, numpy, keras\n"
        "model = keras.models.load_model('model.keras')\n"
        "numpy.save('out.npy', model.predict(numpy.load('images.npy'), verbose=0))\n"
        "assert not {'pipeline', 'fastlstm'} & set(sys.modules)"
    )
    done = run_python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = predict(ensemble, digits.images[:20])
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)

"""The ensemble: one Keras model that averages the probabilities of the folds' networks."""

import keras

from pipeline.files import PipelineError

# Prediction is fastest while a batch's activations stay in the processor's cache.
BATCH = 250


def load_network(path):
    """Load a saved network; raises PipelineError if the file is missing or damaged."""
    try:
        return keras.models.load_model(path, compile=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()
        raise PipelineError(f"{path}: is no network that can be loaded: {reason[0] if reason else error!r}")


def build_ensemble(networks):
    """A model from images `(batch, 28, 28)` to the mean of the networks' probabilities."""
    for number, network in enumerate(networks):
        network.name = f"fold_{number}"
    images = keras.Input(networks[0].input_shape[1:], name="images")
    outputs = [network(images) for network in networks]
    return keras.Model(images, keras.layers.Average(name="digits")(outputs), name="ensemble")


def predict(model, images):
    """Probabilities `(n, 10)` float32 for images `(n, 28, 28)`, pixels 0..255."""
    return model.predict(images.astype("float32"), batch_size=BATCH, verbose=0)

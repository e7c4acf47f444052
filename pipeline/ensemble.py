"""The ensemble: one Keras model that averages the probabilities of the folds' networks."""

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf

from pipeline.files import PipelineError
from pipeline.bilstm.graph import whole_batches
from pipeline.training import available_cores, average

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
    return average(networks, [f"fold_{fold}" for fold in range(len(networks))], "ensemble")


def use_one_thread_an_operation(at_once=None):
    """To be called before TensorFlow computes: `predict` keeps the cores busy in its own way.

    The matrix products of one step are too small to share.

    Args:
        at_once: operations at the same time; default one a core.
    """
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(at_once or len(available_cores()))


def predict(model, images):
    """Probabilities `(n, 10)` float32 for images `(n, 28, 28)`, pixels 0..255; a batch a core."""
    # Before the threads start, lest each makes one.
    model.make_predict_function()

    def predict_batch(start):
        with whole_batches():
            return model.predict_on_batch(images[start:start + BATCH].astype("float32"))

    with ThreadPoolExecutor(len(available_cores())) as pool:
        return np.concatenate(list(pool.map(predict_batch, range(0, len(images), BATCH))))

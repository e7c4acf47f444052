"""Load saved networks and predict with all cores; for the stages after training."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from fastlstm.graph import whole_batches

import pipeline.architectures  # noqa: F401  registers the layers of saved networks
from pipeline.files import PipelineError, one_line
from pipeline.machine import available_cores

# Prediction is fastest while a batch's activations fit into the cache. A multiple of the layer's block.
BATCH = 256


def load_network(path: str | Path) -> keras.Model:
    """Load a saved model; raises PipelineError if the file is missing or corrupt."""
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras passes on those of json, h5py and the layers' own checks
        reason = one_line(str(error), 120) or repr(error)
        raise PipelineError(f"{path}: cannot be loaded as a network: {reason}") from error


def use_one_thread_per_operation(at_once: int | None = None) -> None:
    """Use one thread per operation, and run `at_once` operations at a time, by default one per core.

    To be called before TensorFlow computes anything. `predict` runs several batches at a time, because the
    matrix products of one step are too small to share.
    """
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(at_once or len(available_cores()))


def predict(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Predict in batches, one per core at a time.

    From images `(n, size, size)`, pixels 0..255, to the outputs, such as probabilities `(n, classes)`.
    """
    # Whole batches, at least one: TensorFlow would build another graph for a smaller one.
    batches = max(1, -(-len(images) // BATCH))
    padded = np.zeros((batches * BATCH, *images.shape[1:]), "float32")
    padded[: len(images)] = images
    # Before the threads start; otherwise each thread makes its own.
    model.make_predict_function()

    def predict_batch(batch):
        with whole_batches():
            return model.predict_on_batch(batch)

    first, *others = np.split(padded, batches)
    # The first batch alone: it builds the graph, which otherwise each thread would do.
    outputs = [predict_batch(first)]
    with ThreadPoolExecutor(len(available_cores())) as pool:
        outputs.extend(pool.map(predict_batch, others))
    return np.concatenate(outputs)[: len(images)]

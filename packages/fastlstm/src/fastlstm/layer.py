"""BiLSTM: a bidirectional LSTM layer for Keras, written to train fast on a CPU.

It can be used in any Keras model. The weights are those of a stock
`keras.layers.Bidirectional(keras.layers.LSTM(units))` that the layer holds; only the way of computing with
them differs (on a GPU not even that).
"""

import sys

import keras
import tensorflow as tf

from fastlstm.graph import bilstm, own_steps, parts_of_a_batch

READOUTS = ("sequence", "middle", "last", "mean")
PRECISIONS = ("float32", "bfloat16")


@keras.saving.register_keras_serializable("fastlstm")
class BiLSTM(keras.layers.Layer):
    """Bidirectional LSTM, with the readout as part of the layer.

    Same results and gradients as `Bidirectional(LSTM(units))` of Keras, but faster:

    - it runs only the steps that the readout can see (`middle`: 29 of 56 for 28 steps);
    - all steps are one compiled TensorFlow operation (`kernels.py`), which takes a block of samples at a time
      through them, with matrix products of its own (`matmul.py`, `tiles.py`). Each core runs one operation,
      unless the caller keeps the cores busy (`whole_batches`);
    - the backward pass is written by hand: also one operation, whose weight gradients are products over all
      steps of a block while their operands are in the caches. The gradients of a batch's parts are added up,
      so their last bits depend on the number of cores.

    Not differentiable twice; `to_keras` gives a layer that is. Exported (`Model.export`, SavedModel), and
    where `tf.config.run_functions_eagerly` is on, the layer computes as Keras's own.

    Args:
        units: size of each direction's state.
        readout: `"sequence"`, all outputs; `"middle"`, the output at step `steps // 2`; `"last"`,
            the forward output at the last step joined with the backward output at the first
            (`return_sequences=False` of Keras); `"mean"`, the average over the steps.
        precision: `"float32"`, or `"bfloat16"` for matrix products of bfloat16 around float32 cell states;
            gates are then computed to 13 bits, and kept for the gradient in bfloat16.

    Call arguments:
        inputs: `(batch, steps, features)`; `steps` must be known when the graph is built.
        initial_state: optional `[h_forward, c_forward, h_backward, c_backward]`, each
            `(batch, units)`; zeros if left out.
        lengths: optional `(batch,)` integers, the true length of each sample. Outputs past the end
            are zero, the backward direction starts at the sample's own end, `"mean"` averages
            over the sample's own steps (what TensorFlow 1 called `sequence_length`).

    Returns:
        `(batch, steps, 2 * units)` for `"sequence"`, else `(batch, 2 * units)`, float32.

    Raises:
        ValueError: on a value or argument that is not supported.

    Example:
        >>> layer = BiLSTM(128, readout="middle")
        >>> layer(np.zeros((32, 28, 28), "float32")).shape
        TensorShape([32, 256])
    """

    def __init__(self, units, readout="sequence", precision="float32", **kwargs):
        super().__init__(**kwargs)
        if not isinstance(units, int) or isinstance(units, bool) or units < 1:
            raise ValueError(f"BiLSTM: units must be a positive integer, not {units!r}")
        if readout not in READOUTS:
            raise ValueError(f"BiLSTM: readout must be one of {READOUTS}, not {readout!r}")
        if precision not in PRECISIONS:
            raise ValueError(f"BiLSTM: precision must be one of {PRECISIONS}, not {precision!r}")
        if self.compute_dtype != "float32":
            raise ValueError(
                f"BiLSTM: dtype must be float32, not {self.compute_dtype!r}; "
                "use precision='bfloat16' for bfloat16 matrix products"
            )
        self.units, self.readout, self.precision = units, readout, precision
        # The operations have kernels for the CPU, but none inside of XLA.
        self.supports_jit = False
        lstm = keras.layers.LSTM(units, return_sequences=True, zero_output_for_mask=True)
        self.bidirectional = keras.layers.Bidirectional(lstm, name="bidirectional")
        # While a model is being loaded, Keras knows what it has made by the address of its origin.
        # Freed, that address could be another layer's, which would then get this one's parts.
        self._keep_alive = lambda: lstm

    def build(self, input_shape):
        _check_steps_and_features(input_shape)
        # So Keras refuses any other number of features.
        self.input_spec = keras.layers.InputSpec(ndim=3, axes={-1: input_shape[-1]})
        self.bidirectional.build(input_shape)

    def compute_output_shape(self, input_shape, **kwargs):
        batch, steps, _ = input_shape
        if self.readout == "sequence":
            return (batch, steps, 2 * self.units)
        return (batch, 2 * self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "readout": self.readout,
            "precision": self.precision,
        }

    def call(self, inputs, initial_state=None, lengths=None, training=None):
        # The compiled kernels rely on it, also where only the run knows the number of features.
        features = self.bidirectional.forward_layer.cell.kernel.shape[0]
        _check_steps_and_features(inputs.shape)
        inputs = tf.ensure_shape(inputs, (None, inputs.shape[1], features))
        steps = inputs.shape[1]
        mask = None
        if lengths is not None:
            mask = tf.cast(tf.sequence_mask(_checked("lengths", lengths, inputs), steps), self.compute_dtype)
        if initial_state is not None:
            initial_state = [
                _checked("an initial state", state, inputs, self.units) for state in initial_state
            ]
        if (
            tf.config.list_logical_devices("GPU")
            or tf.config.functions_run_eagerly()
            or _is_exported()
            or initial_state is not None
        ):
            return self._call_keras(inputs, initial_state, mask)

        cells = self.bidirectional.forward_layer.cell, self.bidirectional.backward_layer.cell
        parameters = [
            tf.convert_to_tensor(getattr(cell, name))
            for name in ("kernel", "recurrent_kernel", "bias")
            for cell in cells
        ]
        return bilstm(
            parts_of_a_batch(),
            inputs,
            parameters,
            mask,
            self.readout,
            tf.dtypes.as_dtype(self.precision),
            training is not False,
        )

    def _call_keras(self, inputs, initial_state, mask):
        """The same through the stock layer, which has a cuDNN path on a GPU."""
        bool_mask = None if mask is None else tf.cast(mask, tf.bool)
        sequence = self.bidirectional(inputs, initial_state=initial_state, mask=bool_mask)
        steps, units = inputs.shape[1], self.units
        if self.readout == "middle":
            return sequence[:, steps // 2]
        if self.readout == "mean":
            total = tf.reduce_sum(sequence, axis=1)
            return total / (steps if mask is None else own_steps(mask))
        if self.readout == "last":
            last = steps - 1 if mask is None else tf.reduce_sum(tf.cast(mask, tf.int32), 1) - 1
            at_end = tf.gather(sequence, tf.broadcast_to(last, tf.shape(inputs)[:1]), batch_dims=1)
            return tf.concat([at_end[:, :units], sequence[:, 0, units:]], axis=-1)
        return sequence

    @classmethod
    def from_keras(cls, bidirectional, readout=None, precision="float32", **kwargs):
        """A BiLSTM with a copy of the weights of a built `Bidirectional(LSTM)`.

        Args:
            readout: default `"sequence"` where the stock layer returns sequences, else `"last"`.

        Raises:
            ValueError: names the argument of the stock layer that BiLSTM does not support.
        """
        forward, backward = bidirectional.forward_layer, bidirectional.backward_layer
        if bidirectional.merge_mode != "concat":
            raise ValueError(
                f"BiLSTM: merge_mode {bidirectional.merge_mode!r} is not supported, only 'concat'"
            )
        for lstm, go_backwards in ((forward, False), (backward, True)):
            if not isinstance(lstm, keras.layers.LSTM):
                raise ValueError(f"BiLSTM: {type(lstm).__name__} is not supported, only LSTM")
            config = lstm.get_config()
            for name, supported in {**_STOCK_ARGUMENTS, "go_backwards": go_backwards}.items():
                if config[name] != supported:
                    raise ValueError(f"BiLSTM: {name}={config[name]!r} is not supported, only {supported!r}")
        if not bidirectional.built:
            raise ValueError("BiLSTM: the Bidirectional layer has no weights yet; build it first")
        if forward.units != backward.units:
            raise ValueError(
                f"BiLSTM: both directions need the same units, not {forward.units} "
                f"forward and {backward.units} backward"
            )
        if readout is None:
            readout = "sequence" if forward.return_sequences else "last"
        layer = cls(forward.units, readout=readout, precision=precision, **kwargs)
        # The number of steps does not matter to the weights.
        layer.build((None, 1, forward.cell.kernel.shape[0]))
        layer.set_weights(bidirectional.get_weights())
        return layer

    def to_keras(self):
        """A stock `Bidirectional(LSTM)` with a copy of the weights.

        It returns sequences, except for `readout="last"`, which is its `return_sequences=False`.
        """
        if not self.built:
            raise ValueError("BiLSTM: the layer has no weights yet; build it first")
        features = self.bidirectional.forward_layer.cell.kernel.shape[0]
        stock = keras.layers.Bidirectional(
            keras.layers.LSTM(self.units, return_sequences=self.readout != "last")
        )
        stock.build((None, None, features))
        stock.set_weights(self.get_weights())
        return stock


_STOCK_ARGUMENTS = {
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
    "use_bias": True,
    "dropout": 0.0,
    "recurrent_dropout": 0.0,
    "stateful": False,
    "return_state": False,
    **{f"{what}_regularizer": None for what in ("kernel", "recurrent", "bias", "activity")},
    **{f"{what}_constraint": None for what in ("kernel", "recurrent", "bias")},
}


_EXPORTERS = "keras.src.export.", "tensorflow.python.saved_model."


def _is_exported():
    """Whether this graph is built for a SavedModel, which may be loaded where our operations are unknown."""
    frame = sys._getframe()
    while frame := frame.f_back:
        if frame.f_globals.get("__name__", "").startswith(_EXPORTERS):
            return True
    return False


def _check_steps_and_features(shape):
    if not shape[1]:
        raise ValueError(
            f"BiLSTM: the number of steps must be known, and at least 1; input is {tuple(shape)}"
        )
    if shape[2] == 0:
        raise ValueError(f"BiLSTM: there must be at least 1 feature; input is {tuple(shape)}")


def _checked(name, value, inputs, *of_a_sample):
    """The value as a tensor `(batch, *of_a_sample)`; the compiled kernels rely on its shape."""
    value, expected = tf.convert_to_tensor(value), (inputs.shape[0], *of_a_sample)
    if not value.shape.is_compatible_with(expected):
        raise ValueError(f"BiLSTM: {name} must have the shape {expected}, not {tuple(value.shape)}")
    # The rank, and the size of a batch, may be known only in the run.
    value = tf.ensure_shape(value, (None, *of_a_sample))
    as_many = tf.debugging.assert_equal(
        tf.shape(value)[0], tf.shape(inputs)[0], f"BiLSTM: the batch of {name}"
    )
    with tf.control_dependencies([as_many]):
        return tf.identity(value)

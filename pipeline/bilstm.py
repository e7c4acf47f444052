"""BiLSTM: a bidirectional LSTM layer for Keras, written to train fast on a CPU.

`network.py` builds every network of the pipeline from it; it can be used in any Keras model.
The weights are those of a stock `keras.layers.Bidirectional(keras.layers.LSTM(units))` that the
layer holds; only the way of computing with them differs (on a GPU not even that).
"""

import keras
import tensorflow as tf

from pipeline.kernels import grouped, multiplies_here, operation, packed, parts_of_a_batch, ungrouped
from pipeline.lstm_step import END, GATES, MEAN, SEQUENCE
from pipeline.vectors import LANES

READOUTS = ("sequence", "middle", "last", "mean")
PRECISIONS = ("float32", "bfloat16")


@keras.saving.register_keras_serializable("pipeline")
class BiLSTM(keras.layers.Layer):
    """Bidirectional LSTM, with the readout as part of the layer.

    Same results and gradients as `Bidirectional(LSTM(units))` of Keras, sooner:

    - only the steps that the readout can see are run (`middle`: 29 of 56 for 28 steps);
    - all steps are one compiled TensorFlow operation (`kernels.py`), which takes a few samples at a time
      through them, with matrix products of its own (`products.py`), and of which each core runs one, unless
      its callers keep the cores busy (`whole_batches`); where
      the processor has AMX, TensorFlow's products are faster still: it does them, a step at a time;
    - the backward pass is written by hand; weight gradients are products over all steps of these samples,
      while what they need is in the caches. The batch's parts are added up: a gradient's last bits depend
      on the number of cores.

    Not differentiable twice, and not for SavedModel: `to_keras` gives a layer that is both.

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
            raise ValueError(f"BiLSTM: dtype must be float32, not {self.compute_dtype!r}; "
                             "use precision='bfloat16' for bfloat16 matrix products")
        self.units, self.readout, self.precision = units, readout, precision
        # The matrix products cannot reach oneDNN's kernels from inside XLA.
        self.supports_jit = False
        lstm = keras.layers.LSTM(units, return_sequences=True, zero_output_for_mask=True)
        self.bidirectional = keras.layers.Bidirectional(lstm, name="bidirectional")
        # While a model is being loaded, Keras knows what it has made by the address of its origin.
        # Freed, that address could be another layer's, which would then get this one's parts.
        self._keep_alive = lambda: lstm

    def build(self, input_shape):
        if input_shape[1] is None:
            raise ValueError(f"BiLSTM: the number of steps must be known, input is {input_shape}")
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
        steps = inputs.shape[1]
        mask = None
        if lengths is not None:
            mask = tf.cast(tf.sequence_mask(_checked("lengths", lengths, inputs), steps), self.compute_dtype)
        if initial_state is not None:
            initial_state = [_checked("an initial state", state, inputs, self.units)
                             for state in initial_state]
        if tf.config.list_logical_devices("GPU"):
            return self._call_keras(inputs, initial_state, mask)

        cells = self.bidirectional.forward_layer.cell, self.bidirectional.backward_layer.cell
        parameters = [tf.convert_to_tensor(getattr(cell, name))
                      for name in ("kernel", "recurrent_kernel", "bias") for cell in cells]
        h0 = c0 = None
        if initial_state is not None:
            h_forward, c_forward, h_backward, c_backward = initial_state
            h0, c0 = tf.stack([h_forward, h_backward]), tf.stack([c_forward, c_backward])
        run = _in_parts_in_a_graph if tf.executing_eagerly() else _in_parts
        dtype = tf.dtypes.as_dtype(self.precision)
        here = multiplies_here(dtype)
        return run(parts_of_a_batch() if here else 1, inputs, parameters, h0, c0, mask, self.readout, dtype,
                   training is not False, here)

    def _call_keras(self, inputs, initial_state, mask):
        """The same through the stock layer, which has a cuDNN path on a GPU."""
        bool_mask = None if mask is None else tf.cast(mask, tf.bool)
        sequence = self.bidirectional(inputs, initial_state=initial_state, mask=bool_mask)
        steps, units = inputs.shape[1], self.units
        if self.readout == "middle":
            return sequence[:, steps // 2]
        if self.readout == "mean":
            total = tf.reduce_sum(sequence, axis=1)
            return total / (steps if mask is None else _own_steps(mask))
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
            raise ValueError(f"BiLSTM: merge_mode {bidirectional.merge_mode!r} is not supported, "
                             "only 'concat'")
        for lstm, go_backwards in ((forward, False), (backward, True)):
            if not isinstance(lstm, keras.layers.LSTM):
                raise ValueError(f"BiLSTM: {type(lstm).__name__} is not supported, only LSTM")
            config = lstm.get_config()
            for name, supported in {**_STOCK_ARGUMENTS, "go_backwards": go_backwards}.items():
                if config[name] != supported:
                    raise ValueError(f"BiLSTM: {name}={config[name]!r} is not supported, "
                                     f"only {supported!r}")
        if not bidirectional.built:
            raise ValueError("BiLSTM: the Bidirectional layer has no weights yet; build it first")
        if forward.units != backward.units:
            raise ValueError(f"BiLSTM: both directions need the same units, not {forward.units} "
                             f"forward and {backward.units} backward")
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
            keras.layers.LSTM(self.units, return_sequences=self.readout != "last"))
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


def _checked(name, value, inputs, *of_a_sample):
    """The value as a tensor `(batch, *of_a_sample)`; the compiled kernels rely on its shape."""
    value, expected = tf.convert_to_tensor(value), (inputs.shape[0], *of_a_sample)
    if not value.shape.is_compatible_with(expected):
        raise ValueError(f"BiLSTM: {name} must have the shape {expected}, not {tuple(value.shape)}")
    # The size of a batch may be known only in the run.
    as_many = tf.debugging.assert_equal(
        tf.shape(value)[0], tf.shape(inputs)[0], f"BiLSTM: the batch of {name}")
    with tf.control_dependencies([as_many]):
        return tf.identity(value)


def _own_steps(mask):
    """Number of true steps of each sample, at least 1: mask `(batch, steps)` -> `(batch, 1)`."""
    return tf.maximum(tf.reduce_sum(mask, axis=1, keepdims=True), 1.0)


def _whole_groups(states):
    """With as many zeros as the last group of cells lacks to be whole.

    Nobody reads these cells: the weights from them are 0, their outputs are cut off.
    """
    missing = -states.shape[-1] % LANES
    return tf.pad(states, ((0, 0), (0, 0), (0, missing))) if missing else states


def _in_parts(parts, x, parameters, h0, c0, mask, readout, dtype, *how):
    """`_bilstm`, with the batch cut into parts, each an operation of its own, which runs in one thread.

    Args:
        x: `(batch, time, features)`.
        parameters: kernels `(features, 4 * units)`, recurrent kernels `(units, 4 * units)` and biases `(4 *
            units)` of Keras's layers, forward, backward of each.
        h0, c0: `(2, batch, units)`, or both None for zeros.
        mask, readout, dtype, how: as `_bilstm`'s.
    """
    batch, units = tf.shape(x)[0], parameters[2].shape[0]
    groups = grouped(parameters, dtype)
    if h0 is not None:
        h0, c0 = _whole_groups(h0), _whole_groups(c0)
    ends = [batch * part // parts for part in range(parts + 1)]
    sizes = [end - start for start, end in zip(ends, ends[1:])]

    def cut(values, axis):
        # The gradient of a slice is as large as the whole, that of a split is not.
        return [values] * parts if values is None or parts == 1 else tf.split(values, sizes, axis)

    cuts = zip(cut(x, 0), cut(h0, 1), cut(c0, 1), cut(mask, 0))
    outputs = [_bilstm(x_part, parameters, groups, *others, readout, dtype, *how) for x_part, *others in cuts]
    output = outputs[0] if parts == 1 else tf.concat(outputs, axis=0)
    if units % LANES:
        forward, backward = tf.split(output, 2, axis=-1)
        output = tf.concat([forward[..., :units], backward[..., :units]], axis=-1)
    output.set_shape((x.shape[0], *output.shape[1:]))
    return output


def _bilstm(x, parameters, groups, h0, c0, mask, readout, dtype, keep, here):
    """Both directions of the recurrence, and the readout: see `lstm_step.py` for the equations.

    Args:
        x: `(batch, time, features)`.
        parameters: as `_in_parts`'s; only their gradients are asked for here. groups: the same as weights and
            biases of `grouped`.
        h0, c0: `(2, batch, cells)`, cells being the units of whole groups, or both None for zeros.
        mask: None, or `(batch, time)`, 1 within a sample and 0 past its end.
        dtype: of the matrix products' operands.
        keep: what the gradient needs. Prediction is faster without; a gradient then runs all again.
        here: do the matrix products in the same operation as the rest of the steps, see `kernels.py`; else in
            TensorFlow, a step at a time.

    Returns:
        `(batch, time, 2 * cells)` for `"sequence"`, else `(batch, 2 * cells)`, float32.
    """
    if readout == "mean" and mask is not None:
        sequence = _bilstm(x, parameters, groups, h0, c0, mask, "sequence", dtype, keep, here)
        return tf.reduce_sum(sequence, axis=1) / _own_steps(mask)
    weights, bias = groups
    time, features, cells = x.shape[1], x.shape[2], bias.shape[1] // GATES
    from_zero = h0 is None
    if from_zero:
        h0 = c0 = tf.zeros((2, tf.shape(x)[0], cells))
    # For "middle" the forward direction runs from the start to the middle, the backward one from the
    # end: for an even number of steps one step less.
    steps, backward_steps = (time // 2 + 1, time - time // 2) if readout == "middle" else (time, time)
    returns = {"sequence": SEQUENCE, "mean": MEAN}.get(readout, END)
    mask_or_empty = tf.zeros((0, time)) if mask is None else mask

    def nothing(rank, of=tf.float32):
        return tf.zeros((0,) * rank, of)

    def numbers(first, end, keep=True):
        return tf.constant([first, end, steps, backward_steps, returns, keep, from_zero], tf.int32)

    def directions(step):
        return 2 if step < backward_steps else 1

    def rows_of(x):
        """What each direction reads of x, as a matrix, a step's rows together."""
        x = tf.transpose(x, (1, 0, 2))
        rows = x[None] if steps == time else tf.stack([x[:steps], x[time - steps:]])
        return tf.reshape(rows, (rows.shape[0], steps * tf.shape(x)[1], features))

    def forward(x, h0, c0, keep):
        y, before, states = nothing(3), nothing(4, dtype), nothing(4)
        if here:
            _, gates, y, before, states = operation(
                "BilstmForward", dtype, numbers(0, steps, keep), x, packed(weights), nothing(4, dtype),
                nothing(3, dtype), bias, h0, c0, mask_or_empty, y, before, states)
        else:
            recurrent, kernel = weights[:, :cells], weights[:, cells:]
            h, gates = h0, tf.reshape(tf.matmul(rows_of(x), kernel), (2, steps, -1, GATES * cells))
            for step in range(steps):
                z = nothing(3, dtype)
                if step > 0 or not from_zero:
                    z = tf.matmul(h[:directions(step)], recurrent[:directions(step)])
                h, gates, y, before, states = operation(
                    "BilstmForward", dtype, numbers(step, step + 1, keep), nothing(3, dtype),
                    nothing(2, dtype), gates, z, bias, h, c0, mask_or_empty, y, before, states)
                h.set_shape(h0.shape)
        y.set_shape((x.shape[0], time if readout == "sequence" else 1, 2 * cells))
        return y, gates, before, states

    def backward_here(x, gates, before, states, d_y):
        d_h0, d_gates, d_c0, passed, d_bias, d_weights = operation(
            "BilstmBackward", dtype, numbers(0, steps), x, packed(weights[:, :cells], transposed=True), gates,
            states, before, mask_or_empty, d_y, nothing(3, dtype), nothing(3), nothing(3), nothing(2))
        sizes = tf.constant([time, features, backward_steps], tf.int32)
        d_x, = operation(
            "BilstmInputGradient", dtype, sizes, packed(weights[:, cells:], transposed=True), d_gates)
        return d_x, d_weights, d_bias, d_h0, d_c0, passed

    def backward_by_steps(x, gates, before, states, d_y):
        d_gates, d_h, d_c, passed, d_bias = gates, nothing(3, dtype), nothing(3), nothing(3), nothing(2)
        batch, transposed = tf.shape(x)[0], tf.transpose(weights, (0, 2, 1))
        for step in reversed(range(steps)):
            d_z, d_gates, d_c, passed, d_bias, _ = operation(
                "BilstmBackward", dtype, numbers(step, step + 1), nothing(3, dtype), nothing(2, dtype),
                d_gates, states, before, mask_or_empty, d_y, d_h, d_c, passed, d_bias)
            d_z.set_shape((directions(step), None, GATES * cells))
            d_h = tf.matmul(d_z, transposed[:directions(step), :, :cells])
        d_rows = tf.reshape(d_gates, (2, steps * batch, GATES * cells))
        d_kernel = tf.matmul(rows_of(x), d_rows, transpose_a=True)
        d_recurrent = tf.matmul(tf.reshape(before, (2, steps * batch, cells)), d_rows, transpose_a=True)
        d_x = tf.reshape(tf.matmul(d_rows, transposed[:, :, cells:]), (2, steps, batch, features))
        left_out = time - steps
        d_x = (tf.pad(d_x[0], ((0, left_out), (0, 0), (0, 0)))
               + tf.pad(d_x[1], ((left_out, 0), (0, 0), (0, 0))))
        d_weights = tf.cast(tf.concat([d_recurrent, d_kernel], axis=1), tf.float32)
        return tf.cast(tf.transpose(d_x, (1, 0, 2)), tf.float32), d_weights, d_bias, d_h, d_c, passed

    @tf.custom_gradient
    def run_without_keeping(*arguments):
        def gradient(d_y):
            with tf.GradientTape() as tape:
                tape.watch(arguments)
                y = run(*arguments)
            return tape.gradient(y, arguments, d_y)

        x, h0, c0, *_ = arguments
        return forward(tf.cast(x, dtype), h0, c0, keep=False)[0], gradient

    @tf.custom_gradient
    def run(x, h0, c0, *parameters):
        x_cast = tf.cast(x, dtype)
        y, gates, before, states = forward(x_cast, h0, c0, keep=True)

        def gradient(d_y):
            backward = backward_here if here else backward_by_steps
            d_x, d_weights, d_bias, d_h0, d_c0, passed = backward(x_cast, gates, before, states, d_y)
            if mask is not None:
                d_h0 = tf.cast(tf.cast(d_h0, tf.float32) + passed, h0.dtype)
            gradients = d_x, d_h0, d_c0, *ungrouped(parameters[2].shape[0], d_weights, d_bias, dtype)
            for value, of in zip(gradients, (x, h0, c0, *parameters), strict=True):
                value.set_shape(of.shape)
            return gradients

        return y, gradient

    output = (run if keep else run_without_keeping)(x, tf.cast(h0, dtype), c0, *parameters)
    if readout == "sequence":
        return output
    # Not a slice, whose gradient would be copied.
    output = tf.reshape(output, (-1, 2 * cells))
    if mask is not None and readout == "middle":
        return output * mask[:, time // 2, None]
    return output


# The operations of `kernels.py` are for graphs only.
_in_parts_in_a_graph = tf.function(_in_parts)

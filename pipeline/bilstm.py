"""BiLSTM: a bidirectional LSTM layer for Keras, written to train fast on a CPU.

`network.py` builds every network of the pipeline from it; it can be used in any Keras model.
The weights are those of a stock `keras.layers.Bidirectional(keras.layers.LSTM(units))` that the
layer holds; only the way of computing with them differs (on a GPU not even that).
"""

import keras
import tensorflow as tf

READOUTS = ("sequence", "middle", "last", "mean")
PRECISIONS = ("float32", "bfloat16")

# Keras's LSTM orders its gates: input, forget, candidate, output.
GATES = 4


@keras.saving.register_keras_serializable("pipeline")
class BiLSTM(keras.layers.Layer):
    """Bidirectional LSTM, with the readout as part of the layer.

    Same results and gradients as `Bidirectional(LSTM(units))` of Keras, sooner:

    - both directions run in one batched matrix product a step, all input projections in one;
    - only the steps that the readout can see are run (`middle`: 29 of 56 for 28 steps);
    - the backward pass is written by hand, its weight gradients are one product over all steps;
    - the elementwise work of a step is one compiled function.

    Args:
        units: size of each direction's state.
        readout: `"sequence"`, all outputs; `"middle"`, the output at step `steps // 2`; `"last"`,
            the forward output at the last step joined with the backward output at the first
            (`return_sequences=False` of Keras); `"mean"`, the average over the steps.
        precision: `"float32"`, or `"bfloat16"` for matrix products in bfloat16 around float32
            cell states and gates.

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

    def call(self, inputs, initial_state=None, lengths=None):
        steps = inputs.shape[1]
        mask = None
        if lengths is not None:
            mask = tf.cast(tf.sequence_mask(lengths, steps), self.compute_dtype)
        if tf.config.list_logical_devices("GPU"):
            return self._call_keras(inputs, initial_state, mask)

        kernels, recurrents, biases = zip(*(
            map(tf.convert_to_tensor, (cell.kernel, cell.recurrent_kernel, cell.bias))
            for cell in (self.bidirectional.forward_layer.cell,
                         self.bidirectional.backward_layer.cell)))
        batch = tf.shape(inputs)[0]
        if initial_state is None:
            h0 = c0 = tf.zeros((2, batch, self.units))
        else:
            h_forward, c_forward, h_backward, c_backward = initial_state
            h0, c0 = tf.stack([h_forward, h_backward]), tf.stack([c_forward, c_backward])
        output = _bilstm(
            inputs,
            tf.concat(kernels, axis=1), tf.stack(recurrents), tf.concat(biases, axis=0),
            h0, c0,
            None if mask is None else tf.transpose(mask)[:, :, None],
            self.readout,
            tf.dtypes.as_dtype(self.precision),
        )
        return output

    def _call_keras(self, inputs, initial_state, mask):
        """The same through the stock layer, which has a cuDNN path on a GPU."""
        bool_mask = None if mask is None else tf.cast(mask, tf.bool)
        sequence = self.bidirectional(inputs, initial_state=initial_state, mask=bool_mask)
        steps, units = inputs.shape[1], self.units
        if self.readout == "middle":
            return sequence[:, steps // 2]
        if self.readout == "mean":
            total = tf.reduce_sum(sequence, axis=1)
            return total / (steps if mask is None else _own_steps(tf.transpose(mask)))
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


def _own_steps(mask):
    """Number of true steps of each sample, at least 1: mask `(steps, batch)` -> `(batch, 1)`."""
    return tf.maximum(tf.reduce_sum(mask, axis=0), 1.0)[:, None]


@tf.function(jit_compile=True)
def _gates_forward(projected, recurrent, h_previous, c_previous, mask):
    """One step's elementwise work, for one or both directions.

    Args:
        projected: for each direction its step's `(batch, 8 * units)` of input projections.
        recurrent: `(directions, batch, 4 * units)`.
        mask: None or `(directions, batch, 1)`; where it is 0 the states pass through.

    Returns:
        h, c, and the four gates, each `(directions, batch, units)`; all but c in h's type.
    """
    width, dtype = recurrent.shape[-1], recurrent.dtype
    halves = [step[:, d * width:(d + 1) * width] for d, step in enumerate(projected)]
    z = tf.cast(tf.stack(halves), tf.float32) + tf.cast(recurrent, tf.float32)
    # sigmoid(z) = tanh(z / 2) / 2 + 1 / 2: so one tanh, which XLA vectorizes, serves all gates.
    z_i, z_f, z_g, z_o = tf.split(z, GATES, axis=-1)
    i, f, o = (tf.tanh(z / 2) / 2 + 0.5 for z in (z_i, z_f, z_o))
    g = tf.tanh(z_g)
    c = f * c_previous + i * g
    h = tf.cast(o * tf.tanh(c), dtype)
    if mask is not None:
        c = tf.where(mask > 0, c, c_previous)
        h = tf.where(mask > 0, h, h_previous)
    return h, c, *(tf.cast(gate, dtype) for gate in (i, f, g, o))


@tf.function(jit_compile=True)
def _gates_backward(i, f, g, o, c_previous, c, d_output, d_h, d_c, mask):
    """The gradient of `_gates_forward`.

    Args:
        d_output: None, or for each direction the gradient `(batch, 2 * units)` of the output of
            its step; d_h, d_c: of the states after the step.

    Returns:
        The gradients of z `(directions, batch, 4 * units)` and of c_previous; with a mask also
        what passes to h_previous beside z.
    """
    dtype, units = d_h.dtype, d_h.shape[-1]
    i, f, g, o = (tf.cast(gate, tf.float32) for gate in (i, f, g, o))
    d_h = tf.cast(d_h, tf.float32)
    if d_output is not None:
        halves = [step[:, d * units:(d + 1) * units] for d, step in enumerate(d_output)]
        d_h += tf.cast(tf.stack(halves), tf.float32)
    d_h_here, d_c_here = (d_h, d_c) if mask is None else (d_h * mask, d_c * mask)
    tanh_c = tf.tanh(c)
    d_c_here += d_h_here * o * (1 - tanh_c * tanh_c)
    d_z = tf.concat([tf.cast(part, dtype) for part in (
        d_c_here * g * i * (1 - i),
        d_c_here * c_previous * f * (1 - f),
        d_c_here * i * (1 - g * g),
        d_h_here * tanh_c * o * (1 - o),
    )], axis=-1)
    d_c_previous = d_c_here * f
    if mask is None:
        return tf.cast(d_z, dtype), d_c_previous
    return (tf.cast(d_z, dtype), d_c_previous + d_c * (1 - mask),
            tf.cast(d_h * (1 - mask), dtype))


def _bilstm(x, kernel, recurrent, bias, h0, c0, mask, readout, dtype):
    """Both directions of the recurrence, and the readout.

    The equations are Keras's (Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al.
    2000), the gradient is their chain rule, step by step:

        i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o);  g = tanh(z_g)
        z = x @ kernel + bias + h_previous @ recurrent
        c = f * c_previous + i * g;  h = o * tanh(c)

    Args:
        x: `(batch, steps, features)`.
        kernel: `(features, 8 * units)`, forward then backward; `recurrent`: `(2, units, 4 * units)`;
            `bias`: `(8 * units,)`.
        h0, c0: `(2, batch, units)`.
        mask: None, or `(steps, batch, 1)`, 1 within a sample and 0 past its end.
        dtype: of the matrix products' operands.

    Returns:
        `(batch, steps, 2 * units)` for `"sequence"`, else `(batch, 2 * units)`, float32.
    """
    if readout == "mean" and mask is not None:
        sequence = _bilstm(x, kernel, recurrent, bias, h0, c0, mask, "sequence", dtype)
        return tf.reduce_sum(sequence, axis=1) / _own_steps(mask[:, :, 0])
    steps, units = x.shape[1], recurrent.shape[1]
    # The step that each direction reads, in the order of computation. The forward direction may
    # have one step more than the backward one; it then runs its last step alone.
    forward_steps = range(steps // 2 + 1) if readout == "middle" else range(steps)
    backward_steps = range(steps - 1, steps // 2 - 1 if readout == "middle" else -1, -1)
    pairs = [(t, backward_steps[s]) if s < len(backward_steps) else (t,)
             for s, t in enumerate(forward_steps)]

    def step_mask(pair):
        return None if mask is None else tf.stack([mask[t] for t in pair])

    @tf.custom_gradient
    def run(x, kernel, recurrent, bias, h0, c0):
        batch, features = tf.shape(x)[0], x.shape[2]
        by_step = tf.reshape(tf.transpose(x, (1, 0, 2)), (steps * batch, features))
        projected = tf.nn.bias_add(tf.matmul(by_step, kernel), bias)
        projected = tf.unstack(tf.reshape(projected, (steps, batch, 2 * GATES * units)))

        h, c = [tf.cast(h0, dtype)], [c0]
        gates = []
        for pair in pairs:
            alone = len(pair) == 1
            h_previous, c_previous = (h[-1][:1], c[-1][:1]) if alone else (h[-1], c[-1])
            weights = recurrent[:1] if alone else recurrent
            h_next, c_next, *step_gates = _gates_forward(
                [projected[t] for t in pair], tf.matmul(h_previous, weights),
                h_previous, c_previous, step_mask(pair))
            h.append(h_next)
            c.append(c_next)
            gates.append(step_gates)

        def join(forward, backward):
            """Two lists of `steps` arrays `(batch, n)`, as one `(batch, steps, 2 * n)`."""
            interleaved = [array for both in zip(forward, backward) for array in both]
            return tf.reshape(tf.stack(interleaved, axis=1),
                              (batch, steps, 2 * interleaved[0].shape[-1]))

        if readout == "sequence":
            output = join([step_h[0] for step_h in h[1:]], [step_h[1] for step_h in h[:0:-1]])
        elif readout == "mean":
            total = tf.add_n([tf.cast(step_h, tf.float32) for step_h in h[1:]]) / steps
            output = tf.concat([total[0], total[1]], axis=-1)
        else:
            output = tf.concat([h[len(forward_steps)][0], h[len(backward_steps)][1]], axis=-1)

        def gradient(d_output):
            d_output = tf.cast(d_output, dtype)
            d_h, d_c = tf.zeros_like(h[-1]), tf.zeros_like(c[-1])
            d_steps = None
            if readout == "sequence":
                d_steps = tf.unstack(d_output, axis=1)
            elif readout == "mean":
                d_steps = [d_output / steps] * steps
            else:
                # The readout is the last state of each direction.
                d_last = tf.stack(tf.split(d_output, 2, axis=-1))
                d_h = d_last[:h[-1].shape[0]]

            d_z = [None] * len(pairs)
            for s in reversed(range(len(pairs))):
                pair = pairs[s]
                directions = len(pair)
                if d_h.shape[0] < directions:
                    # The backward direction joins: its readout is the state that it ends with.
                    d_h = tf.concat([d_h, d_last[1:]], axis=0)
                    d_c = tf.concat([d_c, tf.zeros_like(d_c)], axis=0)
                d_z[s], d_c, *passed = _gates_backward(
                    *gates[s], c[s][:directions], c[s + 1],
                    None if d_steps is None else [d_steps[t] for t in pair],
                    d_h, d_c, step_mask(pair))
                d_h = tf.matmul(d_z[s], recurrent[:directions], transpose_b=True)
                for term in passed:
                    d_h += term

            both = len(backward_steps)
            d_z_all = tf.reshape(tf.stack(d_z[:both], axis=1), (2, both * batch, GATES * units))
            h_all = tf.reshape(tf.stack(h[:both], axis=1), (2, both * batch, units))
            d_recurrent = tf.matmul(h_all, d_z_all, transpose_a=True)
            if len(pairs) > both:
                alone = tf.matmul(h[both][0], d_z[both][0], transpose_a=True)
                d_recurrent = tf.stack([d_recurrent[0] + alone, d_recurrent[1]])

            # Back in the order of the input's steps, zero where a direction did not read a step.
            nothing = tf.zeros((batch, GATES * units), dtype)
            d_forward = {t: d_z[s][0] for s, t in enumerate(forward_steps)}
            d_backward = {t: d_z[s][1] for s, t in enumerate(backward_steps)}
            d_projected = tf.reshape(
                join([d_forward.get(t, nothing) for t in range(steps)],
                     [d_backward.get(t, nothing) for t in range(steps)]),
                (batch * steps, 2 * GATES * units))
            d_kernel = tf.matmul(tf.reshape(x, (batch * steps, features)), d_projected,
                                 transpose_a=True)
            d_bias = tf.matmul(tf.ones((1, batch * steps), dtype), d_projected)[0]
            d_x = tf.reshape(tf.matmul(d_projected, kernel, transpose_b=True), tf.shape(x))
            return d_x, d_kernel, d_recurrent, d_bias, tf.cast(d_h, tf.float32), d_c

        return tf.cast(output, tf.float32), gradient

    output = run(tf.cast(x, dtype), tf.cast(kernel, dtype), tf.cast(recurrent, dtype),
                 tf.cast(bias, dtype), h0, c0)
    if mask is None:
        return output
    if readout == "sequence":
        return output * tf.transpose(mask, (1, 0, 2))
    if readout == "middle":
        return output * mask[steps // 2]
    return output

"""The Keras layers: LSTM, Bidirectional and BiLSTM. Each is Keras's own layer with another `call`."""

import keras
import tensorflow as tf

from fastlstm.dispatch import PRECISIONS, unsupported, unsupported_here
from fastlstm.graph import run

READOUTS = ("sequence", "middle", "last", "mean")


def check_precision(precision):
    if precision not in PRECISIONS:
        raise ValueError(f"fastlstm: precision must be one of {PRECISIONS}, not {precision!r}")


def make_fast(layer, precision):
    """Turn a layer of Keras into that of this package, in place: weights, graph and optimizer state stay."""
    layer.__class__ = {keras.layers.LSTM: LSTM, keras.layers.Bidirectional: Bidirectional}[type(layer)]
    layer.set_precision(precision)


def _without_padding(inputs, mask):
    """Zero the masked steps, because a NaN there would reach the weights' gradients as 0 * NaN.

    Returns:
        The inputs, and the mask as booleans `(batch, steps)`; other kinds of masks are left to Keras.
    """
    mask = mask[0] if isinstance(mask, list | tuple) else mask
    if mask is None or len(mask.shape) != 2:
        return inputs, mask
    mask = keras.ops.broadcast_to(keras.ops.cast(mask, "bool"), keras.ops.shape(inputs)[:2])
    return keras.ops.where(mask[:, :, None], inputs, keras.ops.zeros_like(inputs)), mask


def _repeat_last_output(sequence, mask):
    """Forward-fill the outputs of masked steps; zero before the first step that is not masked."""
    count = tf.cumsum(tf.cast(mask, tf.int32), axis=1)
    unmasked_first = tf.argsort(tf.cast(~mask, tf.int32), axis=1, stable=True)
    steps = tf.gather(unmasked_first, tf.maximum(count - 1, 0), batch_dims=1)
    # Where nothing came before, this is a masked step, so its output is 0.
    return tf.gather(sequence, tf.where(count > 0, steps, 0), batch_dims=1)


class _Fast:
    """Base of the layers: the fast path, and Keras's own `call` for what it cannot do.

    Attributes:
        fallback: reason why the last call was computed by Keras's layer, or None.
    """

    def __init__(self, *args, precision="float32", **kwargs):
        super().__init__(*args, **kwargs)
        self.set_precision(precision)

    def set_precision(self, precision):
        """Change the precision of the matrix products; the next graph has it."""
        check_precision(precision)
        self.precision, self.fallback = precision, None
        # XLA knows nothing of the operations.
        self.supports_jit = keras.backend.backend() != "tensorflow"

    def get_config(self):
        return {**super().get_config(), "precision": self.precision}

    def call(self, sequences, initial_state=None, mask=None, training=None):
        sequences, mask = _without_padding(sequences, mask)
        try:
            if reason := unsupported_here():
                raise NotImplementedError(reason)
            output = self._call_fast(sequences, initial_state, mask, training)
            self.fallback = None
        except NotImplementedError as error:
            self.fallback = str(error)
            output = self._call_stock(sequences, initial_state, mask, training)
        return output

    def _call_stock(self, sequences, initial_state, mask, training):
        return super().call(sequences, initial_state=initial_state, mask=mask, training=training)


@keras.saving.register_keras_serializable("fastlstm")
class LSTM(_Fast, keras.layers.LSTM):
    """Keras's LSTM, but faster on a CPU.

    Arguments, weights, outputs and gradients are those of `keras.layers.LSTM`. Whatever the compiled
    operations cannot do is computed by Keras's layer: initial states, `return_state`, `stateful`, other
    activations, `recurrent_dropout` in training, dtypes other than float32, an unknown number of steps, a
    GPU, XLA, functions that run eagerly, and graphs for an export.

    Any mask `(batch, steps)` gives Keras's numbers: a masked step changes no state, and its output is that of
    the step before it (0 at the beginning, or with `zero_output_for_mask`). With `go_backwards`, the whole
    sequence is reversed, so padding comes first. Unlike in Keras, a NaN in a masked step reaches no gradient.

    Not differentiable twice; what `to_keras` returns is.

    Args:
        units: size of the state.
        precision: `"float32"`, or `"bfloat16"` for bfloat16 matrix products and float32 cell states.
        **kwargs: see `keras.layers.LSTM`.

    Example:
        >>> layer = LSTM(128, return_sequences=True)
        >>> layer(np.zeros((32, 28, 28), "float32")).shape
        TensorShape([32, 28, 128])
    """

    def _call_fast(self, sequences, initial_state, mask, training):
        if initial_state is not None or self.return_state:
            raise NotImplementedError("the operations begin at zero and return no state")
        if training and (self.recurrent_dropout or (self.dropout and self.cell.implementation == 1)):
            raise NotImplementedError("recurrent_dropout, and dropout with implementation=1, in training")
        if self.go_backwards:
            sequences = tf.reverse(sequences, [1])
            mask = None if mask is None else tf.reverse(mask, [1])
        # As Keras does, also in prediction, so that the random numbers of later calls are Keras's.
        state = self.get_initial_state(tf.shape(sequences)[0])
        self._maybe_config_dropout_masks(self.cell, sequences[:, 0], state)
        if training and 0 < self.dropout < 1:
            sequences = sequences * self.cell.get_dropout_mask(None)[:, None]
        readout = "sequence" if self.return_sequences else "last"
        output = run([self], sequences, mask, readout, self.precision, training)
        self._maybe_reset_dropout_masks(self.cell)
        if mask is None:
            return output
        if self.zero_output_for_mask:
            return output if self.return_sequences else tf.where(mask[:, -1:], output, 0.0)
        return _repeat_last_output(output, mask) if self.return_sequences else output


@keras.saving.register_keras_serializable("fastlstm")
class Bidirectional(_Fast, keras.layers.Bidirectional):
    """Keras's Bidirectional around two LSTMs, but faster on a CPU: one operation for both directions.

    Arguments, weights, outputs and gradients are those of `keras.layers.Bidirectional`. What the operation
    cannot do (see `LSTM`) is computed by the two layers inside.

    As in Keras, the output of a masked step is 0 where sequences are returned.

    Args:
        layer: an `LSTM`, of Keras or of this package.
        precision: of both directions, see `LSTM`; by default that of `layer`.
        **kwargs: see `keras.layers.Bidirectional`.
    """

    def __init__(self, layer, *args, precision=None, **kwargs):
        precision = precision or getattr(layer, "precision", "float32")
        super().__init__(layer, *args, precision=precision, **kwargs)

    def set_precision(self, precision):
        super().set_precision(precision)
        for direction in (self.forward_layer, self.backward_layer):
            if type(direction) is keras.layers.LSTM:
                make_fast(direction, precision)
            elif isinstance(direction, LSTM):
                direction.set_precision(precision)

    def _call_fast(self, sequences, initial_state, mask, training):
        if reason := _separate(self) or (initial_state is not None and "the operations begin at zero"):
            raise NotImplementedError(reason)
        readout = getattr(self, "readout", "sequence" if self.return_sequences else "last")
        layers = self.forward_layer, self.backward_layer
        output = run(layers, sequences, mask, readout, self.precision, training)
        if self.merge_mode == "concat":
            return output
        forward, backward = tf.split(output, 2, axis=-1)
        if self.merge_mode is None:
            return forward, backward
        if self.merge_mode == "mul":
            return forward * backward
        return (forward + backward) / (2 if self.merge_mode == "ave" else 1)


def unsupported_pair(forward, backward) -> str | None:
    """Reason why `Bidirectional` never gains anything for these layers, or None."""
    for layer in (forward, backward):
        if type(layer) not in (keras.layers.LSTM, LSTM):
            return f"it contains {type(layer).__name__}, not LSTM"
        if reason := unsupported(layer):
            return reason
    return None


def _separate(bidirectional) -> str | None:
    """Reason why one operation does not compute both directions, or None."""
    forward, backward = layers = bidirectional.forward_layer, bidirectional.backward_layer
    if reason := unsupported_pair(forward, backward):
        return reason
    if bidirectional.return_state:
        return "return_state is True; the operations return no state"
    if forward.go_backwards or not backward.go_backwards or forward.units != backward.units:
        return "the directions are swapped or have different units"
    if any(layer.dropout or layer.recurrent_dropout for layer in layers):
        return "each direction has a dropout or recurrent_dropout of its own"
    if any(layer.activity_regularizer for layer in layers):
        return "each direction has an activity regularizer"
    if any(layer.zero_output_for_mask != layer.return_sequences for layer in layers):
        return "zero_output_for_mask was changed"
    return None


@keras.saving.register_keras_serializable("fastlstm")
class BiLSTM(Bidirectional):
    """Bidirectional LSTM with the readout as part of the layer.

    Same results and gradients as `keras.layers.Bidirectional(keras.layers.LSTM(units))`, but faster on a CPU.
    It runs only the steps that the readout depends on (`middle`: 29 of 56 for 28 steps). Limits: see `LSTM`.

    Masked steps change no state and have an output of 0, as in Keras. `"last"` is each direction's output
    after its last step that is not masked. `"mean"` averages over the steps that are not masked; it is 0
    where all are.

    Args:
        units: size of each direction's state.
        readout: `"sequence"`, all outputs; `"middle"`, the output at step `steps // 2`; `"last"`,
            the forward output at the last step joined with the backward output at the first
            (`return_sequences=False` of Keras); `"mean"`, the average over the steps.
        precision: `"float32"`, or `"bfloat16"` for bfloat16 matrix products and float32 cell states; gates
            are then computed to 13 bits, and activations saved for the gradient are bfloat16.

    Call arguments:
        inputs: `(batch, steps, features)`.
        initial_state: optional `[h_forward, c_forward, h_backward, c_backward]`, each `(batch, units)`.
        mask: optional `(batch, steps)`, True for the steps to use.
        lengths: optional `(batch,)` integers, the number of steps of each sample: a mask of its first steps.
            Pass them to the next layer, too.

    Returns:
        `(batch, steps, 2 * units)` for `"sequence"`, else `(batch, 2 * units)`.

    Example:
        >>> layer = BiLSTM(128, readout="middle")
        >>> layer(np.zeros((32, 28, 28), "float32")).shape
        TensorShape([32, 256])
    """

    def __init__(self, units, readout="sequence", precision="float32", **kwargs):
        if readout not in READOUTS:
            raise ValueError(f"BiLSTM: readout must be one of {READOUTS}, not {readout!r}")
        sequences = readout != "last"
        lstm = keras.layers.LSTM(units, return_sequences=sequences, dtype=kwargs.get("dtype"), name="lstm")
        super().__init__(lstm, merge_mode="concat", precision=precision, **kwargs)
        # While a model is loaded, Keras tracks objects by `id()`, so keep the template alive.
        self._template = lambda: lstm
        self.units, self.readout = units, readout

    def get_config(self):
        config = super(keras.layers.Bidirectional, self).get_config()
        return {**config, "units": self.units, "readout": self.readout, "precision": self.precision}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def compute_output_shape(self, sequences_shape, **kwargs):
        batch, steps, _ = sequences_shape
        return (batch, steps, 2 * self.units) if self.readout == "sequence" else (batch, 2 * self.units)

    def compute_mask(self, inputs, mask):
        return mask if self.readout == "sequence" else None

    def call(self, sequences, initial_state=None, mask=None, lengths=None, training=None):
        if lengths is None:
            return super().call(sequences, initial_state, mask, training)
        steps = keras.ops.arange(keras.ops.shape(sequences)[1])
        within = steps < keras.ops.cast(lengths, "int32")[:, None]
        # Keras passes a mask on only where a layer has a single input.
        mask = getattr(sequences, "_keras_mask", None) if mask is None else mask
        mask = within if mask is None else within & keras.ops.cast(mask, "bool")
        return super().call(sequences, initial_state, mask, training)

    def _call_stock(self, sequences, initial_state, mask, training):
        return self._read(super()._call_stock(sequences, initial_state, mask, training), mask)

    def _read(self, outputs, mask):
        """The readout of Keras's outputs `(batch, steps, 2 * units)`."""
        ops, steps = keras.ops, keras.ops.shape(outputs)[1]
        if self.readout in ("sequence", "last"):
            return outputs
        if self.readout == "middle":
            return outputs[:, steps // 2]
        mask = ops.ones_like(outputs[:, :, 0]) if mask is None else ops.cast(mask, outputs.dtype)
        return ops.sum(outputs, axis=1) / ops.maximum(ops.sum(mask, axis=1, keepdims=True), 1)

"""The programs that training_speed.py compares: each builds a network and trains it step by step.

A program is a function of a `Shape` that returns `train(inputs, labels)`, which takes a step for each batch:
`(steps, batch, ...)` and `(steps, batch)` int32. Libraries are imported inside of the functions, so that a
process loads only the one that it measures. Everything is trained with cross-entropy and Adam.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

GATES = 4
LEARNING_RATE = 0.001
# The operands of the matrix product that stands for the machine's limit.
ROWS, INNER, COLUMNS = 3584, 256, 1024


@dataclass(frozen=True)
class Shape:
    """A stack of bidirectional LSTM layers and a softmax.

    Attributes:
        words: 0 for sequences of vectors; else the size of the vocabulary of sequences of words, which are
            padded on the right and become vectors of `features` values.
    """

    layers: int
    units: int
    readout: str
    steps: int = 28
    features: int = 28
    classes: int = 10
    words: int = 0

    def flop(self):
        """Floating-point operations of the matrix products of training on one sample, padding included.

        A cell step multiplies its input and its state by 4 * units columns; the backward pass costs twice
        the forward one. For `middle`, the last layer needs only the steps up to the middle one, in each
        direction.
        """
        total, features = 0, self.features
        for layer in range(self.layers):
            pruned = self.readout == "middle" and layer == self.layers - 1
            cell_steps = self.steps + 1 if pruned else 2 * self.steps
            total += 3 * 2 * cell_steps * (features + self.units) * GATES * self.units
            features = 2 * self.units
        return total

    def batches(self, number, batch):
        """Random inputs and labels. Vectors are mostly zeros, as rows of digits are."""
        random = np.random.default_rng(0)
        labels = random.integers(self.classes, size=(number, batch), dtype="int32")
        if not self.words:
            inputs = random.random((number, batch, self.steps, self.features), "float32")
            return np.where(inputs < 0.2, 5 * inputs, 0).astype("float32"), labels
        # About as many reviews of IMDB are longer than 200 words as shorter.
        lengths = np.minimum(self.steps, random.geometric(0.7 / self.steps, (number, batch, 1)) + 20)
        inputs = random.integers(1, self.words, (number, batch, self.steps), dtype="int32")
        return np.where(np.arange(self.steps) < lengths, inputs, 0).astype("int32"), labels


def fastlstm(shape, precision):
    """This package's layer."""
    from fastlstm import BiLSTM

    return _keras_steps(shape, lambda readout: [BiLSTM(shape.units, readout, precision)])


def keras_stock(shape, unroll=False, jit_compile=False):
    """The same network of Keras's own layers."""
    from keras import layers

    def recurrent(readout):
        lstm = layers.LSTM(shape.units, return_sequences=readout != "last", unroll=unroll)
        parts = {
            "middle": [layers.Lambda(lambda sequence: sequence[:, shape.steps // 2])],
            "mean": [layers.GlobalAveragePooling1D()],
        }
        return [layers.Bidirectional(lstm), *parts.get(readout, [])]

    return _keras_steps(shape, recurrent, jit_compile)


def _keras_steps(shape, recurrent, jit_compile=False):
    import keras
    import tensorflow as tf

    first = [keras.Input((shape.steps, shape.features))]
    if shape.words:
        embedding = keras.layers.Embedding(shape.words, shape.features, mask_zero=True)
        first = [keras.Input((shape.steps,), dtype="int32"), embedding]
    readouts = ["sequence"] * (shape.layers - 1) + [shape.readout]
    stack = [layer for readout in readouts for layer in recurrent(readout)]
    model = keras.Sequential([*first, *stack, keras.layers.Dense(shape.classes, activation="softmax")])
    model.compile(keras.optimizers.Adam(LEARNING_RATE), keras.losses.SparseCategoricalCrossentropy())
    step = tf.function(model.train_step, jit_compile=jit_compile)

    # All steps in one call. Not `fit`: its input pipeline waits for threads that a single-threaded process
    # does not have.
    @tf.function
    def train(inputs, labels):
        for number in tf.range(len(inputs)):
            step((inputs[number], labels[number]))

    return train


def _one_by_one(step):
    """Steps that are called one after the other."""

    def train(inputs, labels):
        for batch in zip(inputs, labels, strict=True):
            step(*batch)

    return train


def pytorch(shape, bfloat16, pruned=False):
    """`torch.nn.LSTM(bidirectional=True)`, or two LSTMs of only the steps that `middle` needs.

    Padding is computed, too, because packed sequences are slower.
    """
    import torch

    # As TensorFlow does.
    torch.set_flush_denormal(True)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            lstm = partial(torch.nn.LSTM, shape.features, shape.units, batch_first=True)
            self.embedding = torch.nn.Embedding(shape.words, shape.features) if shape.words else None
            if pruned:
                self.forward_lstm, self.backward_lstm = lstm(), lstm()
            else:
                self.lstm = lstm(num_layers=shape.layers, bidirectional=True)
            self.output = torch.nn.Linear(2 * shape.units, shape.classes)

        def read(self, inputs):
            middle = shape.steps // 2
            if pruned:
                forward = self.forward_lstm(inputs[:, : middle + 1])[0]
                backward = self.backward_lstm(inputs[:, middle:].flip(1))[0]
                return torch.cat([forward[:, -1], backward[:, -1]], dim=-1)
            outputs = self.lstm(inputs)[0]
            if shape.readout == "mean":
                return outputs.mean(1)
            if shape.readout == "middle":
                return outputs[:, middle]
            return torch.cat([outputs[:, -1, : shape.units], outputs[:, 0, shape.units :]], dim=-1)

        def forward(self, inputs):
            return self.output(self.read(self.embedding(inputs) if self.embedding else inputs))

    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, fused=True)
    cross_entropy = torch.nn.CrossEntropyLoss()

    def step(inputs, labels):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = cross_entropy(network(torch.from_numpy(inputs)), torch.from_numpy(labels).long())
        loss.backward()
        optimizer.step()

    return _one_by_one(step)


def tensorflow1(shape):
    """The TensorFlow 1 way: a static graph of `BasicLSTMCell`s, middle readout, one layer."""
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default():
        inputs = tf.placeholder(tf.float32, (None, shape.steps, shape.features))
        labels = tf.placeholder(tf.int32, (None,))
        cells = [tf.nn.rnn_cell.BasicLSTMCell(shape.units, forget_bias=1.0) for _ in range(2)]
        outputs, _, _ = tf.nn.static_bidirectional_rnn(*cells, tf.unstack(inputs, axis=1), dtype=tf.float32)
        weights = tf.Variable(tf.random_normal((2 * shape.units, shape.classes)))
        biases = tf.Variable(tf.fill((shape.classes,), 0.1))
        logits = tf.matmul(outputs[shape.steps // 2], weights) + biases
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
        train = tf.train.AdamOptimizer(LEARNING_RATE).minimize(loss)
        session = tf.Session()
        session.run(tf.global_variables_initializer())
    return _one_by_one(lambda x, y: session.run([train, loss], {inputs: x, labels: y}))


def product_tensorflow(shape, dtype):
    """The matrix product alone, in TensorFlow; ignores its arguments."""
    import tensorflow as tf

    a = tf.cast(tf.random.normal((ROWS, INNER)), dtype)
    b = tf.cast(tf.random.normal((INNER, COLUMNS)), dtype)
    return _one_by_one(lambda inputs, labels: tf.matmul(a, b))


def product_pytorch(shape, dtype):
    """The matrix product alone, in PyTorch; ignores its arguments."""
    import torch

    a = torch.randn(ROWS, INNER).to(getattr(torch, dtype))
    b = torch.randn(INNER, COLUMNS).to(a.dtype)
    product = torch.empty(ROWS, COLUMNS, dtype=a.dtype)
    return _one_by_one(lambda inputs, labels: torch.mm(a, b, out=product))


def peak(shape, dtype):
    """The layer's instructions for products alone; ignores its arguments."""
    from peak import peak

    run = peak(2 * ROWS * INNER * COLUMNS, dtype)
    return _one_by_one(lambda inputs, labels: run())

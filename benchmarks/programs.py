"""The programs that training_speed.py compares: each builds a network and trains it step by step.

A program is a function of a `Shape` that returns `train(images, labels)`, which takes a step for each batch:
images `(steps, batch, 28, 28)` float32 with values 0..255, labels `(steps, batch)` int32. Libraries are
imported inside of the functions, so that a process loads only the one that it measures. Everything is trained
with cross-entropy and Adam.
"""

from dataclasses import asdict, dataclass
from functools import partial

SIZE = 28
CLASSES = 10
GATES = 4
LEARNING_RATE = 0.001

# The operands of the matrix product that stands for the machine's limit.
ROWS, INNER, COLUMNS = 3584, 256, 1024


@dataclass(frozen=True)
class Shape:
    """A stack of BiLSTM layers as `pipeline.networks.build_rows` makes it."""

    layers: int
    units: int
    readout: str
    normalize: bool = False
    dropout: float = 0.0
    margin: int = 0

    @property
    def rows(self):
        """Number of rows, and of columns, that are read."""
        return SIZE - 2 * self.margin

    def flop(self):
        """Floating-point operations that training on one image needs, matrix products only.

        A cell step multiplies its input and its state by 4 * units columns; the backward pass
        costs twice the forward one. For `middle`, the last layer needs only the steps up to the
        middle one, in each direction.
        """
        total, features = 0, self.rows
        for layer in range(self.layers):
            pruned = self.readout == "middle" and layer == self.layers - 1
            cell_steps = self.rows + 1 if pruned else 2 * self.rows
            total += 3 * 2 * cell_steps * (features + self.units) * GATES * self.units
            features = 2 * self.units
        return total


def bilstm(shape, precision):
    """This project's layer."""
    from pipeline.networks import build_network

    return _keras_steps(build_network("rows", **asdict(shape), precision=precision), jit_compile=False)


def keras_stock(shape, unroll=False, jit_compile=False):
    """The same network with every BiLSTM replaced by Keras's own `Bidirectional(LSTM)`."""
    import keras
    from fastlstm import BiLSTM
    from pipeline.networks import build_network

    readouts = {
        "sequence": [],
        "middle": [keras.layers.Lambda(lambda sequence: sequence[:, shape.rows // 2])],
        "mean": [keras.layers.GlobalAveragePooling1D()],
        "last": [],
    }

    def replace(layer):
        if not isinstance(layer, BiLSTM):
            return layer.__class__.from_config(layer.get_config())
        lstm = keras.layers.LSTM(layer.units, return_sequences=layer.readout != "last", unroll=unroll)
        return keras.Sequential([keras.layers.Bidirectional(lstm), *readouts[layer.readout]])

    network = build_network("rows", **asdict(shape), precision="float32")
    return _keras_steps(keras.models.clone_model(network, clone_function=replace), jit_compile)


def _keras_steps(model, jit_compile):
    import keras
    import tensorflow as tf

    model.compile(keras.optimizers.Adam(LEARNING_RATE), keras.losses.SparseCategoricalCrossentropy())
    step = tf.function(model.train_step, jit_compile=jit_compile)

    # All steps in one call, as the pipeline trains. Not `fit`: its input pipeline waits for threads that a
    # single-threaded process has not.
    @tf.function
    def train(images, labels):
        for number in tf.range(len(images)):
            step((images[number], labels[number]))

    return train


def _one_by_one(step):
    """Steps that are called one after the other."""

    def train(images, labels):
        for batch in zip(images, labels, strict=True):
            step(*batch)

    return train


def pytorch(shape, bfloat16, pruned=False):
    """`torch.nn.LSTM(bidirectional=True)`, or two LSTMs of only the steps that `middle` needs.

    It does not normalize between its layers, and drops single values there, not those of all steps.
    """
    import torch

    # As TensorFlow does.
    torch.set_flush_denormal(True)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            lstm = partial(torch.nn.LSTM, shape.rows, shape.units, batch_first=True)
            if pruned:
                self.forward_lstm, self.backward_lstm = lstm(), lstm()
            else:
                self.lstm = lstm(num_layers=shape.layers, bidirectional=True, dropout=shape.dropout)
            self.dropout = torch.nn.Dropout(shape.dropout)
            self.digits = torch.nn.Linear(2 * shape.units, CLASSES)

        def read(self, rows):
            middle = shape.rows // 2
            if pruned:
                forward = self.forward_lstm(rows[:, : middle + 1])[0]
                backward = self.backward_lstm(rows[:, middle:].flip(1))[0]
                return torch.cat([forward[:, -1], backward[:, -1]], dim=-1)
            outputs = self.lstm(rows)[0]
            if shape.readout == "mean":
                return outputs.mean(1)
            if shape.readout == "middle":
                return outputs[:, middle]
            return torch.cat([outputs[:, -1, : shape.units], outputs[:, 0, shape.units :]], dim=-1)

        def forward(self, images):
            inner = slice(shape.margin, SIZE - shape.margin)
            return self.digits(self.dropout(self.read(images[:, inner, inner] / 255)))

    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, fused=True)
    cross_entropy = torch.nn.CrossEntropyLoss()

    def step(images, labels):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = cross_entropy(network(torch.from_numpy(images)), torch.from_numpy(labels).long())
        loss.backward()
        optimizer.step()

    return _one_by_one(step)


def tensorflow1(shape):
    """The TensorFlow 1 way: a static graph of `BasicLSTMCell`s, middle readout, one layer."""
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default():
        images = tf.placeholder(tf.float32, (None, SIZE, SIZE))
        labels = tf.placeholder(tf.int32, (None,))
        cells = [tf.nn.rnn_cell.BasicLSTMCell(shape.units, forget_bias=1.0) for _ in range(2)]
        outputs, _, _ = tf.nn.static_bidirectional_rnn(
            *cells, tf.unstack(images / 255, axis=1), dtype=tf.float32
        )
        weights = tf.Variable(tf.random_normal((2 * shape.units, CLASSES)))
        biases = tf.Variable(tf.fill((CLASSES,), 0.1))
        logits = tf.matmul(outputs[SIZE // 2], weights) + biases
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
        train = tf.train.AdamOptimizer(LEARNING_RATE).minimize(loss)
        session = tf.Session()
        session.run(tf.global_variables_initializer())
    return _one_by_one(lambda x, y: session.run([train, loss], {images: x, labels: y}))


def product_tensorflow(shape, dtype):
    """The matrix product alone, in TensorFlow; ignores its arguments."""
    import tensorflow as tf

    a = tf.cast(tf.random.normal((ROWS, INNER)), dtype)
    b = tf.cast(tf.random.normal((INNER, COLUMNS)), dtype)
    return _one_by_one(lambda images, labels: tf.matmul(a, b))


def product_pytorch(shape, dtype):
    """The matrix product alone, in PyTorch; ignores its arguments."""
    import torch

    a = torch.randn(ROWS, INNER).to(getattr(torch, dtype))
    b = torch.randn(INNER, COLUMNS).to(a.dtype)
    product = torch.empty(ROWS, COLUMNS, dtype=a.dtype)
    return _one_by_one(lambda images, labels: torch.mm(a, b, out=product))


def peak(shape, dtype):
    """The layer's instructions for products alone; ignores its arguments."""
    from benchmarks.peak import peak

    run = peak(2 * ROWS * INNER * COLUMNS, dtype)
    return _one_by_one(lambda images, labels: run())

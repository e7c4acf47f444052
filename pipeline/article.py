"""The system of the article that this project starts from, trained as it was, on our layer.

The stage `article` runs it; `check` sets the article's last figure beside the ensemble's.
"""

import keras
import numpy as np
import tensorflow as tf
from scipy.special import log_softmax

from pipeline.bilstm import BiLSTM
from pipeline.ensemble import predict
from pipeline.bilstm.recurrence import GATES
from pipeline.network import CLASSES, SIZE

# The article's table: step -> cost and accuracy on one batch of so many MNIST test images.
PRINTED = {
    0: (2.531533, 0.168), 10: (0.8894601, 0.699), 20: (0.6328424, 0.796), 30: (0.46291852, 0.856),
    970: (0.022114469, 0.992), 980: (0.03192995, 0.99), 990: (0.021659942, 0.988),
    1000: (0.023274422, 0.992),
}
TEST_BATCH = 1000
# Steps from one measurement to the next.
DISPLAY = 10
# Operations that TensorFlow runs at once, and so the parts into which the layer cuts a batch. A fixed number,
# for the order of sums would else depend on the machine's cores.
AT_ONCE = 2


def build_network(units, readout, precision, seed):
    """One BiLSTM over the rows and a linear layer, with the initial weights of the article.

    Its two `BasicLSTMCell(units)` start from Glorot's uniform draw over input and state together,
    its linear layer from a unit normal and 0.1. TensorFlow 1 added the cell's forget bias of 1.0
    to a bias of zero at every step; Keras keeps the sum of both in the bias. The function and
    its gradients are the same, and so is all of the training.

    Args:
        units, readout, precision: see `BiLSTM`; seed: of the initial weights.

    Returns:
        A Keras model from images `(batch, 28, 28)`, pixels 0..255, to the logits of the ten
        digits `(batch, 10)`.
    """
    images = keras.Input((SIZE, SIZE), name="images")
    rows = keras.layers.Rescaling(1 / 255)(images)
    states = BiLSTM(units, readout=readout, precision=precision, name="bilstm")(rows)
    network = keras.Model(images, keras.layers.Dense(CLASSES, name="logits")(states))

    random = np.random.default_rng([seed, 0])
    limit = np.sqrt(6 / (SIZE + units + GATES * units))
    weights = []
    for _direction in range(2):
        joint = random.uniform(-limit, limit, (SIZE + units, GATES * units))
        weights += [joint[:SIZE], joint[SIZE:], np.repeat([0.0, 1.0, 0.0, 0.0], units)]
    network.set_weights([*weights, random.standard_normal((2 * units, CLASSES)),
                         np.full(CLASSES, 0.1)])
    return network


def draw_batches(images, labels, batch_size, steps, seed):
    """Yields `steps` batches, images `(batch_size, 28, 28)` and labels, each epoch shuffled anew.

    What does not fill a batch at the end of an epoch is left out of it.
    """
    batch_size = min(batch_size, len(images))
    for step in range(steps):
        epoch, batch = divmod(step, len(images) // batch_size)
        if batch == 0:
            order = np.random.default_rng([seed, 1, epoch]).permutation(len(images))
        chosen = order[batch * batch_size:(batch + 1) * batch_size]
        yield images[chosen].astype("float32"), labels[chosen]


def train(network, batches, learning_rate):
    """Train one step of Adam a batch; yields each batch's cost, the mean cross-entropy before it."""
    # TensorFlow 1's epsilon; Keras's own is ten times as large.
    optimizer = keras.optimizers.Adam(learning_rate, epsilon=1e-8)
    optimizer.build(network.trainable_variables)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def step(images, labels):
        with tf.GradientTape() as tape:
            cost = cross_entropy(labels, network(images, training=True))
        optimizer.apply(tape.gradient(cost, network.trainable_variables), network.trainable_variables)
        return cost

    for images, labels in batches:
        yield float(step(images, labels))


def measure(network, images, labels):
    """Cost and accuracy on the first TEST_BATCH images, and the accuracy on all."""
    logits = predict(network, images)
    right = np.argmax(logits, axis=1) == labels
    first = np.arange(min(TEST_BATCH, len(labels)))
    return {
        "cost": float(-np.mean(log_softmax(logits.astype(float), axis=1)[first, labels[first]])),
        "accuracy_batch": float(right[first].mean()),
        "accuracy": float(right.mean()),
    }


def run(mnist, steps, units, readout, learning_rate, batch_size, precision, seed, progress):
    """Train as the article does, measuring after every DISPLAY-th step and after the last.

    The measurements change nothing: nothing is chosen and nothing is stopped by them.

    Args:
        mnist: the arrays of `load_mnist`; progress: is told each row as soon as it is known.

    Returns:
        The trained network, and the rows: what `measure` says, with the step's number.
    """
    images, labels = mnist["test_images"], mnist["test_labels"]
    network = build_network(units, readout, precision, seed)
    batches = draw_batches(mnist["train_images"], mnist["train_labels"], batch_size, steps, seed)
    rows = []
    for step, _cost in enumerate(train(network, batches, learning_rate)):
        if step % DISPLAY == 0 or step == steps - 1:
            rows.append({"step": step, **measure(network, images, labels)})
            progress(rows[-1])
    return network, rows


def beside_printed(rows):
    """The article's printed figures and ours at the same steps, as far as the training went."""
    ours = {row["step"]: row for row in rows}
    return {
        f"step_{step}": {
            "article_cost": cost, "cost": ours[step]["cost"],
            "article_accuracy_batch": accuracy, "accuracy_batch": ours[step]["accuracy_batch"],
        }
        for step, (cost, accuracy) in PRINTED.items() if step in ours
    }

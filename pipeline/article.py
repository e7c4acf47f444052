"""The system of the article that this project grew out of, trained as there, with our layer."""

from collections.abc import Iterable, Iterator

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from fastlstm import BiLSTM
from scipy.special import log_softmax

from pipeline.params import Article
from pipeline.prediction import predict

# The article's table: cost and accuracy at some steps, on one batch of TEST_BATCH MNIST test images.
STEPS = (0, 10, 20, 30, 970, 980, 990, 1000)
COSTS = (2.531533, 0.8894601, 0.6328424, 0.46291852, 0.022114469, 0.03192995, 0.021659942, 0.023274422)
ACCURACIES = (0.168, 0.699, 0.796, 0.856, 0.992, 0.99, 0.988, 0.992)
TEST_BATCH = 1000
SIZE, CLASSES, GATES = 28, 10, 4
MEASURE_EVERY, PRINT_EVERY = 10, 100  # steps
# Operations that TensorFlow runs at once, and so the parts into which the layer cuts a batch. A fixed number,
# because otherwise the order of sums would depend on the machine's cores.
AT_ONCE = 2


def build_article_network(units: int, readout: str, precision: str, seed: int) -> keras.Model:
    """One BiLSTM over the rows and a linear layer, with the initial weights of the article.

    Its two `BasicLSTMCell(units)` start from Glorot's uniform draw over input and state together, its linear
    layer from a unit normal and 0.1. TensorFlow 1 added the cell's forget bias of 1.0 to a bias of zero at
    every step; Keras stores the sum of both, with the same gradients.

    From images `(batch, 28, 28)`, pixels 0..255, to logits `(batch, 10)`; the arguments are those of `BiLSTM`
    and the seed of the weights.
    """
    images = keras.Input((SIZE, SIZE), name="images")
    rows = keras.layers.Rescaling(1 / 255)(images)
    features = BiLSTM(units, readout=readout, precision=precision, name="bilstm")(rows)
    network = keras.Model(images, keras.layers.Dense(CLASSES, name="logits")(features))

    random = np.random.default_rng([seed, 0])
    limit = np.sqrt(6 / (SIZE + units + GATES * units))
    weights = []
    for _direction in range(2):
        joint = random.uniform(-limit, limit, (SIZE + units, GATES * units))
        weights += [joint[:SIZE], joint[SIZE:], np.repeat([0.0, 1.0, 0.0, 0.0], units)]
    weights += [random.standard_normal((2 * units, CLASSES)), np.full(CLASSES, 0.1)]
    network.set_weights(weights)
    return network


def draw_batches(
    images: np.ndarray, labels: np.ndarray, batch_size: int, steps: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield `steps` batches, images `(batch_size, 28, 28)` and labels; each epoch is shuffled anew."""
    batch_size = min(batch_size, len(images))
    for step in range(steps):
        epoch, batch = divmod(step, len(images) // batch_size)
        if batch == 0:
            order = np.random.default_rng([seed, 1, epoch]).permutation(len(images))
        chosen = order[batch * batch_size : (batch + 1) * batch_size]
        yield images[chosen].astype("float32"), labels[chosen]


def train(network: keras.Model, batches: Iterable, learning_rate: float) -> Iterator[float]:
    """Train one step of Adam per batch; yields each batch's cost, the mean cross-entropy before the step."""
    # TensorFlow 1's epsilon; Keras's default is ten times as large.
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


def measure(network: keras.Model, mnist: dict[str, np.ndarray]) -> dict[str, float]:
    """Cost and accuracy on the first TEST_BATCH test images, and accuracy and log loss on all."""
    labels = mnist["test_labels"]
    logits = predict(network, mnist["test_images"])
    correct = np.argmax(logits, axis=1) == labels
    losses = -log_softmax(logits.astype(float), axis=1)[np.arange(len(labels)), labels]
    return {
        "cost": float(losses[:TEST_BATCH].mean()),
        "accuracy_batch": float(correct[:TEST_BATCH].mean()),
        "accuracy": float(correct.mean()),
        "log_loss": float(losses.mean()),
    }


def run(mnist: dict[str, np.ndarray], params: Article, precision: str) -> tuple[keras.Model, list[dict]]:
    """Train as in the article, and measure after every MEASURE_EVERY-th step and after the last.

    The measurements choose and stop nothing. Returns the trained network, and for each measurement its
    `step` and the figures of `measure`.
    """
    network = build_article_network(params.units, params.readout, precision, params.seed)
    batches = draw_batches(
        mnist["train_images"], mnist["train_labels"], params.batch_size, params.steps, params.seed
    )
    rows = []
    for step, _cost in enumerate(train(network, batches, params.learning_rate)):
        if step % MEASURE_EVERY == 0 or step == params.steps - 1:
            rows.append({"step": step, **measure(network, mnist)})
            if step % PRINT_EVERY == 0:
                figures = "accuracy {accuracy_batch:.3f} on the batch, {accuracy:.4f} on all".format(
                    **rows[-1]
                )
                print(f"article: step {step}, {figures}", flush=True)
    return network, rows


def beside_printed(rows: list[dict]) -> pd.DataFrame:
    """Table of the rows of `run`, beside the article's printed figures at the same steps."""
    printed = pd.DataFrame({"article_cost": COSTS, "article_accuracy_batch": ACCURACIES}, STEPS)
    return pd.DataFrame(rows).join(printed, on="step")

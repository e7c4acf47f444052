"""The article's program on TensorFlow 1's own functions; `test_article.py` runs it in its own process.

It needs a process where TensorFlow's Keras is `tf_keras` (TF_USE_LEGACY_KERAS=1). Its argument is
a file with initial weights and batches; it prints the cost of each batch.
"""

import json
import sys

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1
v1.disable_eager_execution()

UNITS, CLASSES, STEPS = 128, 10, 28

job = np.load(sys.argv[1])
images = v1.placeholder(tf.float32, (None, STEPS, 28))
labels = v1.placeholder(tf.int32, (None,))
cells = [v1.nn.rnn_cell.BasicLSTMCell(UNITS, forget_bias=1.0) for _direction in range(2)]
outputs, _, _ = v1.nn.static_bidirectional_rnn(*cells, tf.unstack(images, axis=1), dtype=tf.float32)
weights = tf.Variable(tf.zeros((2 * UNITS, CLASSES)))
bias = tf.Variable(tf.zeros(CLASSES))
logits = outputs[STEPS // 2] @ weights + bias
cost = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
train = v1.train.AdamOptimizer(job["learning_rate"]).minimize(cost)

with v1.Session() as session:
    session.run(v1.global_variables_initializer())
    variables = [*cells[0].weights, *cells[1].weights, weights, bias]
    for number, variable in enumerate(variables):
        variable.load(job[f"weights_{number}"], session)
    costs = [
        session.run((cost, train), {images: batch / 255, labels: digits})[0]
        for batch, digits in zip(job["images"], job["labels"], strict=True)
    ]
print(json.dumps([float(value) for value in costs]))

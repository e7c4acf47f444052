"""Muon for the kernels of the LSTMs and Adam for all other variables, with decoupled weight decay."""

import keras
import tensorflow as tf

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7  # of Adam
GATES = 4  # of an LSTM: its kernels are `(inputs, GATES * units)`
MOMENTUM = 0.95
# Coefficients of the Newton-Schulz iteration of Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/).
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 3  # 5 in the source, which takes longer


class Muon(keras.optimizers.Optimizer):
    """Muon (Jordan et al. 2024) for LSTM kernels, AdamW (Loshchilov & Hutter 2019) for all other variables.

    Muon steps along the momentum's nearest orthogonal matrix, so the steps in all directions have similar
    sizes. Each gate's part of a kernel is a matrix of its own; Keras's Muon takes all four as one. A step is
    as large as a typical one of Adam (Liu et al. 2025, arXiv 2502.16982), so both share the learning rate.

    Keras's AdamW passes over every variable some ten times, which took a seventh of the training time.
    """

    def build(self, variables):
        super().build(variables)
        self._momentums = self.add_optimizer_variables(variables, "momentum")
        # None for the kernels, which need no second moment.
        self._velocities = [
            None
            if "lstm_cell/" in variable.path and variable.ndim == 2
            else self.add_variable_from_reference(variable, name="velocity")
            for variable in variables
        ]

    def update_step(self, gradient, variable, learning_rate):
        index, rate = self._get_variable_index(variable), tf.cast(learning_rate, tf.float32)
        momentum, velocity = self._momentums[index], self._velocities[index]
        if velocity is None:
            momentum.assign(MOMENTUM * momentum + (1 - MOMENTUM) * gradient)
            nesterov = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
            variable.assign_sub(rate * orthogonal_step(nesterov))
            return
        step = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=momentum.value.handle,
            v=velocity.value.handle,
            beta1_power=BETA_1**step,
            beta2_power=BETA_2**step,
            lr=rate,
            beta1=BETA_1,
            beta2=BETA_2,
            epsilon=EPSILON,
            grad=gradient,
        )

    def _apply_weight_decay(self, variables):
        kept = 1 - self.weight_decay * tf.cast(self.learning_rate, tf.float32)
        for variable in variables:
            variable.assign(variable * kept)


def orthogonal_step(momentum: tf.Tensor) -> tf.Tensor:
    """Replace each gate's part of a kernel's momentum, `(inputs, GATES * units)`, by an orthogonal matrix.

    Singular values above 0.02 of the Frobenius norm end between 0.65 and 1.2, smaller ones lower. The factor
    0.2 * sqrt(max(inputs, units)) makes the root mean square of the elements about 0.2, as for Adam.
    """
    inputs, units = momentum.shape[0], momentum.shape[1] // GATES
    gates = tf.transpose(tf.reshape(momentum, (inputs, GATES, units)), (1, 0, 2))
    tall = inputs >= units
    x = gates if tall else tf.transpose(gates, (0, 2, 1))
    x /= tf.norm(x, axis=(1, 2), keepdims=True) + 1e-12
    for _ in range(ITERATIONS):
        square = tf.matmul(x, x, transpose_a=True)
        x = A * x + tf.matmul(x, B * square + C * tf.matmul(square, square))
    x = x if tall else tf.transpose(x, (0, 2, 1))
    return 0.2 * max(inputs, units) ** 0.5 * tf.reshape(tf.transpose(x, (1, 0, 2)), momentum.shape)

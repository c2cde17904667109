"""How far the student's distributions are from the teacher's."""

import tensorflow as tf

from tfspeed.training.options import TrainOptions


def loss(student_logits, teacher_logits, tokens, options: TrainOptions):
    """Mean over positions, a float32 scalar: `(1 - c) T² KL(teacher ‖ student) + c CE`.

    Args:
        student_logits: float32 `[batch, length, vocabulary]`.
        teacher_logits: the same, or None: cross-entropy alone.
        tokens: int32 `[batch, length]`. The last position predicts nothing and is left out.
    """
    share = options.cross_entropy if teacher_logits is not None else 1.0
    total = 0.0
    if share < 1:
        t = options.temperature
        p = tf.nn.log_softmax(teacher_logits[:, :-1] / t)
        q = tf.nn.log_softmax(student_logits[:, :-1] / t)
        total += (1 - share) * t * t * tf.reduce_mean(tf.reduce_sum(tf.exp(p) * (p - q), axis=-1))
    if share > 0:
        total += share * tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(
            tokens[:, 1:], student_logits[:, :-1]))
    return total

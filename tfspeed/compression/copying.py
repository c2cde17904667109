"""Copies of a model that share its memory: only what changes afterwards takes room of its own."""

import copy

import keras
import tensorflow as tf

from tfspeed.errors import TfspeedError
from tfspeed.models.conversion import named_layers, unallocated
from tfspeed.models.language_model import LanguageModel


def copied(model: LanguageModel) -> LanguageModel:
    """The same model over new layers, whose variables read the original's memory.

    Nothing may be assigned to a variable of the copy before it has been `renew`ed.

    Raises:
        TfspeedError: see `rebuilt` and `check_finite`.
    """
    check_finite(model.keras_model)
    made = rebuilt(model.keras_model)
    share(made, model.keras_model)
    return over(model, made)


def check_finite(keras_model: keras.Model) -> None:
    """Raises TfspeedError where a weight is NaN or infinite, be it a norm's: whatever is fitted to
    what later layers read would be blamed for it."""
    for name, layer in [("", keras_model), *named_layers(keras_model)]:
        for variable in (*layer._trainable_variables, *layer._non_trainable_variables):
            value = variable.value
            if keras.backend.is_float_dtype(variable.dtype) and not bool(
                    tf.reduce_all(tf.math.is_finite(value))):
                bad = int(tf.reduce_sum(tf.cast(~tf.math.is_finite(value), tf.int64)))
                raise TfspeedError("A weight is not finite.",
                                   tensor=f"{name}/{variable.name}".strip("/"), values=bad,
                                   hint="The model file is damaged, or its training diverged.")


def over(model: LanguageModel, keras_model: keras.Model) -> LanguageModel:
    """A model like another, over a Keras model of its own."""
    made = copy.copy(model)
    made.keras_model, made.notes = keras_model, list(model.notes)
    return made


def rebuilt(keras_model: keras.Model, config: dict | None = None) -> keras.Model:
    """The layers built again from the model's config, or from a changed one, without any memory:
    each variable is to be given a value.

    Raises:
        TfspeedError: the model cannot be built from its config.
    """
    try:
        with unallocated():
            made = type(keras_model).from_config(config or keras_model.get_config())
            if not made.built and keras_model.built:
                made.build_from_config(keras_model.get_build_config())
    except Exception as error:
        raise _no_config(keras_model, str(error).splitlines()[0][:200] if str(error)
                         else type(error).__name__) from error
    return made


def share(made, original) -> None:
    """Lets the variables of a rebuilt model, or of a layer of it, read the original's memory."""
    for new, old in same_variables(made, original):
        new._value, new._initializer = old._value, None
        new.trainable = old.trainable


def same_variables(made, original) -> list[tuple]:
    """Pairs of the variables of a rebuilt model, or layer, and the original's."""
    old, new = original.variables, made.variables
    if [tuple(v.shape) for v in old] != [tuple(v.shape) for v in new]:
        raise _no_config(original, "its variables are not those of the original")
    return list(zip(new, old, strict=True))


def renew(variable, array) -> None:
    """Gives a variable of a copy memory and values of its own; the original keeps its."""
    array = tf.cast(tf.convert_to_tensor(array), variable.dtype)
    if tuple(array.shape) != tuple(variable.shape):
        raise TfspeedError("A variable keeps its shape.", variable=variable.path,
                           shape=tuple(variable.shape), new_shape=tuple(array.shape))
    variable._initialize(array)


def _no_config(keras_model, cause: str) -> TfspeedError:
    return TfspeedError("This Keras model cannot be built again from its config, which changing "
                        "it needs.", model=keras_model.name, type=type(keras_model).__name__,
                        cause=cause,
                        hint="Give its class `get_config` and `from_config`; `.keras` files need "
                             "them as well.")

"""Copies of a model that share its memory: only what changes afterwards takes room of its own."""

import copy

import keras
import tensorflow as tf

from tfspeed.errors import TfspeedError
from tfspeed.models.conversion import unallocated
from tfspeed.models.language_model import LanguageModel


def copied(model: LanguageModel) -> LanguageModel:
    """The same model over new layers, whose variables read the original's memory.

    Nothing may be assigned to a variable of the copy before it has been `renew`ed.
    """
    made = copy.copy(model)
    made.keras_model = copied_keras(model.keras_model)
    made.notes = list(model.notes)
    return made


def copied_keras(keras_model: keras.Model) -> keras.Model:
    """See `copied`. The layers are built again from the model's config, without any memory.

    Raises:
        TfspeedError: the model cannot be built from its config.
    """
    try:
        with unallocated():
            made = type(keras_model).from_config(keras_model.get_config())
            if not made.built and keras_model.built:
                made.build_from_config(keras_model.get_build_config())
    except Exception as error:
        raise _no_config(keras_model, str(error).splitlines()[0][:200] if str(error)
                         else type(error).__name__) from error
    for mine, original in same_variables(made, keras_model):
        mine._value, mine._initializer = original._value, None
        mine.trainable = original.trainable
    return made


def same_variables(made: keras.Model, keras_model: keras.Model) -> list[tuple]:
    """Pairs of the variables of a model that was built from another's config, and the other's."""
    old, new = keras_model.variables, made.variables
    if [tuple(v.shape) for v in old] != [tuple(v.shape) for v in new]:
        raise _no_config(keras_model, "its variables are not those of the original")
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

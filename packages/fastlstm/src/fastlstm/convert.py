"""Models of Keras's layers to models of fast ones, and back."""

import tempfile

import keras

from fastlstm.dispatch import unsupported, unsupported_backend
from fastlstm.layers import LSTM, Bidirectional, check_precision, make_fast, unsupported_pair


def _reason(layer) -> str | None:
    """Reason why a recurrent layer of Keras is not replaced, or None."""
    if reason := unsupported_backend():
        return reason
    if type(layer) not in (keras.layers.LSTM, keras.layers.Bidirectional):
        return f"{type(layer).__name__} is not an LSTM of Keras"
    if layer.return_state:
        return "it returns its state"
    if type(layer) is keras.layers.LSTM:
        return unsupported(layer)
    return unsupported_pair(layer.forward_layer, layer.backward_layer)


def accelerate(model: keras.Model, precision: str = "float32") -> keras.Model:
    """Replace every `LSTM` and `Bidirectional(LSTM)` that can be computed faster.

    The model is changed in place: weights, optimizer state, shared and nested layers stay as they are, and
    so does every layer that cannot be replaced (see `explain`). XLA is switched off, because it cannot
    compile the fast layers.

    Args:
        model: a model or layer of any kind, compiled or not.
        precision: of all fast layers, also those that the model had before: `"float32"` for Keras's
            numbers, or `"bfloat16"` for matrix products of bfloat16.

    Returns:
        The same model.
    """
    check_precision(precision)
    layers, changed = model._flatten_layers(), False
    for layer in layers:
        if isinstance(layer, LSTM | Bidirectional):
            changed |= layer.precision != precision
            layer.set_precision(precision)
        elif _is_recurrent(layer) and _reason(layer) is None:
            make_fast(layer, precision)
            changed = True
    for layer in layers if changed else ():
        if isinstance(layer, keras.Model):
            layer.jit_compile = False
            # Compiled functions of the old layers.
            layer.train_function = layer.test_function = layer.predict_function = None
    return model


def _is_recurrent(layer):
    return isinstance(layer, keras.layers.RNN | keras.layers.Bidirectional)


def _fallback(layer):
    """Reason why the last call of a fast layer was computed by Keras's own, or None."""
    if layer.fallback and isinstance(layer, Bidirectional):
        directions = layer.forward_layer, layer.backward_layer
        if all(isinstance(direction, LSTM) for direction in directions):
            # One direction at a time is fast, too.
            return _fallback(directions[0]) or _fallback(directions[1])
    return layer.fallback


def explain(model: keras.Model) -> list[tuple[str, str]]:
    """List each recurrent layer, and whether it is fast or why not.

    Returns:
        Pairs of a layer's name and a sentence. The two layers inside a fast Bidirectional are left out.
    """
    lines, inside = [], set()
    for layer in model._flatten_layers():
        if not _is_recurrent(layer) or id(layer) in inside:
            continue
        if not isinstance(layer, LSTM | Bidirectional):
            reason = _reason(layer)
            text = f"stays Keras's own: {reason}" if reason else "can be replaced by accelerate"
        elif reason := _fallback(layer):
            text = f"fast, but the last call was computed by Keras's layer: {reason}"
        else:
            text = "fast"
        if isinstance(layer, keras.layers.Bidirectional) and not text.startswith("stays"):
            inside |= {id(layer.forward_layer), id(layer.backward_layer)}
        lines.append((layer.name, text))
    return lines


def to_keras(model: keras.Model) -> keras.Model:
    """Copy a model or layer with Keras's own layers in place of fast ones, and the same weights.

    The copy is not compiled, and can be saved and loaded where only Keras is installed. A BiLSTM that reads
    the middle or the mean becomes a `Sequential` of Keras's layers.

    Raises:
        ValueError: if a BiLSTM gets `lengths` or states where Keras's layers cannot take them, if it reads
            the middle of an unknown number of steps, or for fast layers that are subclasses or that the
            model's own code creates.
    """
    layers = model._flatten_layers()
    custom = {type(layer).__name__: type(layer) for layer in layers}
    config = _stock_config(keras.saving.serialize_keras_object(model))
    copy = keras.saving.deserialize_keras_object(config, custom_objects=custom, safe_mode=False)
    if left := [layer.name for layer in copy._flatten_layers() if isinstance(layer, LSTM | Bidirectional)]:
        raise ValueError(
            f"to_keras cannot replace subclasses, or layers created by the model's code: {', '.join(left)}"
        )
    if model.built:
        copy.set_weights(model.get_weights())
        _copy_adapted(model, copy)
    return copy


def _copy_adapted(model, copy):
    """Copy what preprocessing layers have adapted to data, which is more than their weights."""
    layers = [
        [layer for layer in each._flatten_layers() if hasattr(layer, "finalize_state")]
        for each in (model, copy)
    ]
    for source, target in zip(*layers, strict=True):
        variables = {}
        source.save_own_variables(variables)
        target.load_own_variables(variables)
        if hasattr(source, "save_assets") and source.get_vocabulary(include_special_tokens=False):
            with tempfile.TemporaryDirectory() as folder:
                source.save_assets(folder)
                target.load_assets(folder)


def _stock_config(config):
    """A serialized object, with every fast layer in it replaced."""
    if isinstance(config, list | tuple):
        return [_stock_config(value) for value in config]
    if not isinstance(config, dict):
        return config
    config = {key: _stock_config(value) for key, value in config.items() if key != "compile_config"}
    kind = str(config.get("registered_name")).removeprefix("fastlstm>")
    if kind in ("LSTM", "Bidirectional"):
        arguments = {key: value for key, value in config["config"].items() if key != "precision"}
        stock = {"module": "keras.layers", "class_name": kind, "config": arguments, "registered_name": None}
        return {**config, **stock}
    return _stock_bilstm(config) if kind == "BiLSTM" else config


def _stock_bilstm(config):
    """A serialized BiLSTM as a serialized Bidirectional, or a Sequential that begins with one."""
    arguments, shape = config["config"], (config.get("build_config") or {}).get("input_shape")
    name, dtype, readout = (arguments[key] for key in ("name", "dtype", "readout"))
    for node in config.get("inbound_nodes", []):
        passed = {key for key, value in node["kwargs"].items() if value is not None}
        if "lengths" in passed or ("initial_state" in passed and readout in ("middle", "mean")):
            raise ValueError(f"to_keras: {name}: Keras's layers cannot take {sorted(passed)}")
    layers, common = keras.layers, {"name": name, "trainable": arguments["trainable"]}
    lstm = layers.LSTM(arguments["units"], return_sequences=readout != "last", dtype=dtype, name="lstm")
    stock = layers.Bidirectional(lstm, dtype=dtype, **common)
    if readout == "middle":
        if not (shape and shape[1]):
            raise ValueError(f"to_keras: {name}: the number of steps must be known")
        cropping = shape[1] // 2, shape[1] - 1 - shape[1] // 2
        stock = keras.Sequential([stock, layers.Cropping1D(cropping), layers.Flatten()], **common)
    elif readout == "mean":
        stock = keras.Sequential([stock, layers.GlobalAveragePooling1D()], **common)
    return {**config, **keras.saving.serialize_keras_object(stock)}

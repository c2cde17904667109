"""Keras decoders as LiteRT (`.tflite`) files, and what runs them.

`graph` writes the file format, `weights` packs matrices, `decoder` lowers a model, `runtime` runs
a file.
"""

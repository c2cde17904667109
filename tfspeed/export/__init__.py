"""Models as files to deploy: `.tflite`, `.litertlm`, SavedModel, `.keras`, each with a manifest.

`job` is the command, `tflite`, `litertlm` and `saved_model` write, `runners` runs what was
written, `evidence` measures it, `manifest` records it, `verify` compares a file with its record.
"""

FORMATS = {
    "tflite": "a .tflite file: prefill, decode and score signatures over one set of weights",
    "litertlm": "a bundle for LiteRT-LM: such a file with tokenizer, stop tokens, chat template",
    "saved_model": "a SavedModel folder: initial_state, prefill and decode for TensorFlow Serving",
    "keras": "a .keras file with its tokenizer, which --model takes: what strategies made, kept",
}

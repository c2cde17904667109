"""The graph of a model's operators, its mapping to processors, and a pipeline that executes it.

`graph` traces a model and contracts its operators to blocks, `problem` is what a mapping is judged
by, `chain` (exact) and `heft` (lists and local search) find one, `timing` measures what a block
costs, `stage` runs some of a decoder's layers, `links` carries arrays between stages, `pipeline` is
the engine over them, `explain` draws it.
"""

"""The graph of a model's operators, its mapping to processors, and a pipeline that executes it.

`graph` traces functions and contracts their operators to blocks (`traced`: those of a model),
`problem` is what a mapping is judged by, `chain` (exact) and `heft` (lists and local search) find
one. `timing` measures what blocks and links take, `plan` maps a model's layers with it, `placing`
does so on all workers. `stage`, `seq2seq_stage` and `fused_stage` run some layers (`factory` makes
them), `links` carries arrays between them, `ring` is all stages, `stream` what goes round,
`pipeline` and `seq2seq_pipeline` the engines over them, `explain` shows it.
"""

"""Several worker processes, on one machine or on many, over TensorFlow's own runtime.

`addresses` says who the workers are (TF_CONFIG), `supervisor` starts the local ones, watches them
and starts all of them again when one dies, `child` is the first thing that a worker runs,
`binding` keeps its port on one address, `member` is a worker's place in the cluster: TensorFlow's
collectives between processes, and the handshake.
"""

"""The flags of `scripts/run.py`, which `scripts/launch.py` shares: the same job on many hosts."""

import sys

from absl import flags

from tfspeed import cli


def define() -> None:
    cli.define_common_flags(output="results.json")
    shared = {"module_name": sys.argv[0]}  # shown by --help as the script's own
    flags.DEFINE_string("engine", "xla", "how a step is executed: graph, xla, litert (float32 "
                        "weights), litert:int8, litert:int4, litert:float16, or "
                        "litert:int4,PATTERN=FORMAT…; fused, fused:int8, …: the same formats, "
                        "faster, with a C compiler", **shared)
    flags.DEFINE_string("dtype", "float32", "type of the weights: float32, bfloat16 or float16; "
                        "the baseline row is float32 always", **shared)
    flags.DEFINE_bool("every_step", False, "a row after each strategy of --strategy=a+b+c, not "
                      "only after the last; load s is then what that one took", **shared)
    flags.DEFINE_bool("profile", False, "time the operators of a decode step as well; for engines "
                      "that can: litert, fused", **shared)
    flags.DEFINE_bool("explain", False, "for dataflow: who has what, bytes and times, expected and "
                      "measured; also drawn as dataflow.png and for TensorBoard", **shared)
    flags.DEFINE_integer("cores_for_baseline", 0, "cores that the baseline is timed on; 0: all. "
                         "With 1, two replicas on two cores are compared with one device on one "
                         "core", **shared)
    flags.DEFINE_string("prompt", None, "text to answer: printed as it is generated", **shared)
    flags.DEFINE_string("prompts", None, "file of prompts, one a line: all are answered (no row is "
                        "measured), --batch at once; an interrupted run goes on", **shared)
    flags.DEFINE_string("answers", "answers.jsonl", "for --prompts: where the answers are "
                        "written, JSON lines in the order of the prompts", **shared)
    flags.DEFINE_float("temperature", 0.0, "for --prompt(s): 0 is greedy", **shared)
    flags.DEFINE_integer("top_k", 0, "for --prompt(s): sample among the k likeliest tokens; 0: "
                         "all", **shared)
    flags.DEFINE_float("top_p", 1.0, "for --prompt(s): sample among the likeliest tokens that "
                       "make up p", **shared)
    flags.DEFINE_integer("seed", 0, "for --prompt(s): the same seed gives the same text", **shared)
    cli.define_worker_flags()

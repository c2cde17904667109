"""What all scripts share: quiet start, flags made from options, clean errors, exit codes."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence

from absl import flags

from tfspeed.errors import TfspeedError
from tfspeed.quiet import captured_stderr

USER_ERROR = 2
GATE_FAILED = 3  # a row lost more quality than its gate allows
INTERRUPTED = 130


def main(run: Callable[[], int | None], doc: str) -> None:
    """Makes the strategies' flags, parses all, calls `run`, exits: 0, its own code (3 where a row
    is over its gate), 2 for a user's mistake, 130 for Ctrl-C.

    Args:
        doc: the script's docstring, printed by `--help` above the flags.
    """
    argv = list(sys.argv)
    try:
        _define_strategy_options(argv)
        if _asks_for_help(argv):
            print(doc.strip(), "\n\nFlags:")
            print(flags.FLAGS.main_module_help())
            sys.exit(0)
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise TfspeedError("Arguments are flags, --name=value.", argument=rest[1],
                               hint="See --help.")
        code = run()
    except flags.Error as error:
        fail(f"{error}. See --help.")
    except TfspeedError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code or 0)


def fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(USER_ERROR)


def _asks_for_help(argv: Sequence[str]) -> bool:
    return any(arg.lstrip("-") in ("help", "h", "helpfull") and arg != arg.lstrip("-")
               for arg in argv)


def _define_strategy_options(argv: Sequence[str]) -> None:
    """Makes the flags of the strategies that `argv` names (of all of them for `--help`), so that
    only those are imported; none in a script that applies no strategy."""
    quiet_tensorflow()
    if "strategy" not in flags.FLAGS:
        return
    with contextlib.suppress(flags.Error, OSError):  # main tells of it
        argv = flags.FLAGS.read_flags_from_files(list(argv), force_gnu=True)
    text = "+".join(value for flag, value in _pairs(argv) if flag.lstrip("-") == "strategy")
    import strategies

    wanted = text.split("+")
    # An option of a strategy that is not in use is worth a better word than "unknown flag".
    unknown = any(part not in strategies.STRATEGIES for part in wanted if text)
    if _asks_for_help(argv) or unknown or any(
            flag.lstrip("-").startswith(f"{name}_") for flag, _ in _pairs(argv)
            for name in strategies.STRATEGIES):
        wanted = strategies.STRATEGIES
    for name in dict.fromkeys(wanted):
        if name in strategies.STRATEGIES:
            define_options(name, strategies.find(name).Options)


def _pairs(argv):
    """(flag, value) of both spellings, `--flag=value` and `--flag value`."""
    for arg, following in zip(argv, [*argv[1:], ""], strict=True):
        flag, equals, value = arg.partition("=")
        if flag.startswith("-"):
            yield flag, value if equals else following


def quiet_tensorflow() -> None:
    """Imports TensorFlow without the lines about drivers and CPU features that its C++ side
    writes before its log level takes effect; they are shown if the import fails."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    with captured_stderr() as text:
        try:
            import tensorflow as tf
            tf.config.list_physical_devices()  # asks the drivers, which answer on stderr
        except Exception:
            sys.stderr.write(text())
            raise


def define_common_flags(output: str) -> None:
    """The flags of every script that measures a model.

    Args:
        output: default of `--output`.
    """
    shared = {"module_name": sys.argv[0]}  # shown by --help as the script's own
    flags.DEFINE_integer("prompt_tokens", 128, "length of the measured prompt", **shared)
    flags.DEFINE_integer("new_tokens", 128, "tokens generated after it", **shared)
    flags.DEFINE_integer("batch", 1, "prompts at once", **shared)
    flags.DEFINE_integer("repetitions", 5, "timed generations of each", **shared)
    flags.DEFINE_integer("threads", 0, "threads an operator may use; 0: all cores", **shared)
    flags.DEFINE_string("logdir", "logs", "where TensorBoard finds the runs", **shared)
    flags.DEFINE_string("output", output, "where the rows are written", **shared)
    flags.DEFINE_string("eval_text", None, "text file for prompts and quality; default: the "
                        "project's own public-domain text", **shared)
    flags.DEFINE_integer("eval_tokens", 4096, "tokens of that text that quality is measured on, "
                         "in windows of 256; 0: the whole file", **shared)
    flags.DEFINE_integer("task_questions", 20, "multiple-choice questions (HellaSwag) that are "
                         "asked, up to 100; 0: none", **shared)
    flags.DEFINE_float("max_perplexity_increase", None, "the gate: how much perplexity may rise "
                       "over the float32 model's, a fraction: 0.03 is +3 %; inf: no gate; default: "
                       "what was done to the weights decides, 0.01 for int8, 16 bits, 0.03 for "
                       "int4, 0.1 for pruning and the like, else 0.001", **shared)
    define_model_flags()


def define_model_flags() -> None:
    """The flags of every script that loads a model and changes it."""
    shared = {"module_name": sys.argv[0]}
    flags.DEFINE_string("strategy", "baseline", "one strategy, or several joined by '+' (applied "
                        "from left to right); in run.py also list, or auto: what scripts/plan.py "
                        "finds best", **shared)
    flags.DEFINE_string("model", "smollm2-135m", "smollm2-135m, gemma3-270m, glassllm; or a path "
                        "(.gguf, .keras, Hugging Face folder), or a KerasHub preset", **shared)
    flags.DEFINE_string("calibration", None, "text file that strategies calibrate and train on, "
                        "never that of the evaluation; default: the project's own", **shared)


def define_worker_flags() -> None:
    """The flags of every script whose job can be shared out over processes."""
    shared = {"module_name": sys.argv[0]}
    flags.DEFINE_integer("workers", 2, "for multi_worker and dataflow: processes started on this "
                         "machine, each on its share of the cores", **shared)
    flags.DEFINE_string("bind", "127.0.0.1", "for workers: the IPv4 address that workers "
                        "listen on; TensorFlow's connections are neither authenticated nor "
                        "encrypted: give one of a private network", **shared)
    flags.DEFINE_float("join_timeout", 120, "for workers: seconds until all workers must "
                       "have come", **shared)
    flags.DEFINE_integer("restarts", 3, "for workers: how often all workers are started "
                         "again when one dies, where the job can go on from what is on the disk: "
                         "--prompts, --distill_checkpoint", **shared)


def define_serving_flags() -> None:
    """The flags of every script that serves a model."""
    shared = {"module_name": sys.argv[0]}
    flags.DEFINE_string("engine", "fused:int8", "how a step is executed: fused, fused:int8, "
                        "fused:int4, …; xla or graph, without a C compiler", **shared)
    flags.DEFINE_integer("threads", 0, "threads an operator may use; 0: all cores", **shared)
    flags.DEFINE_integer("max_streams", 32, "texts that are continued at once", **shared)
    flags.DEFINE_integer("max_waiting", 256, "texts in the queue, beyond which clients get 429",
                         **shared)
    flags.DEFINE_integer("chunk", 64, "tokens of prompts that a step reads beside the others' next "
                         "tokens: more are read faster, and hold up the others longer", **shared)
    flags.DEFINE_integer("cache_tokens", 0, "tokens that the KV cache holds, of all texts "
                         "together; 0: a whole context each, up to a gigabyte", **shared)
    define_model_flags()


def define_options(name: str, options: type) -> None:
    """Makes a flag `--<name>_<field>` of every field of a frozen dataclass."""
    makers = {int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string,
              bool: flags.DEFINE_bool}
    for field in dataclasses.fields(options):
        kind = type(field.default)
        makers[kind](f"{name}_{field.name}", field.default, field.metadata.get("help", ""),
                     module_name=sys.argv[0])


def options_of(given, name: str, options: type):
    """The dataclass with what the flags of `define_options` hold, `given` as absl's FLAGS."""
    return options(**{field.name: given[f"{name}_{field.name}"].value
                      for field in dataclasses.fields(options)})


def make_strategy(names: str):
    """The strategy that `--strategy` spells, with the options that its flags hold."""
    import strategies

    options = {}
    parts = names.split("+")
    for name in parts:
        options[name] = options_of(flags.FLAGS, name, strategies.find(name).Options)
    for flag in flags.FLAGS.get_flags_for_module(sys.argv[0]):
        owner = max((n for n in strategies.STRATEGIES if flag.name.startswith(f"{n}_")), key=len,
                    default=None)  # of prune and prune_structured, the one that is meant
        if owner and owner not in parts and flag.present:
            raise TfspeedError(f"--{flag.name} is an option of the strategy {owner}, which is not "
                               "in use.", strategy=names,
                               hint=f"Add it: --strategy={names}+{owner}.")
    return strategies.create(names, options)

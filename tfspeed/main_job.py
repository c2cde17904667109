"""The main job, behind `scripts/run.py`: load, wrap, measure beside the baseline, report."""

import contextlib
import os
import textwrap
from pathlib import Path

import rich.console

import strategies
from tfspeed import answers_job, cli, cluster_job, engines, gate
from tfspeed.affinity import check_cores
from tfspeed.costs import auto
from tfspeed.dataflow import explain
from tfspeed.dataflow.pipeline import PipelineEngine
from tfspeed.devices import available_cores, set_threads
from tfspeed.engines.sampling import Sampling
from tfspeed.engines.workers import WorkersEngine
from tfspeed.errors import TfspeedError
from tfspeed.measure import experiment, profile, report, tensorboard
from tfspeed.measure.environment import environment
from tfspeed.measure.experiment import Candidate, Evaluation, Workload
from tfspeed.measure.progress import Progress
from tfspeed.models.load import check_dtype


def run(flags) -> int | None:
    """Does what the flags of `scripts/run.py` say; returns an exit code."""
    if flags.strategy == "list":
        list_strategies()
        return None
    # Everything that can be wrong is looked at before anything slow starts.
    sampling = Sampling(flags.temperature, flags.top_k, flags.top_p, flags.seed)
    if flags.prompt is not None and not flags.prompt.strip():
        raise TfspeedError("--prompt must hold some text.", prompt=flags.prompt)
    workload = Workload(explicit(flags, "prompt_tokens"), explicit(flags, "new_tokens"),
                        flags.batch, flags.repetitions)
    settings = evaluation(flags)
    engines.check(flags.engine)
    check_dtype(flags.dtype)
    engines.check_dtype(flags.engine, flags.dtype)
    if flags.profile:
        engines.check_profiled(flags.engine)
    check_cores("cores_for_baseline", flags.cores_for_baseline)
    tensorboard.check_logdir(flags.logdir)
    check_writable(flags.output)
    text = read_text(flags.eval_text)
    calibration = read_calibration(flags)
    threads = set_threads(flags.threads)
    chose, plain = flags.strategy == auto.NAME, flags.engine.partition(":")[0]
    rivals: list = []
    if chose:
        said, rivals = auto.choose(flags, workload, threads)
        Progress().say(said)
    strategy = cli.make_strategy(flags.strategy)
    if flags.explain:
        explain.check(strategy)
    if flags.prompts is not None:
        prompts = answers_job.read_prompts(flags.prompts)
        check_writable(flags.answers, "answers")

    def job():
        if flags.prompts is not None:
            return answers_job.run(flags, prompts, strategy, calibration, sampling,
                                   workload.new_tokens)
        return measure(flags, strategy, workload, settings, sampling, text, calibration, threads,
                       auto_over=plain if chose else None, rivals=rivals)

    join = cluster_job.member_of(flags, strategy)
    if join is not None:
        return cluster_job.run(flags, strategy, calibration, join, job)
    return job()


def measure(flags, strategy, workload, settings, sampling, text, calibration, threads,
            auto_over: str | None = None, rivals=()) -> int | None:
    """Measures the strategy beside the baseline and reports; returns an exit code.

    Args:
        auto_over: the baseline's engine where the planner has chosen; None: the strategy's.
        rivals: points that the planner could not tell from its choice, measured as well.
    """
    bar = Progress()
    candidates: list[Candidate] = []
    rows: list[dict] = []
    try:
        prepare_all(candidates, flags, strategy, workload, text, bar, calibration, auto_over,
                    rivals)
        hold_baseline(candidates[0], flags.cores_for_baseline)
        if flags.prompt is not None:
            answer(candidates[-1].engine, flags.prompt, workload.new_tokens, sampling)
        with explain.explained(candidates[-1].engine, flags.logdir, Console()) if flags.explain \
                else contextlib.nullcontext():
            time_all(candidates, bar)
        experiment.read_limits(candidates, threads)
        if flags.profile:
            experiment.profile(candidates, bar)
        experiment.evaluate(candidates, text, bar, settings)
    except KeyboardInterrupt:
        bar.say(experiment.interrupted(candidates))
        return cli.INTERRUPTED
    finally:
        # Also after an error or Ctrl-C: nothing that was measured is lost.
        rows += experiment.rows(candidates, threads)
        write_report(rows, flags)
        if auto_over is not None and candidates and candidates[0].timings:
            print(auto.verdict(rows))
    return cli.GATE_FAILED if gate.failed(rows) else None


def list_strategies() -> None:
    """Prints every strategy's line, wrapped to 80 columns."""
    lines = strategies.describe()
    width = max(map(len, lines)) + 1
    for name, line in lines.items():
        print(textwrap.fill(line, 80, initial_indent=f"{name:<{width}}",
                            subsequent_indent=" " * width))


def evaluation(flags) -> Evaluation:
    """How quality is measured, and where the gate is."""
    return Evaluation(flags.eval_tokens, flags.task_questions, flags.max_perplexity_increase)


def explicit(flags, name: str):
    """A flag's value if the user gave it, else None."""
    return flags[name].value if flags[name].present else None


def prepare_all(candidates, flags, strategy, workload, text, bar, calibration,
                plain: str | None = None, rivals=()) -> None:
    """Appends to `candidates`: the float32 baseline, rivals of the strategy, then the strategy
    unless it is the same as the baseline, or with --every_step what it is after each of its
    parts."""
    plain = plain or flags.engine.partition(":")[0]  # the same engine, float32 weights
    plans = [(strategies.create("baseline"), "float32", plain)]
    plans += [(point.quality.made(), "float32", point.quality.engine) for point in rivals]
    if flags.strategy != "baseline" or flags.dtype != "float32" or flags.engine != plain:
        steps = strategy.steps() if flags.every_step else [strategy]
        plans += [(step, flags.dtype, flags.engine) for step in steps]
    for plan, dtype, engine in plans:
        with bar.task(f"loading and compiling {flags.model}, {plan.name}, {engine}", None):
            candidates.append(experiment.prepare(
                flags.model, plan, engine, workload, text, dtype, candidates, calibration))
    if isinstance(candidates[-1].engine, WorkersEngine | PipelineEngine):
        candidates[0].notes.append(cluster_job.WAITING)


def hold_baseline(baseline: Candidate, cores: int) -> None:
    """Lets the baseline's timed generations use some cores only, and says so."""
    baseline.cores = cores
    if cores:
        baseline.notes.append(f"The baseline was timed with all threads on {cores} of "
                              f"{available_cores()} cores (--cores_for_baseline).")


def time_all(candidates, bar) -> None:
    """The interleaved repetitions, with an estimate once the warm-up round has been timed."""
    rounds = candidates[0].workload.repetitions
    seconds: list[float] = []
    with bar.task("timing", (rounds + 1) * len(candidates)) as advance:
        for elapsed in experiment.repeat(candidates):
            advance()
            seconds.append(elapsed)
            if len(seconds) == len(candidates) and (estimate := rounds * sum(seconds)) > 60:
                bar.say(f"Timing will take about {estimate / 60:.1f} minutes.")


def answer(engine, prompt: str, new_tokens: int | None, sampling: Sampling) -> None:
    """Prints the continuation of a prompt as it comes (through the chat template if any)."""
    tokenizer = engine.model.tokenizer
    if tokenizer is None:
        raise TfspeedError("--prompt needs a tokenizer, and this model has none.",
                           model=engine.model.name)
    if tokenizer.chat_template:
        prompt = tokenizer.chat([{"role": "user", "content": prompt}])
    else:
        print(prompt, end="")  # a plain model continues the text
    ids = tokenizer.encode(prompt)
    room = engine.model.context_length - len(ids)
    tokens = engine.generate([ids], new_tokens or max(1, min(128, room)), sampling,
                             tokenizer.eos_ids)
    shown = () if tokenizer.chat_template else ids
    for piece in tokenizer.stream((int(token[0]) for token in tokens), shown):
        print(piece, end="", flush=True)
    print("\n")


def read_text(path: str | None, flag: str = "eval_text") -> str:
    """A text file; the project's own evaluation text where no path is given."""
    try:
        return Path(path or experiment.EVAL_TEXT).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TfspeedError(f"--{flag} must be a readable UTF-8 text file.", **{flag: path},
                           cause=str(error)) from error


def read_calibration(flags) -> str | None:
    """The text of `--calibration`, None where strategies shall use the project's own.

    Raises:
        TfspeedError: it is the text of the evaluation, which would flatter the result.
    """
    if flags.calibration is None:
        return None
    text = read_text(flags.calibration, "calibration")
    if text.strip() == read_text(flags.eval_text).strip():
        raise TfspeedError("--calibration must not be the text of the evaluation.",
                           calibration=flags.calibration, hint="Give another file.")
    return text


def check_writable(path: str, flag: str = "output") -> None:
    """Refuses an output file that cannot be written, before hours are spent on its content."""
    try:
        folder = Path(path).resolve().parent
        fits = not Path(path).is_dir() and folder.is_dir() and os.access(folder, os.W_OK)
    except (OSError, ValueError):  # a name longer than any file's, or with a NUL in it
        fits = False
    if not fits:
        raise TfspeedError(f"--{flag} must be a file in a writable folder.", **{flag: path[:200]})


class Console(rich.console.Console):
    def on_broken_pipe(self):
        raise BrokenPipeError  # rich would exit with 1: see cli.main


def write_report(rows: list[dict], flags) -> None:
    """JSON first: the table and TensorBoard are drawn from the same rows."""
    if not rows:
        return
    unwritten = None
    try:  # before anything is printed: whoever reads it may be gone (`| head`)
        report.write_json(flags.output, environment(), rows)
        for row in rows:
            tensorboard.write_run(flags.logdir, row)
    except TfspeedError as error:  # a full disk: what was measured is shown all the same
        unwritten = error
    console = Console()
    for part in report.tables(rows):
        console.print(part)
    for row in rows:
        if "profile" in row:
            console.print(profile.table(row))
    if unwritten:
        raise unwritten
    console.print(f"Rows: {flags.output}   TensorBoard: tensorboard --logdir {flags.logdir}",
                  highlight=False, markup=False, soft_wrap=True)

"""The job behind `scripts/evolution.py`: build, time, train, measure, tell."""

from pathlib import Path

from tfspeed.compression.calibration import CALIBRATION_TEXT
from tfspeed.devices import set_threads
from tfspeed.errors import TfspeedError
from tfspeed.evolution import measuring, report
from tfspeed.evolution.findings import findings
from tfspeed.evolution.measuring import Plan
from tfspeed.evolution.models import KINDS
from tfspeed.evolution.training import learn, windows
from tfspeed.main_job import Console, check_writable
from tfspeed.measure import pictures, tensorboard
from tfspeed.measure.environment import environment
from tfspeed.measure.experiment import EVAL_TEXT
from tfspeed.measure.progress import Progress
from tfspeed.measure.report import write_json


def run(flags) -> None:
    """Does what the flags of `scripts/evolution.py` say."""
    plan = Plan(flags.parameters, flags.layers, flags.length, _integers(flags, "lengths"),
                _integers(flags, "contexts"), flags.step_tokens, flags.repetitions,
                flags.learning_rate, flags.engine)
    if not (flags.seconds > 0 or (flags.seconds == 0 and flags.tokens > 0)):
        raise TfspeedError("The budget is --seconds above 0, or --seconds=0 and --tokens above 0.",
                           seconds=flags.seconds, tokens=flags.tokens)
    kinds = flags.models
    if not kinds or any(kind not in KINDS for kind in kinds) or len(set(kinds)) < len(kinds):
        raise TfspeedError(f"--models must be some of {', '.join(KINDS)}.", models=kinds)
    if flags.eval_tokens < 2:
        raise TfspeedError("--eval_tokens must be at least 2.", eval_tokens=flags.eval_tokens)
    longest = max(plan.length, *plan.lengths)
    text = read(flags.text or CALIBRATION_TEXT, "text", longest)
    unseen = read(flags.eval_text or EVAL_TEXT, "eval_text", plan.length)
    for name in ("output", "picture"):
        check_writable(flags[name].value, name)
    tensorboard.check_logdir(flags.logdir)
    threads = set_threads(flags.threads)
    rows = [measuring.describe(plan.build(kind)) for kind in kinds]
    try:
        measure(plan, rows, text, unseen, flags, Progress())
    finally:  # also after Ctrl-C: what was measured is kept
        for row in rows:
            row |= {"layers": plan.layers, "threads": threads, "engine": plan.engine,
                    "train_length": plan.length, "learning_rate": plan.rate(row["model"])}
        write(rows, flags)


def measure(plan: Plan, rows: list[dict], text: bytes, unseen: bytes, flags, bar) -> None:
    """Fills in the rows, part by part."""
    kinds, trainers = [row["model"] for row in rows], {}
    with bar.task("trying how to train", len(kinds)) as advance:
        for row in rows:
            trainers[row["model"]] = found = measuring.fastest(plan, row["model"], text)
            row["train_engine"] = "xla" if found.compiled else "graph"
            advance()
    ways = {kind: trainers[kind].compiled for kind in kinds}
    with bar.task("training speed", len(plan.lengths) * plan.repetitions * len(kinds)) as advance:
        speeds = measuring.training_speed(plan, ways, text, advance)
    for row in rows:
        row["training"] = speeds[row["model"]]
    say_estimate(plan, rows, flags, bar)
    for row in rows:
        trainer = trainers[row["model"]]
        batches = windows(text, plan.rows(plan.length), plan.length)
        trainer.warm_up(next(batches))
        with bar.task(f"training {row['model']}", None) as advance:
            row |= learn(trainer, batches, flags.seconds, flags.tokens, advance)
        row |= measuring.perplexity(trainer.model, unseen, plan.length, flags.eval_tokens)
    with bar.task("decoding", len(plan.contexts) * plan.repetitions * len(kinds)) as advance:
        decoded = measuring.decoding_speed(plan, [t.model for t in trainers.values()], advance)
    for row in rows:
        row["decode"] = decoded[row["model"]]


def say_estimate(plan: Plan, rows: list[dict], flags, bar) -> None:
    """Before training, where it will take over a minute."""
    seconds = flags.seconds * len(rows) or flags.tokens * sum(
        1 / min(row["training"], key=lambda e: abs(e["length"] - plan.length))["tokens_per_s"]
        for row in rows)
    if seconds > 60:
        bar.say(f"Training {len(rows)} models will take about {seconds / 60:.1f} minutes.")


def write(rows: list[dict], flags) -> None:
    """JSON first: tables, picture and TensorBoard are drawn from the same rows."""
    write_json(flags.output, environment(), rows)
    report.write_tensorboard(flags.logdir, rows)
    pictures.write(report.painter(rows), report.SIZE, flags.picture, flags.logdir, "evolution")
    console = Console()
    for table in report.tables(rows):
        console.print(table)
    for sentence in findings(rows):
        console.print(f"- {sentence}", highlight=False, markup=False)
    console.print(f"Rows: {flags.output}   Picture: {flags.picture}   TensorBoard: tensorboard "
                  f"--logdir {flags.logdir}", highlight=False, markup=False, soft_wrap=True)


def read(path: str | Path, flag: str, least: int) -> bytes:
    """A text as bytes, at least so many."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise TfspeedError(f"--{flag} must be a readable file.", **{flag: str(path)},
                           cause=error.strerror) from error
    if len(content) < least:
        raise TfspeedError(f"The text of --{flag} is shorter than one window.", bytes=len(content),
                           needed=least)
    return content


def _integers(flags, name: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in flags[name].value}))
    except ValueError as error:
        raise TfspeedError(f"--{name} must be whole numbers, joined by commas.",
                           **{name: flags[name].value}) from error

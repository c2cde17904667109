"""Speech to text: WAV files, or a WAV stream on standard input whose text grows as it is spoken."""

import sys

from absl import flags as absl_flags

from tfspeed.errors import TfspeedError

MODEL = "whisper-base"


def define_flags(shared: dict) -> None:
    absl_flags.DEFINE_string("audio", "", "WAV files and folders of them, joined by ','; or stdin",
                             **shared)
    absl_flags.DEFINE_string("transcripts", None, "what is said in them, a line a file: `name<TAB>"
                             "text`, or `<s> text </s> (name)`", **shared)
    absl_flags.DEFINE_string("language", "en", "code of the language that is spoken, such as en; "
                             "auto: the model decides", **shared)
    absl_flags.DEFINE_enum("task", "transcribe", ["transcribe", "translate"], "translate: into "
                           "English", **shared)
    absl_flags.DEFINE_float("no_speech_threshold", 0.6, "a window is silence where the model holds "
                            "that with more", **shared)
    absl_flags.DEFINE_integer("new_tokens", 224, "tokens of a window's text, at most", **shared)
    absl_flags.DEFINE_float("chunk_s", 1.0, "seconds of sound from one partial result to the next",
                            **shared)
    absl_flags.DEFINE_bool("stream", True, "measure partial results of files too, as if they were "
                           "spoken now", **shared)
    absl_flags.DEFINE_integer("batch", 0, "windows of sound (in translation also texts) that are "
                              "read at once; 0: one for each replica or worker", **shared)
    absl_flags.DEFINE_integer("repetitions", 3, "times that every file is read", **shared)
    absl_flags.DEFINE_string("peers", "", "others' runtimes that read the same files beside ours: "
                             "ctranslate2 (for models in its own format)", **shared)


def run(flags) -> int | None:
    from tfspeed.audio import clips
    from tfspeed.measure.progress import Progress
    from tfspeed.scenarios import job, speech_job, speech_peers, speech_stream

    job.positive(flags, "new_tokens", "chunk_s", "repetitions")
    job.check_batch(flags)
    if not 0 <= flags.no_speech_threshold <= 1:
        raise TfspeedError("--no_speech_threshold is a probability.",
                           no_speech_threshold=flags.no_speech_threshold)
    if not flags.audio:
        raise TfspeedError("--audio must name WAV files, folders of them, or stdin.")
    if flags.audio == "stdin" and (sys.stdin is None or sys.stdin.isatty()):
        raise TfspeedError("--audio=stdin reads a WAV stream from a pipe, and nothing is piped in.",
                           hint="arecord -f S16_LE -r 16000 | python scripts/scenario.py …")
    if not flags["model"].present:
        flags.model = MODEL
    said = clips.transcripts(flags.transcripts) if flags.transcripts else {}
    paths = [] if flags.audio == "stdin" else clips.find(flags.audio)
    speech_job.check_readable(paths)
    names = speech_peers.asked(flags)

    def work(setup: job.Setup) -> None:
        bar = Progress()
        transcriber, row = speech_job.transcriber(flags, setup, paths, bar)
        if flags.audio == "stdin":
            speech_job.warm(transcriber.window)
            row |= speech_stream.listen(transcriber, flags.chunk_s)
        else:
            with speech_peers.running(names, transcriber, flags, bar) as running:
                row |= speech_job.measure(transcriber, paths, said, flags, bar, running)
        rows = [row, *row.pop("peers", ())]
        job.write(flags, rows, bar)
        for row in rows:
            speech_job.show(row, bar)

    return job.run(flags, work)

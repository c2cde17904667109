"""The work of the speech scenario: what is measured, and how it is shown."""

import statistics
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from tfspeed.audio.clips import transcript
from tfspeed.audio.log_mel import RATE
from tfspeed.audio.partials import stream
from tfspeed.audio.transcriber import Options, Transcriber, Window, audible
from tfspeed.audio.wav import Wav
from tfspeed.audio.windows import windows as cut_windows
from tfspeed.measure.metrics import summary
from tfspeed.measure.progress import Progress
from tfspeed.measure.words import word_error_rate
from tfspeed.scenarios import job, speech_stream


def transcriber(flags, setup: job.Setup, paths: list[Path],
                bar: Progress) -> tuple[Transcriber, dict]:
    """What the flags ask for, to read these files, and what the row says of it."""
    engine, row = job.prepared(flags, setup, bar)
    made = Transcriber(engine, Options(flags.language, flags.task, flags.no_speech_threshold,
                                       new_tokens=flags.new_tokens), flags.batch)
    # More rows than there are windows would be memory for nothing.
    made.batch = max(1, _heard(made, paths, made.batch))
    return made, {"scenario": flags.scenario, **row, "language": flags.language,
                  "task": flags.task, "batch": made.batch}


def measure(made: Transcriber, paths: list[Path], said: dict[str, str], flags, bar: Progress,
            peers=()) -> dict:
    """Texts and figures of files; one that is empty or silent has no text.

    Args:
        peers: of `speech_peers.running`: each reads the same files right after us.
    """
    warm_all(made)
    for peer in peers:
        peer.warm()
    clips = []
    for group in groups(made, paths):
        clips += _clips(made, group, said, flags, bar, peers)
    row = summed(clips)
    if peers:
        row["peers"] = [peer.row(row, said) for peer in peers]
    streamed = [clip["stream"] for clip in clips if "stream" in clip]
    if streamed:
        row |= speech_stream.summed(streamed)
    return row


def summed(clips: list[dict]) -> dict:
    """Times and errors of all clips."""
    sound = sum(clip["seconds"] for clip in clips)
    row = {"clips": clips, "audio_s": sound}
    if sound:
        runs = [sum(times) / sound for times in zip(*(c["work_s"] for c in clips), strict=True)]
        row |= {"rtf": summary(runs), "encode_s": summary([t for c in clips for t in c["encode_s"]]
                                                          or [0.0]),
                "decode_s": summary([t for c in clips for t in c["decode_s"]] or [0.0])}
    known = [clip for clip in clips if "transcript" in clip]
    if known:
        row["wer"] = word_error_rate([c["transcript"] for c in known], [c["text"] for c in known])
    return row


def warm(window: Callable[[np.ndarray], object]) -> None:
    """Compiles everything that a window of samples needs, on half a second of noise."""
    noise = np.random.default_rng(0).normal(0, 0.1, RATE // 2).astype(np.float32)
    for _ in range(2):
        window(noise)


def warm_all(made: Transcriber) -> None:
    """Compiles what a window needs, and as many as are read together."""
    warm(made.window)
    if made.batch > 1:
        warm(lambda samples: list(made.windows([(None, samples)] * made.batch)))


def check_readable(paths: list[Path]) -> None:
    """Of files that cannot be read is told before anything slow."""
    for path in paths:
        with Wav(path):
            pass


def groups(made: Transcriber, paths: list[Path]) -> list[list[Path]]:
    """Files that are read together: all, or each by itself where windows are read one by one."""
    return [[path] for path in paths] if made.batch == 1 else [paths]


def read(made: Transcriber, paths: list[Path]) -> list[list[Window]]:
    """The windows of each file."""
    found = [[] for _ in paths]
    for i, window in made.windows(_sounds(made, paths)):
        found[i].append(window)
    return found


def _sounds(made: Transcriber, paths: list[Path]) -> Iterator[tuple[int, np.ndarray]]:
    """The samples of each window, with the number of its file."""
    for i, path in enumerate(paths):
        with Wav(path) as wav:
            for samples in cut_windows(wav.blocks(), made.window_samples):
                yield i, samples


def _heard(made: Transcriber, paths: list[Path], most: int) -> int:
    """How many windows there are that are not silent; `most` where there are more."""
    heard = (samples for _, samples in _sounds(made, paths) if audible(samples))
    return sum(1 for _ in islice(heard, most))


def _clips(made: Transcriber, paths: list[Path], said: dict[str, str], flags, bar: Progress,
           peers) -> list[dict]:
    work, files = [], []
    with bar.task(", ".join(path.name for path in paths)[:60], flags.repetitions) as advance:
        for _ in range(flags.repetitions):
            files = read(made, paths)
            work.append([sum(w.encode_s + w.decode_s for w in windows) for windows in files])
            for peer in peers:
                for path in paths:
                    peer.read(path)
            advance()
    return [_clip(made, path, windows, list(times), transcript(said, path), flags)
            for path, windows, times in zip(paths, files, zip(*work, strict=True), strict=True)]


def _clip(made: Transcriber, path: Path, windows: list[Window], work: list[float],
          said: str | None, flags) -> dict:
    text = " ".join(w.text for w in windows if w.text)
    clip = {"name": path.stem, "seconds": sum(w.seconds for w in windows), "text": text,
            "work_s": work, "windows": len(windows),
            "encode_s": [w.encode_s for w in windows if w.encode_s],
            "decode_s": [w.decode_s for w in windows if w.encode_s],
            "tokens": sum(len(w.tokens) for w in windows),
            "no_speech": max((w.no_speech for w in windows), default=1.0),
            "languages": sorted({w.language for w in windows})}
    if said is not None:
        clip["transcript"] = said
        if said:
            clip["wer"] = word_error_rate([said], [text])
    print(f"{path.name}: {text}", flush=True)
    if flags.stream and clip["seconds"]:
        with Wav(path) as wav:
            clip["stream"] = speech_stream.spoken(stream(made, wav.blocks(), flags.chunk_s))
    return clip


def show(row: dict, bar: Progress) -> None:
    """The figures, one line each."""
    def seconds(name):
        return f"{statistics.median(row[name]['samples']):.3f} s" if name in row else None

    faster = row.get("speedup")
    shown = {"model": f"{row['model']}, {row['strategy']}, {row['engine']}",
             "sound": f"{row['audio_s']:.1f} s",
             "rtf": f"{row['rtf']['median']:.4f} (cv {row['rtf']['cv']:.1%})" if "rtf" in row
             else None, "encode_s": seconds("encode_s"), "decode_s": seconds("decode_s"),
             "wer": f"{row['wer']:.1%}" if "wer" in row else None,
             "first_partial_s": seconds("first_partial_s"), "final_lag_s": seconds("final_lag_s"),
             "partials": f"{row['partials']}, of which {row['revised_partials']} took back a word"
             if "partials" in row else None,
             "we are": f"{faster['ratio']:.2f}x as fast ({faster['low']:.2f}–{faster['high']:.2f})"
             if faster and faster["low"] is not None else None}
    for name, text in shown.items():
        if text is not None:
            bar.say(f"{name:>16}  {text}")

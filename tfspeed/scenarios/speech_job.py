"""The work of the speech scenario: what is measured, and how it is shown."""

import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tfspeed.audio.clips import transcript
from tfspeed.audio.log_mel import RATE
from tfspeed.audio.partials import stream
from tfspeed.audio.transcriber import Options, Transcriber
from tfspeed.audio.wav import Wav
from tfspeed.measure.metrics import summary
from tfspeed.measure.progress import Progress
from tfspeed.measure.words import word_error_rate
from tfspeed.scenarios import job, speech_stream


def transcriber(flags, bar: Progress) -> tuple[Transcriber, dict]:
    """What the flags ask for, and what the row says of it."""
    engine, row = job.prepared(flags, bar)
    made = Transcriber(engine, Options(flags.language, flags.task, flags.no_speech_threshold,
                                       new_tokens=flags.new_tokens))
    return made, {"scenario": flags.scenario, **row, "language": flags.language,
                  "task": flags.task}


def measure(made: Transcriber, paths: list[Path], said: dict[str, str], flags, bar: Progress,
            peers=()) -> dict:
    """Texts and figures of files. A file that cannot be read is an error; one that is empty or
    silent has no text.

    Args:
        peers: of `speech_peers.running`: each reads a file right after us.
    """
    for path in paths:  # told before anything slow
        with Wav(path):
            pass
    warm(made.window)
    for peer in peers:
        peer.warm()
    clips = [_clip(made, path, transcript(said, path), flags, bar, peers) for path in paths]
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


def _clip(made: Transcriber, path: Path, said: str | None, flags, bar: Progress, peers) -> dict:
    work, windows = [], []
    with bar.task(path.name, flags.repetitions) as advance:
        for _ in range(flags.repetitions):
            with Wav(path) as wav:
                windows = list(made.long(wav.blocks()))
            work.append(sum(w.encode_s + w.decode_s for w in windows))
            for peer in peers:
                peer.read(path)
            advance()
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

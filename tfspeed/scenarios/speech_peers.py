"""Others' speech recognizers beside ours: the same windows of the same files, one after the other,
so that both meet the machine in the same state."""

import contextlib
import tempfile
from pathlib import Path

import numpy as np

from tfspeed import peers
from tfspeed.audio.clips import transcript
from tfspeed.audio.log_mel import RATE, log_mel
from tfspeed.audio.transcriber import AUTO, Transcriber
from tfspeed.audio.wav import Wav
from tfspeed.audio.windows import windows
from tfspeed.devices import available_cores
from tfspeed.errors import TfspeedError
from tfspeed.measure.metrics import speedup
from tfspeed.models.ctranslate2_loader import is_ctranslate2
from tfspeed.scenarios import speech_job


def asked(flags) -> list[str]:
    """The peers that the flags name."""
    names = [name for name in flags.peers.split(",") if name]
    unknown = [name for name in names if name not in peers.SPEECH_PEERS]
    if unknown:
        raise TfspeedError(f"--peers must be among {', '.join(peers.SPEECH_PEERS)}.",
                           peers=flags.peers)
    if names and flags.audio == "stdin":
        raise TfspeedError("Peers read files, not standard input.", peers=flags.peers)
    if names and flags.language == AUTO:
        raise TfspeedError("Peers are told the language.", language=flags.language)
    return names


@contextlib.contextmanager
def running(names: list[str], made: Transcriber, flags, bar):
    """A `SpeechPeer` of each variant of each name."""
    source = Path(made.engine.model.source or "")
    if names and not is_ctranslate2(source):
        raise TfspeedError("CTranslate2 reads models in its own format.", model=str(source),
                           hint="Use --model=whisper-base, or a folder with a model.bin.")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        started = []
        for name in names:
            python = peers.install(name, bar.say)
            for variant in peers.SPEECH_PEERS[name].variants:
                process = peers.PeerProcess(name, python, source.resolve(),
                                            flags.threads or available_cores(), variant)
                stack.callback(process.close)
                started.append(SpeechPeer(process, made, folder))
        yield started


class SpeechPeer:
    """One peer and what it has answered."""

    def __init__(self, process: peers.PeerProcess, made: Transcriber, folder: Path):
        self._process, self._made, self._frames = process, made, folder / "frames.npy"
        self._clips: dict[Path, dict] = {}

    def warm(self) -> None:
        speech_job.warm(self._window)

    def read(self, path: Path) -> None:
        """Reads a file once more, in the windows that we cut it into."""
        with Wav(path) as wav:
            found = list(windows(wav.blocks(), self._made.window_samples))
        answers = [self._window(window) for window in found]
        clip = self._clips.setdefault(path, {
            "name": path.stem, "seconds": sum(map(len, found)) / RATE, "work_s": [],
            "encode_s": [], "decode_s": []})
        clip["encode_s"] += [a["encode_s"] for a in answers]
        clip["decode_s"] += [a["decode_s"] for a in answers]
        clip["work_s"].append(sum(a["encode_s"] + a["decode_s"] for a in answers))
        decode = self._made.engine.model.tokenizer.decode
        clip["text"] = " ".join(decode(a["tokens"]).strip() for a in answers).strip()

    def _window(self, samples: np.ndarray) -> dict:
        made, options = self._made, self._made.options
        config = made.engine.model.config
        frames = np.asarray(log_mel([samples], config.source_frames, config.mels))
        np.save(self._frames, np.ascontiguousarray(frames.transpose(0, 2, 1)))
        return self._process.ask({"frames": str(self._frames), "new_tokens": options.new_tokens,
                                  "prompt": made.tokens.prompt(options.language, options.task)})

    def row(self, ours: dict, said: dict[str, str]) -> dict:
        """Its row, with how much faster we are."""
        clips = [clip if (known := transcript(said, path)) is None else clip | {"transcript": known}
                 for path, clip in self._clips.items()]
        row = {"model": Path(self._made.engine.model.source).name, "strategy": "peer",
               "engine": self._process.name, **self._process.started, **speech_job.summed(clips),
               "notes": [self._process.note]}
        if "rtf" in ours and "rtf" in row:
            row["speedup"] = speedup(row["rtf"]["samples"], ours["rtf"]["samples"])
        return row

"""Other people's runtimes, measured beside ours: each a process in an environment of its own.

`PEERS` says what is installed for each; the worker is a script in this folder that imports
nothing of tfspeed and speaks JSON lines on stdin and stdout.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from tfspeed.asked_process import AskedProcess
from tfspeed.errors import TfspeedError


@dataclasses.dataclass(frozen=True)
class Peer:
    """What a peer needs.

    Attributes:
        packages: pinned, installed into its own environment.
        worker: the script, in this folder.
        note: how its clock is to be read.
        variants: what its worker is started with, one row each.
        reads_gguf: whether it is handed the model's GGUF file, not a Hugging Face folder.
        streams: whether it gives its tokens one by one.
        environment: variables for its installation.
    """

    packages: tuple[str, ...]
    worker: str
    note: str
    variants: tuple[str, ...] = ("",)
    reads_gguf: bool = False
    streams: bool = False
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


_NO_AMX = "-mno-amx-int8 -mno-amx-tile -mno-amx-bf16"
PEERS = {
    "keras_hub": Peer(
        ("keras-hub==0.32.0", "keras==3.15.1", "tensorflow==2.21.0", "tensorflow-text==2.21.1",
         "safetensors==0.8.0"),
        "keras_hub_worker.py",
        "KerasHub's generate() gives all tokens at once, and reads the prompt padded to the whole "
        "length: its TTFT is the time of a generate() of one token at that length, its TPOT is "
        "(time of n tokens - that) / (n - 1)."),
    "llama_cpp": Peer(
        ("llama-cpp-python==0.3.36",), "llama_cpp_worker.py",
        "llama.cpp reads the same GGUF, requantized by its own tool; compiled for this processor "
        "without AMX, with which it crashes on this kind of virtual machine.",
        variants=("Q8_0", "Q4_0"), reads_gguf=True, streams=True,
        environment={"CMAKE_ARGS": f"-DCMAKE_C_FLAGS='{_NO_AMX}' -DCMAKE_CXX_FLAGS='{_NO_AMX}'"}),
}
# Those that recognize speech, for scripts/scenario.py.
SPEECH_PEERS = {
    "ctranslate2": Peer(
        ("ctranslate2==4.8.5", "numpy==2.4.6"), "ctranslate2_worker.py",
        "CTranslate2 reads the same model.bin and is handed the log-mel frames: making them is in "
        "our time and not in its.", variants=("int8",)),
}
_READY_S, _CALL_S = 600, 900


class PeerProcess:
    """One running peer. `call` sends a request and waits for its answer.

    A worker that dies or hangs raises TfspeedError with the end of what it wrote to stderr.
    """

    def __init__(self, name: str, python: Path, model: Path, threads: int, variant: str = ""):
        self.name = f"{name} {variant}".strip()  # of a row, whose type is told beside it
        peer = (PEERS | SPEECH_PEERS)[name]
        self.variant, self.note, self.streams = variant, peer.note, peer.streams
        worker = Path(__file__).parent / peer.worker
        self._process = AskedProcess([str(python), str(worker), str(model), str(threads), variant],
                                     self._stopped, _READY_S, {"PYTHONPATH": ""})
        self.started = self._process.started

    def call(self, prompts: list[list[int]], new_tokens: int) -> dict:
        """`{"seconds": float, "tokens": [[…], …]}` of one generate call; `token_s` too where the
        peer gives its tokens one by one."""
        return self.ask({"prompts": prompts, "new_tokens": new_tokens})

    def loss(self, windows: list[list[int]]) -> float | None:
        """Mean loss of the next token inside of windows of tokens; None if it cannot tell."""
        return self.ask({"windows": windows}).get("loss")

    def ask(self, request: dict) -> dict:
        """The answer to a request that the worker knows."""
        return self._process.ask(request, _CALL_S)

    def close(self) -> None:
        self._process.close()

    def _stopped(self, exit_code: int, said: str) -> TfspeedError:
        return TfspeedError(f"The peer {self.name} stopped without an answer.",
                            exit_code=exit_code, hint=f"The end of its messages:\n{said}")


def install(name: str, say=print) -> Path:
    """Makes `.peers/<name>` the first time, gives its Python."""
    known = PEERS | SPEECH_PEERS
    if name not in known:
        raise TfspeedError(f"--peers must be among {', '.join(PEERS)}.", peer=name)
    folder = Path.cwd() / ".peers" / name
    python, stamp = folder / "bin" / "python", folder / ".installed"
    wanted = "\n".join(known[name].packages)
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    compiles = " ten minutes: it is compiled" if known[name].environment else " a minute or two"
    say(f"Installing {name} into {folder} (once;{compiles})")
    for command in ([sys.executable, "-m", "venv", str(folder)],
                    [str(python), "-m", "pip", "install", "--quiet",
                     "--disable-pip-version-check", *known[name].packages]):
        done = subprocess.run(command, capture_output=True, text=True,
                              env={**os.environ, **known[name].environment})
        if done.returncode:
            raise TfspeedError(f"The peer {name} could not be installed.",
                               command=" ".join(command), hint=done.stderr.strip()[-500:])
    stamp.write_text(wanted)
    return python

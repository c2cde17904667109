"""Speech that is heard as it comes: what it would have taken, and its text while it grows."""

import shutil
import sys
from collections.abc import Iterable, Iterator

import rich.cells

from tfspeed.audio.partials import Partial, stream
from tfspeed.audio.transcriber import Transcriber
from tfspeed.audio.wav import Wav
from tfspeed.errors import TfspeedError
from tfspeed.measure.metrics import summary


def spoken(partials: Iterable[Partial]) -> dict:
    """How a stream would have gone, were its sound to arrive as it is spoken: a result begins when
    its sound is there and the one before is done. Of each result the open part is kept: all whole
    texts of three hours would be a gigabyte."""
    now, work, first, texts, revised, last = 0.0, 0.0, None, [], 0, None
    for last in partials:
        now, work = max(now, last.heard_s) + last.work_s, work + last.work_s
        if first is None and last.text:
            first = now
        revised += last.revised
        texts.append(last.open_text)
    return {"partials": len(texts), "revised_partials": revised, "first_partial_s": first,
            "final_lag_s": now - last.heard_s, "heard_s": last.heard_s, "work_s": work,
            "text": last.text, "texts": texts}


def summed(streams: list[dict]) -> dict:
    firsts = [s["first_partial_s"] for s in streams if s["first_partial_s"] is not None]
    row = {name: sum(s[name] for s in streams) for name in ("partials", "revised_partials")}
    row["final_lag_s"] = summary([s["final_lag_s"] for s in streams])
    return row | ({"first_partial_s": summary(firsts)} if firsts else {})


def listen(made: Transcriber, chunk_s: float) -> dict:
    """Standard input, to its end: see `shown`."""
    with Wav(sys.stdin.buffer) as wav:
        found = spoken(shown(stream(made, wav.blocks(), chunk_s)))
    sound = found["heard_s"]
    if not sound:
        raise TfspeedError("Nothing was heard on standard input.")
    return {"audio_s": sound, "text": found["text"], **summed([found]),
            "rtf": summary([found["work_s"] / sound])}


def shown(partials: Iterable[Partial]) -> Iterator[Partial]:
    """Prints results as they pass. What no later one takes back is printed once; what may still
    change is written over on a terminal, and elsewhere a line (`~`) when it has changed."""
    terminal, settled, rows, before = sys.stdout.isatty(), "", 0, None
    for partial in partials:
        whole = partial.text.removesuffix(partial.open_text).strip()
        new, settled = whole[len(settled):].strip(), whole
        if terminal:
            width = shutil.get_terminal_size().columns
            up = f"\033[{rows - 1}A" if rows > 1 else ""
            rows = -(-rich.cells.cell_len(partial.open_text) // width)
            print(f"{up}\r\033[J{new}" + "\n" * bool(new) + partial.open_text,
                  end="\n" * partial.end, flush=True)
        else:
            at = f"{partial.revision} [{partial.heard_s:.1f} s]"
            if new:
                print(f"={at} {new}", flush=True)
            if partial.end or partial.open_text != before:
                print(f"{'=' if partial.end else '~'}{at} {partial.open_text}", flush=True)
            before = partial.open_text
        yield partial

"""Sends a load to a server, open loop, and tells how it was served, in vLLM's terms."""

import dataclasses
import http.client
import json
import queue
import threading
import time
import urllib.parse
from collections.abc import Sequence

import numpy as np

from tfspeed.errors import TfspeedError
from tfspeed.models.text_stream import StoppedText
from tfspeed.serving.load import Call
from tfspeed.serving.request import Request
from tfspeed.serving.worker import Worker

_METRICS = ("ttft", "tpot", "itl", "e2el")
_TIMEOUT_S = 600


@dataclasses.dataclass
class Served:
    """Of one call: when it was sent, and when each token came, by `time.perf_counter`.

    `tokens` as the server counted them; `error` where it failed.
    """

    call: Call
    sent: float
    times: list[float]
    tokens: int = 0
    error: str = ""


class WorkerTarget:
    """A worker in this process: the scheduler and the engine without HTTP."""

    def __init__(self, worker: Worker):
        self._worker = worker

    def run(self, call: Call) -> Served:
        tokenizer = self._worker.backend.model.tokenizer
        text = StoppedText(tokenizer.decode) if tokenizer else None
        return self.serve(Request(call.prompt, call.new_tokens, text=text), call)

    def serve(self, request: Request, call: Call) -> Served:
        """How a request was served that stands for a call."""
        served, over = Served(call, time.perf_counter(), []), threading.Event()

        def tell(update):
            if update.tokens:
                served.times.append(time.perf_counter())
            if update.reason:
                served.error = update.error
                over.set()

        request.tell = tell
        try:
            self._worker.submit(request)
            over.wait()
        except Exception as error:
            served.error = f"{type(error).__name__}: {error}"
        served.tokens = request.generated
        return served


class HttpTarget:
    """A server that speaks OpenAI's protocol, over streams of /v1/completions."""

    def __init__(self, url: str, model: str, key: str | None = None):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise TfspeedError("--url must be that of a server, http://host:port.", url=url)
        self._place, self._path = (parts.hostname, parts.port or 80), parts.path.rstrip("/")
        self._model, self._headers = model, {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def run(self, call: Call) -> Served:
        body = json.dumps({
            "model": self._model, "prompt": call.prompt, "max_tokens": call.new_tokens,
            "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}})
        served = Served(call, time.perf_counter(), [])
        try:
            connection = http.client.HTTPConnection(*self._place, timeout=_TIMEOUT_S)
            connection.request("POST", f"{self._path}/v1/completions", body, self._headers)
            answer = connection.getresponse()
            if answer.status != 200:
                served.error = f"{answer.status} {answer.read(300).decode(errors='replace')}"
                return served
            for line in answer:
                if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                    self._event(json.loads(line[6:]), served)
            connection.close()
        except (OSError, ValueError, http.client.HTTPException) as error:
            served.error = f"{type(error).__name__}: {error}"
        return served

    def _event(self, event: dict, served: Served) -> None:
        if "error" in event:
            served.error = str(event["error"])[:300]
        if event.get("choices"):
            served.times.append(time.perf_counter())
        if event.get("usage"):
            served.tokens = event["usage"]["completion_tokens"]


def run(target, calls: Sequence[Call], advance=lambda: None) -> tuple[list[Served], float]:
    """Sends each call when it is due, whatever became of those before; gives how each was served,
    and how many seconds all took."""
    results: queue.SimpleQueue = queue.SimpleQueue()
    start = time.perf_counter()
    for call in calls:
        time.sleep(max(0.0, start + call.at - time.perf_counter()))
        threading.Thread(target=lambda call=call: results.put(target.run(call)),
                         daemon=True).start()
    served = []
    for _ in calls:
        served.append(results.get())
        advance()
    return served, time.perf_counter() - start


def parse_goodput(text: str) -> dict[str, float]:
    """`ttft:500,tpot:50` as milliseconds by metric."""
    limits = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition(":")
        try:
            limits[name.strip()] = float(value)
        except ValueError:
            limits[name.strip()] = -1.0
    if any(name not in ("ttft", "tpot", "e2el") or not value > 0
           for name, value in limits.items()):
        raise TfspeedError("--goodput is limits in milliseconds: ttft:500,tpot:50,e2el:9000.",
                           goodput=text)
    return limits


def in_turn(target, calls: Sequence[Call], advance=lambda: None) -> dict:
    """Sends calls one after the other, each when the one before is over: what a beginning that
    they share costs the first and saves the others.

    Returns:
        `first_ttft_ms`; of the others `followers`, `median_followers_ttft_ms`,
        `worst_followers_ttft_ms` and `followers_ratio`, their median by the first's.
    """
    ttft = []
    for call in calls:
        served = target.run(call)
        if served.error or not served.times:
            raise TfspeedError("A request failed.", cause=served.error or "no token came")
        ttft.append(1e3 * (served.times[0] - served.sent))
        advance()
    row = {"first_ttft_ms": ttft[0], "followers": len(ttft) - 1}
    if len(ttft) > 1:
        median = float(np.median(ttft[1:]))
        row |= {"median_followers_ttft_ms": median, "worst_followers_ttft_ms": max(ttft[1:]),
                "followers_ratio": median / ttft[0]}
    return row


def latencies(served: Served) -> dict[str, float]:
    """Of a call that came through, ms: `ttft`, `e2el` and, of more than one token, `tpot`."""
    first, last = served.times[0], served.times[-1]
    found = {"ttft": first - served.sent, "e2el": last - served.sent}
    if served.tokens > 1:
        found["tpot"] = (last - first) / (served.tokens - 1)
    return {name: 1e3 * value for name, value in found.items()}


def good(served: Sequence[Served], limits: dict[str, float]) -> int:
    """How many came through within limits in ms."""
    return sum(all(found.get(name, 0) <= limit for name, limit in limits.items())
               for found in map(latencies, came_through(served)))


def came_through(served: Sequence[Served]) -> list[Served]:
    return [s for s in served if not s.error and s.times]


def summary(served: Sequence[Served], seconds: float, goodput: dict[str, float]) -> dict:
    """One row, by the names of vLLM's `vllm bench serve`. Times of requests that came through."""
    came = came_through(served)
    samples: dict[str, list[float]] = {name: [] for name in _METRICS}
    for s in came:
        for name, value in latencies(s).items():
            samples[name].append(value)
        samples["itl"] += (1e3 * np.diff(s.times)).tolist()
    new, read = sum(s.tokens for s in came), sum(len(s.call.prompt) for s in came)
    row = {"completed": len(came), "failed": len(served) - len(came), "duration": seconds,
           "total_input_tokens": read, "total_output_tokens": new,
           "request_throughput": len(came) / seconds, "output_throughput": new / seconds,
           "total_token_throughput": (new + read) / seconds,
           "max_concurrent_requests": _most_at_once(served)}
    if goodput:
        row |= {"request_goodput": good(served, goodput) / seconds, "goodput_limits_ms": goodput}
    for name, values in samples.items():
        if values:
            row |= {f"mean_{name}_ms": float(np.mean(values)),
                    f"median_{name}_ms": float(np.median(values)),
                    f"std_{name}_ms": float(np.std(values)),
                    **{f"p{p}_{name}_ms": float(np.percentile(values, p)) for p in (90, 99)}}
    return row


def _most_at_once(served: Sequence[Served]) -> int:
    edges = sorted([(s.sent, 1) for s in served if s.times]
                   + [(s.times[-1], -1) for s in served if s.times])
    return int(max(np.cumsum([e for _, e in edges]), default=0))

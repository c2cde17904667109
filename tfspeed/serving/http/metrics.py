"""What /metrics tells, in Prometheus' text format."""

import bisect
import threading

from tfspeed.serving.worker import Worker

_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Histogram:
    """Counts of seconds in buckets."""

    def __init__(self):
        self.counts, self.sum = [0] * (len(_BUCKETS) + 1), 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(_BUCKETS, seconds)] += 1
        self.sum += seconds

    def lines(self, name: str) -> list[str]:
        total, lines = 0, []
        for edge, count in zip([*_BUCKETS, "+Inf"], self.counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{edge}"}} {total}')
        return [*lines, f"{name}_sum {self.sum}", f"{name}_count {total}"]


class Metrics:
    """Of a server: what the worker counts, and how requests ended and when their tokens came."""

    def __init__(self):
        self._lock = threading.Lock()
        self._ended: dict[str, int] = {}
        self._times = {name: Histogram() for name in ("ttft", "tpot", "e2e")}

    def ended(self, reason: str, start: float, times: list[float]) -> None:
        """A request is over.

        Args:
            reason: why.
            start: when it came; times: when its tokens did.
        """
        with self._lock:
            self._ended[reason] = self._ended.get(reason, 0) + 1
            if times:
                self._times["ttft"].add(times[0] - start)
                self._times["e2e"].add(times[-1] - start)
            if len(times) > 1:
                self._times["tpot"].add((times[-1] - times[0]) / (len(times) - 1))

    def refused(self) -> None:
        with self._lock:
            self._ended["refused"] = self._ended.get("refused", 0) + 1

    def text(self, worker: Worker) -> str:
        scheduler = worker.scheduler
        pool = scheduler.pool
        values = [
            ("requests_running", "gauge", "texts being continued", len(scheduler.running)),
            ("requests_waiting", "gauge", "texts in the queue", len(scheduler.waiting)),
            ("cache_blocks", "gauge", "blocks of the KV cache", pool.count),
            ("cache_blocks_used", "gauge", "blocks that a text holds",
             pool.count - pool.available),
            ("steps_total", "counter", "calls of the backend", worker.steps),
            ("prompt_tokens_total", "counter", "tokens of prompts that were read",
             worker.prompt_tokens),
            ("reused_tokens_total", "counter", "tokens of prompts that were in the cache",
             worker.reused_tokens),
            ("new_tokens_total", "counter", "tokens that were generated", worker.new_tokens),
            ("preemptions_total", "counter", "texts that had to start over",
             scheduler.preemptions)]
        lines = []
        for name, kind, what, value in values:
            lines += [*_head(name, kind, what), f"tfspeed_{name} {value}"]
        with self._lock:
            lines += _head("requests_total", "counter", "requests that are over, by how they ended")
            lines += [f'tfspeed_requests_total{{reason="{reason}"}} {count}'
                      for reason, count in sorted(self._ended.items())]
            for name, what in (("ttft", "time to the first token"),
                               ("tpot", "mean time of each token after it"),
                               ("e2e", "time to the last token")):
                lines += _head(f"{name}_seconds", "histogram", what)
                lines += self._times[name].lines(f"tfspeed_{name}_seconds")
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, what: str) -> list[str]:
    return [f"# HELP tfspeed_{name} {what}", f"# TYPE tfspeed_{name} {kind}"]

"""The one place where metrics are defined, with their units."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

DEFINITIONS = {
    "parameters": "count of weights; a tied embedding counts once",
    "weights_bytes": "bytes of all variables of one copy of the model",
    "file_bytes": "bytes of the file or folder that the model was loaded from",
    "load_s": "seconds from the call of load to a built, filled and wrapped model",
    "compile_s": "seconds of making the engine (a packed one rounds its weights here) and of the "
                 "first prefill and step: tracing, compiling, running",
    "ttft_s": "seconds from the call of generate to the first token on the host",
    "tpot_s": "seconds per token after the first: (t_last - t_first) / (n - 1)",
    "itl_s": "seconds between neighbouring tokens, all gaps of all repetitions",
    "e2e_s": "seconds from the call of generate to the last token on the host",
    "prefill_tokens_per_s": "batch * prompt tokens / median ttft_s",
    "decode_tokens_per_s": "batch * (n - 1) / (median e2e_s - median ttft_s)",
    "output_tokens_per_s": "batch * n / median e2e_s",
    "peak_rss_bytes": "peak resident memory of a process that holds this model alone: the "
                      "runtime's own, plus the growth while it was loaded and first run; an "
                      "estimate: the first row also pays what the runtime allocates once",
    "read_bandwidth_gb_per_s": "10^9 bytes a second at which all threads together read as many "
                               "bytes as a step does, again and again",
    "read_threads": "threads that the limit was read with: those of all workers of a row together",
    "step_bytes": "bytes that one decode step must read: each weight once, and the state at the "
                  "mean context",
    "achieved_gb_per_s": "step_bytes / median tpot_s, in 10^9 bytes a second",
    "roofline_fraction": "achieved_gb_per_s / read_bandwidth_gb_per_s",
    "limit_tokens_per_s": "batch * read_bandwidth / step_bytes: no step can be faster than its "
                          "reads",
    "perplexity": "exp of the mean negative log-likelihood of the evaluation text, per token",
    "perplexity_delta": "perplexity / that of the float32 baseline - 1; 0.01 is +1 %",
    "perplexity_delta_interval": "the 95 % bootstrap interval of perplexity_delta, {low, high}: "
                                 "blocks of 64 tokens are drawn, of baseline and candidate alike",
    "baseline_perplexity": "that of the float32 baseline on the same text",
    "evaluated_tokens": "how many next tokens of the text quality was measured on",
    "gate": "whether perplexity_delta is at most `limit`, {limit, passed}: "
            "--max_perplexity_increase, or the limit of what was done to the weights",
    "task_accuracy": "share of questions (HellaSwag, the shortest of a hundred) whose right ending "
                     "has the highest log-likelihood per byte of the four",
    "task_accuracy_interval": "its 95 % interval by Wilson's formula, {low, high}",
    "task_agreement": "share of these questions that candidate and baseline answer alike",
    "task_questions": "how many questions were asked",
    "kl_divergence": "mean KL(baseline || candidate) of the next-token distributions, in nats",
    "top1_agreement": "share of positions where both find the same token likeliest",
    "same_tokens": "whether the greedy tokens of every timed generation equal the baseline's",
    "speedup": "median baseline latency / median candidate latency, with a 95 % bootstrap "
               "interval; over 1 is faster",
    "profile": "where the time of one decode step goes, in seconds, calls and shares: `kinds` of "
               "operators, single `parts`, and the `source` of the times",
    "tokens_per_pass": "with drafts: tokens generated a pass of the model, after the first; plain "
                       "steps count",
    "draft_acceptance": "drafted tokens that were right / drafted tokens",
    "drafted_tokens": "how many tokens were drafted and verified, in all timed generations",
    "draft_share": "share of the passes that verified a draft; the others were plain steps",
    "rtf": "real-time factor: seconds of work / seconds of sound; under 1 keeps up",
    "wer": "word error rate: words wrong, missing or too many / words of the transcripts; case and "
           "punctuation are left out",
    "encode_s": "seconds from samples to what the decoder reads, a window",
    "decode_s": "seconds from there to the last token, a window",
    "first_partial_s": "seconds from a stream's first sample to its first text, were the sound "
                       "to arrive as it is spoken",
    "final_lag_s": "seconds from a stream's last sample to its final text, in the same way",
    "partials": "results of all streams, the final ones included",
    "revised_partials": "those that took back a word of the one before",
    "chrf": "chrF of all texts (character n-grams, sacreBLEU), 0 to 100; `chrf_signature` says how",
    "bleu": "BLEU of all texts (sacreBLEU), 0 to 100; `bleu_signature` says how",
    "sentences_per_s": "texts translated / seconds of work",
    "predicted": "what the cost models said before (tfspeed/costs, scripts/calibrate.py), keyed by "
                 "the metric",
    "prediction_error": "predicted / measured median - 1, keyed by the metric",
    "energy_j_per_token": "joules of the timed generations / tokens generated in them",
    "energy_tokens_per_j": "the inverse",
    "energy_source": "rapl or nvml: counted; estimate: from how busy the cores were and a power "
                     "model (`energy_model`), to be read with energy_j_per_token_interval",
    "energy_model": "watts of a core, idle and more when busy, that an estimate is made from",
    "energy_j_per_token_interval": "of an estimate, {low, high}: what published power models span",
    "noisy": "whether the coefficient of variation of ttft_s or tpot_s is over 5 %",
}
NOISY = 0.05


@dataclasses.dataclass(frozen=True)
class Timing:
    """One generate call on a batch: the host clock at the call and at each token, in seconds."""

    start_s: float
    token_s: list[float]


def summary(samples: Sequence[float]) -> dict:
    """`{median, p90, p99, cv, samples}`; cv is standard deviation / mean, 0 for one sample."""
    values = np.asarray(samples, np.float64)
    mean = values.mean()
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    return {"median": float(np.median(values)), "p90": float(np.percentile(values, 90)),
            "p99": float(np.percentile(values, 99)), "cv": float(deviation / mean) if mean else 0.0,
            "samples": values.tolist()}


def latency(timings: Sequence[Timing], batch: int, prompt_tokens: int) -> dict:
    """Latencies and rates of repeated generate calls; with one new token there is no tpot_s."""
    count = len(timings[0].token_s)
    found = {"ttft_s": summary([t.token_s[0] - t.start_s for t in timings]),
             "e2e_s": summary([t.token_s[-1] - t.start_s for t in timings])}
    ttft, e2e = found["ttft_s"]["median"], found["e2e_s"]["median"]
    if count > 1:
        found["tpot_s"] = summary([(t.token_s[-1] - t.token_s[0]) / (count - 1)
                                   for t in timings])
        found["itl_s"] = summary(np.concatenate([np.diff(t.token_s) for t in timings]))
        if e2e > ttft:  # a peer's two calls may come out the other way round
            found["decode_tokens_per_s"] = batch * (count - 1) / (e2e - ttft)
    found["prefill_tokens_per_s"] = batch * prompt_tokens / ttft
    found["output_tokens_per_s"] = batch * count / e2e
    found["noisy"] = any(found[name]["cv"] > NOISY for name in ("ttft_s", "tpot_s")
                         if name in found)
    return found


def roofline(step_bytes: int, tpot_s: float, batch: int, bandwidth_gb_per_s: float) -> dict:
    """How near a decode step is to the time that reading its bytes takes; {} where it took none."""
    if tpot_s <= 0:
        return {}
    achieved = step_bytes / tpot_s / 1e9
    return {"read_bandwidth_gb_per_s": bandwidth_gb_per_s, "achieved_gb_per_s": achieved,
            "roofline_fraction": achieved / bandwidth_gb_per_s,
            "limit_tokens_per_s": batch * bandwidth_gb_per_s * 1e9 / step_bytes}


def speedup(baseline: Sequence[float], candidate: Sequence[float], draws: int = 2000) -> dict:
    """Ratio of median latencies, `{ratio, low, high}`: over 1, the candidate is faster.

    One sample a side has no interval: `low` and `high` are None. {} where a latency is 0.
    """
    rng = np.random.default_rng(0)
    base, other = np.asarray(baseline, np.float64), np.asarray(candidate, np.float64)
    if base.min() <= 0 or other.min() <= 0:
        return {}
    if len(base) == len(other) == 1:
        return {"ratio": float(base[0] / other[0]), "low": None, "high": None}
    medians = [np.median(rng.choice(values, (draws, len(values))), axis=1)
               for values in (base, other)]
    low, high = np.percentile(medians[0] / medians[1], [2.5, 97.5])
    return {"ratio": float(np.median(base) / np.median(other)), "low": float(low),
            "high": float(high)}


def finite(value):
    """The same value with NaN and infinities, which JSON cannot hold, as None."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

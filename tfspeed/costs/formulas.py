"""The formulas that language models are said to be sped up by: what they mean, when they hold.

Their usual form, O(n²), O(n²/m), O(nk), O(αn²), leaves out what decides on a real machine: the
part that is not shared out, messages, pipelines that fill, kernels that read zeros. Here each has
its assumptions, and `explain` draws what was measured beside it.
"""

import json
from pathlib import Path

import rich.console

from tfspeed.errors import TfspeedError
from tfspeed.measure.pictures import MUTED, rendered

_SIZE = (11, 8)
POINTS = Path(__file__).parents[1] / "data" / "measured_points.json"

PAGE = """\
Symbols: n is the width of a square layer, which so has n² parameters; a token multiplies each of
them once. m processors, k stages, B texts, s the share of the work that one processor must do
alone, 0 < α ≤ 1 the share of the weights' bytes that is left. τ is the time of one parameter.

1. Serial: O(n²)
     T(n) = n² · τ
   One token through one dense layer. Batch 1 reads every weight once: τ = bytes a weight / read
   bandwidth. From some batch on, multiplying takes longer than reading, and τ = 2B / peak.
   Attention adds O(context · width) a token. Not O(parameters²): n² *is* the parameters.

2. m processors: O(n²/m)
     T(n, m) = n²·τ/m + c(m)        c(m): messages, α-β model (tfspeed/costs/communication.py)
   Holds where the weights are spread evenly and each processor reads a memory of its own.
   The worked case: 10^6 parameters on 10 processors are 10^6 / 10 = 10^5 parameters each, not
   10^4 (n = 1,000 wide: n² / m = 10^6 / 10 = 10^5; dividing n by m first gives (n/m)² = 10^4,
   which is one block of a hundred, not a tenth of the matrix).
   Amdahl, a fixed problem:       S(m) = 1 / (s + (1 - s)/m)       at most 1/s
   Gustafson, one that grows:     S(m) = s + (1 - s) · m           each adds texts of its own
   More replicas never make one text faster: that is Amdahl with s = 1.

3. Pipeline of k stages: not O(nk)
     one text:  T = n²·τ + k · hop                   no stage saves it anything
     B texts:   T = (B + k - 1) · (n²·τ/k + hop)     fills, then one a stage's time
     S(B, k) = B·n²·τ / T  →  k as B grows, where the stages are even and hop is small
   O(nk) would say that more stages cost more work: they move it, and add k hops.

4. Compressed: O(αn²)
     S(α) = 1 / (x·α + 1 - x)         x: the share of a step that reads or multiplies these weights
   α counts what the kernel reads: eight bits of 32 are α = 0.25, rank r of n is α = 2r/n, half the
   neurons α = 0.5. Zeros in a dense matrix are α = 1: every dense kernel multiplies them.
"""


def amdahl(alone: float, processors: float) -> float:
    """Speed-up of a fixed problem, `alone` the share that is not shared out."""
    return 1 / (alone + (1 - alone) / processors)


def gustafson(alone: float, processors: float) -> float:
    """Speed-up where the problem grows with the processors."""
    return alone + (1 - alone) * processors


def pipeline(texts: float, stages: float, hop: float = 0.0) -> float:
    """Speed-up of `texts` through even stages; `hop` as a share of the whole's time."""
    return texts / ((texts + stages - 1) * (1 / stages + hop))


def compressed(alpha: float, share: float = 1.0) -> float:
    """Speed-up where `share` of the time shrinks to `alpha` of it."""
    return 1 / (share * alpha + 1 - share)


def each(parameters: int, processors: int) -> float:
    """Parameters that a processor has: they are divided once."""
    return parameters / processors


def explain(picture_path: str) -> None:
    """Prints the page, draws the curves with the measured points."""
    console = rich.console.Console()
    console.print(PAGE, highlight=False, markup=False, soft_wrap=True)
    try:
        points = json.loads(POINTS.read_text(encoding="utf-8"))
        Path(picture_path).write_bytes(rendered(painter(points), _SIZE))
    except (OSError, ValueError) as error:
        raise TfspeedError("The picture cannot be drawn.", picture=picture_path,
                           cause=str(error)[:200]) from error
    console.print("Measured, beside the formulas:", highlight=False)
    tau = 4 / points["serial"]["bytes_per_s"]
    console.print(f"  {points['serial']['what']}: τ = {1e12 * tau:.0f} ps", highlight=False,
                  soft_wrap=True)
    for point in points["serial"]["points"]:
        console.print(f"  n={point['n']}: {1e3 * point['seconds']:.3g} ms, formula n²·τ "
                      f"{1e3 * point['n']**2 * tau:.3g} ms", highlight=False, soft_wrap=True)
    for point in points["processors"]:
        said = (f"  m={point['m']}: {point['speedup']:.2f}x, at most {point['m']}x; Amdahl's s = "
                f"{_alone(point['speedup'], point['m']):.2f}: {point['what']}")
        console.print(said, highlight=False, soft_wrap=True)
    for point in points["stages"]:
        ideal = pipeline(point["groups"], point["k"])
        console.print(f"  k={point['k']}, B={point['groups']}: {point['speedup']:.2f}x, formula "
                      f"{ideal:.2f}x: {point['what']}", highlight=False, soft_wrap=True)
    for point in points["compressed"]:
        console.print(f"  α={point['alpha']:g}: {point['speedup']:.2f}x, formula with x = 1 "
                      f"{compressed(point['alpha']):.2f}x: {point['what']}", highlight=False,
                      soft_wrap=True)
    console.print(f"Picture: {picture_path}", highlight=False, soft_wrap=True)


def _alone(speedup: float, processors: float) -> float:
    """Amdahl's share that would explain a speed-up."""
    return min(1.0, max(0.0, (processors / speedup - 1) / (processors - 1)))


def painter(points: dict):
    """For `pictures.rendered`: four panels, serial, processors, stages, compressed."""
    import numpy as np

    def paint(figure):
        (serial, processors), (stages, alpha) = figure.subplots(2, 2)
        width = np.geomspace(100, 10_000, 50)
        tau = 4 / points["serial"]["bytes_per_s"]
        for m in (1, 10):
            serial.plot(width, 1e3 * each(1, m) * width**2 * tau, label=f"n²·τ/m, m = {m}")
        _scatter(serial, points["serial"]["points"], "n", lambda p: 1e3 * p["seconds"])
        serial.annotate("10^6 parameters on 10\nprocessors: 10^5 each", (1000, 1e8 * tau),
                        (1300, 1.3e7 * tau), fontsize=8,
                        arrowprops={"arrowstyle": "-"})
        serial.set(xscale="log", yscale="log", xlabel="width n of a layer",
                   ylabel="milliseconds a token", title="1, 2: n²·τ and n²·τ/m")
        count = np.arange(1, 17)
        for s in (0.0, 0.05, 0.25):
            processors.plot(count, amdahl(s, count), label=f"Amdahl, s = {s:g}")
        processors.plot(count, gustafson(0.05, count), "--", label="Gustafson, s = 0.05")
        _scatter(processors, points["processors"], "m")
        processors.set(xlabel="processors m", ylabel="speed-up", title="2: m processors")
        for k in (2, 4, 8):
            stages.plot(count, pipeline(count, k), label=f"{k} stages")
        stages.plot(count, pipeline(count, 4, 0.05), "--", label="4 stages, hop = 5 %")
        _scatter(stages, points["stages"], "groups")
        stages.set(xlabel="texts B", ylabel="speed-up", title="3: a pipeline of k stages")
        left = np.linspace(0.1, 1, 60)
        for x in (1.0, 0.9, 0.6):
            alpha.plot(left, compressed(left, x), label=f"x = {x:g}")
        _scatter(alpha, points["compressed"], "alpha")
        alpha.set(xlabel="share of bytes left α", ylabel="speed-up", title="4: compressed")
        for axis in (serial, processors, stages, alpha):
            axis.legend()

    return paint


def _scatter(axis, points: list[dict], key: str, value=lambda p: p["speedup"]) -> None:
    axis.scatter([p[key] for p in points], [value(p) for p in points], color=MUTED,
                 zorder=3, s=22, label="measured")

"""A calibration that nobody measured, for tests of what is done with one."""

from tfspeed.costs import compiled_time
from tfspeed.costs.calibration import STARTS, Calibration, fingerprint
from tfspeed.costs.cases import CACHED, UNCACHED


def made_up(**changes) -> Calibration:
    """Of one and two threads; two read and compute twice as fast."""
    threads = {}
    for count in (1, 2):
        dots = [[rows, size, head, "float32",
                 (rows + 10) * 1e-11 / count * (1.5 if size > 1e8 else 1)]
                for rows in (1, 4, 16, 320) for size in (10e6, 40e6, 300e6)
                for head in (0, 1) if rows <= 16 or (size == 40e6 and not head)]
        dots += [[rows, 5e6, head, dtype, (rows + 10) * times * 1e-11 / count]
                 for dtype, times in (("float16", 3), ("bfloat16", 0.5)) for rows in (1, 4)
                 for head in (0, 1) if count == 2]
        compiled = {engine: {"constants": dict(start), "dots": dots,
                             "cache": 32 << 20,
                             "unpacking": {"8": 4e-10 / count, "4": 6e-10 / count},
                             "narrow": [[1, 2e-10 / count], [4, 3e-10 / count]]
                             if engine == "graph" else []}
                    for engine, start in compiled_time.STARTS.items()}
        threads[count] = {"bandwidth": [[CACHED, count * 40e9], [UNCACHED, count * 20e9]],
                          "placement": None,
                          **{kind: dict(start) for kind, start in STARTS.items()},
                          **compiled}
    values = {"fingerprint": fingerprint(), "made": "2026-01-01T00:00:00+00:00", "seconds": 1.0,
              "threads": threads, "fits": {},
              "link": {"alpha_s": 5e-5, "bytes_per_s": 3e9}}
    return Calibration(**(values | changes))

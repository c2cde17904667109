"""What several workers on this machine would bring, and from which batch or size on.

Workers share the cores and the memory: n of them have `cores / n` threads each, and no more
bandwidth together than all cores have. Messages follow the alpha-beta model of
`communication.py`: those of a pipeline over the link that the calibration measured; TensorFlow's
collectives, which take a hundred times as long, as they were timed once (BUILD.md).
"""

import dataclasses

from tfspeed.costs import communication
from tfspeed.costs.communication import Link
from tfspeed.costs.prediction import Load, Predictor
from tfspeed.costs.shapes import Shape

COLLECTIVES = Link(3.2e-3, 1e9)  # an all-gather of a few integers between two (BUILD.md)
SUMS = Link(1.25e-4, 3e9)  # of two logical devices of a process: 0.25 ms a sum (BUILD.md)
_HANDLING_S = 6e-4  # of a pipeline's message, where each worker has one core (BUILD.md)
MOST = 64  # texts of a batch, where a crossover is looked for
_TOLD_BYTES = 24  # of a prompt's token: up to six characters of JSON, an int32 each
CHUNK = 16  # tokens between two gatherings of multi_worker


def mirrored(predictor: Predictor, shape: Shape, engine: str, cores: int, replicas: int,
             load: Load) -> dict[str, float]:
    """Latencies of replicas on one device's cores: a single text runs whole on the first, which
    has all of them; of more each replica has its share, of cores and of texts."""
    if load.batch == 1:
        return predictor.latency(shape, engine, cores, load)
    each = dataclasses.replace(load, batch=-(-load.batch // replicas))
    times = predictor.latency(shape, engine, max(1, cores // replicas), each)
    if "tpot_s" in times:
        times["tpot_s"] *= predictor.sharing(cores, replicas, shape, engine, each)
    return load.whole(times)


def multi_worker(predictor: Predictor, shape: Shape, engine: str, cores: int, workers: int,
                 load: Load, link: Link = COLLECTIVES) -> dict[str, float]:
    """Latencies where each worker generates its share of a batch, and the chief a single text.
    Before the first token it tells all what to do, which are two gatherings (how long the message
    is, then the message)."""
    if load.batch == 1:
        return predictor.latency(shape, engine, max(1, cores // workers), load)
    each = dataclasses.replace(load, batch=-(-load.batch // workers))
    times = predictor.latency(shape, engine, max(1, cores // workers), each)
    slower = predictor.sharing(cores, workers, shape, engine, each)
    gather = communication.all_gather(workers, 4 * load.batch * CHUNK).seconds(link)
    message = communication.all_gather(workers, _TOLD_BYTES * load.batch * load.prompt_tokens)
    told = communication.all_gather(workers, 4).seconds(link) + message.seconds(link)
    found = {"ttft_s": times["ttft_s"] + told + gather}
    steps = load.new_tokens - 1
    if "tpot_s" in times:
        found["tpot_s"] = times["tpot_s"] * slower + gather * (-(-steps // CHUNK)) / steps
    return load.whole(found)


def tensor_parallel(predictor: Predictor, shape: Shape, engine: str, cores: int, workers: int,
                    load: Load, link: Link = SUMS) -> dict[str, float]:
    """Latencies where each worker has a part of every layer."""
    return shards(predictor, shape.shared_out(workers), engine, cores, workers, load, link)


def shards(predictor: Predictor, part: Shape, engine: str, cores: int, workers: int, load: Load,
           link: Link = SUMS) -> dict[str, float]:
    """Of the part of a model that each has: a sum after each half of a layer, or after both where
    they read the same, and after cross-attention; an encoder's layers have two."""
    times = predictor.latency(part, engine, max(1, cores // workers), load)
    slower = predictor.sharing(cores, workers, part, engine, load)
    a_layer = 3 if part.source else 1 if part.config.parallel_residual else 2

    def exchange(rows, layers=part.layers, a_layer=a_layer):
        one = communication.all_reduce(workers, 4 * rows * part.hidden).seconds(link)
        return len(layers) * a_layer * one

    found = {"ttft_s": times["ttft_s"] + exchange(load.batch * load.prompt_tokens)}
    if part.source:
        own = [a for a in part.source.encoder.attention if a.heads]
        found["ttft_s"] += exchange(load.batch * part.source.least, own, 2)
    if "tpot_s" in times:
        found["tpot_s"] = times["tpot_s"] * slower + exchange(load.batch)
    return load.whole(found)


def dataflow(predictor: Predictor, shape: Shape, engine: str, cores: int, workers: int,
             load: Load, link: Link | None = None, groups: int = 0) -> dict[str, float]:
    """Latencies of a pipeline of even stages over so many groups of rows, 0: as many as stages, so
    that a group is in each. A source goes round twice: once through the encoder, once to be heard.

    A prompt's rows come one after the other: the first leaves after all stages, then one a stage's
    time. A step of a group takes all stages; as many groups are on their way.
    """
    link, groups = link or predictor.link, min(groups or workers, load.batch)
    each = dataclasses.replace(load, batch=-(-load.batch // groups))
    times = predictor.latency(shape, engine, max(1, cores // workers), each)
    slower = predictor.sharing(cores, min(workers, groups), shape, engine, each)
    row = predictor.latency(shape, engine, max(1, cores // workers),
                            dataclasses.replace(load, batch=1))["ttft_s"]

    def hop(values):
        return _HANDLING_S + communication.point_to_point(4 * values).seconds(link)

    stage = row / workers + hop(load.prompt_tokens * shape.hidden)
    if shape.source:
        stage += 2 * hop(shape.source.least * shape.hidden)
    found = {"ttft_s": (load.batch + workers - 1) * stage}
    if "tpot_s" in times:
        step = times["tpot_s"] * slower + workers * hop(each.batch * shape.hidden)
        # Of more groups than stages some wait for a stage.
        found["tpot_s"] = step * max(1.0, groups / workers)
    return load.whole(found)


STRATEGIES = {"multi_worker": multi_worker, "tensor_parallel": tensor_parallel,
              "dataflow": dataflow}


def gain(strategy: str, predictor: Predictor, shape: Shape, engine: str, cores: int,
         workers: int, load: Load, baseline_threads: int = 0) -> float:
    """How many times as fast as one worker (on `baseline_threads`; 0: all cores) it would be."""
    alone = predictor.latency(shape, engine, baseline_threads or cores, load)["e2e_s"]
    return alone / STRATEGIES[strategy](predictor, shape, engine, cores, workers, load)["e2e_s"]


def crossover(strategy: str, predictor: Predictor, shape: Shape, engine: str, cores: int,
              workers: int, load: Load, baseline_threads: int = 0, most: int = MOST) -> int | None:
    """The smallest batch from which on it beats one worker; None: none up to `most`."""
    wins = [gain(strategy, predictor, shape, engine, cores, workers,
                 dataclasses.replace(load, batch=batch), baseline_threads) > 1
            for batch in range(1, most + 1)]
    if not wins[-1]:
        return None
    return most - wins[::-1].index(False) + 1 if False in wins else 1

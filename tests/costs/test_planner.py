"""The planner, the formulas, memory and workers, over a calibration that nobody measured."""

import dataclasses
import math

import pytest

from tests.conftest import tiny_decoder
from tests.costs.calibrations import made_up
from tfspeed.costs import cases, formulas, memory, origin, planner, shapes, workers
from tfspeed.costs.budget import Budget, why_none
from tfspeed.costs.cases import ENGINES
from tfspeed.costs.communication import Link
from tfspeed.costs.origin import Origin
from tfspeed.costs.prediction import Load, Predictor
from tfspeed.costs.qualities import qualities, read_rows
from tfspeed.errors import TfspeedError
from tfspeed.litert import fused_plan, packed_cache
from tfspeed.litert.formats import Formats

SHAPE = shapes.decoder(cases.MODELS["llama-60m"])
LOADS = [Load(batch, 64, 16) for batch in (1, 8)]


@pytest.fixture(scope="module")
def predictor():
    return Predictor(made_up())


@pytest.fixture(scope="module")
def points(predictor):
    return planner.search(SHAPE, predictor, qualities(), LOADS, [1, 2], 2, 2)


def test_nothing_on_the_front_is_beaten(points):
    front = planner.front(points)
    assert 1 < len(front) < len(points)
    for point in front:
        assert not any(
            other.output_tokens_per_s > point.output_tokens_per_s
            and other.tpot_s < point.tpot_s and other.memory_bytes < point.memory_bytes
            and other.value("max_perplexity_increase") < point.value("max_perplexity_increase")
            for other in points)


def test_a_budget_is_kept(points):
    budget = Budget(tpot_ms=2, max_perplexity_increase=0.01, ram_gb=2)
    kept = [p for p in points if p.meets(budget)]
    assert kept
    for point in kept:
        assert point.tpot_s <= 2e-3
        assert point.quality.increase <= 0.01
        assert point.memory_bytes <= 2e9
    rivals = planner.contenders(kept, lambda p: p.e2e_s)
    assert rivals[0].e2e_s == min(p.e2e_s for p in kept)
    assert len(rivals) <= 3
    assert all(p.e2e_s <= (1 + planner.DOUBT) * rivals[0].e2e_s for p in rivals)


def test_an_impossible_budget_is_explained(points):
    fastest = min(p.tpot_s for p in points) * 1e3
    budget = Budget(tpot_ms=fastest / 4, ram_gb=100)
    error = str(why_none(points, budget))
    assert "tpot_ms" in error
    assert "4.00 times the bound" in error
    assert "ram_gb=100:" not in error
    assert "under fused:int4,head=int4 at batch 1" in error
    assert "0.1 % over the bound" in str(why_none(points, Budget(tpot_ms=fastest / 1.001)))


def test_bounds_that_exclude_each_other_are_named(points):
    exact = min(p.tpot_s for p in points if p.quality.increase == 0) * 1e3
    budget = Budget(tpot_ms=0.9 * exact, max_perplexity_increase=1e-9)
    points = [p for p in points if p.quality.increase is None or p.quality.increase >= 0]
    assert not [p for p in points if p.meets(budget)]
    assert "within the other bounds the least is" in str(why_none(points, budget))


@pytest.mark.parametrize("name", ["ttft_ms", "tpot_ms", "max_perplexity_increase", "ram_gb"])
def test_a_bound_is_above_nothing(name):
    with pytest.raises(TfspeedError, match=name):
        Budget(**{name: 0})


def test_measured_quality_takes_the_place_of_a_prior():
    rows = [{"model": "m", "strategy": "quantize(bits=4)", "engine": "fused:int4",
             "perplexity_delta": 0.05}]
    found = {(q.strategy, q.engine): q for q in qualities(rows, "m")}
    assert found["quantize", "fused:int4"].increase == 0.05
    assert found["quantize", "fused:int4"].source == "measured"
    assert found["baseline", "fused:int8"].source.startswith("prior")
    other = {(q.strategy, q.engine): q for q in qualities(rows, "another")}
    assert other["quantize", "fused:int4"].source.startswith("prior")


def test_a_row_without_perplexity_measured_none():
    rows = [{"model": "m", "strategy": "baseline", "engine": "fused:int8", "kl_divergence": 0.1}]
    found = {(q.strategy, q.engine): q for q in qualities(rows, "m")}["baseline", "fused:int8"]
    assert found.source.startswith("prior")


@pytest.mark.parametrize("content", ["[]", '{"rows": [3]}', '{"rows": [{"model": "m"}]}', "3"])
def test_other_files_than_results_are_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(TfspeedError, match=r"scripts/run\.py wrote"):
        read_rows([str(tmp_path / "x.json")])


def test_engines_without_constants_are_left_out(points):
    fused = {count: {name: constants[name] for name in ("bandwidth", "fused")}
             for count, constants in made_up().threads.items()}
    found = planner.search(SHAPE, Predictor(made_up(threads=fused)), qualities(), LOADS, [1, 2], 2,
                           2)
    assert found == [p for p in points if p.quality.engine.startswith("fused")]
    with pytest.raises(TfspeedError, match="knows nothing of the engine"):
        planner.search(SHAPE, Predictor(made_up(threads=fused)),
                       [q for q in qualities() if q.engine == "xla"], LOADS, [1], 1, 2)


def test_fewer_threads_than_were_calibrated_are_left_out():
    calibrated = Predictor(made_up(threads={2: made_up().threads[2]}))
    found = planner.search(SHAPE, calibrated, qualities(), LOADS, [2], 2, 2)
    assert {(p.threads, p.workers, p.load) for p in found} == {(2, 1, load) for load in LOADS}


def test_what_a_strategy_has_changed_is_not_changed_again(predictor):
    packed = shapes.decoder(cases.MODELS["llama-60m"], bits=8)
    found = planner.search(packed, predictor, qualities(), LOADS, [1], 1, 1)
    assert {p.quality.strategy for p in found} == {"baseline"}
    assert {p.quality.engine.partition(":")[0] for p in found} == set(ENGINES)


def test_more_than_the_layers_have_cannot_go():
    small = shapes.decoder(dataclasses.replace(cases.MODELS["mini-15m"], vocabulary_size=10**6))
    for quality in qualities():
        if quality.strategy in ("low_rank", "prune_structured"):
            with pytest.raises(TfspeedError):
                planner.reshaped(small, quality)


def test_what_was_never_measured_is_within_no_bound(points):
    unknown = [p for p in points if p.quality.increase is None]
    assert unknown
    assert not any(p.meets(Budget(max_perplexity_increase=1.0)) for p in unknown)


def test_the_commands_are_those_of_run(points):
    for point in points:
        command = point.command("glassllm")
        assert command.startswith("python scripts/run.py --model=glassllm --strategy=")
        assert "--model='my model.gguf' " in point.command("my model.gguf")
        assert "max_perplexity" not in command
        for limit, said in ((0.02, "0.02"), (1.5, "inf")):  # run.py's gate is a fraction
            assert f" --max_perplexity_increase={said} " in point.command("m", limit)
        assert ("multi_worker" in command) == (point.workers > 1)
    assert {"baseline", "multi_worker", "quantize(bits=4)", "low_rank(fraction=0.2)",
            "low_rank+multi_worker"} <= {point.label for point in points}


def test_pruning_and_low_rank_shrink_a_shape():
    for quality in qualities():
        changed = planner.reshaped(SHAPE, quality)
        taken = dict(quality.options)
        share = taken.get("low_rank_fraction") or taken.get("prune_structured_fraction")
        if share:
            assert changed.parameters == pytest.approx((1 - share) * SHAPE.parameters, rel=0.02)


def test_the_cache_on_paper_is_that_of_the_engine():
    model = tiny_decoder(head_dim=8)
    shape, (sizes, kind) = shapes.of(model), fused_plan.cache_type(model.keras_model.config, True,
                                                                   2, 3, 512)
    assert memory.fused_cache_bytes(shape, 3, 300, 2) == math.prod(sizes) * kind().itemsize
    assert memory.variable_bytes(shape) == model.weights_bytes


def test_a_cache_that_has_grown_was_held_beside_the_one_before():
    for tokens, times in ((100, 1), (300, 1.5)):
        needed = memory.needed(SHAPE, "fused", 2, tokens, 20)
        assert needed.cache == times * memory.fused_cache_bytes(SHAPE, 2, tokens + 20, 4)


def test_packing_integers_needs_more_than_a_short_text_does():
    short, long = (memory.needed(SHAPE, "fused:int8", batch, 100, 20, rounded=False)
                   for batch in (1, 64))
    assert short.packing > short.cache + short.activations
    assert short.total < long.total
    assert long.total == pytest.approx(memory.RUNTIME_BYTES + long.variables + long.left
                                       + long.packed + long.cache + long.activations)


def test_rounding_is_a_peak_of_its_own():
    """What is rounded with calibration text holds a layer's activations of all of it; what is on
    the disk already does not, nor do floats, nor integers that a strategy has made."""
    first, again = (memory.needed(SHAPE, "fused:int8", 1, 64, 16, rounded) for rounded in (
        True, False))
    assert first.total > again.total + 50e6
    assert again.rounding == again.kept == 0
    assert memory.needed(SHAPE, "fused", 1, 64, 16).rounding == 0
    packed = SHAPE.stored(Formats("int8"))
    assert memory.needed(packed, "fused:int8", 1, 64, 16).rounding == 0
    wider = dataclasses.replace(cases.MODELS["llama-60m"], mlp_dim=4096)
    assert memory.needed(shapes.decoder(wider), "fused:int8", 1, 64, 16).rounding > first.rounding


def test_less_text_takes_less_to_round_with():
    """A model without a tokenizer reads a single window."""
    usual, one = (memory.needed(SHAPE, "fused:int8", 1, 64, 16, tokens=tokens)
                  for tokens in (memory.CALIBRATION_TOKENS, 256))
    assert usual.total > one.total + 300e6


def test_an_embedding_of_its_own_is_packed_like_the_head():
    config = dataclasses.replace(cases.MODELS["llama-60m"], tied_embeddings=False)
    values = config.vocabulary_size * config.hidden_dim
    for engine, itemsize in (("fused", 4), ("fused:int8", 1)):
        tied, untied = (memory.needed(shape, engine, 1, 64, 16).packed
                        for shape in (SHAPE, shapes.decoder(config)))
        assert untied - tied == pytest.approx(2 * itemsize * values, rel=0.01)


def test_what_is_kept_on_the_disk_is_not_rounded_again(predictor):
    known = [q for q in qualities() if q.engine == "fused:int8"]
    first, again = ({p.quality.strategy: p.memory_bytes for p in planner.search(
        SHAPE, predictor, known, LOADS[:1], [1], 1, 1, Origin(kept=frozenset(kept)))}
        for kept in ((), ("fused:int8",)))
    assert again["baseline"] < first["baseline"] - 200e6
    assert again["low_rank"] == first["low_rank"]  # other weights than those on the disk


def test_a_large_file_is_the_peak_where_little_comes_after_it(predictor):
    known = [q for q in qualities() if q.engine == "graph"]
    (small, large) = (planner.search(SHAPE, predictor, known, LOADS[:1], [1], 1, 1,
                                     Origin(file=size))[0].memory_bytes for size in (1e6, 1e9))
    assert large == pytest.approx(memory.RUNTIME_BYTES + memory.variable_bytes(SHAPE)
                                  + memory.left(SHAPE) + 1e9)
    assert small < large


def test_where_a_model_came_from(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, engines = tiny_decoder(), ("fused:int8", "graph", "fused")
    model.made_up = False
    monkeypatch.setenv(packed_cache.LIMIT, "1")
    length = min(256, model.context_length)
    assert origin.of(model, engines) == Origin(tokens=length)
    packed_cache.packed(model, Formats("int8"))
    (tmp_path / "model.safetensors").write_bytes(b"12345678")
    model.source = str(tmp_path)
    assert origin.of(model, engines) == Origin(length, 8, frozenset(["fused:int8"]))


def test_what_quantize_holds_is_in_the_plan(predictor):
    packed = SHAPE.stored(Formats("int8"))
    held = memory.applying("quantize", SHAPE, packed)
    assert held > memory.RUNTIME_BYTES + memory.variable_bytes(SHAPE) + packed.step_weight_bytes
    known = [q for q in qualities() if q.strategy == "quantize"]
    points = planner.search(SHAPE, predictor, known, LOADS, [1], 1, 1)
    four = memory.applying("quantize", SHAPE, SHAPE.stored(Formats("int4")))
    assert points
    assert four > held
    assert all(p.memory_bytes >= four for p in points)
    assert memory.applying("distill", SHAPE, SHAPE) is None
    thin = SHAPE.thinned(0.8)
    layers = 4 * sum(m.parameters for layer in thin.layers for m in layer)
    for strategy in ("low_rank", "prune_structured"):
        assert memory.applying(strategy, SHAPE, thin) > (memory.RUNTIME_BYTES + layers
                                                         + memory.variable_bytes(SHAPE))


def test_litert_holds_what_its_file_and_kernels_have():
    model, integers = (memory.needed(SHAPE, f"litert{form}", 1, 64, 16, rounded=False)
                       for form in ("", ":int8"))
    # What they were written from, XNNPACK's copy, and the table twice more.
    held = 2 * (SHAPE.step_weight_bytes + SHAPE.head.nbytes)
    assert held < model.packed + model.activations < held + 100e6
    assert integers.total < model.total
    with pytest.raises(TfspeedError, match="engine's memory"):
        memory.needed(SHAPE, "warp", 1, 64, 16)


def test_memory_grows_with_the_batch_and_shrinks_with_the_bits():
    def total(engine, batch=1):
        return memory.needed(SHAPE, engine, batch, 64, 16, rounded=False).total

    assert total("xla", 8) > total("xla")
    assert total("fused:float32") > total("fused:int8") > total("fused:int4,head=int4")


def test_two_workers_halve_what_is_bound_by_computing(predictor):
    load, free = Load(16, 256, 2), Link(0, 1e12)
    alone = predictor.latency(SHAPE, "fused", 1, load)["e2e_s"]
    two = workers.multi_worker(predictor, SHAPE, "fused", 2, 2, load, free)["e2e_s"]
    assert 1.7 < alone / two < 2.05
    slow = workers.multi_worker(predictor, SHAPE, "fused", 2, 2, load, Link(10, 1e9))
    assert alone / slow["e2e_s"] < 1


def test_a_batch_of_one_gains_nothing_from_replicas(predictor):
    load = Load(1, 64, 16)
    for name in workers.STRATEGIES:
        assert workers.gain(name, predictor, SHAPE, "graph", 2, 2, load, 1) < 1.2
    batch = workers.crossover("multi_worker", predictor, SHAPE, "fused", 2, 2, load, 1)
    assert batch > 1
    wins = [workers.gain("multi_worker", predictor, SHAPE, "fused", 2, 2,
                         dataclasses.replace(load, batch=b), 1) > 1 for b in (batch, batch - 1)]
    assert wins == [True, False]


def test_a_parallel_layer_is_summed_once(predictor):
    config, load = cases.MODELS["llama-60m"], Load(1, 8, 2)
    slow, free = Link(1.0, 1e12), Link(0.0, 1e12)
    for parallel, sums in ((False, 2), (True, 1)):
        shape = shapes.decoder(dataclasses.replace(config, parallel_residual=parallel))
        waited = [workers.tensor_parallel(predictor, shape, "xla", 2, 2, load, link)["tpot_s"]
                  for link in (slow, free)]
        # An all-reduce between two is two messages, one after the other.
        assert waited[0] - waited[1] == pytest.approx(2 * sums * config.num_layers, rel=1e-6)


def test_what_was_changed_is_not_spread_on_paper():
    for shape in (shapes.decoder(cases.MODELS["mini-15m"], bits=8), SHAPE.thinned(0.5)):
        with pytest.raises(TfspeedError, match="on paper"):
            shape.shared_out(2)


def test_shards_hold_the_whole_together():
    part = SHAPE.shared_out(5)
    layer, whole = part.layers[0], SHAPE.layers[0]
    assert [5 * m.parameters for m in layer[:2]] == [m.parameters for m in whole[:2]]
    assert part.head == SHAPE.head


def test_the_worked_case():
    assert formulas.each(10**6, 10) == 10**5
    assert "10^6 / 10 = 10^5" in formulas.PAGE


def test_the_formulas():
    assert formulas.amdahl(0.25, 10**9) == pytest.approx(4)
    assert formulas.gustafson(0.25, 4) == pytest.approx(3.25)
    assert formulas.pipeline(1, 8) == pytest.approx(1)
    assert formulas.pipeline(10**6, 8) == pytest.approx(8, rel=1e-4)
    assert formulas.pipeline(1, 4, hop=0.1) < 1
    assert formulas.compressed(0.25) == pytest.approx(4)
    assert formulas.compressed(0.0, share=0.5) == pytest.approx(2)


def test_the_page_is_printed_and_drawn(tmp_path, capsys):
    formulas.explain(str(tmp_path / "formulas.png"))
    assert "Amdahl" in capsys.readouterr().out
    assert (tmp_path / "formulas.png").read_bytes().startswith(b"\x89PNG")

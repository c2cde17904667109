"""Times that are predicted behave as the machine does; a calibration of another one is refused."""

import contextlib
import dataclasses
import itertools
import json

import numpy as np
import pytest

from tests.conftest import tiny_decoder, tiny_recurrent
from tests.costs.calibrations import made_up
from tests.models import seq2seq
from tfspeed import engines
from tfspeed.cluster import addresses
from tfspeed.costs import (
    calibrating,
    calibration,
    cases,
    computation,
    constants,
    dots,
    fitting,
    fused_time,
    litert_time,
    memory,
    observing,
    origin,
    prediction,
    reading,
    rows,
    seq2seq_shapes,
    shapes,
    workers,
)
from tfspeed.costs.calibration import NoCalibration
from tfspeed.costs.communication import Link
from tfspeed.costs.dot_table import Table
from tfspeed.costs.matrices import Matrix
from tfspeed.costs.prediction import Load, Predictor
from tfspeed.errors import TfspeedError
from tfspeed.litert import session
from tfspeed.litert.formats import Formats
from tfspeed.measure.placement import Placement
from tfspeed.measure.progress import Progress
from tfspeed.models.encoder_decoder_config import EncoderDecoderConfig
from tfspeed.speculation import Speculation

SHAPE = shapes.decoder(cases.MODELS["llama-60m"])
LOAD = Load(batch=1, prompt_tokens=100, new_tokens=20)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def predictor():
    return Predictor(made_up())


def latency(predictor, engine="fused", threads=2, shape=SHAPE, **load):
    return predictor.latency(shape, engine, threads, dataclasses.replace(LOAD, **load))


@pytest.mark.parametrize("engine", ["fused", "fused:int8", "litert", "litert:int8", "graph", "xla"])
def test_more_work_takes_longer(predictor, engine):
    small = latency(predictor, engine)
    assert latency(predictor, engine, prompt_tokens=400)["ttft_s"] > 2 * small["ttft_s"]
    assert latency(predictor, engine, batch=16)["tpot_s"] > small["tpot_s"]
    assert latency(predictor, engine, prompt_tokens=3000)["tpot_s"] > small["tpot_s"]
    assert latency(predictor, engine, threads=1)["ttft_s"] > small["ttft_s"]
    assert small["e2e_s"] == pytest.approx(small["ttft_s"] + 19 * small["tpot_s"])


def test_fewer_bits_are_read_faster(predictor):
    times = [latency(predictor, f"fused:{form}")["tpot_s"]
             for form in ("float32", "float16", "int8", "int4,head=int4")]
    assert times == sorted(times, reverse=True)
    assert times[0] > 2.5 * times[2]


@pytest.mark.parametrize("engine", ["graph", "xla"])
def test_unpacking_comes_on_top(predictor, engine):
    packed = SHAPE.stored(Formats("int8"))
    plain, slower = (latency(predictor, engine, shape=shape) for shape in (SHAPE, packed))
    # As `made_up` has it, with two threads: 4e-10 a product, 11e-11 without.
    unpacked = SHAPE.step_weight_bytes / 4 * (4e-10 - 11e-11) / 2
    # Less what is saved where a matrix lies in the cache, just unpacked.
    assert 0.5 * unpacked < slower["tpot_s"] - plain["tpot_s"] <= unpacked * (1 + 1e-9)


def test_threads_between_two_that_were_measured(predictor):
    one, two, many = (latency(predictor, threads=t)["tpot_s"] for t in (1, 2, 16))
    assert many == two < one
    fewer = Predictor(made_up(threads={2: made_up().threads[2]}))
    with pytest.raises(TfspeedError, match=r"least number of threads.*least=2"):
        latency(fewer, threads=1)


@pytest.mark.parametrize("times", [0.5, 2])
def test_memory_is_predicted_as_it_is_read(predictor, monkeypatch, times):
    """Slower and faster than when this was calibrated."""
    was = {count: machine.bandwidth(cases.UNCACHED)
           for count, machine in predictor._made.items()}
    monkeypatch.setattr(prediction, "available_cores", lambda: 1)
    monkeypatch.setattr(prediction, "MemoryReader", lambda threads, size: contextlib.nullcontext())
    monkeypatch.setattr(contextlib.nullcontext, "read", lambda self: times * was[1], raising=False)
    now = predictor.now()
    for count, machine in now._made.items():  # two threads may not be used: as one has changed
        assert machine.bandwidth(cases.UNCACHED) == pytest.approx(times * was[count])
        assert machine.bandwidth(cases.CACHED) == predictor._made[count].bandwidth(
            cases.CACHED)
    ratio = latency(now, "fused")["tpot_s"] / latency(predictor, "fused")["tpot_s"]
    assert ratio > 1.2 if times < 1 else ratio < 0.9


def test_a_calibration_takes_what_was_not_disturbed():
    case = cases.calibration("fused", 2)[0]
    seen = calibrating.Seen(["fused"])
    home, away = ({"turn_s": turn_s, "multiplied": 7e9} for turn_s in (3e-8, 1.5e-7))
    lost = cases.calibration("fused", 2)[1]
    seen.times["fused"][lost] = [{"ttft_s": [1e-3], "tpot_s": [1e-4], "memory": [3e10],
                                  "placement": [away]}]
    seen.times["fused"][case] = [
        {"ttft_s": [3e-3, 2e-3, 9e-3], "tpot_s": [4e-4, 1e-3], "memory": [2e10, 4e10],
         "placement": [home, home]},
        {"ttft_s": [5e-3, 4e-3], "tpot_s": [6e-4], "memory": [1e10], "placement": [home, home]},
        {"ttft_s": [1e-3], "tpot_s": [1e-4], "memory": [9e10], "placement": [home, away]},
        {"ttft_s": [8e-3, 9e-3], "tpot_s": [5e-4], "memory": [5e10], "placement": [home]}]
    seen.reads = [{"bandwidth": speed, "placement": [where]} for speed, where in (
        (1e11, home), (9e10, home), (8e10, home), (2e11, away))]
    found, fits = constants.fitted(seen, {})
    assert found["bandwidth"] == [[cases.CACHED, 9e10], [cases.UNCACHED, 3e10]]
    assert found["placement"] == home
    fits = fits["fused"]
    times = {entry[0]["model"]: entry[1:] for entry in fits["measured"]}
    assert fits["measured"][1][1:] == pytest.approx([4.5e-3, 6e-4])  # the middle of the middles
    assert fits["measured"][0][1:] == [1e-3, 1e-4]  # there is nothing else
    assert (fits["elsewhere"], len(times)) == (1, 1)
    assert constants._doubt([0.1]) == constants._ONE_READING
    assert constants._doubt([0.1, 0.3]) == pytest.approx(0.1)


def test_one_token_has_no_step(predictor):
    found = latency(predictor, new_tokens=1)
    assert set(found) == {"ttft_s", "e2e_s"}


@pytest.mark.parametrize(("engine", "shape", "rule"), [
    ("keras", SHAPE, "predicted under fused"),
    ("fused", shapes.of(tiny_recurrent("lstm")), "runs decoders alone"),
    ("xla", dataclasses.replace(SHAPE, compute="float64"), "float16.*type='float64'"),
    ("graph", dataclasses.replace(shapes.decoder(cases.MODELS["mini-15m"], bits=8),
                                  compute="float16"), "where float32 is computed")])
def test_what_is_not_known_is_refused(predictor, engine, shape, rule):
    with pytest.raises(TfspeedError, match=rule):
        latency(predictor, engine, shape=shape)


def test_a_prompt_is_read_in_pieces():
    calls = fused_time.prefill_calls(batch=3, prompt=400)
    assert [(c.count, c.slot, c.logits) for c in calls] == [
        (170, 0, False), (170, 170, False), (60, 340, True)]
    assert [fused_time.tiles(rows) for rows in (1, 3, 13, 23, 26)] == [
        [(1, 1)], [(2, 1), (1, 1)], [(12, 1), (1, 1)], [(12, 1), (8, 1), (2, 1), (1, 1)],
        [(12, 2), (2, 1)]]


def test_a_prompt_goes_through_the_signatures_that_a_session_calls(monkeypatch):
    engine = engines.create("litert", tiny_decoder())
    called = []
    made = session.DecoderSession._buffers
    monkeypatch.setattr(session.DecoderSession, "_buffers",
                        lambda self, name: called.append(name) or made(self, name))
    list(engine.generate([[1] * 44], 2))
    pieces = litert_time.pieces(43, 256)
    assert [name for name in called if name.startswith("prefill")] == [
        session.prefill_name(length, 256) for length in pieces] == ["prefill_128_256"]
    assert litert_time.pieces(700 - 1, 1024) == [512, 512]
    assert litert_time.pieces(0, 256) == []


def test_what_a_cache_keeps_of_a_step():
    constants = {"cache": 32e6, "others": 1.0, "reach_cache": 1.0, "reach_memory": 1.0,
                 "fetch": 1e12}

    def speed(read, steps=reading.LONG, before=float("inf"), **changes):
        return 1 / reading.reading(
            constants | changes, lambda size: 3e10 if size > 1e8 else 1.2e11, read, 2, steps,
            before).byte

    assert speed(1e6) == pytest.approx(1.2e11, rel=0.02)
    assert speed(2e9) == pytest.approx(3e10, rel=1e-3)
    # Of twice what the cache holds, x = exp(-2 (1 - x)) is there: a fifth.
    assert reading.hits(2.0, 10000) == pytest.approx(0.2032, abs=1e-3)
    # The first step after a prompt reads memory, unless the prompt was so short that nobody else
    # has been there; the more steps, the less that counts.
    assert speed(1e6, steps=1) == pytest.approx(3e10, rel=1e-3)
    assert speed(1e6, steps=1, before=0.0) > 1e11
    assert speed(1e6, steps=1) < speed(1e6, steps=4) < speed(1e6, steps=40)
    # More than the cache holds cannot be there after a prompt either.
    assert speed(64e6, before=0.0) < 1.2 * speed(64e6) < 1.5 * 3e10
    # What others bring in goes on while this one waits: the slower, the less it finds.
    assert speed(2e7, others=1e10) < 0.9 * speed(2e7)
    assert speed(1e5, others=1e10) == pytest.approx(speed(1e5), rel=0.02)
    speeds = [speed(read) for read in np.geomspace(1e6, 1e9, 30)]
    assert speeds == sorted(speeds, reverse=True)
    # A thread has no more on its way than `fetch`, however fast memory is.
    assert speed(2e9, fetch=1e10) == pytest.approx(2e10, rel=0.06)
    assert speed(1e6, fetch=1e10) == pytest.approx(1.2e11, rel=0.03)


def test_what_memory_gives_hides_less():
    how = reading.Reading(0.5, cached=1e-9, memory=3e-9)
    assert how.byte == pytest.approx(2e-9)
    assert how.hiding(0.0, 10) == pytest.approx(10 * how.byte)
    assert how.hiding(10.0, 10, corner=1) == pytest.approx(10.0 + 0.5 * 3e-8)


@pytest.mark.parametrize("engine", ["fused:int8", "litert:int8"])
def test_the_first_tokens_after_a_prompt_take_longer(predictor, engine):
    few, more = (latency(predictor, engine, new_tokens=count)["tpot_s"] for count in (2, 8))
    assert few > more


@pytest.mark.parametrize("bits", [4, 8])
def test_a_few_rows_hide_behind_what_is_read(bits):
    """The next panel is fetched while later tiles of rows meet this one, as far as it goes."""
    def over_reading(inputs):
        matrix, speed = Matrix("wide", inputs, 16 * 1024, bits=bits), bits * 3.5e9
        made = fused_time.FusedTime(dict(fused_time.START), lambda size: speed, 2, 2)
        how = reading.Reading(0.0, 1 / speed, 1 / speed)
        return made._product(matrix, 3, how) / (matrix.nbytes / speed)

    assert 1 < over_reading(512) < 1.1  # a panel of 4 or 8 kB
    assert over_reading(8192) > 1.2


def test_a_fit_begins_with_the_constants_of_other_threads():
    start = {"layer": 1e-5, "cache": 3e7, "reach_memory": 1.0, "blunt": 2.0, "products_step": 1.0}
    other = {name: 3 * value for name, value in start.items()}
    assert constants._begin(start, None) == start
    assert constants._begin(start, other) == start | {
        "layer": other["layer"], "cache": other["cache"]}  # but for what is theirs


def test_a_fit_finds_the_constants():
    true = {"call": 3e-4, "byte": 2e-10, "unused": 1e-3}
    sizes = np.geomspace(1e4, 1e9, 12)

    def predict(c):
        return c["call"] + c["byte"] * sizes

    start = {"call": 1e-5, "byte": 1e-8, "unused": 1e-3}
    noisy = predict(true) * np.exp(np.random.default_rng(0).normal(0, 0.02, len(sizes)))
    found = fitting.fit(start, predict, noisy)
    assert found["call"] == pytest.approx(3e-4, rel=0.05)
    assert found["byte"] == pytest.approx(2e-10, rel=0.05)
    assert found["unused"] == pytest.approx(1e-3)
    unsure = fitting.fit(start, predict, noisy * np.array([3.0, *[1.0] * 11]),
                         spread=np.array([1.0, *[0.0] * 11]))  # the first was read anyhow
    assert unsure["call"] == pytest.approx(3e-4, rel=0.05)
    firm = fitting.fit(start, predict, noisy, firm=lambda name: 1000 if name == "byte" else 1)
    assert firm["byte"] > 10 * found["byte"]  # it stays where it began


def test_what_is_timed_is_timed_in_turns(monkeypatch):
    asked = []
    monkeypatch.setattr(observing.Observer, "__init__", lambda self: None)
    monkeypatch.setattr(observing.Observer, "ask", lambda self, question: asked.append(
        question.get("case", {}).get("engine", next(iter(question)))) or {
            "ttft_s": [1.0], "tpot_s": [1.0]})
    some = [cases.Case("cal-thin", engine, 2, 1, 8, 4) for engine in ("graph", "xla")]
    seen = list(observing.Observer().in_turns(some, 2))
    assert [case for case, _ in seen] == some * 2
    assert asked == ["prepare", "prepare", "graph", "xla", "graph", "xla"]


@pytest.mark.parametrize("always", [False, True])
def test_a_case_is_timed_again_where_cores_lay_elsewhere(monkeypatch, always):
    """As often again at most."""
    home = Placement(3e-8, 7e9)
    case, turns = cases.Case("cal-thin", "graph", 2, 1, 8, 4), itertools.count()
    monkeypatch.setattr(observing.Observer, "__init__", lambda self: None)
    monkeypatch.setattr(observing.Observer, "prepare", lambda self, cases: None)
    monkeypatch.setattr(observing.Observer, "observe", lambda self, case: {"placement": [
        {"turn_s": 3e-8 if next(turns) > 3 and not always else 1.6e-7, "multiplied": 7e9}]})
    seen = [times for _, times in observing.Observer().in_turns([case], 4, home)]
    assert len(seen) == (8 if always else 7)  # three of them at home
    assert len(observing.at_home(seen, home)) == (8 if always else 3)
    assert observing.at_home(seen, None) == seen


def test_what_was_timed_elsewhere_alone_or_did_not_repeat_is_timed_again():
    here, away = ([{"turn_s": turn_s, "multiplied": 7e9}] for turn_s in (3e-8, 1.5e-7))

    def rounds(*pairs):
        return [{"ttft_s": [1e-3, 2e-3], "tpot_s": [tpot_s], "placement": where}
                for where, tpot_s in pairs]

    found, lost, other = cases.calibration("graph", 2)[:3]
    seen = calibrating.Seen(["graph"])
    seen.times["graph"] = {found: rounds((away, 9), (here, 1), (here, 1.1), (here, 2)),
                           lost: rounds((away, 1), (away, 1)),
                           other: rounds((here, 1), (here, 2))}
    seen.products["graph"] = [{"placement": away}]

    class Fake:
        threads = 2

        def products(self, engine, short):
            return {"asked": (engine, short), "placement": here}

        def observe(self, case):
            return rounds((here, 2.1))[0]

    said = []
    calibrating._look_again(Fake(), "graph", True, seen, said.append)
    # Two that lie elsewhere tell nothing; of 1 and 2 nobody knows which is true.
    assert {each: len(moments) for each, moments in seen.times["graph"].items()} == {
        found: 4, lost: 4, other: 3}
    assert len(said) == 4
    assert seen.products["graph"][1:] == [{"asked": ("graph", True), "placement": here}]
    assert not observing.repeats([])
    assert observing.repeats(rounds((here, 1), (here, 3), (here, 1.2)))


def test_of_products_that_were_timed_again_the_median_counts():
    full = {"dots": [[1, 10, 0, "float32", 5e-10], [4, 10, 0, "float32", 9e-10]], "narrow": [],
            "cache": 32 << 20, "unpacking": {"8": 1e-9}}
    again = [{"dots": [[1, 10, 0, "float32", seconds]]} for seconds in (1e-10, 2e-10)]
    assert constants._middle_products([full], again)["dots"] == [
        [1, 10, 0, "float32", 2e-10], [4, 10, 0, "float32", 9e-10]]


def test_more_rows_than_were_timed_take_longer_as_with_other_threads():
    def table(rows, a_row, longer=None):
        return Table([[count, size, 0, "float32", a_row * count**0.5] for count in rows
                      for size in (1e7, 4e7, 3e8)], {}, [], 32 << 20, longer)

    most = table((1, 16, 320), 1e-10)
    few = table((1, 16), 2e-10, longer=most)
    assert few.a_weight(320, 4e7) == pytest.approx(2e-10 * 320**0.5)
    assert few.a_weight(640, 4e7) == pytest.approx(4e-10 * 320**0.5)  # each as much as any other
    assert table((1, 16), 2e-10).a_weight(32, 4e7) == pytest.approx(4e-10 * 16**0.5)


def test_a_sixth_row_begins_another_tile_under_litert():
    made = litert_time.LitertTime(dict(litert_time.START), lambda size: 1e15, 1)
    matrix = Matrix("some", 512, 512, bits=8)
    how = reading.Reading(0.0, 1e-15, 1e-15)
    four, five, six, ten = (made.product(matrix, rows, how) for rows in (4, 5, 6, 10))
    assert six - five > 5 * (five - four)
    assert ten == pytest.approx(2 * five)


def test_a_step_reads_keys_and_values_in_small_pieces():
    """As fast as `gather` lets each thread, and never faster than memory."""
    shape, call = SHAPE, fused_time.Call(1, 1, 4000)
    how = reading.Reading(0.0, 1 / 3e10, 1 / 3e10)

    def attention(threads, **changes):
        made = fused_time.FusedTime(fused_time.START | changes, lambda size: 3e10, threads, 2)
        return made._attention(shape.attention[0], call, how)

    a = shape.attention[0]
    nbytes = 2 * 4001 * a.kv_heads * a.dim * 2
    slow = attention(1, gather=1e-8)
    assert slow == pytest.approx(nbytes * 1e-8, rel=0.05)
    assert attention(2, gather=1e-8) == pytest.approx(slow / 2, rel=0.05)
    assert attention(64) > 0.9 * nbytes / 3e10


def test_what_a_fit_says_is_what_is_predicted(cache):
    """Of fewer threads, whose products lean on the table of the most, too."""
    most = made_up().threads[2]["graph"]
    few = dots.measured(made_up().threads[1]["graph"])
    few["dots"] = [row for row in few["dots"] if row[0] <= 16]
    case = cases.Case("cal-small", "graph", 1, 4, 300, 8)
    seen = [(case, {"ttft_s": 0.4, "tpot_s": 0.01, "memory": 1e10, "spread": [0.0, 0.0]})]
    found, fits = constants.fit("graph", seen, [], few, most)
    threads = made_up().threads | {1: made_up().threads[1] | {"graph": found}}
    told = Predictor(made_up(threads=threads)).latency(
        shapes.decoder(cases.MODELS["cal-small"], "cal-small"), "graph", 1, Load(4, 300, 8))
    assert fits["predicted"] == [pytest.approx([told["ttft_s"], told["tpot_s"]])]


@pytest.mark.parametrize("moments", [1, 2])
def test_what_observers_say_becomes_a_calibration(cache, monkeypatch, moments):
    asked, timed = [], []

    class Fake(contextlib.nullcontext):
        def __init__(self, threads):
            super().__init__(self)
            self.threads = threads

        def close(self):
            pass

        def bandwidth(self, size):
            assert size == cases.CACHED
            return {"bandwidth": self.threads * 1e10, "placement": []}

        def prepare(self, cases, products, short):
            asked.append({case.engine for case in cases})

        def products(self, engine, short):
            return dots.measured(made_up().threads[self.threads][engine]) | {"placement": []}

        def products_again(self, engine, short):
            return {"dots": made_up().threads[self.threads][engine]["dots"][:1], "placement": []}

        def observe(self, case):
            timed.append((self.threads, case.engine))
            return {"ttft_s": [0.2, 0.3], "tpot_s": [0.02], "memory": [1e10, 2e10],
                    "placement": []}

    monkeypatch.setattr(observing, "Observer", Fake)
    monkeypatch.setattr(calibrating.loopback, "measure", lambda: Link(1e-5, 3e9))
    made = calibrating.calibrate([1, 2], ["graph", "xla"], Progress(), moments)
    assert asked == [{"graph"}] * 2 + [{"xla"}] * 2 + ([{"graph"}] * 2 + [{"xla"}] * 2) * (
        moments - 1)
    turns = [turn for turn, _ in itertools.groupby(timed)]
    assert turns == [(2, "graph"), (1, "graph")] * 2 + [(2, "xla"), (1, "xla")] * 2 + (
        turns[:8] if moments == 2 else [])
    assert {count: set(found) for count, found in made.threads.items()} == {
        count: {"bandwidth", "placement", "graph", "xla"} for count in (1, 2)}
    calibration.save(made)
    assert calibration.load() == made
    found = Predictor(calibration.load()).latency(SHAPE, "graph", 2, LOAD)
    assert 0 < found["tpot_s"] < found["ttft_s"]


def test_a_calibration_is_kept(cache):
    calibration.save(made_up())
    assert calibration.load() == made_up()


@pytest.mark.parametrize(("threads", "now", "said"), [
    (2, Placement(2.6e-8, 7e9), None), (2, Placement(1.57e-7, 7e9), "157 ns between them, not 30"),
    (2, None, None), (1, Placement(0.0, 3e9), None), (1, Placement(0.0, 1e9), "multiplied 0.29")])
def test_a_row_says_if_the_cores_lay_elsewhere(monkeypatch, threads, now, said):
    class Reader(contextlib.nullcontext):
        def __init__(self, count):
            super().__init__(self)
            assert count == threads

        def read(self):
            return now

    found = {count: each | {"placement": {"turn_s": 3e-8 * (count - 1),
                                          "multiplied": 3.5e9 * count}}
             for count, each in made_up().threads.items()}
    monkeypatch.setattr(prediction, "PlacementReader", Reader)
    monkeypatch.setattr(prediction, "available_cores", lambda: 2)
    monkeypatch.setattr(rows, "_predictor", lambda: Predictor(made_up(threads=found)))
    engine = engines.create("xla", tiny_decoder())
    row = {"strategy": "baseline", "batch": 1, "prompt_tokens": 8, "new_tokens": 4, "ttft_s": 0.1}
    _, notes = rows.with_prediction(row, engine, threads, engine.model)
    assert (said in notes and "cache line" in notes) == (threads == 2) if said else notes == ""
    assert Predictor(made_up()).moved(threads) == ""  # it was not told


def test_without_a_calibration(cache):
    with pytest.raises(NoCalibration, match=r"not been calibrated.*calibrate\.py"):
        calibration.load()


@pytest.mark.parametrize(("changed", "said"), [
    ({"cpu": "another processor"}, "another processor"), ({"cores": 1000}, "1000"),
    ({"kernels": "0123"}, "0123")])
def test_another_machines_calibration_is_refused(cache, changed, said):
    calibration.save(made_up(fingerprint=calibration.fingerprint() | changed))
    with pytest.raises(NoCalibration, match=rf"another machine.*{said}.*calibrate\.py"):
        calibration.load()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"threads": 3}', "\x00"])
def test_a_broken_calibration_is_refused(cache, content):
    calibration.path().parent.mkdir(parents=True)
    calibration.path().write_text(content)
    with pytest.raises(NoCalibration, match="cannot be read"):
        calibration.load()


@pytest.mark.parametrize("damage", [
    lambda found: found["threads"].clear(), lambda found: found["threads"]["2"].pop("bandwidth"),
    lambda found: found["threads"]["2"]["fused"].pop("layer"),
    lambda found: found["threads"]["1"]["fused"].update(call="3"),
    lambda found: found["threads"]["1"]["xla"]["constants"].update(call_step=float("nan")),
    lambda found: found["threads"]["1"]["graph"]["dots"][0].clear(),
    lambda found: found["threads"]["1"]["graph"].pop("cache"),
    lambda found: found["threads"]["2"].update(placement={"turn_s": "3", "multiplied": 7e9}),
    lambda found: found["threads"]["2"].update(placement={"turn_s": 3e-8, "multiplied": -7e9}),
    lambda found: found["threads"]["2"].update(placement={"turn_s": 3e-8}),
    lambda found: found["link"].update(bytes_per_s=0), lambda found: found.update(link=3)])
def test_a_calibration_with_something_missing_is_refused(cache, damage):
    calibration.save(made_up())
    found = json.loads(calibration.path().read_text())
    damage(found)
    calibration.path().write_text(json.dumps(found))
    with pytest.raises(NoCalibration, match="cannot be read"):
        calibration.load()


def test_nothing_that_is_checked_was_calibrated_on():
    calibrated = {case.model for kind in cases.ENGINES for short in (True, False)
                  for case in cases.calibration(kind, 2, short)}
    checked = [case for threads in (1, 2) for case in cases.held_out(threads)]
    assert not calibrated & {case.model for case in checked}
    assert len(set(checked)) == len(checked) >= 60
    for case in checked:
        engines.check(case.engine)


def row_of(engine):
    return {"strategy": "baseline", "batch": 1, "prompt_tokens": 8, "new_tokens": 4,
            "ttft_s": {"median": 1e-3}, "tpot_s": {"median": 2e-4}, "e2e_s": {"median": 2e-3},
            "peak_rss_bytes": 7e8}


def test_a_row_has_its_prediction_and_the_error(cache):
    calibration.save(made_up())
    rows._predictor.cache_clear()
    engine = engines.create("graph", tiny_decoder())
    found, note = rows.with_prediction(row_of(engine), engine, 2, engine.model)
    assert note == ""
    assert set(found["predicted"]) == {"ttft_s", "tpot_s", "e2e_s", "peak_rss_bytes"}
    assert found["prediction_error"]["peak_rss_bytes"] == pytest.approx(
        found["predicted"]["peak_rss_bytes"] / 7e8 - 1)
    assert found["prediction_error"]["tpot_s"] == pytest.approx(
        found["predicted"]["tpot_s"] / 2e-4 - 1)
    assert json.dumps(found)


def test_a_row_knows_what_a_strategy_held_and_whether_anything_was_rounded(monkeypatch):
    monkeypatch.setattr(rows, "_predictor", lambda: Predictor(made_up()))
    model = tiny_decoder(hidden_dim=32, mlp_dim=64)
    engine = engines.create("fused:int8", model)

    def peak(strategy, rounded):
        monkeypatch.setattr(rows, "rounded_here", lambda packed: rounded)
        row = row_of(engine) | {"strategy": strategy}
        return rows.with_prediction(row, engine, 2, model)[0]["predicted"].get("peak_rss_bytes")

    few = peak("baseline", rounded=True)  # a model without a tokenizer reads 256 tokens
    assert few > peak("baseline", rounded=False) + 8e6
    monkeypatch.setattr(rows.origin, "of", lambda model: origin.Origin())
    assert peak("baseline", rounded=True) > peak("baseline", rounded=False) + 28e6
    assert peak("baseline", rounded=True) > few + 10e6
    shape = shapes.of(model)
    for strategy in ("quantize(bits=4)", "low_rank", "prune_structured(fraction=0.2)"):
        assert peak(strategy, rounded=False) == max(
            memory.applying(strategy.partition("(")[0], shape, shape),
            peak("baseline", rounded=False))
    assert peak("distill", rounded=True) is None


def test_rows_of_replicas_and_workers_are_predicted(monkeypatch, predictor):
    monkeypatch.setattr(rows, "_predictor", lambda: predictor)
    engine = engines.create("graph", tiny_decoder())
    alone = rows.with_prediction(row_of(engine), engine, 2, engine.model)[0]["predicted"]
    monkeypatch.setattr(type(engine), "devices", ("CPU:0", "CPU:1"))

    def said(strategy, batch):
        row = row_of(engine) | {"strategy": strategy, "batch": batch}
        return rows.with_prediction(row, engine, 2, engine.model)

    single = said("quantize+mirrored(replicas=2)", 1)[0]["predicted"]
    assert {name: single[name] for name in single} == {name: alone[name] for name in single}
    shape = shapes.of(engine.model)
    half = predictor.latency(shape, "graph", 1, Load(2, 8, 4))
    shared = said("mirrored", 4)[0]["predicted"]
    assert shared["ttft_s"] == half["ttft_s"]
    assert shared["tpot_s"] >= half["tpot_s"]  # both read at once
    assert shared["e2e_s"] > shared["ttft_s"]
    monkeypatch.setattr(type(engine), "devices", ("worker 0", "worker 1"))
    engine.microbatches = 2
    for strategy, made in (("multi_worker", workers.multi_worker), ("dataflow", workers.dataflow),
                           ("quantize+tensor_parallel", workers.shards)):
        assert said(strategy, 4)[0]["predicted"]["tpot_s"] == made(
            predictor, shape, "graph", 4, 2, Load(4, 8, 4))["tpot_s"]  # two cores of each
    assert said("multi_worker", 1)[0]["predicted"]["e2e_s"] == single["e2e_s"]
    engine.microbatches = 4
    single_rows = said("dataflow", 4)[0]["predicted"]["tpot_s"]
    assert single_rows == workers.dataflow(predictor, shape, "graph", 4, 2, Load(4, 8, 4),
                                           groups=4)["tpot_s"]
    engine.whole = shape.stored(Formats("int8"))
    changed = said("quantize+dataflow(microbatches=4)", 4)[0]["predicted"]["tpot_s"]
    assert changed == workers.dataflow(predictor, engine.whole, "graph", 4, 2, Load(4, 8, 4),
                                       groups=4)["tpot_s"] > single_rows
    assert "one strategy that spreads" in said("multi_worker+mirrored", 4)[1]
    monkeypatch.setenv("TF_CONFIG", addresses.from_hosts("10.0.0.1:1,10.0.0.2:1", 0).tf_config())
    assert "predicted of one machine" in said("multi_worker", 4)[1]


def test_a_worker_that_is_held_to_a_core_knows_the_calibration_of_all(cache, monkeypatch):
    monkeypatch.setenv("TFSPEED_JOB_CORES", "64")
    calibration.fingerprint.cache_clear()
    calibration.save(made_up(fingerprint=calibration.fingerprint()))
    assert calibration.load().fingerprint["cores"] == 64
    monkeypatch.delenv("TFSPEED_JOB_CORES")
    calibration.fingerprint.cache_clear()
    with pytest.raises(NoCalibration, match="of another machine"):
        calibration.load()


@pytest.mark.parametrize("engine", ["graph", "xla", "litert:int8"])
def test_a_source_is_read_before_the_first_token(predictor, engine):
    whisper = seq2seq_shapes.encoder_decoder(EncoderDecoderConfig(
        vocabulary_size=5000, encoder_layers=6, decoder_layers=6, hidden_dim=512, num_heads=8,
        head_dim=64, mlp_dim=2048, context_length=448, source_length=1500))
    alone = dataclasses.replace(whisper, source=None, attention=tuple(
        dataclasses.replace(a, source_heads=0) for a in whisper.attention))
    heard, deaf = (latency(predictor, engine, shape=shape, prompt_tokens=4)
                   for shape in (whisper, alone))
    kept = whisper.stored(Formats.of_engine(engine) if "litert" in engine else Formats("float32"))
    encoding = computation.encoding(kept.source.encoder, 1, 1500)
    # Products alone take 2.5e-12 a FLOP as `made_up` has it, attention and small operators more.
    a_flop = (heard["ttft_s"] - deaf["ttft_s"]) / encoding.flops
    assert 2.5e-12 < a_flop < 4e-11
    assert heard["tpot_s"] > deaf["tpot_s"]  # keys and values of the source
    part = workers.shards(predictor, whisper, engine, 2, 2, Load(1, 4, 4))
    alone = predictor.latency(whisper, engine, 1, Load(1, 4, 4))
    assert part["ttft_s"] - alone["ttft_s"] > (6 * 3 + 6 * 2) * workers.SUMS.alpha_s
    with pytest.raises(TfspeedError, match="runs decoders alone"):
        latency(predictor, "fused", shape=whisper)


@pytest.mark.parametrize("engine", ["graph", "xla", "litert"])
def test_a_recurrent_model_reads_one_token_after_the_other(predictor, engine):
    shape = shapes.recurrent({"cell": "lstm", "vocabulary_size": 4096, "hidden_dim": 512,
                              "num_layers": 2, "context_length": 4096})
    short, long = (latency(predictor, engine, shape=shape, prompt_tokens=tokens)
                   for tokens in (64, 512))
    assert short["tpot_s"] == long["tpot_s"]  # the state does not grow
    assert 5 < long["ttft_s"] / short["ttft_s"] < 8.1
    token = (long["ttft_s"] - short["ttft_s"]) / (512 - 64)
    assert 0 < token < short["tpot_s"]  # which has a call and the output layer as well


@pytest.mark.parametrize("draft", ["lookup", "early_exit", "low_bit"])
def test_drafts_cost_what_they_take_and_save_passes(monkeypatch, predictor, draft):
    monkeypatch.setattr(rows, "_predictor", lambda: predictor)
    engine = engines.create("fused", tiny_decoder())
    engine.model.speculation = Speculation(draft)
    shape = shapes.of(engine.model)

    def tpot(**changes):
        row = row_of(engine) | {"repetitions": 3, "drafted_tokens": 0, "draft_share": 0.0,
                                "tokens_per_pass": 1.0, **changes}
        found, note = rows.with_prediction(row, engine, 2, engine.model)
        assert "from this run" in note
        return found["predicted"]["tpot_s"]

    plain = predictor.latency(shape, "fused", 2, Load(1, 8, 4))["tpot_s"]
    assert tpot() == plain
    # 9 tokens in 6 passes; 3 drafts of 2 tokens
    drafted = tpot(tokens_per_pass=1.5, draft_share=0.5, drafted_tokens=6)
    three = predictor.reading(shape, "fused", 2, Load(1, 8, 4), 3)
    verified = (plain + three) / 2 / 1.5
    assert drafted == pytest.approx(verified) if draft == "lookup" else drafted > verified
    assert tpot(tokens_per_pass=1.5, draft_share=0.5, drafted_tokens=7) > drafted


@pytest.mark.parametrize("engine", ["fused", "litert:int8", "graph", "xla"])
def test_a_pass_over_drafts_reads_one_cache(predictor, engine):
    def excess(prompt):
        """What eight texts cost more than eight tokens of one."""
        load = Load(1, prompt, 16)
        one = predictor.reading(SHAPE, engine, 2, load, 8)
        assert predictor.reading(SHAPE, engine, 2, load, 1) == pytest.approx(
            latency(predictor, engine, prompt_tokens=prompt, new_tokens=16)["tpot_s"], rel=0.02)
        return latency(predictor, engine, batch=8, prompt_tokens=prompt,
                       new_tokens=16)["tpot_s"] - one

    assert 0 <= excess(50) < excess(3000) / 4


@pytest.mark.parametrize("engine", ["graph", "xla"])
def test_sixteen_bits_take_what_their_products_took(predictor, engine):
    def tpot(dtype, threads=2):
        shape = dataclasses.replace(shapes.decoder(cases.MODELS["llama-60m"], bits=16),
                                    compute=dtype)
        return latency(predictor, engine, threads, shape=shape)["tpot_s"]

    floats = latency(predictor, engine)["tpot_s"]
    for threads in (1, 2):  # timed with two alone
        assert tpot("bfloat16", threads) < latency(predictor, engine, threads)["tpot_s"]
    # As `made_up` has it, products are all but the operators between them.
    assert floats < tpot("float16") < 3 * floats
    dots = made_up().threads[2][engine]["dots"]
    small = [[1, 2e5, 0, "float16", 9e-10]]  # XLA's on one thread
    table = Table([*dots, *small], {}, [[1, 1e-13]], 32 << 20)
    wide, middle, narrow = (table.beyond(1, size, 1e9, "float16") / size
                            for size in (2.5e6, 5e5, 1e5))
    assert wide < middle < narrow
    made = made_up()
    for found in made.threads.values():
        for kind in ("graph", "xla"):
            found[kind] = found[kind] | {"dots": [row for row in found[kind]["dots"]
                                                  if row[3] == "float32"]}
    with pytest.raises(TfspeedError, match="nothing of products in 16 bits"):
        latency(Predictor(made), engine, shape=dataclasses.replace(SHAPE, compute="float16"))


def test_what_lies_nearer_is_multiplied_faster():
    made = made_up().threads[2]["graph"]
    dots = [[*row[:4], row[4] / (2 if row[1] == 10e6 else 1)] for row in made["dots"]]
    table = Table(dots, made["unpacking"], made["narrow"], 32 << 20)
    speeds = [table.a_weight(4, read) for read in (1e6, 10e6, 20e6, 40e6, 100e6, 300e6, 1e9)]
    assert speeds == sorted(speeds)
    assert speeds[0] == speeds[1] == pytest.approx(speeds[3] / 2)
    assert speeds[-1] == speeds[-2] == pytest.approx(1.5 * speeds[3])
    disturbed = [[*row[:4], row[4] * (9 if row[1] == 40e6 and row[0] < 320 else 1)]
                 for row in dots]
    busy = Table(disturbed, made["unpacking"], made["narrow"], 32 << 20)
    assert busy.a_weight(1, 40e6) == table.a_weight(1, 300e6)
    assert table.a_weight(320, 10e6) == pytest.approx(table.a_weight(320, 1e9))  # it multiplies


@pytest.mark.parametrize("cache", [1 << 19, 1 << 30])
def test_two_rows_take_another_kernel_wherever_weights_lie(cache):
    """They are timed with some matrices alone."""
    jump = {1: 1e-10, 2: 4e-10, 4: 5e-10}
    dots = [[rows, size, 0, "float32", times * jump[rows]] for rows in jump
            for size, times in ((1e7, 0.8), (4e7, 1.0), (3e8, 1.2)) if rows != 2 or size == 4e7]
    table = Table(dots, {}, [], cache)
    for size, times in ((4e7, 1.0), (3e8, 1.2)):
        assert table.a_weight(2, size) == pytest.approx(4e-10 * times, rel=0.05)
    assert table.a_weight(2, 1e3) == pytest.approx(4e-10 * 0.8, rel=0.05)


def test_a_row_of_a_model_that_reads_a_source(monkeypatch, predictor):
    monkeypatch.setattr(rows, "_predictor", lambda: predictor)
    engine = engines.create("graph", seq2seq.tiny("t5"))
    found, note = rows.with_prediction(row_of(engine), engine, 2, engine.model)
    assert note == ""
    assert set(found["predicted"]) == {"ttft_s", "tpot_s", "e2e_s"}


def test_a_row_says_why_it_has_none(cache):
    rows._predictor.cache_clear()
    engine = engines.create("graph", tiny_decoder())
    found, note = rows.with_prediction(row_of(engine), engine, 2, engine.model)
    assert found == {}
    assert "calibrate.py" in note

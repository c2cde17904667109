"""Energy is counted where it can be, and is called an estimate where it cannot."""

import pytest

from tfspeed.costs import energy
from tfspeed.costs.energy import Counter, Meter


@pytest.fixture
def rapl(tmp_path, monkeypatch):
    """A processor of two packages with counters that a test sets."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)

    def set_to(*microjoules):
        for i, value in enumerate(microjoules):
            folder = tmp_path / f"intel-rapl:{i}"
            folder.mkdir(exist_ok=True)
            (folder / "energy_uj").write_text(f"{value}\n")
            (folder / "max_energy_range_uj").write_text("1000000000\n")

    return set_to


def test_what_rapl_counts(rapl):
    rapl(5_000_000, 1_000_000)
    with Meter() as meter:
        rapl(9_000_000, 2_000_000)
    found = meter.reading(tokens=10)
    assert found["energy_source"] == "rapl"
    assert found["energy_j_per_token"] == pytest.approx(0.5)
    assert found["energy_tokens_per_j"] == pytest.approx(2)
    assert meter.note(found) == ""


def test_a_counter_that_begins_anew(rapl):
    rapl(999_000_000)
    with Meter() as meter:
        rapl(1_000_000)
    assert meter.reading(tokens=1)["energy_j_per_token"] == pytest.approx(2)
    assert Counter("rapl", None, 10.0).spent(9.0, 1.0) == pytest.approx(2)


def test_without_a_counter_it_is_an_estimate(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    with Meter() as meter:
        sum(range(10**5))
    found = meter.reading(tokens=4)
    assert found["energy_source"] == "estimate"
    interval = found["energy_j_per_token_interval"]
    assert 0 < interval["low"] < found["energy_j_per_token"] < interval["high"]
    note = meter.note(found)
    assert "estimate" in note
    assert "RAPL" in note
    assert "\n" not in note


def test_a_counter_that_may_not_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "energy_uj").mkdir()  # cannot be read as a file
    found, why = energy.counters()
    assert not [c for c in found if c.source == "rapl"]
    assert why["rapl"]


def test_several_generations_add_up(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    meter = Meter()
    for _ in range(3):
        with meter:
            pass
    once = meter.seconds
    with meter:
        sum(range(10**5))
    assert meter.seconds > once
    assert meter.reading(tokens=0) == {}

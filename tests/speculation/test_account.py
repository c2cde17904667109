"""Drafts are made where they pay, and stop where they do not."""

import numpy as np
import pytest

from tfspeed.speculation.account import Account

WIDTHS = (1, 2, 4, 8)


def simulate(costs, chance, steps=3000, draft_s=0.0, seed=0):
    """Seconds a token, of plain steps = 1, where each drafted token is right with a chance."""
    rng, account = np.random.default_rng(seed), Account(WIDTHS)
    spent = tokens = drafted = 0
    account.passed(1, costs[1], 1)
    while tokens < steps:
        width = account.width(8)
        right = int(np.argmin([*(rng.random(width - 1) < chance), False]))
        seconds = costs[width]
        if width > 1:
            account.judged(width - 1, right)
            drafted += 1
        else:
            account.forget()
        account.passed(width, seconds, right + 1, (width - 1) * draft_s)
        spent += seconds + (width - 1) * draft_s
        tokens += right + 1
    return spent / tokens / costs[1], drafted


def test_the_first_pass_is_a_plain_step():
    assert Account(WIDTHS).width(8) == 1


def test_right_drafts_are_made_as_wide_as_they_pay():
    time, _ = simulate({1: 1.0, 2: 1.05, 4: 1.1, 8: 1.6}, 0.98)
    assert time < 0.3
    time, _ = simulate({1: 1.0, 2: 1.1, 4: 2.5, 8: 6.0}, 0.9)  # wide ones cost too much
    assert time < 0.7


@pytest.mark.parametrize("chance", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("costs", [
    {1: 1.0, 2: 1.5, 4: 2.0, 8: 4.0}, {1: 1.0, 2: 3.0, 4: 3.0, 8: 3.0}])
def test_wrong_drafts_never_cost_more_than_two_percent(costs, chance):
    time, drafted = simulate(costs, chance)
    assert time < 1.02
    assert drafted > 0  # but they are tried again and again


def test_a_draft_that_takes_time_must_bring_more():
    cheap, _ = simulate({1: 1.0, 2: 1.05, 4: 1.1, 8: 1.6}, 0.8, draft_s=0.01)
    dear, _ = simulate({1: 1.0, 2: 1.05, 4: 1.1, 8: 1.6}, 0.8, draft_s=0.9)
    assert cheap < 0.55
    assert 0.9 < dear < 1.02


def test_a_single_slow_pass_does_not_become_the_cost():
    account = Account(WIDTHS)
    for seconds in [1.0] * 5 + [100.0] + [1.0] * 5:
        account.passed(1, seconds, 1)
    assert account.seconds(1) < 1.2


def test_kinds_are_judged_apart():
    account = Account(WIDTHS)
    account.passed(1, 1.0, 1)
    for _ in range(20):
        account.judged(7, 7, kind=8)
        account.judged(7, 0, kind=2)
    assert account.acceptance(8) > 0.9
    assert account.acceptance(2) < 0.2
    assert account.width(8, kind=8) == 8
    assert account.width(8, kind=2) <= 2

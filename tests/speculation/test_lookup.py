"""Prompt lookup."""

from tfspeed.speculation.lookup import Lookup


def test_what_followed_the_same_tokens_is_drafted():
    assert Lookup([1, 2, 3, 4, 5, 9, 1, 2]).draft(3) == ([3, 4, 5], 2)


def test_what_was_never_seen_is_not():
    assert Lookup([1, 2, 3]).draft(4) == ([], 0)
    assert Lookup([1]).draft(4) == ([], 0)
    assert Lookup([]).draft(4) == ([], 0)


def test_the_longest_match_wins_then_the_last():
    text = [7, 1, 2, 50, 8, 1, 2, 60, 9, 9, 7, 1, 2]
    assert Lookup(text).draft(1) == ([50], 3)
    assert Lookup([*text[:-3], 0, 1, 2]).draft(1) == ([60], 2)


def test_a_text_that_repeats_goes_on_repeating():
    assert Lookup([1, 2, 3, 1, 2]).draft(7) == ([3, 1, 2, 3, 1, 2, 3], 2)
    assert Lookup([5] * 12).draft(4) == ([5] * 4, 8)


def test_what_is_added_counts():
    lookup = Lookup([1, 2, 3])
    lookup.extend([4, 1])
    lookup.extend([2])
    assert lookup.draft(2) == ([3, 4], 2)

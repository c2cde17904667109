"""Word error rate."""

import math

import pytest

from tfspeed.measure.words import word_error_rate, word_errors, words


def test_case_and_punctuation_do_not_count():
    assert words("  Mr. Dash-wood’s “ill-disposed”, HE said_so… ") == [
        "mister", "dash", "wood's", "ill", "disposed", "he", "said", "so"]


@pytest.mark.parametrize(("reference", "hypothesis", "errors"), [
    ("a b c", "a b c", 0), ("a b c", "a x c", 1), ("a b c", "a c", 1), ("a b c", "a b b c", 1),
    ("a b c", "", 3), ("", "a b", 2), ("a b c d", "b c d a", 2)])
def test_the_fewest_changes_count(reference, hypothesis, errors):
    assert word_errors(reference, hypothesis) == (errors, len(reference.split()))


def test_texts_count_by_their_words():
    assert word_error_rate(["a b c", "d"], ["a b c", "x"]) == 0.25
    assert math.isnan(word_error_rate([""], ["x"]))

"""Fits a few positive constants of a model to times that were measured."""

from collections.abc import Callable

import numpy as np

_ROUNDS, _STEP, _ENOUGH = 30, 1e-4, 1e-4
_SPREAD = 0.04  # with it a time counts for half


def fit(start: dict[str, float], predict: Callable[[dict[str, float]], np.ndarray],
        measured: np.ndarray, trust: float = 0.02,
        firm: Callable[[str], float] = lambda name: 1.0,
        spread: np.ndarray | float = 0.0) -> dict[str, float]:
    """The constants with the least squared logarithm of predicted / measured.

    Levenberg–Marquardt (D. W. Marquardt, SIAM Journal 11, 1963) over the constants' logarithms, so
    that all stay above 0 and all errors are relative; those far off count less (Huber's weights).
    A constant that the times say nothing about stays near where it starts.

    Args:
        predict: seconds, one for each of `measured`.
        trust: in `start`: how much a factor of e in a constant counts beside one in a time.
        firm: how many times as much the constant of a name is trusted.
        spread: standard errors of the logarithms of `measured`: what is surer counts for more.
    """
    names, target = list(start), np.log(measured)
    begin = np.log([start[name] for name in names])
    sure = 1 / np.sqrt(1 + np.square(np.asarray(spread) / _SPREAD))
    trusts = trust * np.array([firm(name) for name in names])

    def residuals(x):
        values = dict(zip(names, np.exp(x), strict=True))
        return np.concatenate([sure * (np.log(predict(values)) - target), trusts * (x - begin)])

    def cost(errors):
        return np.square(errors * _weights(errors, len(target))).sum()

    x, damping = begin.copy(), 1e-2
    errors = residuals(x)
    for _ in range(_ROUNDS):
        slopes = np.stack([(residuals(x + _STEP * unit) - errors) / _STEP
                           for unit in np.eye(len(x))], axis=1)
        weights = _weights(errors, len(target))[:, None]
        normal = (slopes * weights).T @ (slopes * weights)
        pull = (slopes * weights).T @ (errors[:, None] * weights)
        tried = x - np.linalg.solve(normal + damping * np.eye(len(x)), pull)[:, 0].clip(-1, 1)
        found = residuals(tried)
        better = cost(found) < cost(errors)
        done = better and cost(errors) - cost(found) < _ENOUGH * cost(errors)
        if better:
            x, errors, damping = tried, found, max(1e-6, damping / 3)
        else:
            damping *= 4
        if done or damping > 1e8:
            break
    return dict(zip(names, np.exp(x).tolist(), strict=True))


def _weights(errors, measured: int):
    """1 up to 10 %, less beyond; a prior counts as it is."""
    weights = np.sqrt(0.1 / np.maximum(0.1, np.abs(errors)))
    weights[measured:] = 1
    return weights

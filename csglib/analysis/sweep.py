"""Neighbours on a line, counted by pointers that only move on: the estimator of `information` for a processor.

Torch has no operation that walks two pointers; numba compiles these loops once and keeps the machine code beside this file.
It compiles plain functions alone: no_type_check keeps the tests' shape checks out of them.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Float, Int


def terms(
    x: Float[np.ndarray, "K N"],
    y: Int[np.ndarray, "K N"],
    num_classes: int,
    k: int,
    psi: Float[np.ndarray, " N1"],
    threads: int,
) -> Float[np.ndarray, "C K"]:
    """Sum over samples of psi(k_i) - psi(m_i) for every class and filter; each filter's samples sorted, with their labels."""
    out = np.zeros((num_classes, len(x)))
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda f: of_filter(x[f], y[f], k, psi, out[:, f]), range(len(x))):
            pass
    return out


@numba.njit(nogil=True, cache=True)
@no_type_check
def of_filter(x, y, k, psi, out):
    N = len(x)
    place = np.empty(N, np.int64)  # where the label's samples stand among all
    below = np.empty(N + 1, np.int64)  # members of the label before a place
    for c in range(len(out)):
        for label in (True, False):
            n = 0
            for i in range(N):
                below[i] = n
                if (y[i] == c) == label:
                    place[n] = i
                    n += 1
            below[N] = n
            if n < 2 or N - n < 2:
                break
            out[c] += of_label(x, place[:n], below, min(k, n - 1), psi)


@numba.njit(nogil=True, cache=True)
@no_type_check
def of_label(x, place, below, k, psi):
    """As `information.neighbour_term`, sample by sample: first the k nearest of the label, then all within that radius."""
    N, n = len(x), len(place)
    w = start = stop = 0
    total = 0.0
    for t in range(n):
        v = x[place[t]]
        w = max(w, t - k)
        while w < t and w + k + 1 < n and v - x[place[w]] > x[place[w + k + 1]] - v:
            w += 1  # the window of k + 1 samples around this one with the least radius
        first, last = x[place[w]], x[place[w + k]]
        d = max(v - first, last - v)
        if d == 0:  # all samples equal to v
            while start > 0 and x[start - 1] >= v:
                start -= 1
            while x[start] < v:
                start += 1
            stop = max(stop, start)
            while stop > 0 and x[stop - 1] > v:
                stop -= 1
            while stop < N and x[stop] <= v:
                stop += 1
        else:  # the open ball; its end at the neighbour that sets d is that neighbour, exactly
            low = first if v - first == d else v - d
            high = last if last - v == d else v + d
            while start > 0 and x[start - 1] > low:
                start -= 1
            while x[start] <= low:
                start += 1
            while stop > 0 and x[stop - 1] >= high:
                stop -= 1
            while stop < N and x[stop] < high:
                stop += 1
        total += psi[below[stop] - below[start]] - psi[stop - start]
    return total

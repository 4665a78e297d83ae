"""Neighbours on a line, each class at the cost of its own samples: the estimator of `information` for a processor.

A sample's term psi(k_i) - psi(m_i) is zero where all samples nearer than d_i have its label.  So of the samples outside of a
class few count: those with a member nearer than their k-th neighbour outside.  On a line these are among the k that stand next
before or behind a member, and in atoms with one: of k others between, each is at least as near.  A filter then takes
N (k + log N) steps for all its classes together, where a sweep over all samples for each class would take N C.

Numba compiles these loops once and keeps the machine code beside this file.  It compiles plain functions alone: no_type_check
keeps the tests' shape checks out of them.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Float, Int


def terms(
    x: Float[np.ndarray, "K N"],
    y: Int[np.ndarray, "K N"],
    sizes: Int[np.ndarray, " C"],
    k: int,
    psi: Float[np.ndarray, " N1"],
    threads: int,
) -> Iterator[Float[np.ndarray, " C"]]:
    """Filter after filter, the sum over samples of psi(k_i) - psi(m_i) for every class; each filter's samples sorted."""
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(lambda f: of_filter(x[f], y[f], sizes, k, psi), range(len(x)))


@numba.njit(nogil=True, cache=True)
@no_type_check
def of_filter(x, y, sizes, k, psi):
    """The sums over samples in one filter's estimate, class by class: `terms` of a single row."""
    N, C = len(x), len(sizes)
    first = np.zeros(C + 1, np.int64)
    first[1:] = np.cumsum(sizes)
    free = first.copy()
    place = np.empty(N, np.int64)  # where samples stand, class after class
    for i in range(N):
        place[free[y[i]]] = i
        free[y[i]] += 1
    out = np.zeros(C)
    for c in range(C):
        n = sizes[c]
        if 2 <= n <= N - 2:
            members = place[first[c] : first[c + 1]]
            out[c] = inside(x, members, min(k, n - 1), psi) + outside(x, members, min(k, N - n - 1), psi)
    return out


def balanced(
    x: Float[np.ndarray, "K N"],
    drawn: Int[np.ndarray, " M"],
    sizes: Int[np.ndarray, " C"],
    k: int,
    psi: Float[np.ndarray, " N1"],
    threads: int,
) -> Iterator[Float[np.ndarray, " C"]]:
    """Filter after filter, the information about each class among samples of its own.

    `drawn` has them class after class, sizes[c] of the class and then as many others; a filter need not be sorted.
    """
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(lambda f: of_drawn(x[f], drawn, sizes, k, psi), range(len(x)))


@numba.njit(nogil=True, cache=True)
@no_type_check
def of_drawn(x, drawn, sizes, k, psi):
    """One filter's information about each class in nats, never below 0: `balanced` of a single row."""
    out = np.zeros(len(sizes))
    first = 0
    for c in range(len(sizes)):
        n = sizes[c]
        v = x[drawn[first : first + 2 * n]]
        order = np.argsort(v)
        v = v[order]
        if n >= 2 and v[0] < v[-1]:
            members, near = np.flatnonzero(order < n), min(k, n - 1)
            total = inside(v, members, near, psi) + outside(v, members, near, psi)
            out[c] = max(0.0, psi[2 * n] - psi[n] + total / (2 * n))
        first += 2 * n
    return out


@numba.njit(nogil=True, cache=True)
@no_type_check
def inside(x, members, k, psi):
    """The terms of a class's members.  Those of equal ones are equal."""
    n = len(members)
    total = 0.0
    w = t = 0
    while t < n:
        v, end = x[members[t]], end_of_run(x, members, t)
        w = max(w, end - 1 - k)
        while w < t and w + k + 1 < n and v - x[members[w]] > x[members[w + k + 1]] - v:
            w += 1  # the window of k + 1 members around this one with the least radius
        low, high, d = ball(v, x[members[w]], x[members[w + k]])
        start, stop = t, end
        while d > 0 and start > 0 and x[members[start - 1]] > low:
            start -= 1
        while d > 0 and stop < n and x[members[stop]] < high:
            stop += 1
        nearer = count(x, members, start, stop, low, high, d)
        total += (end - t) * (psi[stop - start] - psi[nearer])
        t = end
    return total


@numba.njit(nogil=True, cache=True)
@no_type_check
def outside(x, members, k, psi):
    """The terms of the other samples that are not zero."""
    N, n = len(x), len(members)
    total = 0.0
    t = 0
    while t < n:  # atoms that hold a member, and others enough for d_i = 0
        v, end = x[members[t]], end_of_run(x, members, t)
        size = count(x, members, t, end, v, v, 0.0)
        others = size - (end - t)
        if others > k:
            total += others * (psi[others] - psi[size])
        t = end
    for j in range(n + 1):  # the places between members: the first k, if behind one, and the last k, if before one
        start = members[j - 1] + 1 if j > 0 else 0
        stop = members[j] if j < n else N
        head = min(start + k, stop) if j > 0 else start
        tail = max(stop - k, head) if j < n else stop
        for i in range(start, head):
            total += of_other(x, members, j, i, k, psi)
        for i in range(tail, stop):
            total += of_other(x, members, j, i, k, psi)
    return total


@numba.njit(nogil=True, cache=True)
@no_type_check
def of_other(x, members, j, i, k, psi):
    """The term of the sample at place i, which stands behind j members and is none; 0 if d_i is."""
    N, n, v = len(x), len(members), x[i]
    left, right, p, q = i - 1, i + 1, j - 1, j  # the next others on both sides, and the next members beyond them
    first = last = v
    for _ in range(k):
        while p >= 0 and members[p] == left:
            left, p = left - 1, p - 1
        while q < n and members[q] == right:
            right, q = right + 1, q + 1
        if right == N or (left >= 0 and v - x[left] <= x[right] - v):
            first, left = x[left], left - 1
        else:
            last, right = x[right], right + 1
    low, high, d = ball(v, first, last)
    if d == 0:
        return 0.0
    start, stop, p, q = i, i + 1, j, j
    while start > 0 and x[start - 1] > low:
        start -= 1
    while stop < N and x[stop] < high:
        stop += 1
    while p > 0 and members[p - 1] >= start:
        p -= 1
    while q < n and members[q] < stop:
        q += 1
    nearer = stop - start
    return psi[nearer - (q - p)] - psi[nearer]


@numba.njit(nogil=True, cache=True)
@no_type_check
def ball(v, first, last):
    """The open ball (low, high) around v, and its radius.

    Its end at the neighbour that sets the radius is that neighbour, exactly, not v - d or v + d rounded.
    """
    d = max(v - first, last - v)
    return first if v - first == d else v - d, last if last - v == d else v + d, d


@numba.njit(nogil=True, cache=True)
@no_type_check
def end_of_run(x, members, t):
    """Behind the members equal to the t-th, of which it is the first."""
    end = t + 1
    while end < len(members) and x[members[end]] == x[members[t]]:
        end += 1
    return end


@numba.njit(nogil=True, cache=True)
@no_type_check
def count(x, members, start, stop, low, high, d):
    """How many samples lie in the open ball, or equal its centre if d = 0; of them members are the start-th to the stop-th.

    So its ends are looked for between two members on each side.
    """
    a, b = members[start - 1] + 1 if start > 0 else 0, members[start]
    while a < b:
        middle = (a + b) // 2
        if x[middle] < low or (d > 0 and x[middle] == low):
            a = middle + 1
        else:
            b = middle
    first = a
    a, b = members[stop - 1] + 1, members[stop] if stop < len(members) else len(x)
    while a < b:
        middle = (a + b) // 2
        if x[middle] < high or (d == 0 and x[middle] == high):
            a = middle + 1
        else:
            b = middle
    return a - first

"""Count and rank the maxima of a batch, unit by unit, on a CPU.

What ``workers.scan`` does with a score of operations on tensors on a GPU is one loop here: a batch
has some hundred thousand maxima, of which few enter the strongest.  Both give the same, but for the
last bits of sums.  Compiled when first called (``workers.loops``).
"""

from typing import no_type_check

import numpy as np

from workers import loops


@loops.compiled
@no_type_check
def take_in(
    maxima, places, ids, valid, eligible, rectified, floor, edges,
    score, image, place, total, active, histogram,
):  # fmt: skip
    """One batch, in the order of its images.

    Args:
        maxima, places: (image, unit); ids increase.
        valid: images that count; ``eligible`` those among them that may be hits.
        rectified: units of which a zero is no hit.
        floor: score a hit must reach, a unit; lists of others may have set it, so one that is equal
            to it stays.
        edges: of the histogram, from −inf to inf.
        score, image, place: the strongest so far, (unit, rank), changed in place.
        total, active, histogram: sums over images, changed in place.
    """
    images, units = maxima.shape
    last = score.shape[1] - 1
    for row in range(images):
        if not valid[row]:
            continue
        for unit in range(units):
            value = maxima[row, unit]
            total[unit] += value
            active[unit] += value > 0
            low, high = 0, len(edges) - 1
            while high - low > 1:
                middle = (low + high) // 2
                if edges[middle] <= value:
                    low = middle
                else:
                    high = middle
            histogram[unit, low] += 1
            if not eligible[row] or (rectified[unit] and value <= 0):
                continue
            # Ids increase, so a later image that only equals the last rank loses the tie.
            value = score.dtype.type(value)
            if value > score[unit, last] and value >= floor[unit]:
                rank = last
                while rank > 0 and score[unit, rank - 1] < value:
                    score[unit, rank] = score[unit, rank - 1]
                    image[unit, rank] = image[unit, rank - 1]
                    place[unit, rank] = place[unit, rank - 1]
                    rank -= 1
                score[unit, rank] = value
                image[unit, rank] = ids[row]
                place[unit, rank] = places[row, unit]


@loops.compiled
@no_type_check
def merge(score, image, place):
    """The strongest of several lists of different images, (list, unit, rank), each in the order
    (−score, image id); an id of −1 ends one.  Returns them as (unit, rank)."""
    lists, units, k = score.shape
    best = np.full((units, k), -np.inf, score.dtype)
    of_image = np.full((units, k), -1, image.dtype)
    at = np.zeros((units, k), place.dtype)
    for unit in range(units):
        next_rank = np.zeros(lists, np.int64)
        for rank in range(k):
            chosen = -1
            for one in range(lists):
                i = next_rank[one]
                if i == k or image[one, unit, i] < 0:
                    continue
                if chosen >= 0:
                    j = next_rank[chosen]
                    here, there = score[one, unit, i], score[chosen, unit, j]
                    if here < there:
                        continue
                    if here == there and image[one, unit, i] > image[chosen, unit, j]:
                        continue
                chosen = one
            if chosen < 0:
                break
            i = next_rank[chosen]
            best[unit, rank] = score[chosen, unit, i]
            of_image[unit, rank] = image[chosen, unit, i]
            at[unit, rank] = place[chosen, unit, i]
            next_rank[chosen] += 1
    return best, of_image, at

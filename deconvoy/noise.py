"""Whether a difference is more than what it was measured with: its sign, or 0 where nobody can
tell.
"""

import math

import numpy as np
from jaxtyping import Float
from numpy import ndarray

ERRORS = 2.0
"""Standard errors a difference must exceed: of normal ones, 1 in 20 does so by chance."""


def sign(difference: float, error: float) -> int:
    """1 or −1 where a difference exceeds ``ERRORS`` of its standard errors, else 0; also where the
    error is not known (NaN)."""
    if not abs(difference) > ERRORS * error:
        return 0
    return 1 if difference > 0 else -1


def paired(difference: Float[ndarray, " pair"]) -> int:
    """The sign of the mean of differences, each of two numbers of one image, or of one fold.

    Their own scatter is the noise, so that what is common to both numbers of a pair is none of it.
    A single pair has no scatter and tells nothing.
    """
    if len(difference) < 2:
        return 0
    error = difference.std(ddof=1) / math.sqrt(len(difference))
    return sign(float(difference.mean()), float(error))


def share_error(share: float, images: int) -> float:
    """Standard error of a share of images, had others like them been drawn: binomial."""
    return math.sqrt(share * (1 - share) / images)


def training_error(shares: Float[ndarray, "network repeat"]) -> float:
    """Standard error that trainings leave in a network's mean over its repeats; NaN of one repeat.

    From the scatter of all networks together: a few repeats of one alone can agree by chance.
    """
    repeats = shares.shape[1]
    if repeats < 2:
        return math.nan
    return math.sqrt(float(np.var(shares, axis=1, ddof=1).mean()) / repeats)

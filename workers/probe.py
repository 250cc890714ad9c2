"""How much of other classes a layer's features tell: linear classifiers on a frozen network.

For each fold images of every class are drawn to learn from and others to judge by; features are
standardised by what is learned from, and a softmax regression or a linear support vector machine is
fitted.  What counts is the mean over the classes of their accuracy.

Source: Zeiler & Fergus (ECCV 2014, arXiv:1311.2901), section 5, tables 4 to 7 and Fig. 9.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from workers.folds import Split

ITERATIONS = 2000


@dataclass(frozen=True)
class Fitted:
    accuracy: float
    """Mean over the classes, 0–1."""
    converged: bool


def fit(
    features: Float[np.ndarray, "image feature"],
    label: Int64[np.ndarray, " image"],
    images: Split,
    classifier: str,
    c: float,
) -> Fitted:
    """Fit one classifier and judge it, with one thread, so that bits do not depend on cores.

    Args:
        classifier: ``softmax``: multinomial logistic regression by L-BFGS; ``svm``: linear, one
            against the rest, squared hinge.
        c: inverse strength of the L2 regularisation.
    """
    mean, deviation = standard(features[images.train])
    learned = (features[images.train] - mean) / deviation
    judged = (features[images.test] - mean) / deviation
    model = (
        LogisticRegression(C=c, max_iter=ITERATIONS)
        if classifier == "softmax"
        else LinearSVC(C=c, dual="auto", max_iter=ITERATIONS, random_state=0)
    )
    with threadpool_limits(1), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(learned, label[images.train])
        found = model.predict(judged)
    slow = any(issubclass(one.category, ConvergenceWarning) for one in said)
    return Fitted(accuracy(found, label[images.test]), not slow)


def standard(
    features: Float[np.ndarray, "image feature"],
) -> tuple[Float64[np.ndarray, " feature"], Float64[np.ndarray, " feature"]]:
    """Mean and deviation; of features that are the same everywhere the deviation is 1."""
    mean = features.mean(0, dtype=np.float64)
    deviation = features.std(0, dtype=np.float64)
    # A constant's deviation is rounding.
    flat = deviation <= 1e-7 * np.abs(mean)
    return mean, np.where(flat | (deviation == 0), 1.0, deviation)


def accuracy(found: Int64[np.ndarray, " image"], label: Int64[np.ndarray, " image"]) -> float:
    """Mean over the classes of the share of their images that are told right."""
    right: Bool[np.ndarray, " image"] = found == label
    return float(np.mean([right[label == number].mean() for number in np.unique(label)]))

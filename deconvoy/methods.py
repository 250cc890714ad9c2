"""The methods of projection, as people are told of them.

They differ in where a rectifier lets the signal pass on its way down (``ProjectionSpec.method``).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from deconvoy.spec import Method


@dataclass(frozen=True)
class Told:
    """One method in words."""

    name: str
    """Before "projections"."""
    source: str


METHODS: Mapping[Method, Told] = {
    "deconvnet": Told("deconvnet", "Zeiler & Fergus, 2013"),
    "guided": Told("guided backpropagation", "Springenberg et al., 2014"),
    "gradient": Told("gradient", "Simonyan et al., 2013"),
}

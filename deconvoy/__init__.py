"""Deconvoy: what each feature map of a convolutional network sees, at data-set scale.

What a notebook imports.  No torch and no Ray here: a run can be read where neither is installed.
"""

from deconvoy.run import Run, open
from deconvoy.spec import JobSpec
from deconvoy.unit import Unit

__all__ = ["JobSpec", "Run", "Unit", "open"]

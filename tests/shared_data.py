"""Photographs and trained weights for tests that want the real thing.

They lie in a folder `shared` beside the checkout and are no part of it; a test that needs them
carries the mark `needs_shared` and is skipped, with the reason, where they are absent.
"""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
DATA = SHARED / "data"

needs_shared = pytest.mark.skipif(
    not DATA.is_dir(), reason="photographs and weights: no ../shared/data beside this checkout"
)

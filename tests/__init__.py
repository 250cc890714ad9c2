"""Tests, flat: one file a subject, each test a sentence; oracles in `reference`."""

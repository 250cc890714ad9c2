"""Tests under fire: nodes, processes, storage, bytes, load and attackers that do their worst.

`make fire` runs them at full length, `make fire FIRE=short` in a few minutes; `make test` leaves
them out.  What each held against is told at the end, and stands in docs/reliability.md.
"""

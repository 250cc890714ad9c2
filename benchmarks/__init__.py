"""Measure what Deconvoy promises about speed, memory and storage; ``python -m benchmarks``.

Each module measures one promise and returns rows; only ``__main__`` prints and writes.
"""

"""What this library costs, each claim against code that does the same by hand: ``python -m benchmarks``."""

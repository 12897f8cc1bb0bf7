"""lwc against other engines, side by side. See benchmarks/README.md for the protocol; `python -m benchmarks.peers`."""

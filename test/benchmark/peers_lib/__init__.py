"""The parts of test/benchmark/peers.py."""

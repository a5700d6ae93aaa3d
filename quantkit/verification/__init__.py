"""Checks of a file: verdict, latency, executed precisions, parity with its simulation, this processor, the reference."""

"""Checks of a file: verdict, latency, also beside others, executed precisions, parity with its simulation, this processor, the reference."""

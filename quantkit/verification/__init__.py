"""Checks of a file: verdict, latency, alone and beside others, executed precisions, parity with its simulation, this processor, the reference."""

"""Checks of files: verdict, latency, side by side, executed precisions, parity with the simulation, this processor, the reference."""

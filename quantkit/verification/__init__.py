"""What a file is and does: verdict, latency, what ran, parity with its simulation, this processor, the reference."""

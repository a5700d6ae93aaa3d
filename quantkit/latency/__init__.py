"""Measured latency: files timed side by side, and a model of it for plans that were not."""

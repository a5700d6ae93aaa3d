"""The runtimes' own arithmetic, written out: the one rounding, float sums in their order, pairs that saturate, functions of codes."""

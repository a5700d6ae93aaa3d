"""A run directory, its stages, its history, its result, and the plan read back or chosen again."""

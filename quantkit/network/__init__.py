"""The captured network: its canonical form, its operations by kind, its batch norms folded."""

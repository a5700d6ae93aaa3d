"""What quantizing a weight does: grids and roundings, the codes that every stage shares, and their simulation in integers."""

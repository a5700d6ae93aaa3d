"""The shared engine of estimators: every loop over items or layers that more than one of them needs, once."""

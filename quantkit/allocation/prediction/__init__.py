"""All that is predicted of a plan, and what predictions are worth."""

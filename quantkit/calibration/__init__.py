"""The ranges of activations: observers, and the pass over calibration items that fills them."""

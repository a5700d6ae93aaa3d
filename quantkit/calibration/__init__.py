"""What the calibration items, or the network's own statistics, say before anything is rounded.

observers.py      what is remembered of a tensor, and the range that each method reads from it
ranges.py         the pass over the items that fills them, and the grids that follow
channels.py       which channels hang together, so that one factor may multiply them
equalization.py   factors that balance channels between layers
distillation.py   items made of batch norms, where there are none
"""

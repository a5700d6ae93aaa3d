"""Decoders that do not fit: weights are read, rounded, written and let go of block by block, and no form of the network is ever whole.

`job.run` is the whole path on one page; below it `passes` goes through the blocks, `search` measures candidates, `simulation` holds the
file that ships against torch.
"""

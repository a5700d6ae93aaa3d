"""The stages of `pipeline.run`: what each depends on, what it keeps, and what it tells the user.

items.py     every item read once, and refused before any work
network.py   capture, groups, calibration, what makes candidates
tables.py    scores, costs, the front
candidates.py  a plan's file, and what it loses on the search split
choice.py    the search on measured drops, and the choice among its finalists
trust.py     the certificate: what predictions are worth
verdict.py   the final file on the gate split, its baselines, the result
kept.py      the whole result, asked for again
"""

"""The stages of `pipeline.run`: what each depends on, what it keeps, and what it tells the user.

network.py   capture, groups, calibration, what makes candidates
tables.py    scores, costs, the front
choice.py    the search on measured drops, and the choice among its finalists
verdict.py   the final file on the gate split, its baselines, the result
kept.py      the whole result, asked for again
"""

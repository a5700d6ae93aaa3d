"""The steps of `pipeline.run`: what each depends on, what it keeps, and what it reports.

items.py              every item read once, and refused before any work
network.py            capture, groups, calibration, what makes candidates
scores_and_costs.py   what each (group, scheme) loses and costs; the front that follows
candidates.py         a plan's file, and what it loses on the search split
search.py             the search on measured drops, and the choice among its finalists
certify.py            predictions fitted to measured plans, and tested on others
verdict.py            the final file on the gate split, its baselines, the result
stored_result.py      the whole result, asked for again
"""

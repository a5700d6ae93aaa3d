"""The steps of `pipeline.run`, a file each: what a step depends on, what it keeps, and what it reports.

make_items.py · items.py     items distilled where there are none; every item read once, and refused before any work
request_record.py            what was asked, as the history and request.json keep it
capture.py · groups.py       the captured network and its float file; its groups and what each may take
ranges.py · weights.py       ranges of activations; every weight rounded under every scheme
plan_weights.py · sequence.py · effort.py   weights rounded for one plan, in its own network, and for which plans
candidates.py · judge.py     whatever a plan needs to become a file; what that file loses on the search split
scores.py · costs.py · front.py   what each (group, scheme) loses and costs; the front that follows
certify.py                   predictions fitted to measured plans, and tested on others
search.py · finalists.py · refused.py   the search on measured drops, the choice among what passed, what was not chosen
latency_bound.py             the search again, where the file is slower than asked
plan_file.py · verify.py · variants.py · verdict.py   plan.json; the final file on the gate split; other forms; the result
drop_in.py                   the file in the place of the user's own ONNX file
stored_result.py             the whole result, asked for again

A step's result is stale when a module that its file imports has changed; imports for annotations alone stand below `if TYPE_CHECKING`.
"""

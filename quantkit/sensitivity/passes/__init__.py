"""The shared engine of estimators: every loop over items or layers that more than one of them needs, once.

bound.py      all of them, bound to one captured network
batches.py    items as a network takes them
perturbed.py  re-runs with one group changed, or two    changes.py    by what quantizing changes a weight, an input, an output
float_forward.py  a float run, each tensor in reach   recorded.py   that run, once it was recorded, and its gradients
gradients.py  squared gradients of single items         curvature.py  the Hessian, by products with vectors
trace.py      what traces are asked of and found
outputs.py    the space of the outputs: its metric, its losses   ranges.py   ranges chosen by what the outputs do
"""

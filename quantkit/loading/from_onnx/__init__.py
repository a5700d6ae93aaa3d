"""A network from an ONNX file: a torch module that computes the same, operator by operator.

opening.py    any ONNX file, opened without trust
network.py    the module: its parameters under the names of the file, its constants folded
comparison.py its answers beside ONNX Runtime's
bounded.py    no operation takes more memory than a network may
branches.py   an If that shapes decide
rest.py       what stands behind the network and stays as it is
fusions.py    what several operators are together: a linear layer, a GELU
recurrent.py  parameters of recurrent layers in torch's order
operators/    what each operator is in torch, one row each
"""

"""ONNX files that something has happened to: bytes flipped, cut out and doubled, and names, types and numbers shuffled in what parses."""

from __future__ import annotations

import numpy as np
import onnx


def mutated(content: bytes, random: np.random.Generator, structure: bool, most: int = 3) -> bytes:
    """`content` with a few changes, at `most` so many: to its bytes, or with `structure` to what they say."""
    changes = int(random.integers(1, most + 1))
    return _restructured(content, random, changes) if structure else _damaged(bytearray(content), random, changes)


def _damaged(content: bytearray, random: np.random.Generator, changes: int) -> bytes:
    for _ in range(changes):
        place = int(random.integers(len(content)))
        kind = random.integers(3)
        if kind == 0:
            content[place] = int(random.integers(256))
        elif kind == 1:
            del content[place : place + int(random.integers(1, 20))]
        else:
            content[place:place] = content[place : place + int(random.integers(1, 20))]
    return bytes(content)


def _restructured(content: bytes, random: np.random.Generator, changes: int) -> bytes:
    model = onnx.ModelProto.FromString(content)
    nodes, constants = list(model.graph.node), list(model.graph.initializer)
    for _ in range(changes):
        node = nodes[int(random.integers(len(nodes)))]
        kind = random.integers(7)
        if kind == 0 and node.input:
            del node.input[int(random.integers(len(node.input)))]
        elif kind == 1:
            del node.output[:]
        elif kind == 2 and constants:
            constants[int(random.integers(len(constants)))].data_type = int(random.integers(30))
        elif kind == 3 and constants:
            constants[int(random.integers(len(constants)))].dims.append(int(random.integers(-2, 1 << 40)))
        elif kind == 4 and node.attribute:
            attribute = node.attribute[int(random.integers(len(node.attribute)))]
            attribute.i = int(random.integers(-3, 1 << int(random.integers(1, 50))))
            for place in range(len(attribute.ints)):
                attribute.ints[place] = int(random.integers(-3, 1 << int(random.integers(1, 50))))
        elif kind == 5 and constants:
            constant = constants[int(random.integers(len(constants)))]
            if constant.data_type == onnx.TensorProto.INT64 and constant.raw_data:
                sizes = random.integers(-3, 1 << int(random.integers(1, 50)), len(constant.raw_data) // 8)
                constant.raw_data = sizes.astype(np.int64).tobytes()
        else:
            node.input.append(node.output[0] if node.output else "")
    return bytes(model.SerializeToString())

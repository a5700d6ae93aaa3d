"""Plain words and arithmetic that every other package rests on: none of it knows torch modules or ONNX."""

"""Data types and arithmetic that every other package uses: none of it depends on torch modules or ONNX."""

"""From the captured network to files: the float graph, quantized plans cut from it, and what the runtime makes of them."""

"""Integer codes in torch, bit for bit what the runtime computes: the program, and the kernels without weights."""

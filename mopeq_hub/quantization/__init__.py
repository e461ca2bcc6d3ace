"""From 16-bit weights to packed ones: the kernels, auto-round's layout, and the stream that writes a repo."""

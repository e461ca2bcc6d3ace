"""MolmoE (allenai/MolmoE-1B-0924): model type `molmo` with mixture-of-experts blocks."""

"""The runtime: published models whose packed weights are computed with as they lie, on a CPU."""

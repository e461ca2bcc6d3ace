"""`make bench`: what the project promises about speed and quality, measured beside auto-round on the same data.

Run on idle cores. Figures are medians over turns, ours and the rival's one after the other; quote the ratios.
"""

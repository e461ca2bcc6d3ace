"""The catalog of publications, and the workflows that keep it."""

"""Compiled arithmetic on weights as they lie in mapped files: the one place with hand-written vector code."""

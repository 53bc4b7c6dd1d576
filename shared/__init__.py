"""The kernel: the code that all features share. It depends on no feature."""

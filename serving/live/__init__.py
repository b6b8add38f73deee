"""The ports on real weights: processes, sockets, PyTorch. Only this package imports torch."""

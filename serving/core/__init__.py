"""Core: the domain's objects and the seams between them; pure Python, one thread, no I/O."""

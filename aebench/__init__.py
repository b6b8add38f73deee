"""The harness: knows papers, files and terminals; ``serving`` is the engine it runs."""

"""Workload: what arrives and when; a spec and a seed give an iterator, the same one each time."""

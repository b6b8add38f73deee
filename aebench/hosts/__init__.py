"""Hosts: where a point is executed."""

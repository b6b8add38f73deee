"""Sim: the ports in virtual time."""

"""Calibration: measure a machine through the ports of a live run, and fit the profile that the simulator reads."""

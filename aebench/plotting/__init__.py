"""Plotting: one kind of plot a file; the sole importer of matplotlib."""

"""Cost: time and memory as functions of model, GPU and plan; no state, every number with its source."""

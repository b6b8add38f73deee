"""Mechanisms: how an Action is carried out; flows over time, no choices."""

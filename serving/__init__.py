"""The bundled serving engine: policies, mechanisms, cost models and two backends; knows nothing of papers' figures."""

from serving.policies import SYSTEMS
from serving.serve import Setup, serve

__all__ = ["SYSTEMS", "Setup", "serve"]

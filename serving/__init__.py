"""The bundled serving engine: policies, mechanisms, cost models and two backends; knows nothing of papers' figures.

``serving.serve`` runs a workload in virtual time, ``serving.live.setup`` on real weights. Nothing is imported here, for
the processes of a live run pay for every import before their first byte.
"""

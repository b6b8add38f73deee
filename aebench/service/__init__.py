"""The HTTP service: OpenAI's completions and chat, HydraServe's own request shape, health, metrics; over one engine."""

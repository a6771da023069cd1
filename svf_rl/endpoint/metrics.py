"""What an endpoint counts, at `/metrics` beside vLLM's own figures."""

from prometheus_client import Counter, Histogram

REQUESTS = Counter("svf_rl_requests", "Answers by adapter, and how it was chosen", ["model", "chosen", "status"])
CLASSIFYING = Histogram("svf_rl_classification_seconds", "From a request for auto to its expert")

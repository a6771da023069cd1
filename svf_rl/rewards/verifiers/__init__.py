"""One file a verifier; each becomes a reward of its name by itself."""

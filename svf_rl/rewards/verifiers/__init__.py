"""One file per verifier; each is a reward of the same name too."""

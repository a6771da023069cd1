"""How the first pass of dispatch finds the class of a prompt: one file a strategy, found by its name.

To add one, copy `loglikelihood.py` and give its `STRATEGY` a new name.
"""

from svf_rl.adaptation.strategies.strategy import Classified, Scorer, Strategy, find_strategy

__all__ = ["Classified", "Scorer", "Strategy", "find_strategy"]

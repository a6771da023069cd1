"""Answers of several turns: tools, environments, and the loop over the turns."""

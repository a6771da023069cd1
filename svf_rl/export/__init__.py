"""Adapters for engines that do not know SVF, each with a certificate of what it does there."""

"""Files on disk: written whole or not at all, locked, read with one-line errors, compared with what is there."""

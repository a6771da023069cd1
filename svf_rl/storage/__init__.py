"""Files on disk: locks, folders that appear whole, names of folders."""

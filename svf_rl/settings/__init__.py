"""From a recipe in YAML to checked settings, and the dry run."""

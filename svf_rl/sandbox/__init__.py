"""Running what models wrote: worker processes, and bubblewrap around their programs."""

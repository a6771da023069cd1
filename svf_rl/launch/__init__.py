"""How processes start: SLURM jobs and vLLM servers."""

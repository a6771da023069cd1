"""A vLLM whose adapted layers are factored: `y = ((x V) · M[row]) Uᵀ`, with a row for each adapter of a batch."""

"""`svf-rl report`: run folders in, Markdown with pictures out. Reads files alone: no model, no accelerator."""

"""What runs inside the sandbox. Standard library only, and no import of svf_rl."""

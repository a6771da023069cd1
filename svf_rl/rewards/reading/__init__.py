"""What verifiers read of a completion: where its answer stands, the number or the mathematics there, its program."""

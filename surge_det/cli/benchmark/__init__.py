"""What the benchmark tools share."""

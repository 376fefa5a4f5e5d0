"""What is left of a cascade when twice as much comes in as it can serve: with gears, without, and turning away."""

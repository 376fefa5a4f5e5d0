"""A cascade under more arrivals than it can serve: with gears, without, and turning requests away."""

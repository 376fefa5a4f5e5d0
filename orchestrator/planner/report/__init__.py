"""The report of a plan: its numbers, pictures, and one page that needs nothing else."""

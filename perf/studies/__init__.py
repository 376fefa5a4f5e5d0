"""The studies: each is a configuration of the harness, what it measures besides, and the text that reports it."""

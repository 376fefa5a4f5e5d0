"""What a model does to an image before the network: read, built as nodes, measured."""

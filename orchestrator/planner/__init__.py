"""Planning from recorded outputs: records, replay, threshold search."""

"""The embedded Triton: a stock tritonserver from a wheel, for development, CI and first contact."""

"""Asking a served cascade, ensemble or member over the network: gRPC (sync and asyncio) and HTTP."""

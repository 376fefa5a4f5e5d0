"""Queues of cascades, simulated and by the model of `committee size`, at rates that no machine here can carry."""

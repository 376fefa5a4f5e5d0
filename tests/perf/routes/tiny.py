"""The three CNNs of the bench, much smaller."""

from perf.routes.scenario import Recipe
from perf.routes.three_cnn import Network, three_cnn

NETWORKS = (
    Network(name="cnn_small", layers=((4, 2), (8, 2)), seed=1),
    Network(name="cnn_medium", layers=((8, 2), (16, 2)), seed=2),
    Network(name="cnn_large", layers=((16, 2), (24, 2)), seed=3),
)
TINY: Recipe = three_cnn(NETWORKS, pool=768, recorded=128)

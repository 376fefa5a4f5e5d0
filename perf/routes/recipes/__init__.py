"""Every scenario by name. Members with random weights are made from scratch by generators."""

from perf.routes.recipes.efficientnet import efficientnet
from perf.routes.recipes.three_cnn import sized_three_cnn
from perf.routes.recipes.trained import digits, glyphs
from perf.routes.scenario import Recipe

# A scenario of a trained committee with a plan of its own is one call of `trained.planned`.
RECIPES: dict[str, Recipe] = {
    recipe.scenario.name: recipe for recipe in (sized_three_cnn(), efficientnet(), digits(), *glyphs())
}

"""The scenarios there are. One that needs members somebody else makes is there once they are."""

from __future__ import annotations

from perf.routes.recipe import Recipe
from perf.routes.recipes.efficientnet import efficientnet
from perf.routes.recipes.glyphs import glyphs
from perf.routes.recipes.three_cnn import sized_three_cnn
from perf.routes.recipes.trained import digits

# A scenario of a trained committee with a plan of its own is one call of `recipes.planned.planned`.
RECIPES: dict[str, Recipe] = {
    recipe.scenario.name: recipe for recipe in (sized_three_cnn(), efficientnet(), digits(), *glyphs())
}

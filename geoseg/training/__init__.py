"""How a network learns: recipes, data, the loop, and weights to begin with."""

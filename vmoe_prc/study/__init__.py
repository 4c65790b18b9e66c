"""Studies: arms of one recipe, each trained with several seeds, and what they show."""

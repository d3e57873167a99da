"""Pictures of what a model finds and how it learned: heat maps, contact sheets, curves."""

"""Many clips: where they come from, what became of each, and where their codes go."""

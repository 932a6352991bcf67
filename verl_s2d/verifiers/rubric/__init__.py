"""Score responses by weighted criteria that a model behind an OpenAI-compatible endpoint judges."""

"""Start a recipe of a user's own: `verl-s2d init`."""

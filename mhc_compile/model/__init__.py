"""Sites in the user's model."""

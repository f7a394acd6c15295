"""What runs models: one protocol, its engines, label scoring and the response cache."""

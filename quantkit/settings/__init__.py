"""The request: recipe, configuration file, options, bounds."""

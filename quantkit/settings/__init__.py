"""What the user says: recipe, configuration file, options, bounds."""

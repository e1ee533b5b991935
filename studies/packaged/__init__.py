"""Make the fitted models that come with the package, from published rows."""

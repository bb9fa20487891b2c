"""How a packaged model is loaded and called, one file for each flavor. The framework is imported when its model is."""

"""Other frameworks: mmengine and spandrel. They never import each other."""

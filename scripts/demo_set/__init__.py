"""How the demo set is made, one concept a module: metadata, captions, pictures, families, splits."""

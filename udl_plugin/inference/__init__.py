"""Use of trained networks: upscaling, pictures of uncertainty maps, and cost."""

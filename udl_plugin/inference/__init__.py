"""Trained networks at work: upscaling, pictures of uncertainty maps, and what a network costs."""

"""Image classification: 2D images at any resolution, few per class, over workers that may each keep their own data."""

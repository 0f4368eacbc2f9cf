"""From trained networks to label maps on the images' own grids."""

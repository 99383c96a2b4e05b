"Measures of generated images: distances, path length, severity, equivariance."

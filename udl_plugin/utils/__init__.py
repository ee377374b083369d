"""What every folder may use: atomic writes, parallel maps, MATLAB's imresize."""

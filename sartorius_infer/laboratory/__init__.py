"""What laboratories take home: label maps, outlines for ImageJ, measurements."""
